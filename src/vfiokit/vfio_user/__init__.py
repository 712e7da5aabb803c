"""vfio-user: VFIO's device interface over a socket.

:mod:`~vfiokit.vfio_user.wire` is the codec, :mod:`~vfiokit.vfio_user.session` what both ends agree
on; neither does any I/O.
"""

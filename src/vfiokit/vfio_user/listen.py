"""A socket to be found at: binding, one client after the other, a clean end.

The socket has mode 0600, so that only its owner's programs connect. A stale one of a server that is
gone is replaced; one that somebody listens at is left alone. ``SIGTERM`` ends the wait.

Source: QEMU ``docs/interop/vhost-user.rst``, whose conventions for backend programs vfio-user's
follow (``--socket-path``, ``--fd``); ``sd_notify(3)``.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import selectors
import socket
import stat
from pathlib import Path

from vfiokit.errors import KernelError, UsageError
from vfiokit.vfio_user.server import Server

_log = logging.getLogger(__name__)


def bind(path: str | os.PathLike[str]) -> socket.socket:
    """A listening socket at ``path`` with mode 0600.

    Raises :class:`KernelError`: EADDRINUSE where a server listens, EEXIST where ``path`` is no
    socket, and whatever else the system says.
    """
    name = os.fspath(path)
    _remove_stale(name)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        sock.bind(name)
        sock.listen(4)
    except OSError as error:
        sock.close()
        code = error.errno or errno.EINVAL
        hint = "a socket's path has 107 bytes at most" if "too long" in str(error) else ""
        raise KernelError("bind", name, code, hint=hint) from error
    finally:
        os.umask(mask)
    return sock


def _remove_stale(name: str) -> None:
    try:
        kind = os.lstat(name).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise KernelError("bind", name, errno.EEXIST, hint="the path names a file; choose another")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(name)
        except ConnectionRefusedError:
            Path(name).unlink()
            return
        except OSError as error:
            raise KernelError("connect", name, error.errno or errno.EIO) from error
    raise KernelError("bind", name, errno.EADDRINUSE, hint="a server listens there already")


def inherited(fd: int) -> socket.socket:
    """A socket that this process was given: listening or connected; :class:`UsageError` else."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise UsageError(f"descriptor {fd} is no socket: {error.strerror}") from error
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise UsageError(f"descriptor {fd} is no stream socket of the unix family")
    return sock


def is_listening(sock: socket.socket) -> bool:
    """Whether clients connect to ``sock``, or one is at its other end already."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


class Listener:
    """Serves one client after the other at ``sock`` until :meth:`stop`.

    ``stop`` may be called from a signal handler or another thread. While a client is there, others
    wait in the queue of the socket. With ``once`` the first client is the last.
    """

    def __init__(self, server: Server, sock: socket.socket, *, once: bool = False) -> None:
        self._server = server
        self._sock = sock
        self._once = once
        self._wake, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._client: socket.socket | None = None
        self._stopped = False
        self.served = 0
        """Clients that came so far."""

    def run(self) -> None:
        """Until stopped; the listening socket is closed then."""
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._sock, selectors.EVENT_READ)
                selector.register(self._wake, selectors.EVENT_READ)
                while not self._stopped:
                    ready = [key.fileobj for key, _events in selector.select()]
                    if self._sock in ready and not self._stopped:
                        self._serve_next()
                        if self._once:
                            return
        finally:
            self._sock.close()
            self._wake.close()
            self._waker.close()

    def _serve_next(self) -> None:
        try:
            client, _address = self._sock.accept()
        except OSError as error:  # it left again before it was taken
            _log.info("no client after all: %s", error)
            return
        self._client = client
        self.served += 1
        _log.info("client %d connected", self.served)
        try:
            if not self._stopped:
                why = self._server.serve(client)
                _log.info("client %d is gone: %s", self.served, why)
        finally:
            self._client = None
            client.close()

    def stop(self) -> None:
        """End :meth:`run` soon, a client that is there included."""
        self._stopped = True
        client = self._client
        with contextlib.suppress(OSError):
            if client is not None:
                client.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._waker.send(b"x")


def notify(state: str) -> bool:
    """Tell the service manager (``READY=1``); false where there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(state.encode(), address)
        except OSError as error:
            _log.warning("the service manager cannot be told: %s", error)
            return False
    return True

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
import signal
import socket
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vfiokit.errors import KernelError, UsageError
from vfiokit.vfio_user.server import Server

_CREDENTIALS: Final = struct.Struct("iII")
_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
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


def allow_many_files() -> None:
    """Raise this process's limit of open files as far as it goes: a mapping of a client has one."""
    import resource

    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Listener:
    """Serves one client after the other at ``sock`` until :meth:`stop`.

    ``sock`` may also be connected already: then the client at its other end is the only one. While
    a client is there, others wait in the queue of the socket. With ``once`` the first client is the
    last. ``path`` is removed at the end.
    """

    def __init__(
        self,
        server: Server,
        sock: socket.socket,
        *,
        once: bool = False,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        self._server = server
        self._sock = sock
        self._once = once
        self._path = path
        self._wake, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._stopped = False
        self.served = 0
        """Clients that came so far."""

    def run(self) -> None:
        """Until stopped; the socket is closed then."""
        try:
            if is_listening(self._sock):
                self._listen()
            else:
                self._serve(self._sock)
        finally:
            if self._path is not None:
                _remove_own(self._path, self._sock)
            self._sock.close()
            self._wake.close()
            self._waker.close()

    def _listen(self) -> None:
        self._sock.setblocking(False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._sock, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            while not self._stopped:
                selector.select()
                try:
                    client, _address = self._sock.accept()
                except OSError as error:  # woken, or it left again before it was taken
                    if error.errno in _NO_ROOM:
                        _log.error("no client can be taken: %s", error)
                        time.sleep(0.1)
                    continue
                with client:
                    self._serve(client)
                if self._once:
                    return

    def _serve(self, client: socket.socket) -> None:
        if self._stopped:
            return
        self.served += 1
        number, begun = self.served, time.monotonic()
        _log.info("client %d connected%s", number, _peer(client))
        why = self._server.serve(client)
        _log.info("client %d is gone after %.1f s: %s", number, time.monotonic() - begun, why)

    def stop(self) -> None:
        """End :meth:`run` soon, a client that is there included.

        May be called from a signal handler or another thread, and more than once.
        """
        self._stopped = True
        self._server.stop()
        with contextlib.suppress(OSError):
            self._waker.send(b"x")

    @contextlib.contextmanager
    def stopping_at(self, *signals: signal.Signals) -> Iterator[None]:
        """Inside, these signals stop it; for the main thread only."""
        before = {
            each: signal.signal(each, lambda _number, _frame: self.stop()) for each in signals
        }
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def _peer(client: socket.socket) -> str:
    """Which process is at the other end, for people; empty where nobody knows."""
    try:
        packed = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        process, user, _group = _CREDENTIALS.unpack(packed)
    except OSError:
        return ""
    return f": process {process} of user {user}" if process > 0 else ""


def _remove_own(path: str | os.PathLike[str], sock: socket.socket) -> None:
    """Remove the socket's file, unless it is another server's by now."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        sock.close()
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            Path(path).unlink()


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

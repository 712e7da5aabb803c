"""Waiting for a client's messages and, meanwhile, for eventfds that stand for some of them.

An eventfd that unmasks the pin or rings a doorbell is written by the client's kernel (KVM), with
no message. Most clients give none, and then nothing is polled.
"""

from __future__ import annotations

import select
from collections.abc import Callable


class Poller:
    """Eventfds beside the socket ``link_fd``; all stay their owners'."""

    def __init__(self, link_fd: int) -> None:
        self._link_fd = link_fd
        self._epoll: select.epoll | None = None
        self._actions: dict[int, Callable[[], None]] = {}

    @property
    def active(self) -> bool:
        """Whether anything is watched."""
        return bool(self._actions)

    def watch(self, fd: int, action: Callable[[], None]) -> None:
        """Call ``action`` whenever the eventfd is written.

        Edge triggered, so that nobody has to read the counter: a read of an eventfd that its other
        owner has emptied meanwhile could block.
        """
        if self._epoll is None:
            self._epoll = select.epoll()
            self._epoll.register(self._link_fd, select.EPOLLIN)
        if fd not in self._actions:  # else its counter, which stays, would count anew
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        self._actions[fd] = action

    def forget(self, fd: int) -> None:
        """Watch it no longer; to be called before it is closed."""
        if self._actions.pop(fd, None) is not None and self._epoll is not None:
            self._epoll.unregister(fd)

    def wait(self) -> None:
        """Return when the socket has something to read; run what falls due until then."""
        while self._epoll is not None and self._actions:
            readable = False
            for fd, _events in self._epoll.poll():
                action = self._actions.get(fd)
                if action is not None:
                    action()
                readable = readable or fd == self._link_fd
            if readable:
                return

    def close(self) -> None:
        """Watch nothing any more."""
        self._actions.clear()
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None

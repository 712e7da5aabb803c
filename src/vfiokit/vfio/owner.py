"""What everything that holds something of the kernel's has in common: it gives it back."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Closing(ABC):
    """Closed by its ``with`` block."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Give back what it holds. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Owner(Closing):
    """Holds something of the kernel's; forgotten, it warns with :class:`ResourceWarning`."""

    @property
    @abstractmethod
    def _holds(self) -> bool:
        """Whether there is something to give back; may fail before construction is done."""

    def __del__(self) -> None:
        try:
            held = self._holds
        except AttributeError:  # the constructor failed
            return
        if held:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=1)

"""An error on its way from one process to another."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ...erofs import errors
from ...erofs.errors import BackendError, FormatError, KernelError, NydusErofsError

MAX_TEXT = 4096  # characters
Text = Annotated[str, Meta(max_length=MAX_TEXT)]


def printable(text: str) -> str:
    """One line without anything that a terminal would obey, or that UTF-8 has no bytes for. It may name files."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)[:MAX_TEXT]


class Fault(msgspec.Struct, forbid_unknown_fields=True):
    """``kind`` is the name of the error's class."""

    kind: Annotated[str, Meta(max_length=64)]
    message: Text
    hint: Text = ""
    retryable: bool = False  # of a BackendError
    number: int = 0  # errno of a KernelError

    @classmethod
    def of(cls, error: NydusErofsError) -> Fault:
        retryable = isinstance(error, BackendError) and error.retryable
        number = error.number if isinstance(error, KernelError) else 0
        text, hint = printable(error.message), printable(error.hint or "")
        return cls(type(error).__name__, text, hint, retryable, number)

    def error(self) -> NydusErofsError:
        """The same error here. The sender is not trusted: an unknown kind becomes a FormatError."""
        kind = getattr(errors, self.kind, None)
        if not (isinstance(kind, type) and issubclass(kind, NydusErofsError)):
            kind = FormatError
        error: NydusErofsError = kind(printable(self.message), hint=printable(self.hint) or None)
        if isinstance(error, BackendError):
            error.retryable = self.retryable
        if isinstance(error, KernelError) and self.number:
            error.number = self.number
        return error

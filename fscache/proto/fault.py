"""An error on its way from one process to another."""

from __future__ import annotations

import msgspec

from ...erofs import errors
from ...erofs.errors import BackendError, FormatError, NydusErofsError


class Fault(msgspec.Struct, forbid_unknown_fields=True):
    """``kind`` is the name of the error's class."""

    kind: str
    message: str
    hint: str = ""
    retryable: bool = False  # of a BackendError

    @classmethod
    def of(cls, error: NydusErofsError) -> Fault:
        retryable = isinstance(error, BackendError) and error.retryable
        return cls(type(error).__name__, error.message, error.hint or "", retryable)

    def error(self) -> NydusErofsError:
        """The same error here. The sender is not trusted: an unknown kind becomes a FormatError."""
        kind = getattr(errors, self.kind, None)
        if not (isinstance(kind, type) and issubclass(kind, NydusErofsError)):
            kind = FormatError
        error: NydusErofsError = kind(self.message, hint=self.hint or None)
        if isinstance(error, BackendError):
            error.retryable = self.retryable
        return error

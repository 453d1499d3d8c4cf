"""One tree of errors for the whole project.

Every error is one sentence for a person, with an optional hint: what to do about it.
The class carries the exit code for the shell and the errno for a kernel that is waiting.
"""

from __future__ import annotations

import errno

from .rules import Rule

TYPE_CHECKING = False  # typing itself is not imported: every command waits for this module
if TYPE_CHECKING:
    from typing import ClassVar


class NydusErofsError(Exception):
    """Base of all errors that a person is meant to read.

    Args:
        message: what is wrong, one line, naming the thing it is about.
        hint: what to do about it, one line.
    """

    exit_code: ClassVar[int] = 1
    errno: ClassVar[int] = errno.EIO
    message: str
    hint: str | None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __setattr__(self, name: str, value: object) -> None:
        """Message and hint are a printable line each, whoever wrote the words in them: they go to terminals."""
        if isinstance(value, str) and name in ("message", "hint") and not value.isprintable():
            value = "".join([char if char.isprintable() else ascii(char)[1:-1] for char in value])
        super().__setattr__(name, value)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class FormatError(NydusErofsError, ValueError):
    """Bytes that are not the format they claim to be: corrupt, truncated or foreign; ``rule`` names the invariant."""

    exit_code = 3

    def __init__(self, message: str, *, hint: str | None = None, rule: Rule = Rule.FORMAT) -> None:
        super().__init__(message, hint=hint)
        self.rule = rule
        self.place = ""  # what ``at`` put before the message

    def at(self, place: str) -> FormatError:
        """The same error, saying where."""
        error = FormatError(f"{place}: {self.message}", hint=self.hint, rule=self.rule)
        error.place = place
        return error


class NoSuchPathError(NydusErofsError, LookupError):
    """An image has no file of that name."""

    errno = errno.ENOENT


class UnsupportedError(NydusErofsError):
    """A known feature that this version or this host cannot do."""

    exit_code = 4
    errno = errno.EOPNOTSUPP


class ConfigError(NydusErofsError, ValueError):
    """A wrong option or configuration value; the message names the option or the JSON path."""

    exit_code = 2
    errno = errno.EINVAL


class SourceError(NydusErofsError):
    """The tree that an image is built from cannot be read, or changed meanwhile."""

    exit_code = 5


class OutputError(NydusErofsError):
    """What is being built cannot be written where it was asked for."""

    exit_code = 11
    errno = errno.ENOSPC


class BackendError(NydusErofsError):
    """Bytes of a blob cannot be had from where they are kept.

    Args:
        retryable: whether the same request may succeed later.
        retry_after: seconds that the server asks to wait before.
    """

    exit_code = 6

    def __init__(
        self, message: str, *, hint: str | None = None, retryable: bool = True, retry_after: float = 0.0
    ) -> None:
        super().__init__(message, hint=hint)
        self.retryable, self.retry_after = retryable, retry_after


class BlobNotFoundError(BackendError):
    """The backend answers, and has no such blob."""

    errno = errno.ENOENT

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, retryable=False)


class DeniedError(BackendError):
    """The backend answers, and does not let us: wrong or missing credentials, or no permission."""

    errno = errno.EACCES

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, retryable=False)


class CorruptError(BackendError, ValueError):
    """Bytes do not have the digest that they must have."""

    exit_code = 3

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, retryable=False)


class CacheFullError(NydusErofsError):
    """No room for fetched bytes."""

    exit_code = 7
    errno = errno.ENOSPC


class KernelError(NydusErofsError):
    """The kernel refused something; the message says what, the hint what it needs, ``number`` its errno."""

    exit_code = 8

    def __init__(self, message: str, *, hint: str | None = None, number: int = errno.EIO) -> None:
        super().__init__(message, hint=hint)
        self.number = number


class ServiceError(NydusErofsError):
    """The service is not there, already there, or says no."""

    exit_code = 9


class BusyError(ServiceError):
    """Something is in use and is left as it is."""

    exit_code = 10
    errno = errno.EBUSY

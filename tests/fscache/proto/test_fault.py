"""Errors on their way between processes: what arrives is what was raised, and can be shown to a person."""

from __future__ import annotations

import errno

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_erofs.erofs import errors
from nydus_erofs.erofs.errors import BackendError, KernelError, NydusErofsError
from nydus_erofs.fscache.proto.fault import MAX_TEXT, Fault

ANY = st.characters(exclude_categories=())  # surrogates, too
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, NydusErofsError)]


def sent(error: NydusErofsError) -> NydusErofsError:
    return msgspec.json.decode(msgspec.json.encode(Fault.of(error)), type=Fault).error()


@pytest.mark.parametrize("kind", KINDS)
def test_every_class(kind: type[NydusErofsError]) -> None:
    for hint in (None, "do that"):
        error = sent(kind("what is wrong", hint=hint))
        assert (type(error), error.message, error.hint) == (kind, "what is wrong", hint)


def test_what_else_a_class_carries() -> None:
    busy = sent(KernelError("mount", number=errno.EBUSY))
    assert isinstance(busy, KernelError)
    assert busy.number == errno.EBUSY
    for retryable in (True, False):
        error = sent(BackendError("away", retryable=retryable))
        assert isinstance(error, BackendError)
        assert error.retryable is retryable


@given(text=st.text(ANY, min_size=1), hint=st.text(ANY))
def test_any_text_arrives_as_one_line_that_can_be_shown(text: str, hint: str) -> None:
    """Names of files with line ends, escape sequences, or bytes that are no UTF-8."""
    error = sent(NydusErofsError(text, hint=hint))
    assert error.message.isprintable()
    assert (error.hint or "").isprintable()
    assert not text.isprintable() or error.message == text
    error.message.encode()


def test_what_a_stranger_sends_can_be_shown() -> None:
    error = Fault("BackendError", "\x1b[2J\r\n", "\x07").error()
    assert (error.message, error.hint) == (r"\x1b[2J\r\n", r"\x07")
    assert type(Fault("__import__", "x").error()) is errors.FormatError


def test_a_text_without_end_is_cut_off() -> None:
    assert len(sent(NydusErofsError("\0" * MAX_TEXT)).message) == MAX_TEXT

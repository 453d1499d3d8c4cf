"""Do plans of a blob agree? Images of a domain share what the kernel has of a blob, so each must say the same of it.

Plans are written by ``prepare``, which is not believed, and may be long: this is for children of the keeper.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from ....erofs.errors import FormatError
from ...kernel.plain import open_plain
from ...state.plan import Plan, PlanChunk, PlanFlags

_UNUSED = PlanFlags.UNUSED.value


def check_agreement(known: Sequence[str], new: str, blob: str, volume: str) -> None:
    """FormatError unless plan file ``new`` says the same as each of the ``known`` ones.

    All must have the same chunks in the same places, used or not: what one image fills must not reach into a chunk
    of another one. Only what an image does not use, it need not have the digest of.
    """
    plan = _open(new)
    for path in known:
        try:
            other = _open(path)
        except FormatError as error:
            with contextlib.suppress(OSError):
                os.unlink(path)  # so that the cached data is not used any more, and fetched again
            raise FormatError(
                f"blob {blob}: the plan of what domain {volume} has of it is gone: {error.message}",
                hint="unmount the images that use it, and mount them again",
            ) from None
        if what := _difference(plan, other):
            raise FormatError(
                f"blob {blob} has other {what} in another image of domain {volume}",
                hint="mount one of the images in another domain",
            )


def _open(path: str) -> Plan:
    try:
        return Plan(open_plain(path))
    except OSError as error:
        raise FormatError(str(error.strerror)) from None


def _difference(one: Plan, other: Plan) -> str:
    """What two plans disagree about; empty for nothing."""
    if (one.blob_id, one.segments) != (other.blob_id, other.segments):
        return "chunks"
    if (one.compression, one.digest_algo) != (other.compression, other.digest_algo):
        return "digests"
    for number in range(len(one.segments)):
        for mine, theirs in zip(one.chunks(number), other.chunks(number), strict=True):
            if _place(mine) != _place(theirs):
                return "chunks"
            if mine != theirs and not (mine.flags | theirs.flags) & _UNUSED:
                return "digests"
    return ""


def _place(chunk: PlanChunk) -> tuple[int, int, int]:
    """What is known of a chunk also where it is not used."""
    return chunk.compressed_offset, chunk.uncompressed_offset, chunk.uncompressed_size

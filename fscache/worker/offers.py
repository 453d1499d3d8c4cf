"""A worker's way to the verifier, which alone writes: chunks are offered, and judged."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from ...erofs.errors import BackendError, CacheFullError
from ...erofs.record import Buffer
from ..kernel import channel
from ..kernel.fd import Fd
from ..proto import verifier as proto
from ..proto.verifier import MOST_CHUNKS, PIECE


class VerifierGoneError(Exception):
    """There is no verifier any more, and there will not be one for this worker."""


class Judge(Protocol):
    """Whoever takes what is offered."""

    def ask(self, offer: proto.Offer, parts: list[Buffer]) -> proto.Verdict:
        """Offer what has these bytes."""
        ...


class Link:
    """Gives each thread a connection of its own. ``sock`` leads to the verifier."""

    def __init__(self, sock: Fd) -> None:
        self._sock = socket.socket(fileno=sock.steal())
        self._lock = threading.Lock()

    def connect(self) -> Connection:
        with self._lock:
            _, fds = _exchange(self._sock, b"!")
        end, memory = fds
        return Connection(socket.socket(fileno=end.steal()), memory)


class Connection:
    """One thread's way to the verifier: one offer at a time."""

    def __init__(self, sock: socket.socket, memory: Fd) -> None:
        self._sock, self._memory = sock, memory

    def ask(self, offer: proto.Offer, parts: list[Buffer]) -> proto.Verdict:
        _write(self._memory, parts)
        packet, _ = _exchange(self._sock, proto.encode(offer))
        return proto.decode_verdict(packet)

    def rest(self) -> None:
        """Nothing will be asked for a while: let go of the memory."""
        os.ftruncate(self._memory.fd, 0)


def _exchange(sock: socket.socket, packet: bytes) -> tuple[bytes, list[Fd]]:
    """Say something, and hear what is said to it."""
    try:
        channel.send(sock, packet)
        answer = channel.receive(sock, proto.MAX_MESSAGE)
    except ConnectionError:
        answer = b"", []
    if not answer[0]:
        raise VerifierGoneError
    return answer


def _write(memory: Fd, parts: list[Buffer]) -> None:
    at, total = 0, sum(map(len, parts))
    while at < total:
        at += os.pwritev(memory.fd, parts, at)
        if at < total:
            parts, at = [b"".join(parts)], 0


class Offers:
    """Chunks of one segment on their way, in order.

    Args:
        ask: offers chunks from some number on; how many of them are right.
        first: number of the first chunk.
        others: other bytes that the chunk of a number may have; raises when there are no more.
    """

    def __init__(
        self, ask: Callable[[int, list[Buffer]], int], first: int, others: Callable[[int], Iterator[Buffer]]
    ) -> None:
        self._ask, self._first, self._others = ask, first, others
        self._parts: list[Buffer] = []
        self._size = 0

    def put(self, data: Buffer) -> None:
        """The next chunk's bytes; none for one that the image does not use."""
        self._parts.append(data)
        self._size += len(data)
        if self._size >= PIECE or len(self._parts) >= MOST_CHUNKS:
            self.flush()

    def put_another(self) -> None:
        """The next chunk cannot even be decoded: any other bytes that are right."""
        self.flush()
        for data in self._others(self._first):
            if self._ask(self._first, [data]):
                self._first += 1
                return

    def flush(self) -> None:
        """Offer what was put and not offered yet; a chunk that is wrong is had from elsewhere."""
        parts, self._parts, self._size = self._parts, [], 0
        while parts:
            good = self._ask(self._first, parts)
            self._first += good
            wrong, parts = good < len(parts), parts[good + 1 :]
            if wrong:
                self.put_another()


def raise_for(verdict: proto.Verdict) -> None:
    """The error that a verdict tells of, if it does."""
    if verdict.full:
        raise CacheFullError("no room left for fetched data", hint="free space where the cache is")
    if verdict.error:
        raise BackendError(f"writing the cache: {verdict.error}", retryable=False)

"""The verifier's threads: one hears the keeper, one each a connection of a worker. Any thread's unexpected error ends
the whole process, so that the keeper starts a new one and nobody waits for a dead thread.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from ...erofs.errors import NydusErofsError
from ...erofs.source import FileSource
from ..kernel import channel
from ..kernel.fd import Fd
from ..kernel.process import crash
from ..proto import verifier as proto
from ..proto.worker import FillReason
from ..state.plan import Plan, RawPlan
from .cache_object import ObjectSink
from .scrub import Budget, Finding, Held, scrub
from .segment_files import SegmentFiles
from .store import RefusedError, Store

_USUAL = 3 * proto.PIECE  # bytes: a piece of chunks that have a MiB each


class Verifier:
    """Opens what the keeper names, and writes what workers offer and plans allow.

    Args:
        connections: that a worker may have.
    """

    def __init__(self, sock: socket.socket, connections: int) -> None:
        self._sock, self._connections = sock, connections
        self._stores: dict[int, Store] = {}
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)  # nothing of a store is being written any more
        self._writing: Counter[int] = Counter()  # pieces, by store
        self._buffers: list[bytearray] = []  # that nobody uses now: as many as pieces were judged at a time
        self._scrubbing = 0  # ticket of the one that is wanted
        self._send_lock = threading.Lock()

    def run(self) -> None:
        """Serve until the keeper is gone."""
        while True:
            packet, fds = channel.receive(self._sock, proto.MAX_MESSAGE)
            if not packet:
                return
            self._handle(proto.decode_for_verifier(packet), fds)

    def _handle(self, message: proto.ToVerifier, fds: Sequence[Fd]) -> None:
        match message:
            case proto.OpenFolder(store=number):
                plan, folder = fds
                self._open(number, lambda: Store(Plan(plan), SegmentFiles(folder)))
            case proto.OpenObject(store=number, raw_size=0):
                cache_object, plan = fds
                self._open(number, lambda: Store(Plan(plan), ObjectSink(cache_object)))
            case proto.OpenObject(store=number):
                cache_object, *files = fds
                whole = RawPlan("bootstrap", message.raw_size, message.segment_size)
                raw = FileSource(files[0].steal()) if files else None
                self._open(number, lambda: Store(whole, ObjectSink(cache_object), raw, message.identity))
            case proto.CloseStore(store=number):
                with self._lock:
                    self._stores.pop(number, None)
                    writing = self._writing[number]
                if writing:
                    start(self._close, number)
                else:
                    self._tell(proto.Closed(number))
            case proto.Scrub():
                self._scrubbing = message.ticket
                start(self._scrub, message, self._stores.get(message.store), fds)
            case proto.EndScrub():
                self._scrubbing = 0
            case proto.Cut():
                start(self._cut, message, self._stores.get(message.store))
            case proto.Ping():
                self._tell(proto.Pong())
            case proto.Connect():
                start(self._welcome, fds[0])

    def _open(self, number: int, make: Callable[[], Store]) -> None:
        """Open a store. Of one that cannot be opened nothing is there, and what is offered of it is refused."""
        bits = 0
        try:
            store = make()
            bits = sum(1 << segment for segment, there in enumerate(store.filled(store.plan)) if there)
        except (NydusErofsError, OSError) as error:
            sys.stderr.write(f"a store cannot be opened: {error}\n")
        else:
            with self._lock:
                self._stores[number] = store
        self._tell(proto.Present(number, f"{bits:x}"))

    def _close(self, number: int) -> None:
        with self._lock:
            while self._writing[number]:
                self._idle.wait()
        self._tell(proto.Closed(number))

    def _scrub(self, message: proto.Scrub, store: Store | None, files: Sequence[Fd]) -> None:
        number, error = message.store, ""
        if store is None:
            self._tell(proto.Scrubbed(message.ticket, number, proto.NO_PLAN))
            return
        plan, sink = store.plan, store.sink
        assert isinstance(plan, Plan)

        def wanted() -> bool:
            return self._scrubbing == message.ticket and number in self._stores

        def look(segment: int) -> Held:
            if isinstance(sink, ObjectSink):
                return sink.held(segment, plan, files[0])
            assert isinstance(sink, SegmentFiles)
            return sink.held(segment, plan)

        try:
            if plan.key() != message.key:
                error = proto.NO_PLAN
            else:
                budget = Budget(message.rate)
                for segment, found in scrub(plan, look, message.first, budget, wanted):
                    if isinstance(found, Finding):
                        self._tell(proto.Checked(message.ticket, number, segment, *found))
                    else:
                        self._tell(proto.Unreadable(message.ticket, number, segment, found))
        except NydusErofsError:  # it was right a moment ago
            error = proto.NO_PLAN
        except OSError as failure:
            error = os.strerror(failure.errno or 0)
        self._tell(proto.Scrubbed(message.ticket, number, error))

    def _cut(self, message: proto.Cut, store: Store | None) -> None:
        done = proto.Shortened(message.store, message.segment, message.have)
        if store is None:
            self._tell(msgspec.structs.replace(done, error="the store is not open"))
            return
        try:
            store.cut(message.segment, message.have, lambda: self._tell(done))
        except ConnectionError:
            raise
        except OSError as failure:
            self._tell(msgspec.structs.replace(done, error=os.strerror(failure.errno or 0)))

    def _tell(self, message: proto.ToKeeper) -> None:
        with self._send_lock:
            channel.send(self._sock, proto.encode(message))

    # --- workers ---

    def _welcome(self, link: Fd) -> None:
        """Give a worker the connections that it asks for, as long as it lives."""
        with socket.socket(fileno=link.steal()) as sock:
            for _ in range(self._connections):
                try:
                    packet, _ = channel.receive(sock, 1, 0)
                    if not packet:
                        return
                    ours, theirs = channel.pair()
                    memory = Fd(os.memfd_create("chunks", os.MFD_CLOEXEC))
                    with Fd(theirs.detach()) as end:
                        channel.send(sock, b"!", [end, memory])
                except ConnectionError:
                    return
                start(self._serve, ours, memory)

    def _serve(self, sock: socket.socket, memory: Fd) -> None:
        """One connection. Whatever breaks its rules ends it."""
        with sock, memory:
            while True:
                try:
                    packet, _ = channel.receive(sock, proto.MAX_MESSAGE, 0)
                    if not packet:
                        return
                    offer = proto.decode_offer(packet)
                except (ConnectionError, msgspec.DecodeError):
                    return
                verdict = self._judge(offer, memory)
                try:
                    channel.send(sock, proto.encode(verdict))
                except ConnectionError:
                    return

    def _judge(self, offer: proto.Offer, memory: Fd) -> proto.Verdict:
        with self._lock:
            store = self._stores.get(offer.store)
            if store is None:
                return proto.Verdict(0, 0, "the store is closed")
            self._writing[offer.store] += 1
            private = self._buffers.pop() if self._buffers else bytearray(_USUAL)
        plan = store.plan

        def tell(have: int) -> None:
            assert isinstance(offer, proto.Piece)
            done = have == plan.segments[offer.segment].size
            # What nobody waits for is news when it is whole; whoever comes meanwhile is told with the next piece.
            if done or offer.why is FillReason.DEMAND or not offer.count:
                self._tell(proto.Progress(offer.store, offer.segment, have, done, offer.why))

        try:
            return store.judge(offer, lambda size: _copy(memory, size, private), tell)
        finally:
            with self._lock:
                if len(private) == _USUAL:
                    self._buffers.append(private)
                self._writing[offer.store] -= 1
                if not self._writing[offer.store]:
                    self._idle.notify_all()


def _copy(memory: Fd, size: int, private: bytearray) -> memoryview:
    """What a worker has written, where it cannot change it any more."""
    if size > len(private):
        private.extend(bytes(size - len(private)))
    view = memoryview(private)[:size]
    if size and os.preadv(memory.fd, [view], 0) != size:
        raise RefusedError("less than it says")
    return view


def start(call: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=_fatal, args=(call, *arguments), daemon=True).start()


def _fatal(call: Callable[..., None], *arguments: object) -> None:
    """A thread's body: whatever goes wrong in it ends the process."""
    try:
        call(*arguments)
    except BaseException:
        crash()

"""The process in which one target is tried, under limits: ``run.py`` starts it, and reads what it says."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import mmap
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from . import mutate
from .trial import Crash, Trial, one_word

CURRENT = 2 << 20  # bytes of the file with the input that is being tried: its length (8 bytes), then itself
FDS = 512  # descriptors: who loses them, ends up with an error
_MOST_CORPUS = 4096  # inputs
_TICK = 1.0  # seconds between two words about how it goes
_LIMITS = ("RecursionError", "MemoryError", "TooSlowError")
_SMALLER = 3.0  # seconds for making a crash smaller


@dataclass
class Job:
    """What a child is started with.

    Attributes:
        targets: module with the targets.
        seconds, inputs: to stop after; 0 for no such limit.
        corpus, crashes: folders, which are there.
        current: file of ``CURRENT`` bytes.
    """

    targets: str
    target: str
    engine: str
    seed: int
    seconds: float
    inputs: int
    corpus: str
    crashes: str
    current: str


class Session:
    """Counts, keeps crashes, and says how it goes."""

    def __init__(self, job: Job, trial: Trial, said: int) -> None:
        self.job, self.trial, self._said = job, trial, said
        self.started = self._told = time.monotonic()
        self.executions = self.corpus = 0
        self._crashes: set[str] = set()
        fd = os.open(job.current, os.O_RDWR)
        self._current = mmap.mmap(fd, CURRENT)
        os.close(fd)

    def try_one(self, data: bytes) -> Crash | object:
        """Try an input; a new crash is kept."""
        data = data[: CURRENT - 8]
        self._current[: 8 + len(data)] = len(data).to_bytes(8, "little") + data
        outcome = self.trial(data)
        self.executions += 1
        if isinstance(outcome, Crash) and outcome.signature not in self._crashes:
            self._crashes.add(outcome.signature)
            self._keep(data, outcome)
        if time.monotonic() - self._told > _TICK:
            self.tell()
        return outcome

    def over(self) -> bool:
        job = self.job
        return bool(
            (job.inputs and self.executions >= job.inputs)
            or (job.seconds and time.monotonic() - self.started >= job.seconds)
        )

    def tell(self, **more: Any) -> None:
        self._told = time.monotonic()
        with contextlib.suppress(OSError):  # no descriptor is left
            self.corpus = max(self.corpus, len(os.listdir(self.job.corpus)))
        counts = {"executions": self.executions, "refused": self.trial.refused, "corpus": self.corpus}
        self.say({**counts, "seconds": round(self._told - self.started, 3), **more})

    def say(self, what: dict[str, Any]) -> None:
        os.write(self._said, json.dumps(what).encode() + b"\n")

    def _keep(self, data: bytes, crash: Crash) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FDS + 16, FDS + 16))  # all others may be lost
        # How much is too much depends on what called it: such an input stays as large as it is.
        small = data if crash.signature.startswith(_LIMITS) else self._smaller(data, crash.signature)
        frozen = self.trial.target.freeze(small)
        name = f"{one_word(crash.signature)}-{hashlib.sha256(frozen).hexdigest()[:8]}"
        path = os.path.join(self.job.crashes, name)
        Path(path).write_bytes(frozen)
        self.say({"crash": {"signature": crash.signature, "file": path, "bytes": len(frozen), "text": crash.text}})

    def _smaller(self, data: bytes, signature: str) -> bytes:
        """Fewer bytes with the same crash, as far as that is found quickly."""
        deadline = time.monotonic() + _SMALLER
        size = len(data) // 2
        while size and time.monotonic() < deadline:
            at = 0
            while at < len(data) and time.monotonic() < deadline:
                less = data[:at] + data[at + size :]
                outcome = self.trial(less)
                if isinstance(outcome, Crash) and outcome.signature == signature:
                    data = less
                else:
                    at += size
            size //= 2
        return data


def plain(session: Session, corpus: list[bytes]) -> None:
    """An engine without coverage: an input is kept when it takes another way, as far as ``Trial`` can tell."""
    rng = random.Random(session.job.seed)
    change = session.trial.target.mutate
    seen = set()
    for data in corpus:
        seen.add(hash_of(session.try_one(data)))
    while not session.over():
        data = mutate.several(rng.choice(corpus), change, corpus, rng)
        outcome = session.try_one(data)
        if isinstance(outcome, Crash) or (way := hash_of(outcome)) in seen:
            continue
        seen.add(way)
        if len(corpus) < _MOST_CORPUS:
            corpus.append(data)
            session.corpus = len(corpus)
            _save(session.job.corpus, data)
    session.tell(done=True)


def hash_of(outcome: object) -> int:
    """One number for a way."""
    return hash(repr(outcome))


def guided(session: Session, corpus: list[bytes]) -> NoReturn:
    """atheris: libFuzzer with the coverage of Python's bytecode. It does not return."""
    import atheris

    target, job = session.trial.target, session.job
    for data in corpus:
        _save(job.corpus, data)

    def one(data: bytes) -> None:
        session.try_one(bytes(data))
        if session.over():
            session.tell(done=True)
            os._exit(0)

    def change(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.2:
            return bytes(atheris.Mutate(data, most))
        return mutate.several(bytes(data), target.mutate, corpus, rng)[:most]

    # Time and memory are ours to watch: libFuzzer would end at the first input that takes too much.
    options = [
        "-timeout=1000000",
        "-rss_limit_mb=0",
        "-max_len=65536",
        "-len_control=0",
        "-handle_segv=0",
        "-handle_abrt=0",
    ]
    atheris.Setup(
        [sys.argv[0], f"-seed={job.seed + 1}", f"-artifact_prefix={job.crashes}/died-", *options, job.corpus],
        one,
        custom_mutator=change,
    )
    atheris.Fuzz()
    os._exit(0)


def _save(folder: str, data: bytes) -> None:
    path = Path(folder, hashlib.sha256(data).hexdigest()[:32])
    if not path.exists():
        path.write_bytes(data)


def known_inputs(folder: str) -> Iterator[bytes]:
    """The inputs of earlier runs, always in the same order."""
    for path in sorted(Path(folder).iterdir()):
        yield path.read_bytes()


@contextlib.contextmanager
def _instrumented(engine: str) -> Iterator[None]:
    if engine != "atheris":
        yield
        return
    import atheris

    with atheris.instrument_imports(include=["nydus_erofs"]):
        yield


def limit(memory: int) -> None:
    """What this process may take besides what it has."""
    with open("/proc/self/statm", encoding="ascii") as file:
        has = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + memory, has + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (FDS, FDS + 16))


def main(said: int, job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    with _instrumented(job.engine):
        from .target import load

        target = load(job.targets)[job.target]
    seeds = list(target.seeds())
    corpus = [*seeds, *(data for data in known_inputs(job.corpus) if data not in seeds)]
    session = Session(job, Trial(target), said)
    session.corpus = len(corpus)
    limit(target.memory)
    gc.freeze()
    (guided if job.engine == "atheris" else plain)(session, corpus)


if __name__ == "__main__":
    main(int(sys.argv[1]), Job(**json.loads(sys.argv[2])))

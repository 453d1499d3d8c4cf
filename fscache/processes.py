"""All processes of the service in one table: who each is, what it is given, and what it gives up.

Nothing but data. What starts a process (``keeper/children/spawn.py``) and what it does to itself
(``kernel/confine.py``) follow it; ``docs/processes.md`` is printed from it (``scripts/processes_page.py``), a test
compares it with a running service.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_MIB, _GIB = 1 << 20, 1 << 30


class Limit(NamedTuple):
    """A resource limit: ``base``, and ``each`` more for every one of what the process is started for."""

    kind: str  # RLIMIT_<kind>
    base: int
    each: int = 0
    what: str = ""
    why: str = ""

    def most(self, count: int) -> int:
        return self.base + self.each * count


@dataclass(frozen=True, slots=True)
class Process:
    """One kind of process.

    Attributes:
        user: the key of the configuration that has its id; or in words.
        places: what it may do with files by their names.
        descriptors: by number; those of messages come later.
        environment: patterns of the variables that it is given; None for all of its parent's.
        hears, says: to and from the keeper.
        oom_score: its oom_score_adj, or its starter's if that is more; None for its starter's.
    """

    name: str
    does: str
    started: str
    user: str
    capabilities: str
    session: str
    descriptors: Sequence[str]
    environment: Sequence[str] | None
    hears: str
    says: str
    namespaces: Sequence[str] = ()  # of its own
    filtered: bool = False  # system calls by list, where the kernel has seccomp
    places: Sequence[str] = ("whatever its user may",)
    network: str = "none"
    connect: bool = False
    umask: int | None = None  # None: its starter's
    limits: Sequence[Limit] = ()
    oom_score: int | None = None

    def limit(self, kind: str) -> Limit:
        return next(limit for limit in self.limits if limit.kind == kind)

    def variables(self, of: Mapping[str, str]) -> dict[str, str]:
        """What it is given of an environment."""
        if self.environment is None:
            return dict(of)
        known = re.compile("|".join(self.environment))
        return {name: value for name, value in of.items() if known.fullmatch(name)}


_NO_CORE = Limit("CORE", 0, why="memory holds credentials and other people's data")
# Memory of files and sockets is nobody's. Who has used it up may be small, and must go before the keeper does.
_GOES_FIRST = 500
_PLAIN = ("0, 1: /dev/null", "2: a pipe that the keeper reads into its log", "3: a socket to the keeper")

KEEPER = Process(
    name="keeper",
    does="owns the mounts, the kernel's descriptors and the readers that wait; believes nobody",
    started="by an administrator or systemd (`serve`); stays",
    user="root",
    capabilities="all",
    session="its starter's",
    descriptors=("0, 1, 2: its starter's, the log goes to 2", "the rest is its own, and inherited by nobody"),
    environment=None,
    hears="requests of root alone on `control.sock`; what worker and prepare say, checked",
    says="to worker and prepare what they are to do, with the descriptors that this needs",
    umask=0o077,
)

VERIFIER = Process(
    name="verifier",
    does="alone writes into segment files and objects of the kernel's cache, what plans have the digest of",
    started="by the keeper, as the worker, which goes with it",
    user="verifier_uid",
    capabilities="none, nor any to be had",
    session="its own, without a terminal",
    descriptors=_PLAIN,
    environment=(),
    hears="which stores there are (plans, segment folders, objects: descriptors), and of a new worker (a socket); "
    "from that, chunks",
    says="how far a segment is filled, never a descriptor; to a worker, whether its chunks are right",
    namespaces=("uts", "ipc", "net"),
    filtered=True,
    places=("read, write and cut, but not make or remove: files in `STATE/store`",),
    umask=0o077,
    oom_score=_GOES_FIRST,
    limits=(
        Limit("AS", 1 * _GIB, 64 * _MIB, "connection", "a thread and a piece for each"),
        Limit("NPROC", 4096, why="threads, of all verifiers with this user on the host"),
        Limit("FSIZE", 1 << 44, why="an object of the kernel's cache is as large as its blob; EROFS ends there"),
        Limit("NOFILE", 1 << 20, why="a folder and a plan for each store"),
        _NO_CORE,
    ),
)  # fmt: skip

WORKER = Process(
    name="worker",
    does="fetches, decodes, and offers chunks to the verifier",
    started="by the keeper; again whenever it ends, or does not hear while somebody waits for it",
    user="worker_uid",
    capabilities=VERIFIER.capabilities,
    session=VERIFIER.session,
    descriptors=_PLAIN,
    environment=(
        "HOME", "LANG", "LC_ALL", "TZ", "SSL_CERT_(FILE|DIR)", "AWS_[A-Z0-9_]+",
        "(https?|no|all|HTTPS?|NO|ALL)_(proxy|PROXY)",
    ),
    hears="what to serve (plans, segment folders, blobs: descriptors), which segments to fill, questions; from the "
    "verifier, whether chunks are right",
    says="why a segment is not filled; answers; what backends were asked; never a descriptor. To the verifier, "
    "chunks",
    namespaces=("uts", "ipc"),
    filtered=True,
    places=(
        "read: the system's own files, Python's, `~/.aws`, folders of files that variables or `ca_cert_files` name",
        "read: files in `STATE/store` that are its own, which are those that a crash of the machine may have damaged",
    ),
    network="TCP and UDP to servers, unix sockets of proxies; no TCP server of its own",
    connect=True,
    umask=0o077,
    oom_score=_GOES_FIRST,
    limits=(
        Limit("AS", 4 * _GIB, 256 * _MIB, "thread", "two bootstraps of 2 GiB, and what decoders and stacks take"),
        Limit("NPROC", 4096, why="threads, of all workers with this user on the host"),
        Limit("FSIZE", 1 << 32, why="bootstraps and pieces of blobs, for the keeper; chunks"),
        Limit("NOFILE", 1 << 20, why="a folder and a plan for each store"),
        _NO_CORE,
    ),
)  # fmt: skip

PREPARE = Process(
    name="prepare",
    does="parses a bootstrap, cuts its blobs into segments",
    started="by the keeper, of which one works at a time, the first time an image is mounted; ends when that is done",
    user="prepare_uid",
    capabilities=WORKER.capabilities,
    session=WORKER.session,
    descriptors=_PLAIN,
    environment=(),
    hears="the bootstrap and an empty folder (descriptors); bytes of blobs that it asked for",
    says="which bytes of a blob it needs; that it is done, or why not. Never a descriptor",
    namespaces=("uts", "ipc", "net"),
    filtered=True,
    places=("make, write and cut, but not read or remove: files and folders in the folder it is given",),
    umask=0o022,
    oom_score=_GOES_FIRST,
    limits=(
        Limit("AS", 256 * _MIB, 32, "byte of the bootstrap", "Python itself, chunk tables and what is made of them"),
        Limit("NPROC", 0, why="nothing it starts could outlive it"),
        Limit("FSIZE", 256 * _MIB, 32, "byte of the bootstrap", "what it writes was in its memory"),
        Limit("NOFILE", 64),
        _NO_CORE,
    ),
)

ERRAND = Process(
    name="errand",
    does="one thing that may take long: opens files of others, mounts, takes over what prepare left, hashes",
    started="a fork of the keeper, for one or for those of one mount; killed when it takes too long",
    user="root",
    capabilities="all",
    session="the keeper's",
    descriptors=("0, 1, 2: the keeper's", "one socket to the keeper, and none of its other descriptors"),
    environment=None,
    hears="nothing, it knows what the keeper knew when it forked; during a mount, what to do next",
    says="the descriptors that it opened, that it is done, or why not",
)

TOOL = Process(
    name="tool",
    does="`rm -rf --one-file-system`, which may take long",
    started="by the keeper",
    user="root",
    capabilities="all",
    session="the keeper's",
    descriptors=("0, 1, 2: the keeper's",),
    environment=("PATH",),
    hears="nothing",
    says="nothing but its exit code",
)

HELPER = Process(
    name="credential helper",
    does="tells the credentials of a registry (`docker-credential-*`)",
    started="by `mount` and `push`; by an errand, where an image is looked up again",
    user="who mounts or pushes",
    capabilities="its user's",
    session="its starter's",
    descriptors=("0, 1: pipes to its starter", "2: /dev/null"),
    environment=None,
    hears="the registry's name",
    says="user and secret, to its starter alone",
)

TABLE = (KEEPER, VERIFIER, WORKER, PREPARE, ERRAND, TOOL, HELPER)

# What name services, TLS and time zones read, wherever distributions have it.
SYSTEM = (
    "/etc", "/usr", "/lib", "/lib64", "/opt", "/dev/null", "/dev/urandom", "/run/systemd/resolve", "/run/resolvconf",
    "/run/NetworkManager", "/run/netconfig", "/run/nscd", "/var/run/nscd", "/var/lib/ca-certificates",
    "/var/lib/sss/pipes", "/run/secrets", "/var/run/secrets",
)  # fmt: skip

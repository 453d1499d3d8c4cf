#!/usr/bin/env python3
"""Push one image to an S3 server on loopback, and read it from there through nydus-erofs and nydusd's FUSE.

  push            nydus-erofs push, to an empty bucket
  plain GETs      the blob in ranges of 8 MiB by 4 threads, each chunk decompressed: the limit for a first read
  mount           first: nothing known of the image; again: mounted before
  cold start      nothing local: mount and read one file of about 1 MiB; seconds, and bytes that the server sent
  first read      tar of everything, nothing local, with prefetch (ours) or without
  second read     all local, page cache dropped

With --latency all go through a relay that adds so many milliseconds to each round trip. The server is versitygw
(from VERSITYGW or PATH), which checks signatures. Needs root; drops the page cache. Seconds of two machines say
nothing: look at the ratios.
"""

import environment

# isort: split
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import measure
import read_bench
import servers
import zstandard

from nydus_erofs.erofs import localize
from nydus_erofs.erofs.head import read_head
from nydus_erofs.erofs.source import FdSource
from nydus_erofs.fscache.backend.s3.client import S3Client
from nydus_erofs.fscache.config.backend import S3

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.kit.servers import s3  # noqa: E402

PIECE, THREADS = 8 << 20, 4
NAME = "bench"
ONE_MIB = (900 << 10, 3 << 20)  # bytes: what counts as a file of about 1 MiB


class Site:
    """The S3 server, the relay before it, and the configurations that name them."""

    def __init__(self, work: Path, latency: float) -> None:
        (work / "gateway").mkdir()
        self.gateway = s3.Gateway(work / "gateway")
        self.relay = None
        port = self.gateway.port
        if latency:  # the relay costs CPU time that all of them share
            self.relay = subprocess.Popen(
                [sys.executable, str(HERE.parents[1] / "tests/kit/servers/relay.py"), str(self.gateway.port),
                 "--delay", str(latency / 2000)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert self.relay.stdout is not None
            port = int(self.relay.stdout.readline())
        self.fields = {
            "endpoint": f"127.0.0.1:{port}", "scheme": "http", "region": "us-east-1", "bucket_name": s3.BUCKET,
            "access_key_id": s3.KEY, "access_key_secret": s3.SECRET, "object_prefix": "blobs/",
        }  # fmt: skip
        self.config = work / "backend.json"
        self.config.write_text(json.dumps({"type": "s3", **self.fields}))
        self.image = f"s3://{s3.BUCKET}/{NAME}.meta"

    def close(self) -> None:
        if self.relay is not None and self.relay.stdin is not None:
            self.relay.stdin.close()
            self.relay.wait(20)
        self.gateway.close()


def plain_gets(site: Site, bootstrap: Path) -> float:
    """Seconds to fetch and decompress the blob with nothing around it."""
    fields: dict[str, Any] = dict(site.fields)
    client = S3Client(S3(**fields), THREADS)
    with bootstrap.open("rb") as file:
        data = file.read()
        head = read_head(FdSource(file.fileno()))
    blob = head.blobs[0].id
    with (bootstrap.parent / blob).open("rb") as blob_file:
        (plan,) = localize.read_blob_maps(data, head, lambda _: FdSource(blob_file.fileno()), 2 << 20)
        size = os.fstat(blob_file.fileno()).st_size
    chunks = list(
        zip(plan.chunks.compressed_offset, plan.chunks.compressed_size, plan.chunks.uncompressed_size, strict=True)
    )
    pieces: dict[int, list[tuple[int, int, int]]] = {}
    for offset, length, whole in chunks:
        pieces.setdefault(offset // PIECE, []).append((offset, length, whole))

    def fetch(number: int) -> None:
        mine = pieces[number]
        begin, end = mine[0][0], min(size, max(offset + length for offset, length, _ in mine))
        raw = memoryview(client.read(f"blobs/{blob}", begin, end - begin))
        zstd = zstandard.ZstdDecompressor()
        for offset, length, whole in mine:
            if length != whole:
                zstd.decompress(raw[offset - begin : offset - begin + length], max_output_size=whole)

    client.stat(f"blobs/{blob}")
    started = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fetch, pieces))
    return time.monotonic() - started


def one_file(tree: Path) -> Path:
    """The first file of about 1 MiB, relative."""
    for path in sorted(tree.rglob("*")):
        if path.is_file() and not path.is_symlink() and ONE_MIB[0] <= path.stat().st_size <= ONE_MIB[1]:
            return path.relative_to(tree)
    raise SystemExit("remote_bench: error: the tree has no file of about 1 MiB")


class Remote(read_bench.Bench):
    """The steps of one server."""

    def cold_start(self, server: servers.Server, name: Path) -> None:
        with self._fresh(server, prefetch=False, figure="first mount s"):
            started = time.monotonic()
            subprocess.run(["cat", server.mountpoint / name], stdout=subprocess.DEVNULL, check=True, timeout=300)
            self.note(server, "1 MiB file after mount s", time.monotonic() - started)
            if isinstance(server, servers.Ours) and server.backend:
                time.sleep(0.5)
                status = servers.client.request(str(server.run_dir / "control.sock"), "status")
                (backend,) = status["backends"]
                self.note(server, "fetched until then MB", backend["bytes"] / 1e6)
                self.note(server, "requests until then", backend["requests"])

    def reads(self, server: servers.Server) -> None:
        with self._fresh(server, prefetch=False) as pid:
            watch = measure.Watch(pid)
            self.note(server, "first read s", self._read_all(server))
            self.note(server, "peak MB", watch.stop() / 1e6)
            read_bench.drop_caches()
            self.note(server, "second read s", self._read_all(server))
        with self._fresh(server, prefetch=True):
            self.note(server, "first read with prefetch s", self._read_all(server))
        with self._running(server, prefetch=False, figure="mount again s"):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", metavar="TREE", type=Path, help="for example made by make_tree.py")
    parser.add_argument("--image", type=Path, metavar="BOOTSTRAP", help="of TREE, its blob beside (default: build)")
    parser.add_argument("--latency", type=float, default=0.0, metavar="MS", help="added to each round trip")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--nydus-erofs", default=environment.PROGRAM, metavar="PROGRAM")
    parser.add_argument("--nydusd", action="append", default=[], metavar="[LABEL=]PROGRAM")
    parser.add_argument("--without-local", action="store_true", help="leave out our reads from a local folder")
    parser.add_argument("--work", type=Path, metavar="DIR", help="for image and caches (default: TMPDIR or /var/tmp)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every value to FILE")
    arguments = parser.parse_args()
    if os.geteuid():
        parser.error("needs root: it mounts")
    measure.allow_files()
    top = arguments.work or Path(os.environ.get("TMPDIR", "/var/tmp"))
    with tempfile.TemporaryDirectory(prefix="remote-bench.", dir=top) as folder:
        work = Path(folder)
        image = arguments.image
        if image is None:
            (work / "image").mkdir()
            image = read_bench.build(arguments.nydus_erofs, arguments.tree, work / "image")
        image = image.absolute()
        site = Site(work, arguments.latency)
        bench = Remote(arguments.tree, image, [], validate=False)
        name = one_file(arguments.tree)
        contenders: list[servers.Server] = [
            servers.Ours(work / "ours", arguments.nydus_erofs, site.image, "nydus-erofs, S3", site.config)
        ]
        backend = {"type": "s3", "config": site.fields}
        for label, program in measure.labelled(arguments.nydusd, "nydusd"):
            peer = work / f"peer{len(contenders)}"
            contenders.append(servers.Nydusd(peer, program, image, f"{label}, S3", validate=False, backend=backend))
        if not arguments.without_local:
            contenders.append(servers.Ours(work / "local", arguments.nydus_erofs, image, "nydus-erofs, local"))
        try:
            started = time.monotonic()
            command = ["push", str(image), "--backend-config-file", str(site.config), "--name", NAME]
            measure.run([arguments.nydus_erofs, *command])
            bench.note(contenders[0], "push s", time.monotonic() - started)
            for _ in range(arguments.rounds):
                bench.note(contenders[0], "plain GETs s", plain_gets(site, image))
                for server in contenders:
                    bench.cold_start(server, name)
                    bench.reads(server)
        finally:
            for server in contenders:
                server.clean_up()
            site.close()
    print(read_bench.table(bench.results))
    if arguments.json:
        arguments.json.write_text(json.dumps(bench.results, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Images from afar on a running service: S3, a registry and a plain web server, and all that networks do to them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nydus_erofs.fscache.backend.registry.client import RegistryClient
from nydus_erofs.fscache.config.backend import Registry
from nydus_erofs.fscache.push.registry import RegistryWriter
from tests.kit.command import PYTHON, cli
from tests.kit.engines import Engine
from tests.kit.images import Built
from tests.kit.published import Place
from tests.kit.reading import compare, read, result_of
from tests.kit.servers import distribution
from tests.kit.servers.relay import Fault
from tests.kit.servers.s3 import Gateway
from tests.kit.service import MakeService, RefusedError, Service
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture
def serve(make_service: MakeService, engine: Engine) -> Callable[..., Any]:
    """`serve(**config)`: a running service."""
    return lambda **config: make_service(engine, **config)


def right(built: Built, name: str) -> str:
    return hashlib.sha256((built.tree / name).read_bytes()).hexdigest()


def backend_of(service: Service) -> dict[str, Any]:
    (backend,) = service.status()["backends"]
    return dict(backend)


def test_reads_as_it_was_and_is_fetched_once(place: Place, serve: Callable[..., Service], built: Built) -> None:
    service = serve()
    target = place.mount(service)
    metadata = backend_of(service)["bytes"] if service.status()["backends"] else 0
    assert metadata <= 3 * built.bootstrap.stat().st_size + (1 << 20)
    assert service.status(target)["bytes_on_demand"] <= service.engine.metadata_fetched(built.bootstrap)
    compare(built.tree, target)
    status = service.status(target)
    assert (status["failures"], status["events_denied"]) == (0, 0)
    assert wait_for("traffic", lambda: backend_of(service)["bytes"] >= place.blobs / 2)
    assert backend_of(service)["bytes"] <= metadata + place.blobs * 1.1 + (1 << 20)
    assert backend_of(service)["errors"] == 0
    service.umount(target)


def test_what_is_here_mounts_and_reads_without_the_network(
    place: Place, serve: Callable[..., Service], built: Built
) -> None:
    service = serve()
    target = place.mount(service, prefetch=True)
    service.complete(target)
    service.umount(target)
    before = place.relay.down
    target = place.mount(service)
    assert place.relay.down - before < 20_000  # a look whether it is still the same
    service.umount(target)
    place.relay.down_now()
    target = place.mount(service)
    compare(built.tree, target)
    service.umount(target)


def test_a_crowd_costs_no_more_requests_than_one(place: Place, serve: Callable[..., Service], built: Built) -> None:
    service = serve()
    target = place.mount(service)
    command = [*PYTHON, "-c", CROWD, str(target / "large/5"), right(built, "large/5")]
    before = backend_of(service)["requests"] if service.status()["backends"] else 0
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "200 right\n", done.stdout + done.stderr
    wait_for("traffic", lambda: backend_of(service)["requests"] > before)
    time.sleep(0.5)
    chunks = -(-(built.tree / "large/5").stat().st_size // 65536)
    assert backend_of(service)["requests"] - before <= chunks  # 40 chunks, 3 to 5 segments, each a few reads at most


CROWD = """
import hashlib, sys, threading
right = 0
lock = threading.Lock()
def read():
    global right
    with open(sys.argv[1], "rb", 0) as file:
        good = hashlib.sha256(file.read()).hexdigest() == sys.argv[2]
    with lock:
        right += good
threads = [threading.Thread(target=read) for _ in range(200)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(right, "right")
"""


@pytest.mark.parametrize("kind", ["reset", "close", "flip", "stall"])
def test_a_connection_that_breaks_or_lies_is_not_noticed(
    kind: str, place: Place, serve: Callable[..., Service], built: Built
) -> None:
    service = serve()
    target = place.mount(service)
    for number in range(3):
        # A chunk that is wrong three times in a row is taken for corrupt.
        place.relay.fault = Fault(kind, after=20_000, times=1 if kind == "flip" else 2)
        assert read(target / f"large/{number}") == {
            "length": (built.tree / f"large/{number}").stat().st_size,
            "sha256": right(built, f"large/{number}"),
        }
    place.relay.heal()
    compare(built.tree, target)
    assert service.status(target)["last_error"] is None


def test_a_connection_that_drips_is_left_in_time(place: Place, serve: Callable[..., Service], built: Built) -> None:
    service = serve()
    slow = rewritten(place, deadline=3.0, timeout=60.0)
    target = slow.mount(service)
    place.relay.fault = Fault("drip", after=20_000)
    assert read(target / "large/1")["sha256"] == right(built, "large/1")
    place.relay.heal()
    assert service.status(target)["last_error"] is None
    wait_for("the failure", lambda: "no more than" in str(backend_of(service)["last_error"]), patience=20)


def test_readers_wait_while_the_server_is_away(place: Place, serve: Callable[..., Service], built: Built) -> None:
    service = serve(patience=60)
    target = place.mount(service)
    place.relay.down_now()
    reader = service.reader("read", target / "large/2")
    waiting = wait_for("status says why", lambda: service.status(target)["waiting_for"])
    assert place.relay.endpoint in waiting
    assert service.status(target)["readers_waiting"] > 0
    wait_for("the backend is down", lambda: backend_of(service)["down"])
    time.sleep(3)
    assert reader.poll() is None
    place.relay.heal()
    assert result_of(reader)["sha256"] == right(built, "large/2")
    assert service.status(target)["waiting_for"] is None
    assert service.status(target)["failures"] == 0
    wait_for("the backend is back", lambda: not backend_of(service)["down"])


def test_a_server_away_for_good_is_an_error_in_time_and_heals(
    place: Place, serve: Callable[..., Service], built: Built
) -> None:
    service = serve(patience=2)
    target = place.mount(service)
    place.relay.down_now()
    begin = time.monotonic()
    assert read(target / "large/2") == {"error": "EIO"}
    assert 1.5 < time.monotonic() - begin < 15
    status = service.status(target)
    assert place.relay.endpoint in status["last_error"]
    assert status["failures"] > 0
    event, *_ = service.events("segment not filled") + service.events("blob cannot be served")
    assert place.relay.endpoint in event["error"]
    place.relay.heal()
    wait_for("it heals", lambda: "sha256" in read(target / "large/2"), pause=0.5)
    compare(built.tree, target)


def test_the_worker_dies_in_the_middle(place: Place, serve: Callable[..., Service], built: Built) -> None:
    service = serve()
    place.relay.delay = 0.01
    target = place.mount(service)
    readers = [service.reader("read", target / f"large/{number}") for number in range(4)]
    for _ in range(3):
        service.kill_worker()
        time.sleep(0.2)
    for number, process in enumerate(readers):
        assert result_of(process)["sha256"] == right(built, f"large/{number}")
    compare(built.tree, target)


def test_no_secret_is_seen_anywhere(
    publish: Callable[..., Place], serve: Callable[..., Service], built: Built
) -> None:
    place = publish("s3")
    service = serve()
    target = place.mount(service)
    read(target / "large/1")
    place.relay.down_now()
    texts = [json.dumps(service.status()), service.log_text()]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            texts.append((folder / "cmdline").read_text(errors="replace"))
        except OSError:
            continue
    for root in (service.state, service.run):
        files = (path for path in root.rglob("*") if path.is_file() and "through" not in path.parts)
        texts += [path.read_bytes().decode("latin-1") for path in files]
    for text in texts:
        for secret in place.secrets:
            assert secret not in text


def test_only_what_was_demanded_is_mounted(
    publish: Callable[..., Place], serve: Callable[..., Service], built: Built
) -> None:
    place, service = publish("s3"), serve()
    done = cli("push", built.bootstrap, "--backend-config-file", place.config, "--json", check=True)
    digest = json.loads(done.stdout)["identity"]
    service.umount(place.mount(service, digest=digest))
    with pytest.raises(RefusedError, match=f"has the digest {digest}, not the one demanded"):
        place.mount(service, digest="sha256:" + "0" * 64)
    target = service.mount_image(str(built.bootstrap), digest=digest)
    service.umount(target)
    with pytest.raises(RefusedError, match="not the one demanded"):
        service.mount_image(str(built.bootstrap), digest="sha256:" + "0" * 64)


def test_a_bootstrap_that_is_not_what_its_tree_says(
    publish: Callable[..., Place], serve: Callable[..., Service], s3_server: Gateway
) -> None:
    place, service = publish("s3"), serve()
    path = s3_server.bucket / place.image.split("/", 3)[3]
    raw = bytearray(path.read_bytes())
    raw[-5000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(RefusedError, match="its digest tree says"):
        place.mount(service)


def rewritten(place: Place, **fields: Any) -> Place:
    place.config.write_text(json.dumps({**json.loads(place.config.read_text()), **fields}))
    return place


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"access_key_secret": "WRONG-SECRET"}, "signature|denied|refuse|key"),
        ({"access_key_id": "nobody"}, "key|denied|refuse"),
        ({"endpoint": "127.0.0.1:1"}, "127.0.0.1:1: Connection refused"),
        ({"endpoint": "nosuchhost.invalid"}, "nosuchhost.invalid"),
        ({"endpoint": "http://127.0.0.1:9000"}, "without scheme"),
        ({"scheme": "https"}, "TLS|SSL|certificate"),
        ({"blob_prefix": "elsewhere/"}, "elsewhere/"),
        ({"acess_key_id": "x"}, "acess_key_id"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    fields: dict[str, str], match: str, publish: Callable[..., Place], serve: Callable[..., Service]
) -> None:
    place, service = publish("s3"), serve()
    with pytest.raises(RefusedError, match=match) as caught:
        rewritten(place, **fields).mount(service)
    error = caught.value
    assert "\n" not in error.error + (error.hint or "")
    assert len(error.error) < 400
    for secret in (*place.secrets, "WRONG-SECRET"):
        assert secret not in error.error + (error.hint or "")
    assert service.status()["mounts"] == []


def test_names_that_nothing_is_published_under(publish: Callable[..., Place], serve: Callable[..., Service]) -> None:
    place, service = publish("s3"), serve()
    for image, match in (
        (place.image.replace(".meta", "-other.meta"), "-other.meta"),
        (place.image.replace("s3://images", "s3://nosuchbucket"), "nosuchbucket"),
        ("s3://images", "s3://BUCKET/NAME"),
    ):
        with pytest.raises(RefusedError, match=match):
            service.mount_image(image, backend_file=str(place.config))


def test_a_half_pushed_image(
    publish: Callable[..., Place], serve: Callable[..., Service], s3_server: Gateway, built: Built
) -> None:
    place, service = publish("s3"), serve()
    prefix = place.image.split("/")[3]
    os.unlink(s3_server.bucket / prefix / "blobs" / built.blob.name)
    with pytest.raises(RefusedError, match=built.blob.name):
        place.mount(service)


def test_an_ordinary_image_in_a_registry(
    publish: Callable[..., Place], serve: Callable[..., Service], registry_make: Callable[..., distribution.Registry]
) -> None:
    place, service = publish("registry"), serve()
    fields = json.loads(place.config.read_text())
    writer = RegistryWriter(RegistryClient(Registry(**{k: v for k, v in fields.items() if k != "type"}), 1))
    digest = "sha256:" + hashlib.sha256(b"").hexdigest()
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": 0}
    config = {**layer, "mediaType": "application/vnd.oci.image.config.v1+json"}
    media_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer]}
    writer.put(digest, io.BytesIO(b""), 0, digest[7:], lambda count: None)
    writer.put_manifest("plain", json.dumps(manifest).encode(), media_type)
    with pytest.raises(RefusedError, match="an ordinary OCI image of 1 layer") as caught:
        service.mount_image(place.image.replace(":v1", ":plain"), backend_file=str(place.config))
    assert f"nydusify convert --fs-version 6 --source {place.image.replace(':v1', ':plain')}" in caught.value.hint
    with pytest.raises(RefusedError, match="nosuchtag"):
        service.mount_image(place.image.replace(":v1", ":nosuchtag"), backend_file=str(place.config))


def test_live_mounts_outlive_the_service(
    publish: Callable[..., Place], serve: Callable[..., Service], built: Built, engine: Engine
) -> None:
    if not engine.keeps_mounts:
        pytest.skip("this engine mounts again")
    place, service = publish("s3"), serve()
    target = place.mount(service)
    read(target / "large/1")
    service.kill_all()
    service.start()
    compare(built.tree, target)
    assert service.status(target)["failures"] == 0

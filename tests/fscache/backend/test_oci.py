"""References, manifests and the bootstrap's layer: what registries hold, and what hostile ones may send."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from typing import Any

import pytest

from nydus_erofs.erofs import verity
from nydus_erofs.erofs.errors import FormatError, UnsupportedError
from nydus_erofs.fscache.backend.registry import oci
from nydus_erofs.fscache.backend.registry.layer import extract_bootstrap, pack_layer
from nydus_erofs.fscache.backend.registry.oci import Layer

HEX = "ab" * 32
IMAGE = "hub.example.com/team/app:v1"
DATA = random.Random(3).randbytes(300_000)
TREE = verity.build_tree(DATA).pack()


def published() -> tuple[bytes, bytes, Layer]:
    blob = oci.Layer(f"sha256:{HEX}", 5, f"sha256:{HEX}")
    layer = pack_layer(io.BytesIO(DATA), len(DATA), TREE, io.BytesIO())
    raw = oci.pack_config([blob], layer)
    config = oci.Layer(f"sha256:{hashlib.sha256(raw).hexdigest()}", len(raw), "")
    return raw, oci.pack_manifest(config, [blob], layer), layer


def test_a_manifest_is_what_nydus_expects() -> None:
    config, manifest, layer = published()
    assert published()[:2] == (config, manifest)
    document = json.loads(manifest)
    *blobs, last = document["layers"]
    assert [blob["mediaType"] for blob in blobs] == ["application/vnd.oci.image.layer.nydus.blob.v1"]
    assert blobs[0]["annotations"] == {"containerd.io/snapshot/nydus-blob": "true"}
    assert last["annotations"] == {
        "containerd.io/snapshot/nydus-bootstrap": "true",
        "containerd.io/snapshot/nydus-fs-version": "6",
    }
    assert json.loads(config)["rootfs"]["diff_ids"] == [f"sha256:{HEX}", layer.diff_id]
    image = oci.parse_manifest(manifest, IMAGE)
    assert isinstance(image, oci.NydusImage)
    assert (image.bootstrap.digest, [blob.digest for blob in image.blobs]) == (layer.digest, [f"sha256:{HEX}"])


def manifest(*layers: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "layers": list(layers), **fields}).encode()


PLAIN = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": f"sha256:{HEX}", "size": 1}


@pytest.mark.parametrize(
    ("raw", "kind", "match"),
    [
        (manifest(), FormatError, "not a Nydus image"),
        (json.dumps({"schemaVersion": 1, "fsLayers": [{"blobSum": "x"}]}).encode(), FormatError, "schema 1"),
        (b"{}", FormatError, "neither layers nor manifests"),
        (b"<html>", FormatError, "not a manifest"),
        (b"[" * 100_000, FormatError, "not a manifest"),
        (manifest({**PLAIN, "digest": "sha256:../../x"}), FormatError, "names"),
        (manifest({**PLAIN, "size": -1}), FormatError, "names"),
        (
            manifest({**PLAIN, "annotations": {"containerd.io/snapshot/nydus-bootstrap": "true",
                                               "containerd.io/snapshot/nydus-fs-version": "5"}}),
            UnsupportedError, "RAFS version 5",
        ),
    ],
)  # fmt: skip
def test_what_is_no_image_of_nydus(raw: bytes, kind: type[FormatError | UnsupportedError], match: str) -> None:
    with pytest.raises(kind, match=match):
        oci.parse_manifest(raw, IMAGE)


def layer(media_type: str = "application/vnd.oci.image.layer.v1.tar+gzip", **annotations: Any) -> dict[str, Any]:
    return {**PLAIN, "mediaType": media_type, "annotations": annotations}


OCI = {"config": {"mediaType": "application/vnd.oci.image.config.v1+json"}}
DOCKER = {"config": {"mediaType": "application/vnd.docker.container.image.v1+json"}}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (manifest(layer(), **OCI), "an ordinary OCI image of 1 layer"),
        (manifest(layer(), layer(), **DOCKER), "an ordinary docker image of 2 layers"),
        (
            manifest(layer(**{"containerd.io/snapshot/stargz/toc.digest": "x"}), **OCI),
            "an image of 1 layer in eStargz",
        ),
        (manifest(layer("application/vnd.oci.image.layer.v1.erofs"), **OCI), "an image of 1 layer in EROFS"),
    ],
)
def test_what_can_be_converted(raw: bytes, said: str) -> None:
    for image, target in ((IMAGE, f"{IMAGE}-nydus"), (f"h.io/a@sha256:{HEX}", "h.io/a:nydus")):
        with pytest.raises(FormatError) as caught:
            oci.parse_manifest(raw, image)
        assert caught.value.message == f"not a Nydus image: {image} is {said}"
        command = f"nydusify convert --fs-version 6 --source {image} --target {target}"
        assert caught.value.hint == f"convert it: {command}"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (manifest(layer(), artifactType="application/x-\x1b[31m", **OCI), "an artifact (application/x-?[31m)"),
        (
            manifest(layer(), config={"mediaType": "application/vnd.cncf.helm.config.v1+json"}),
            "(application/vnd.cncf.helm",
        ),
        (manifest(layer("application/vnd.in-toto+json"), **OCI), "an artifact"),
        (manifest(layer()), "an artifact (of no type)"),
    ],
)
def test_what_is_no_image_of_files(raw: bytes, said: str) -> None:
    with pytest.raises(FormatError) as caught:
        oci.parse_manifest(raw, IMAGE)
    assert said in caught.value.message
    assert "convert" not in str(caught.value.hint)


def test_an_index_has_nydus_image_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")

    def entry(digest: str, architecture: str, *features: str) -> dict[str, Any]:
        platform = {"architecture": architecture, "os": "linux", "os.features": list(features)}
        return {**PLAIN, "digest": f"sha256:{digest * 64}", "platform": platform}

    feature = "nydus.remoteimage.v1"
    entries = [entry("1", "arm64", feature), entry("2", "amd64"), entry("3", "amd64", feature)]
    index, other = (
        oci.parse_manifest(json.dumps({"manifests": some}).encode(), IMAGE) for some in (entries, entries[:1])
    )
    assert isinstance(index, oci.Index)
    assert index.choose().digest == "sha256:" + "3" * 64
    assert isinstance(other, oci.Index)
    with pytest.raises(UnsupportedError, match="linux/amd64"):
        other.choose()


# --- the layer ----------------------------------------------------------------------------------------------


def packed() -> tuple[Layer, bytes]:
    out = io.BytesIO()
    layer = pack_layer(io.BytesIO(DATA), len(DATA), TREE, out)
    return layer, out.getvalue()


def extracted(raw: bytes, limit: int = 1 << 20) -> tuple[bytes | None, bytes]:
    out = io.BytesIO()
    return extract_bootstrap(io.BytesIO(raw), out, limit), out.getvalue()


def test_a_layer_and_back() -> None:
    layer, raw = packed()
    assert packed() == (layer, raw)
    assert layer.digest == f"sha256:{hashlib.sha256(raw).hexdigest()}"
    assert layer.diff_id == f"sha256:{hashlib.sha256(gzip.decompress(raw)).hexdigest()}"
    assert extracted(raw) == (TREE, DATA)
    assert extracted(gzip.decompress(raw)) == (TREE, DATA)
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        assert tar.getnames() == ["image", "image/image.boot", "image/image.boot.verity"]


def tar_of(*members: tuple[str, bytes, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data, kind in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(data), kind, "/etc/passwd"
            info.pax_headers = {"comment": "x" * 3000}
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_a_layer_of_nydus_with_other_files_in_it() -> None:
    """As the snapshotter packs it: blob metadata beside the bootstrap, extended headers, no tree."""
    raw = tar_of(
        ("image", b"", tarfile.DIRTYPE),
        (f"image/{HEX}.blob.meta", bytes(70_000), tarfile.REGTYPE),
        ("image/image.boot", DATA, tarfile.REGTYPE),
        ("image/backend.json", b"{}", tarfile.REGTYPE),
    )
    assert extracted(raw) == (None, DATA)


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (tar_of(("image/other", b"x", tarfile.REGTYPE)), "has no image/image.boot"),
        (tar_of(("image/image.boot", b"", tarfile.SYMTYPE)), "has no image/image.boot"),
        (tar_of(("image/image.boot", bytes(2 << 20), tarfile.REGTYPE)), "a bootstrap of 2097152 bytes"),
        (tar_of(("image/image.boot", b"", tarfile.REGTYPE)), "a bootstrap of 0 bytes"),
        (tar_of(("image/image.boot", DATA, tarfile.REGTYPE))[:9000], "cut off"),
        (b"\x1f\x8b" + bytes(100), "damaged"),
        (gzip.compress(DATA)[:-50_000], "no tar"),
        (b"not a tar" * 1000, "no tar"),
        (b"", "has no image/image.boot"),
    ],
)
def test_damaged_layers(raw: bytes, match: str) -> None:
    with pytest.raises(FormatError, match=match):
        extracted(raw)


def test_a_bomb_is_left_alone() -> None:
    """A gigabyte of zeros in a member that nobody wants."""
    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb") as out:
        info = tarfile.TarInfo("image/bomb")
        info.size = 1 << 30
        out.write(info.tobuf())
        for _ in range(300):
            out.write(bytes(1 << 20))
    with pytest.raises(FormatError, match="more than any has"):
        extracted(bomb.getvalue())

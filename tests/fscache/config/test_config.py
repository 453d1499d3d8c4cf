"""Configuration files: nydusd's JSON and our TOML mean the same things, and what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_erofs.erofs.errors import ConfigError, UnsupportedError
from nydus_erofs.fscache.config import backend as records
from nydus_erofs.fscache.config.backend import describe
from nydus_erofs.fscache.config.backend_file import convert
from nydus_erofs.fscache.config.load import load
from nydus_erofs.fscache.config.service import Config, check

# The localfs example that nydusd's users start from.
NYDUSD = {
    "device": {
        "backend": {"type": "localfs", "config": {"dir": "/images/blobs", "alt_dirs": ["/other"]}},
        "cache": {"type": "blobcache", "config": {"work_dir": "/var/cache/blobs"}},
    },
    "mode": "direct",
    "digest_validate": False,
    "iostats_files": False,
    "enable_xattr": True,
    "fs_prefetch": {"enable": True, "threads_count": 4, "merging_size": 131072, "bandwidth_rate": 1048576},
}


def written(tmp_path: Path, what: object) -> str:
    path = tmp_path / "config"
    path.write_bytes(what if isinstance(what, bytes) else json.dumps(what).encode())
    return str(path)


def changed(path: str, value: int | list[str] | str) -> dict[str, Any]:
    """The example with one value set; a path is `device.cache.type`."""
    document = json.loads(json.dumps(NYDUSD))
    *parents, last = path.split(".")
    inner = document
    for name in parents:
        inner = inner.setdefault(name, {})
    inner[last] = value
    return dict(document)


def test_nydusd_localfs(tmp_path: Path) -> None:
    config = load(written(tmp_path, NYDUSD))
    assert config.blob_dirs == ["/images/blobs", "/other"]
    assert config.state_dir == "/var/cache/blobs"
    assert config.prefetch is True


@pytest.mark.parametrize("mode", ["direct", "cached"])
@pytest.mark.parametrize("path", ["digest_validate", "iostats_files", "enable_xattr", "access_pattern"])
def test_what_has_no_meaning_here_is_accepted(path: str, mode: str, tmp_path: Path) -> None:
    for value in (True, False):
        document = changed(path, value)
        document["mode"] = mode
        assert load(written(tmp_path, document)).blob_dirs == ["/images/blobs", "/other"]


def test_smallest(tmp_path: Path) -> None:
    config = load(written(tmp_path, {"device": {"backend": {"type": "localfs", "config": {"dir": "/b"}}}}))
    assert config == check(Config(blob_dirs=["/b"]))


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("mod", "direct", "mod"),
        ("device.caches", {}, "$.device"),
        ("device.cache.config.workdir", "/x", "$.device.cache.config"),
        ("device.cache.config.work_dir", 3, "$.device.cache.config.work_dir"),
        ("device.backend.config.dirr", "/x", "$.device.backend.config"),
        ("device.backend.config.dir", ["/x"], "$.device.backend.config.dir"),
        ("device.backend.config.dir", "", "$.device.backend.config.dir"),
        ("device.backend.type", 7, "$.device.backend.type"),
        ("enable_xattr", "yes", "$.enable_xattr"),
        ("fs_prefetch.enable", 1, "$.fs_prefetch.enable"),
    ],
)
def test_an_error_names_the_json_path(path: str, value: int | list[str] | str, named: str, tmp_path: Path) -> None:
    document = changed(path, value)
    if path.endswith("config.dir") and not value:
        del document["device"]["backend"]["config"]["alt_dirs"]
    file = written(tmp_path, document)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert named in caught.value.message
    assert "\n" not in caught.value.message


def test_an_unknown_backend_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="nonsense"):
        load(written(tmp_path, changed("device.backend.type", "nonsense")))


S3 = {
    "endpoint": "127.0.0.1:9000",
    "scheme": "http",
    "access_key_id": "KEY",
    "access_key_secret": "SECRET-SECRET",
    "bucket_name": "images",
    "region": "us-east-1",
    "meta_prefix": "meta/",
    "blob_prefix": "blobs/",
}


def in_backend(**fields: Any) -> dict[str, Any]:
    return {"device": {"backend": {"type": "s3", "config": {**S3, **fields}}, "cache": {"type": "blobcache"}}}


def test_nydusd_s3(tmp_path: Path) -> None:
    backend = load(written(tmp_path, in_backend())).backend
    assert isinstance(backend, records.S3)
    assert backend.blob_object("ab" * 32) == "blobs/" + "ab" * 32
    assert backend.meta_object("app.meta") == "meta/app.meta"
    assert describe(backend) == "s3 http://127.0.0.1:9000/images"
    prefixed = load(written(tmp_path, in_backend(blob_prefix="", object_prefix="o/"))).backend
    assert isinstance(prefixed, records.S3)
    assert prefixed.blob_object("x") == "o/x"


def test_s3_as_a_table_of_our_own(tmp_path: Path) -> None:
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in S3.items())
    config = load(written(tmp_path, f'patience = 7\n[backend]\ntype = "s3"\n{text}'.encode()))
    assert config == check(Config(patience=7, backend=load(written(tmp_path, in_backend())).backend))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"endpoint": "http://127.0.0.1:9000"}, "$.device.backend.config.endpoint"),
        ({"endpoint": "a/../b"}, "$.device.backend.config.endpoint"),
        ({"endpoint": "a/b?c"}, "$.device.backend.config.endpoint"),
        ({"endpoint": "u:p@a/b"}, "$.device.backend.config.endpoint"),
        ({"endpoint": "/"}, "$.device.backend.config.endpoint"),
        ({"bucket_name": ""}, "$.device.backend.config.bucket_name"),
        ({"bucket": "x"}, "$.device.backend.config: Object contains unknown field `bucket`"),
        ({"access_key_secret": ""}, "access_key_id and access_key_secret go together"),
        ({"scheme": "ftp"}, "$.device.backend.config.scheme"),
        ({"timeout": 0}, "$.device.backend.config.timeout"),
        ({"object_prefix": "other/"}, "blob_prefix and object_prefix"),
        ({"blob_prefix": "a/../b/"}, "$.device.backend.config.blob_prefix"),
        ({"proxy": {"url": "p:1"}}, "$.device.backend.config.proxy.url"),
        ({"proxy": {"url": "http://p:1", "falback": True}}, "$.device.backend.config.proxy"),
        ({"mirrors": [{"host": "m"}]}, "$.device.backend.config.mirrors[0].host"),
        ({"mirrors": [{"host": "http://u:SECRET@m"}]}, "$.device.backend.config.mirrors[0].host"),
        ({"ca_cert_files": ["/ca"] * 1000}, "more than 6000 bytes"),
        (
            {"proxy": {"url": "http://p", "dragonfly_scheduler_endpoint": "x"}},
            "$.device.backend.config.proxy.dragonfly_scheduler_endpoint",
        ),
    ],
)
def test_a_wrong_backend_is_named_by_json_path(fields: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, UnsupportedError)) as caught:
        load(written(tmp_path, in_backend(**fields)))
    assert named in caught.value.message
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"proxy": {"url": "http://p"}},
        {"mirrors": [{"host": "http://m"}]},
        {"skip_verify": True},
        {"ca_cert_files": ["x"]},
    ],
)
def test_a_unix_socket_has_neither_tls_nor_other_servers(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"[$].{next(iter(fields))}: a unix socket"):
        convert("http-proxy", {"addr": "/run/proxy.sock", **fields})


def test_toml(tmp_path: Path) -> None:
    text = b"""
    state_dir = "/cache/"
    run_dir = "/run/x"
    blob_dirs = ["/a", "/b"]
    prefetch = false
    segment_size = 4194304
    threads = 8
    background_threads = 2
    """
    config = load(written(tmp_path, text))
    assert (config.state_dir, config.run_dir) == ("/cache", "/run/x")
    assert (config.blob_dirs, config.prefetch, config.segment_size) == (["/a", "/b"], False, 4 << 20)
    assert (config.threads, config.background_threads) == (8, 2)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("segment_sise = 1", "segment_sise"),
        ("segment_size = 3000000", "segment_size"),
        ("segment_size = 524288", "segment_size"),
        ("segment_size = 134217728", "segment_size"),
        ('segment_size = "2M"', "segment_size"),
        ("threads = 1", "threads"),
        ("threads = 2\nbackground_threads = 2", "background_threads"),
        ("read_ahead_kib = -1", "read_ahead_kib"),
        ("worker_uid = 0", "worker_uid"),
        ("prefetch = 1", "prefetch"),
        ("blob_dirs = 'x'", "blob_dirs"),
        ("this is no", "neither TOML nor JSON"),
        ("{", "neither TOML nor JSON"),
        ("{}", "device"),
    ],
)
def test_a_wrong_value_is_named(text: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, text.encode()))
    assert named in caught.value.message


def test_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="directory"):
        load(str(tmp_path))


def test_too_large(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        load(written(tmp_path, b" " * ((1 << 20) + 1)))


def _load_any(raw: bytes, path: Path) -> None:
    path.write_bytes(raw)
    try:
        assert isinstance(load(str(path)), Config)
    except (ConfigError, UnsupportedError) as error:
        assert "\n" not in error.message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(value=st.dictionaries(st.sampled_from([*NYDUSD, "id", "x"]), json_values, max_size=5))
def test_any_json(value: dict[str, dict[str, None]], tmp_path_factory: pytest.TempPathFactory) -> None:
    _load_any(json.dumps(value).encode(), tmp_path_factory.getbasetemp() / "config-json")


@given(raw=st.binary(max_size=200) | st.binary(max_size=200).map(lambda b: b"{" + b))
def test_any_bytes(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    _load_any(raw, tmp_path_factory.getbasetemp() / "config-bytes")


@pytest.mark.parametrize("name", ["\n", "x" * 100_000, "\x1b[31m", "\udcff"])
def test_what_a_file_says_is_repeated_in_one_bounded_line(name: str, tmp_path: Path) -> None:
    for document in ({"device": {name: 1}}, changed("device.backend.type", name), in_backend(**{name: 1})):
        with pytest.raises((ConfigError, UnsupportedError)) as caught:
            load(written(tmp_path, document))
        assert caught.value.message.isprintable()
        assert len(caught.value.message) < 800


def test_deeply_nested(tmp_path: Path) -> None:
    for opening in (b'{"device":' * 5000, b'{"x":' + b"[" * 100_000, b"x = " + b"[" * 5000):
        with pytest.raises(ConfigError):
            load(written(tmp_path, opening))

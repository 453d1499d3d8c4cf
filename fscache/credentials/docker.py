"""Credentials for registries from docker's configuration and its credential helpers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading

import msgspec
from msgspec.structs import replace

from ...erofs.errors import ConfigError
from ..config.backend import Registry, Remote
from ..config.reference import HUB_HOSTS
from ..decoding import decoded
from .basic import IDENTITY_USER, decode, encode

_HUB_KEY = "https://index.docker.io/v1/"  # docker's name for Docker Hub, everywhere
_CONFIG_LIMIT = 1 << 20  # bytes
_HELPER_SECONDS, _HELPER_LIMIT = 10, 65536


def with_docker_credentials(backend: Remote) -> Remote:
    """A backend with what this user's docker configuration knows of it, if it is a registry without credentials.

    It may run a program and wait for it: for a user's process or a child. ConfigError as ``docker_credentials``.
    """
    if not isinstance(backend, Registry) or backend.auth or backend.registry_token:
        return backend
    return replace(backend, auth=docker_credentials(backend.host, docker_config()))


class _Auth(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _Docker(msgspec.Struct):
    auths: dict[str, _Auth] = {}
    cred_helpers: dict[str, str] = msgspec.field(name="credHelpers", default_factory=dict)
    creds_store: str = msgspec.field(name="credsStore", default="")


class _Helped(msgspec.Struct):
    username: str = msgspec.field(name="Username", default="")
    secret: str = msgspec.field(name="Secret", default="")


_DOCKER, _HELPED = msgspec.json.Decoder(_Docker), msgspec.json.Decoder(_Helped)


def docker_config() -> str:
    """Where this user's docker configuration is."""
    folder = os.environ.get("DOCKER_CONFIG") or os.path.join(os.path.expanduser("~"), ".docker")
    return os.path.join(folder, "config.json")


def docker_credentials(host: str, config_path: str) -> str:
    """What docker's configuration knows for a registry: ``base64(user:password)``, or "" when that is nothing.

    Runs a credential helper if the configuration names one, so it is not for the worker: the caller puts the result
    into ``Registry.auth``.

    Args:
        host: ``host[:port]`` of the registry.
        config_path: usually ``~/.docker/config.json``; it need not exist.

    Raises:
        ConfigError: the file or the helper is broken.
    """
    try:
        with open(config_path, "rb") as file:
            text = file.read(_CONFIG_LIMIT + 1)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError(f"docker configuration {config_path}: {error.strerror}") from None
    try:
        docker = decoded(_DOCKER, text if len(text) <= _CONFIG_LIMIT else b"")
    except msgspec.DecodeError:
        raise ConfigError(f"docker configuration {config_path}: not JSON of the known form") from None
    keys = _keys(host)
    helper = next((docker.cred_helpers[key] for key in keys if key in docker.cred_helpers), docker.creds_store)
    if helper and (found := _ask_helper(helper, _HUB_KEY if host in HUB_HOSTS else host)):
        return found
    for key in keys:
        if key in docker.auths and (found := _from_file(docker.auths[key], config_path)):
            return found
    return ""


def _keys(host: str) -> list[str]:
    """Names under which docker's configuration may hold a registry, the usual one first."""
    hosts = list(HUB_HOSTS) if host in HUB_HOSTS else [host]
    names = [_HUB_KEY] if host in HUB_HOSTS else []
    for one in hosts:
        names += [
            one,
            f"https://{one}",
            f"https://{one}/",
            f"http://{one}",
            f"https://{one}/v1/",
            f"https://{one}/v2/",
        ]
    return names


def _from_file(entry: _Auth, config_path: str) -> str:
    if entry.identitytoken:
        return encode(IDENTITY_USER, entry.identitytoken)
    if entry.username:
        return encode(entry.username, entry.password)
    if entry.auth:
        try:
            return encode(*decode(entry.auth))
        except ConfigError:
            raise ConfigError(f"docker configuration {config_path}: an auth is not base64 of user:password") from None
    return ""


def _ask_helper(name: str, server: str) -> str:
    """What ``docker-credential-NAME get`` answers; nothing it prints goes into a message."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        raise ConfigError("docker configuration: the name of the credential helper is not a plain name")
    what = f"docker-credential-{name}"
    try:
        process = subprocess.Popen(
            [what, "get"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise ConfigError(f"{what}, which docker's configuration names: {error.strerror}") from None
    timer = threading.Timer(_HELPER_SECONDS, os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    try:
        output = _talk(process, server)
    finally:
        timer.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode < 0 or len(output) > _HELPER_LIMIT:
        raise ConfigError(f"{what}: no answer within {_HELPER_SECONDS} s and {_HELPER_LIMIT} bytes")
    if process.returncode:
        if b"credentials not found" in output:
            return ""
        raise ConfigError(
            f"{what} get: it failed with status {process.returncode}", hint=f"try it by hand for {server}"
        )
    return understood(output, what)


def understood(answer: bytes, what: str) -> str:
    """The credential in a helper's answer, "" for none; ConfigError when it is not one."""
    try:
        helped = decoded(_HELPED, answer)
    except msgspec.DecodeError:
        raise ConfigError(f"{what} get: the answer is not JSON of the known form") from None
    return encode(helped.username, helped.secret) if helped.secret else ""


def _talk(process: subprocess.Popen[bytes], server: str) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin as stdin, process.stdout as stdout:
        try:
            stdin.write(server.encode())
            stdin.close()
        except BrokenPipeError:
            pass  # it does not read; its answer tells
        output = stdout.read(_HELPER_LIMIT + 1)
        if len(output) <= _HELPER_LIMIT:
            process.wait()
    return output

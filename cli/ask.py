"""What the client verbs do: ask the service, and show what it says. Without click: ``quick.py`` says why."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence

from ..fscache.client import NONSENSE, NoServiceError, not_understood, request
from ..fscache.config.defaults import DEFAULT_RUN, DEFAULT_STATE, control_socket
from .exits import require_root
from .units import size_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def mount_image(
    image: str,
    mountpoint: str,
    *,
    blob_dirs: Sequence[str] = (),
    backend_file: str = "",
    digest: str = "",
    prefetch: bool | None = None,
    suid: bool = False,
    dev: bool = False,
    plain_http: bool = False,
    insecure: bool = False,
    run_dir: str = DEFAULT_RUN,
    state_dir: str = "",
    options: Sequence[str] = (),
) -> None:
    """Ask the service to mount an image, starting one if there is none.

    Args:
        state_dir: of a service that is started; it is said when the one that runs has another.
        options: of mount(8), besides what ``suid`` and ``dev`` say.
    """
    require_root("mounting")
    name, auth = named(image)
    fields = {
        "image": name,
        "target": os.path.realpath(mountpoint),
        "blob_dirs": [os.path.realpath(path) for path in blob_dirs],
        "backend_file": backend_file and os.path.realpath(backend_file),
        "digest": digest,
        "auth": auth,
        "prefetch": prefetch,
        "plain_http": plain_http,
        "insecure": insecure,
        "options": [*options, *(["suid"] if suid else []), *(["dev"] if dev else [])],
    }
    try:
        answer = request(control_socket(run_dir), "mount", **fields)
    except NoServiceError:
        from .launch import start_service

        start_service(run_dir, state_dir or DEFAULT_STATE)
        answer = request(control_socket(run_dir), "mount", **fields)
    if state_dir and answer["state_dir"] != os.path.realpath(state_dir):
        sys.stderr.write(f"nydus-erofs: the service that runs keeps its state in {answer['state_dir']}\n")


def named(image: str) -> tuple[str, str]:
    """An image's name for the service, and what this user's docker configuration has for its registry."""
    if os.path.exists(image):  # the usual case, which loads nothing
        return os.path.realpath(image), ""
    from ..fscache.config.reference import FileImage, RegistryImage, parse_image

    found = parse_image(image)
    if isinstance(found, FileImage):
        return os.path.realpath(found.path), ""
    if not isinstance(found, RegistryImage):
        return image, ""
    from ..fscache.credentials.docker import docker_config, docker_credentials

    return image, docker_credentials(found.host, docker_config())


def umount_image(mountpoint: str, *, run_dir: str = DEFAULT_RUN) -> None:
    """Ask the service to unmount an image."""
    require_root("unmounting")
    request(control_socket(run_dir), "umount", target=os.path.realpath(mountpoint))


def show_status(*, run_dir: str = DEFAULT_RUN, as_json: bool = False) -> None:
    """Print what the service serves."""
    answer = request(control_socket(run_dir), "status")
    try:
        text = json.dumps(answer, indent=2) if as_json else "\n".join(_status(answer))
    except NONSENSE:
        raise not_understood() from None
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()  # here, where it is noticed when nobody reads


def _status(answer: dict[str, Any]) -> Iterator[str]:
    worker = answer["worker"]
    state = f"worker {worker['pid']}" if worker["pid"] else "worker restarting"
    yield (
        f"nydus-erofs {answer['version']}, {answer['engine']} engine, pid {answer['pid']}, {state}"
        f" ({worker['restarts']} restarts), {len(answer['mounts'])} mounted"
    )
    for backend in answer["backends"]:
        yield _backend(backend)
    for mounted in answer["mounts"]:
        yield from _lines(mounted)


def _backend(backend: dict[str, Any]) -> str:
    mean, most = (1000 * backend[f"latency_seconds_{which}"] for which in ("mean", "max"))
    latency = f"{mean:.1f} ms each, {most:.0f} ms at most"
    line = f"{backend['backend']}  {backend['requests']} requests, {size_text(backend['bytes'])}, {latency}"
    if backend["errors"]:
        line += f"; {backend['errors']} failed, {backend['retries']} sent again; last: {backend['last_error']}"
    return line + ("; does not answer now" if backend["down"] else "")


def _lines(mounted: dict[str, Any]) -> list[str]:
    size = {key: size_text(value) for key, value in mounted.items() if key.startswith("bytes_")}
    total = mounted["bytes_total"]
    here = sum(mounted[f"bytes_{how}"] for how in ("cached_before", "on_demand", "ahead", "prefetched"))
    share = f"{100 * here / total:.0f} %" if total else "all"
    ways = (
        f"{size['bytes_cached_before']} before, {size['bytes_on_demand']} on demand,"
        f" {size['bytes_ahead']} ahead, {size['bytes_prefetched']} prefetched"
    )
    stalls = f"{mounted['stall_seconds_total']:.3f} s in all, {mounted['stall_seconds_max'] * 1000:.1f} ms at most"
    waits = f"{mounted['events_waited']} waited, {stalls}, {mounted['readers_waiting']} waiting now"
    lines = [
        f"{mounted['target']}  {mounted['image']}",
        f"  here      {size_text(here)} of {size['bytes_total']} ({share}): {ways}",
        f"  fetched   {size['bytes_fetched_compressed']} compressed",
        f"  readers   {mounted['events']} events, {waits}",
    ]
    if mounted["waiting_for"]:
        lines.append(f"  waiting   {mounted['waiting_for']}")
    if mounted["failures"]:
        lines.append(
            f"  failures  {mounted['failures']} ({mounted['events_denied']} reads got EIO): {mounted['last_error']}"
        )
    if mounted["detached"]:
        lines.append("  detached  unmounted here, but still in use elsewhere")
    return lines

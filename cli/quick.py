"""The client verbs without click.

Importing click takes longer than the service takes to mount an image. So whatever ``mount``, ``umount`` and
``status`` need does without it (and without ``typing``), and here their plain command lines are understood.
Everything else, help and mistakes among it, is left to click, which has the last word on what is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_RUN, _STATE = {"--run-dir": "run_dir"}, {"--state-dir": "state_dir"}
_MOUNT_FLAGS = {
    "--prefetch": ("prefetch", True),
    "--no-prefetch": ("prefetch", False),
    "--suid": ("suid", True),
    "--dev": ("dev", True),
    "--plain-http": ("plain_http", True),
    "--insecure": ("insecure", True),
}
_MANY = "blob_dirs"  # the one option that may be given several times

# verb -> (arguments, options with a value, flags), with the names that they have in ``ask.py``
_VERBS: dict[str, tuple[tuple[str, ...], dict[str, str], dict[str, tuple[str, bool]]]] = {
    "mount": (
        ("image", "mountpoint"),
        {"--blob-dir": _MANY, "--backend-config-file": "backend_file", "--digest": "digest", **_RUN, **_STATE},
        _MOUNT_FLAGS,
    ),
    "umount": (("mountpoint",), _RUN, {}),
    "status": ((), _RUN, {"--json": ("as_json", True)}),
}


def parse(arguments: Sequence[str]) -> dict[str, Any] | None:
    """What a command line asks for, by name, with the verb as ``verb``; None for click to say."""
    if not arguments or arguments[0] not in _VERBS:
        return None
    names, options, flags = _VERBS[arguments[0]]
    words: list[str] = []
    fields: dict[str, Any] = {"verb": arguments[0]}
    rest = iter(arguments[1:])
    for item in rest:
        option, equals, value = item.partition("=")
        if not item.startswith("-"):
            words.append(item)
        elif item in flags:
            name, choice = flags[item]
            fields[name] = choice
        elif option in options:
            if not equals:
                value = next(rest, "-")
                if value.startswith("-"):
                    return None
            name = options[option]
            fields[name] = [*fields.get(name, ()), value] if name == _MANY else value
        else:
            return None
    if len(words) != len(names):
        return None
    return {**fields, **dict(zip(names, words, strict=True))}


def run(arguments: Sequence[str]) -> int:
    """Run a command line; the exit code."""
    fields = parse(arguments)
    if fields is None:
        from . import verbs

        return verbs.run()
    from . import ask

    calls: dict[str, Callable[..., None]] = {
        "mount": ask.mount_image,
        "umount": ask.umount_image,
        "status": ask.show_status,
    }
    calls[fields.pop("verb")](**fields)
    return 0

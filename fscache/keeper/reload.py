"""Reading the configuration file again while the service runs."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..config.service import Config
from .children.errands import Say, said_by

# What takes effect with the next mount. Everything else is built into the running service.
_LIVE = ("blob_dirs", "backend", "prefetch", "read_ahead_kib")
_CONFIG = msgspec.json.Decoder(Config)


Load = Callable[[], Config]


async def reloaded(now: Config, load: Load) -> tuple[Config, list[str]]:
    """The configuration with what the file says by now, and the keys that changed and need a restart.

    Raises ConfigError for a file that makes no sense: then nothing of it counts.
    """

    def call(say: Say) -> None:
        say(msgspec.json.encode(load()), [])

    (packet,) = await said_by(call, "reading the configuration")
    new = _CONFIG.decode(packet.data)
    changed = [name for name in Config.__struct_fields__ if getattr(now, name) != getattr(new, name)]
    live = {name: getattr(new, name) for name in changed if name in _LIVE}
    return msgspec.structs.replace(now, **live), [name for name in changed if name not in _LIVE]

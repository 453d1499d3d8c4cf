"""Numbers for people."""

from __future__ import annotations


def size_text(size: float) -> str:
    """Bytes in the largest binary unit that leaves at least 1: ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"

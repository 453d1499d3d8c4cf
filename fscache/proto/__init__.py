"""Protocol logic without I/O: bytes in, events out. Nothing here imports os, socket or time."""

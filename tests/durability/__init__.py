"""Power cuts, replayed: what a disk may hold after each of them, mounted and compared byte for byte.

docs/durability.md says what must hold, and why it does.
"""

"""Tests; what they are written with is in ``kit``."""

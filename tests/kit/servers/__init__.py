"""Servers on loopback: real ones, and stubs for what real ones cannot be made to do."""

"""The worker: no privilege; fetches, decodes, verifies and writes, and may be killed at any moment."""

"""Fuzzing: ``python -m tests.fuzz``, and docs/fuzzing.md."""

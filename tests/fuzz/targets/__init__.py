"""What is fuzzed, by who wrote the bytes."""

"""The process that alone writes what readers see, and believes nobody: each chunk has the digest of its plan."""

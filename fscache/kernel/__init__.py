"""System calls: thin wrappers, types that own descriptors, and what a process gives up. Nothing here knows images."""

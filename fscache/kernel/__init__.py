"""System calls: thin wrappers and types that own descriptors. Nothing here knows images or backends."""

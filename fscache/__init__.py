"""The service: serves images to the kernel as they are read.

``keeper`` (root) owns kernel descriptors and mounts; ``worker`` (no privilege) handles untrusted bytes;
``kernel`` wraps system calls; ``proto`` is protocol logic without I/O; ``backend`` is where blobs come from.
"""

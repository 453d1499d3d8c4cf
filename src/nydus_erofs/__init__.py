"""nydus-erofs: container images mounted by the kernel's own EROFS driver, fetched as they are read.

Packaging only: the rooms ``erofs``, ``builder``, ``fscache`` and ``cli`` are links to the
folders of the same names at the top of the project.
"""

__version__ = "0.1.0"

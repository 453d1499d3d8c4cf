"""Where blobs are kept. A backend gives each blob as a ``Source``: its size, and bytes at positions."""

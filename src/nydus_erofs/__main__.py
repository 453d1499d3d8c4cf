"""``python -m nydus_erofs`` is the same program as ``nydus-erofs``."""

from nydus_erofs.cli import main

if __name__ == "__main__":
    main()

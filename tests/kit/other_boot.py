"""``nydus-erofs`` in another boot of the machine: ``other_boot.py BOOT ARGUMENTS``.

It also writes prepared images out after half a second, not fifteen.
"""

import sys

from nydus_erofs.cli import main
from nydus_erofs.fscache.keeper.images import prepared
from nydus_erofs.fscache.keeper.stores import epoch

boot = sys.argv[1]
sys.argv[1:2] = []
sys.argv[0] = "nydus-erofs"
epoch.boot_id = lambda: boot  # type: ignore[assignment]
prepared._SETTLE_AFTER = 0.5
main()

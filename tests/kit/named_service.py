"""``nydus-erofs`` that looks at the disk often, in an era of this name: ``named_service.py ERA ARGUMENTS``."""

import sys

from nydus_erofs.cli import main
from nydus_erofs.fscache.keeper import disk
from nydus_erofs.fscache.keeper.stores import epoch

epoch._era = sys.argv[1].encode()
disk.LATER = disk.LOOK = 0.5
sys.argv[1:2] = []
sys.argv[0] = "nydus-erofs"
main()

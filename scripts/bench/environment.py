"""Imported first by what is run here: goes on in the project's own environment if this interpreter has not got it.

``scripts/setup`` makes that environment and names it.  Python 3.8 is enough to get there.
"""

import importlib.util
import os
import shutil
import subprocess
import sys

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_SETUP = os.path.join(_ROOT, "scripts", "setup")


def _enter():
    if importlib.util.find_spec("nydus_erofs"):
        return
    setup = subprocess.run([_SETUP], stdout=subprocess.PIPE, check=False)
    environment = os.fsdecode(setup.stdout.strip())
    if setup.returncode:
        sys.exit(setup.returncode)
    if os.path.samefile(environment, sys.prefix):
        sys.exit(f"error: {environment} has no nydus_erofs; remove it, and {_SETUP} makes it again")
    python = os.path.join(environment, "bin", "python")
    os.execv(python, [python, *sys.argv])


_enter()
sys.path.append(_ROOT)  # tests.kit: a service to start and to clean up after

_BESIDE = os.path.join(os.path.dirname(sys.executable), "nydus-erofs")
PROGRAM = _BESIDE if os.path.exists(_BESIDE) else shutil.which("nydus-erofs") or "nydus-erofs"

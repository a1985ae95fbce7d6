import os

# Threads that wait soon sleep (bench/contention.py). Read when PyTorch is loaded, so set before any module of ours loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.0.1"

from ccd.moved import _install
_install() # imports from before the folders, for one more release

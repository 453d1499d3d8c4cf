"""Real kernels in virtual machines: the same userspace, another kernel.

``kernels`` is the table, ``archive`` fetches packages, ``modules`` rebuilds the two modules the
cachefiles engine needs, ``prepare`` makes a bootable folder of them, ``machine`` boots it and
runs one command, ``matrix`` runs batteries on every kernel. Standard library only: everything
here must work before the project itself is installed.
"""

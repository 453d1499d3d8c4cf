"""Engines: how mounted images meet the kernel.

``fanotify`` mounts localized bootstraps from files and watches their segments (``watch``); ``cachefiles``
answers the kernel's own cache (``objects``). The keeper runs whichever works on this host.
"""

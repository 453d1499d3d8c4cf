"""The service: serves images to the kernel as they are read. A folder for each process, and below what they share.

=============  ==============================================================================================
``keeper``     root: owns mounts, the kernel's descriptors and the readers that wait; parses nothing
``worker``     no privilege: network, decoders, hostile bytes; fills segments
``prepare``    no privilege, once for each image: localizes a bootstrap, writes plans
``push``       the user's own process: publishes images
-------------  ----------------------------------------------------------------------------------------------
``doctor``     what this host can do, by trying (keeper, command line)
``backend``    reading from servers (worker, push)
``client``     asking the service (command line)
``state``      files that one process writes and another one reads
``kernel``     system calls, descriptors that are owned, packets between processes
``proto``      messages and kernel records as bytes, no I/O
``decoding``   JSON of others, with one kind of error
``processes``  the table of all processes: who each is, what it is given, what it gives up
``config``     what people configure
``credentials``  what servers want to see, and where docker keeps it
=============  ==============================================================================================

The processes do not import each other, and nothing imports upward: import-linter holds that (``pyproject.toml``).
Why there are several: ``docs/privileges.md``.
"""

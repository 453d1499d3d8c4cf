"""What tests are written with.

    command    ``nydus-erofs``, run to its end
    child      gives something up, then tries what it should not be able to do
    ticking    a ticker whose time a test passes
    waiting    for what becomes true in time
    processes  whether they live, what they cost
    mounts     what is mounted, disks of their own, unmounting whatever happens
    reading    reads and comparisons in children with a time limit (``reader`` is the child)
    engines    what only tests need to know of each engine
    service    a real service: started, asked, killed, cleaned up after
    odd_service  a service whose workers are not what they should be (``odd_worker`` is one)
    images     images of Nydus and of the builder
    published  images on a server, behind a relay
    stores     a worker's stores over real files
    oracles    independent programs that judge ours
    servers/   servers to read from and push to

Nothing in a test's own process touches a mount that a service serves: a read that nobody answers can only be killed.
"""

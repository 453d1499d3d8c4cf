"""The format: RAFS v6 and the part of EROFS it uses, as pure functions over bytes.

Nothing here opens a file by name, talks to a network or needs a privilege.
"""

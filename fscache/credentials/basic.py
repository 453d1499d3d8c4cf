"""One credential as one string, ``base64(user:password)``, as ``Registry.auth`` holds it."""

from __future__ import annotations

import base64

from ...erofs.errors import ConfigError

IDENTITY_USER = "<token>"  # before an identity token (docker's word for an OAuth2 refresh token), as helpers spell it


def encode(user: str, password: str) -> str:
    """``base64(user:password)``."""
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def decode(auth: str) -> tuple[str, str]:
    """User and password of a credential; ConfigError when it is none."""
    try:
        user, colon, password = base64.b64decode(auth.strip(), validate=True).decode().partition(":")
    except ValueError:  # binascii.Error, UnicodeDecodeError; and for other letters than those of base64
        user, colon, password = "", "", ""
    if not colon or not user:
        raise ConfigError("auth: not base64 of user:password")
    return user, password.rstrip("\0")  # docker pads

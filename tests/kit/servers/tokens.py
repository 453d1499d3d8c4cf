"""A token server whose tokens distribution accepts: Docker's protocol, GET with basic credentials and OAuth2 POST."""

from __future__ import annotations

import base64
import json
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

ISSUER, SERVICE, KEY_ID = "tests", "the-registry", "tests-key"
LEEWAY = 60  # seconds that distribution grants a token after its end


class TokenServer:
    """Issues tokens to everyone, or to ``users`` and holders of ``identity`` alone.

    Args:
        folder: for the key set that the registry reads.
        lasts: seconds that a token is really good for.
        says: seconds that the answer claims; None to leave it out.

    ``requests`` lists method, parameters and Authorization header of what came.
    """

    def __init__(
        self,
        folder: Path,
        users: dict[str, str] | None = None,
        identity: str = "",
        lasts: float = 300,
        says: float | None = 300,
    ) -> None:
        self.users, self.identity, self.lasts, self.says = users, identity, lasts, says
        self.requests: list[tuple[str, dict[str, str], str]] = []
        self.status = 200
        self.delay = 0.0
        self._key = ec.generate_private_key(ec.SECP256R1())
        jwk = jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        self._jwks = folder / "jwks.json"
        self._jwks.write_text(json.dumps({"keys": [{**jwk, "kid": KEY_ID, "alg": "ES256", "use": "sig"}]}))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.realm = f"http://127.0.0.1:{self._server.server_address[1]}/token"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def auth(self) -> dict[str, Any]:
        """The registry's options for it."""
        return {
            "realm": self.realm, "service": SERVICE, "issuer": ISSUER, "jwks": str(self._jwks),
            "signingalgorithms": ["ES256"],
        }  # fmt: skip

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, fields: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        self.requests.append((method, fields, authorization))
        time.sleep(self.delay)
        if self.status != 200:
            return self.status, {"errors": [{"code": "UNKNOWN", "message": f"you sent {authorization} {fields}"}]}
        if not self._knows(method, fields, authorization):
            return 401, {"errors": [{"code": "UNAUTHORIZED", "message": f"not with {authorization} {fields}"}]}
        token = self.token(fields.get("scope", ""))
        said = {} if self.says is None else {"expires_in": self.says}
        return 200, {"access_token" if method == "POST" else "token": token, **said}

    def _knows(self, method: str, fields: dict[str, str], authorization: str) -> bool:
        if method == "POST":
            return fields["grant_type"] == "refresh_token" and fields["refresh_token"] == self.identity != ""
        if self.users is None:
            return True
        user, _, password = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        return user in self.users and self.users[user] == password

    def token(self, scope: str) -> str:
        kind, name, actions = scope.split(":") if scope else ("", "", "")
        now = time.time()
        claims = {
            "iss": ISSUER, "sub": "", "aud": SERVICE, "jti": uuid.uuid4().hex,
            "iat": int(now) - LEEWAY, "nbf": int(now) - 2 * LEEWAY, "exp": int(now + self.lasts - LEEWAY),
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }  # fmt: skip
        return jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": KEY_ID})


def _handler(server: TokenServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(urlsplit(self.path).query)

        def do_POST(self) -> None:
            self._reply(self.rfile.read(int(self.headers["Content-Length"])).decode())

        def _reply(self, form: str) -> None:
            fields = {name: values[0] for name, values in parse_qs(form).items()}
            status, answer = server.answer(self.command, fields, self.headers.get("Authorization", ""))
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    return Handler

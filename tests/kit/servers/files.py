"""A web server of plain files with ranges, as one puts behind an http-proxy backend."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class FileServer(ThreadingHTTPServer):
    """Serves ``folder`` on a port of 127.0.0.1, with quoted sizes and times as ETags.

    While ``gate`` is not set, answers of more than ``large`` bytes wait for it, in silence or (``endless``) with
    headers that have no end; with ``drip``, bytes come one by one, with as many seconds between them.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.folder, self.port = folder, self.server_address[1]
        self.gate, self.large, self.drip = threading.Event(), 0, 0.0
        self.endless = False
        self.gate.set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients come and go

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20
    server: FileServer

    def do_GET(self) -> None:
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            return self.send_error(404)
        size, first, status = path.stat().st_size, 0, 200
        last = size - 1
        if wanted := _RANGE.fullmatch(self.headers.get("Range", "")):
            first, last, status = int(wanted[1]), min(int(wanted[2]), last), 206
            if first > last:
                return self.send_error(416)
        if self.command == "GET" and last - first >= self.server.large:
            if self.server.endless and not self.server.gate.is_set():
                return self._drip_headers()
            self.server.gate.wait(60)
        self.send_response(status)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("ETag", f'"{size}-{path.stat().st_mtime_ns}"')
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if self.command == "GET":
            with contextlib.suppress(OSError), path.open("rb") as file:
                file.seek(first)
                data = file.read(last - first + 1)
                while self.server.drip and data:
                    self.wfile.write(data[:1])
                    data = data[1:]
                    time.sleep(self.server.drip)
                self.wfile.write(data)
        return None

    def _drip_headers(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.write(b"HTTP/1.1 206 Partial Content\r\nX-Endless: ")
            while not self.server.gate.wait(0.5):
                self.wfile.write(b"a")

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

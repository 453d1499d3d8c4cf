"""A TCP relay on loopback that delays what it passes on and, when told, misbehaves.

In a test: ``Relay(port)``; beside a benchmark: ``python relay.py TARGET_PORT --delay SECONDS``, which prints its port
and ends with its standard input. Delay is latency, not a limit on throughput: bytes travel side by side.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import struct
import sys
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

_PIECE = 1 << 16
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close becomes a reset


@dataclass
class Fault:
    """What goes wrong once ``after`` further bytes of answers went by, on whichever connection that is."""

    kind: str  # reset, close, stall, drip, flip
    after: int = 0
    times: int = 1  # that it happens, each time at the next piece that passes


class Relay:
    """Listens on ``port``; counts ``connections`` and bytes ``up`` (to the server) and ``down``.

    Args:
        delay: seconds one way; a round trip takes twice that.
    """

    def __init__(self, target: int, delay: float = 0.0) -> None:
        self.target, self.delay = target, delay
        self.connections = self.up = self.down = 0
        self.fault: Fault | None = None
        self._open: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = 0
        self.heal()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def heal(self) -> None:
        """Everything works again, on the same port."""
        self.fault = None
        if self._server is None:
            self._server = self._do(asyncio.start_server(self._serve, "127.0.0.1", self.port))
            self.port = self._server.sockets[0].getsockname()[1]

    def down_now(self) -> None:
        """The server is gone: connections break, new ones are refused."""
        assert self._server is not None
        server, self._server = self._server, None

        async def close() -> None:
            server.close()
            tasks = list(self._open)
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=5)

        self._do(close())

    def close(self) -> None:
        if self._server is not None:
            self.down_now()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)

    # --- one connection ---

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        upstream: asyncio.StreamWriter | None = None
        try:
            answers, upstream = await asyncio.open_connection("127.0.0.1", self.target)
            await self._both(self._pass(reader, upstream, up=True), self._pass(answers, writer, up=False))
        except (OSError, asyncio.CancelledError):
            _abort(writer)
        finally:
            self._open.discard(task)
            for end in (writer, upstream):
                if end is not None:
                    end.close()

    async def _both(self, *ways: Coroutine[Any, Any, None]) -> None:
        tasks = [asyncio.ensure_future(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        """Pass on what comes, each piece ``delay`` seconds after it came."""
        queue: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(1024)

        async def take() -> None:
            data: bytes | None = b"something"
            while data:
                try:
                    data = await reader.read(_PIECE)
                except OSError:  # a reset goes through as one
                    data = None
                await queue.put((self._loop.time() + self.delay, data))

        taking = asyncio.ensure_future(take())
        try:
            while True:
                when, data = await queue.get()
                if when > self._loop.time():
                    await asyncio.sleep(when - self._loop.time())
                if data is None:
                    _abort(writer)
                if not data:
                    return
                if up:
                    self.up += len(data)
                else:
                    self.down += len(data)
                    data = await self._spoil(data, writer)
                writer.write(data)
                await writer.drain()
        finally:
            taking.cancel()

    async def _spoil(self, data: bytes, writer: asyncio.StreamWriter) -> bytes:
        fault = self.fault
        if fault is None or fault.times <= 0:
            return data
        if fault.after >= len(data):
            fault.after -= len(data)
            return data
        fault.times -= 1
        good, bad = data[: fault.after], data[fault.after :]
        match fault.kind:
            case "flip":
                return good + bytes([bad[0] ^ 1]) + bad[1:]
            case "stall":
                writer.write(good)
                await asyncio.sleep(3600)
            case "drip":
                writer.write(good)
                for offset in range(len(bad)):
                    writer.write(bad[offset : offset + 1])
                    await writer.drain()
                    await asyncio.sleep(0.1)
                return b""
            case "reset":
                writer.write(good)
                await writer.drain()
                _abort(writer)
                raise ConnectionResetError
            case "close":
                writer.write(good)
                await writer.drain()
                raise ConnectionAbortedError
        raise AssertionError(fault.kind)


def _abort(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=int)
    parser.add_argument("--delay", type=float, default=0.0)
    arguments = parser.parse_args()
    relay = Relay(arguments.target, arguments.delay)
    print(relay.port, flush=True)
    sys.stdin.read()
    print(relay.connections, relay.up, relay.down, flush=True)
    relay.close()


if __name__ == "__main__":
    main()

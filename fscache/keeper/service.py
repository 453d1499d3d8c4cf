"""The keeper: owns what must not die (kernel descriptors, mounts, unanswered events) and little else.

One thread, one event loop. It parses no image, decompresses nothing and talks to no network; that is for
``prepare`` and the worker, which have no privilege. An exception that nobody expected ends the process: the
kernel then gives readers EIO instead of letting them wait for a loop that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any

import nydus_erofs

from ...erofs.errors import KernelError, NydusErofsError
from ..config.service import Config
from ..doctor import cachefiles as cachefiles_doctor
from ..doctor import checks, fanotify
from ..kernel.cachefiles import Device
from ..kernel.process import raise_file_limit
from ..proto import control
from ..proto.worker import Limits, Traffic
from .bootstraps import Fetcher
from .control import ControlServer
from .engine.base import MOUNT_FLAGS, Engine, MountOrder
from .engine.cachefiles import CachefilesEngine
from .engine.fanotify import FanotifyEngine
from .engine.watch import EventBudget
from .log import logger
from .origin import Given
from .paths import RunPaths, StatePaths
from .stores import StoreMessage, StoreTable
from .traffic import TrafficTable
from .worker_link import WorkerLink

_RESERVED_FDS = 1024  # of the descriptor limit, for everything but events
_LOOK_AGAIN = 5.0  # seconds between looks at the mounts, for those that were in use when last looked at


class Keeper:
    """The service, from start to stop."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.started = time.time()
        self.state = StatePaths(config.state_dir)
        self.run_paths = RunPaths(config.run_dir)
        loop = asyncio.get_running_loop()
        self.worker = WorkerLink(
            config.worker_uid,
            Limits(
                config.threads,
                config.background_threads,
                config.remote_background_threads,
                config.patience,
                config.prefetch_bandwidth,
            ),
            [str(config.backend.__struct_config__.tag)] if config.backend else [],
            self._on_worker,
            self._on_new_worker,
            lambda: self.table.fail_all(),
        )
        self.table = StoreTable(self.worker.send, loop.call_later)
        self.traffic = TrafficTable()
        self.fetcher = Fetcher(self.state, self.worker)
        try:
            self.engine = self._choose_engine()
        except NydusErofsError:
            self.run_paths.give_up()
            raise
        self._server = ControlServer(self.run_paths.socket, self._handle)
        self._stopped = asyncio.Event()

    def _choose_engine(self) -> Engine:
        """The engine that works on this host, tried rather than guessed."""
        config, common = self.config, (self.config, self.state, self.run_paths, self.table, self.fetcher)
        found = [] if config.engine == "cachefiles" else fanotify.fanotify_engine(self.state.root)
        if found and all(check.ok for check in found):
            budget = EventBudget(max(256, raise_file_limit() - _RESERVED_FDS))
            return FanotifyEngine(*common, budget)
        if config.engine == "fanotify":
            checks.require(found)
        try:
            self._check_floor()
            return CachefilesEngine(*common, self.worker, Device.open())
        except NydusErofsError as error:
            if config.engine == "cachefiles":
                raise
            raise KernelError(
                f"no engine works here: fanotify: {checks.failure(found)}; cachefiles: {error.message}",
                hint="'nydus-erofs doctor' tells what to change",
            ) from None

    def _on_worker(self, message: StoreMessage | Traffic) -> None:
        if isinstance(message, Traffic):
            self.traffic.on_news(message)
        else:
            self.table.on_message(message)

    def _on_new_worker(self) -> None:
        self.traffic.on_new_worker()
        self.table.introduce_all()

    def _check_floor(self) -> None:
        """KernelError where the cachefiles engine is known to be dangerous, unless told to go on."""
        uname = os.uname()
        floor = cachefiles_doctor.kernel_floor(uname.release, uname.version)
        if not floor.ok and not self.config.allow_old_kernel:
            raise KernelError(floor.detail, hint=floor.fix)
        if not floor.ok:
            logger().warning("old kernel", detail=floor.detail)

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Serve until told to stop."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_fatal)
        await self._server.start()
        worker = asyncio.create_task(self.worker.run())
        worker.add_done_callback(_fatal_task)
        self.engine.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        watch = _watch_mounts(self.engine.look)
        again = asyncio.create_task(self._look_again())
        logger().info("ready", engine=self.engine.name, socket=self.run_paths.socket, state=self.state.root)
        on_ready()
        try:
            await self._stopped.wait()
        finally:
            again.cancel()
            loop.remove_reader(watch)
            watch.close()
            self._server.close()
            worker.remove_done_callback(_fatal_task)
            self.engine.close()
            self.worker.stop()
            await worker
            self.run_paths.close()
        logger().info("stopped")

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_AGAIN)
            self.engine.look()

    def _on_signal(self) -> None:
        task = asyncio.create_task(self._stop())
        task.add_done_callback(_fatal_task)

    async def _stop(self) -> list[str]:
        busy = await self.engine.stop()
        if busy:
            logger().error("not stopping: mounts are in use", busy=busy)
        else:
            self._stopped.set()
        return busy

    def _status(self) -> dict[str, Any]:
        """One glance: what is served, how much of it is here, and whether readers wait."""
        return {
            "version": nydus_erofs.__version__,
            "pid": os.getpid(),
            "uptime_seconds": round(time.time() - self.started, 1),
            "engine": self.engine.name,
            "state_dir": self.state.root,
            "run_dir": self.run_paths.root,
            "worker": {"pid": self.worker.pid, "restarts": max(0, self.worker.restarts)},
            "backends": self.traffic.describe(),
            "mounts": self.engine.describe(),
        }

    async def _handle(self, request: control.Request) -> dict[str, Any]:
        match request:
            case control.Mount():
                prefetch = self.config.prefetch if request.prefetch is None else request.prefetch
                flags = sum(MOUNT_FLAGS[option] for option in set(request.options))
                given = Given(request.image, request.blob_dirs, request.backend_file)
                order = MountOrder(given, request.target, prefetch, flags, request.digest, request.auth)
                await self.engine.mount(order)
                return {"target": request.target}
            case control.Umount():
                await self.engine.umount(request.target)
                return {}
            case control.Status():
                return self._status()
            case control.Stop():
                return {"busy": await self._stop()}


def _watch_mounts(changed: Callable[[], None]) -> select.epoll:
    """Call ``changed`` whenever the mount table changes (proc(5): POLLPRI on mountinfo)."""
    watch = select.epoll()
    table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    watch.register(table, select.EPOLLPRI | select.EPOLLERR)

    def on_event() -> None:
        watch.poll(0)
        changed()

    asyncio.get_running_loop().add_reader(watch, on_event)
    return watch


def _fatal(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An exception in a callback: nobody can say what is broken, so nothing goes on."""
    error = context.get("exception")
    logger().critical("internal error", message=context.get("message"), error=repr(error))
    if error is not None:
        traceback.print_exception(error)
    os._exit(70)


def _fatal_task(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _fatal(task.get_loop(), {"message": "task failed", "exception": task.exception()})


def serve(config: Config, on_ready: Callable[[], None] = lambda: None) -> None:
    """Run the service in this process until it is stopped."""

    async def main() -> None:
        await Keeper(config).run(on_ready)

    os.umask(0o077)
    with contextlib.suppress(OSError):
        os.chdir("/")
    asyncio.run(main())

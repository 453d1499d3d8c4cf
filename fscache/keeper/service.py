"""The service: the keeper's parts put together, from start to stop.

One thread, one event loop. It parses no image, decompresses nothing and talks to no network; that is for ``prepare``
and the worker, which have no privilege. Nothing in it waits; that is for children. An exception that nobody expected
ends the process: the kernel then gives readers EIO instead of letting them wait for a loop that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import msgspec

import nydus_erofs

from ...erofs.errors import KernelError, NydusErofsError, ServiceError
from ..config.service import Config
from ..doctor import cachefiles as cachefiles_doctor
from ..doctor import checks, fanotify
from ..kernel import channel
from ..kernel.cachefiles import Device
from ..kernel.fd import Fd
from ..kernel.process import own_descriptors, raise_file_limit
from ..proto import control, verifier, worker
from ..proto.worker import Limits, Start
from .children import dispatch
from .children.errands import remove
from .children.traffic import TrafficTable
from .children.verifier_link import VerifierLink
from .children.worker_link import WorkerLink
from .control import ControlServer
from .disk import Disk
from .engine.base import Engine, MountOrder, mount_flags
from .images.bootstraps import Bootstraps
from .images.origin import ImageRequest
from .log import logger
from .mount_table import MountTable
from .paths import RunPaths, StatePaths
from .reload import Load, reloaded
from .scrub import Scrub
from .signals import Signals
from .stores.news import News
from .stores.table import StoreTable
from .tasks import background, on_error
from .ticker import Ticker
from .trouble import is_bug, refusal

_GRACE = 5.0  # seconds that a service which is to stop gives mounts under way,
_DRAIN = 10.0  # and the disk
_LEAST_FDS = 1024


class Keeper:
    """The service, from start to stop.

    Args:
        load: reads the configuration again, on SIGHUP; none if it was not read from a file.
    """

    def __init__(self, config: Config, load: Load | None = None) -> None:
        self.config, self._load = config, load
        self.started = time.time()
        self.state = StatePaths(config.state_dir)
        self.run_paths = RunPaths(config.run_dir)
        limits = Limits(
            config.threads,
            config.background_threads,
            config.remote_background_threads,
            config.prefetch_bandwidth,
        )
        # They hold what the kernel has for them: each of both is replaced without anybody noticing.
        start = Start(config.worker_uid, limits, self.state.store)
        self.disk = Disk(self.state.root, self._on_lost)
        later = asyncio.get_running_loop().call_later
        ticker = Ticker(later)
        self.worker = WorkerLink(start, self._on_new_worker, ticker)
        checking = verifier.Start(config.verifier_uid, self.state.store, limits.most_threads)
        self.verifier = VerifierLink(checking, self._on_new_verifier, self._on_no_verifier, ticker)
        if config.backend is not None:
            self.worker.require(config.backend)
        self.table = StoreTable(
            self.worker.send,
            self.verifier.send,
            later,
            self.disk.write_out,
            _discard,
            ticker,
            config.patience,
            self._on_stall,
        )
        self.traffic = TrafficTable()
        news = News(self.table)
        self.worker.listen(dispatch.of_worker(news, self.traffic, self.worker.on_answer))
        self.bootstraps = Bootstraps(self.state, self.worker)
        try:
            self.engine = self._choose_engine()
        except (NydusErofsError, OSError):
            self.run_paths.give_up()
            raise
        self.scrub = Scrub(self.table, self.engine.kept, self.verifier.send)
        self.verifier.listen(dispatch.of_verifier(news, self.scrub))
        self._server = ControlServer(self.run_paths.socket, self._handle)
        self._mounting: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._stopped = asyncio.Event()

    def _choose_engine(self) -> Engine:
        """The engine that works on this host, tried rather than guessed."""
        config, common = (
            self.config,
            (self.config, self.state, self.disk, self.run_paths, self.table, self.bootstraps),
        )
        found = [] if config.engine == "cachefiles" else fanotify.fanotify_engine(self.state.root)
        if found and all(check.ok for check in found):
            from .engine.fanotify import FanotifyEngine  # one engine is loaded, not both
            from .engine.watch import EventBudget

            return FanotifyEngine(*common, EventBudget(_descriptors_for_events()))
        if config.engine == "fanotify":
            checks.require(found)
        from .engine.cachefiles import CachefilesEngine

        try:
            self._check_floor()
            return CachefilesEngine(*common, Device.open())
        except NydusErofsError as error:
            if config.engine == "cachefiles":
                raise
            raise KernelError(
                f"no engine works here: fanotify: {checks.failure(found)}; cachefiles: {error.message}",
                hint="'nydus-erofs doctor' tells what to change",
            ) from None

    def _check_floor(self) -> None:
        """KernelError where the cachefiles engine is known to be dangerous, unless told to go on."""
        uname = os.uname()
        floor = cachefiles_doctor.kernel_floor(uname.release, uname.version)
        if not floor.ok and not self.config.allow_old_kernel:
            raise KernelError(floor.detail, hint=floor.fix)
        if not floor.ok:
            logger().warning("old kernel", detail=floor.detail)

    def _on_new_worker(self) -> None:
        self.traffic.on_new_worker()
        if self.verifier.pid:
            self._connect()

    def _on_new_verifier(self) -> None:
        self.engine.on_nobody_writes()
        self.table.show_all()
        if self.worker.pid:
            self._connect()

    def _on_no_verifier(self) -> None:
        self.table.on_no_verifier()
        self.scrub.on_no_verifier()
        self.engine.on_nobody_writes()
        self.worker.kill()  # its connections are dead

    def _on_lost(self) -> None:
        """The disk has lost what was written."""
        if self.engine.on_lost():
            self.verifier.kill()  # if there is none, the next one begins with that

    def _on_stall(self, patience: float) -> None:
        """Readers waited for something in vain. If nobody works, others do better."""
        if self.worker.pid and min(self.worker.idle(), self.verifier.idle()) >= patience:
            logger().error("process replaced: it brings nothing", process="worker", pid=self.worker.pid)
            self.verifier.kill()

    def _connect(self) -> None:
        """Let verifier and worker talk to each other."""
        to_worker, to_verifier = (Fd(sock.detach()) for sock in channel.pair())
        self.verifier.send(verifier.Connect(), [to_worker])
        self.worker.send(worker.Connect(), [to_verifier])
        self.table.introduce_all()

    # --- running ---

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Serve until told to stop."""
        asyncio.get_running_loop().set_exception_handler(on_error)
        await self._server.start()
        children = [
            background(self.verifier.run(), "no verifier"),
            background(self.worker.run(), "no worker"),
        ]
        self.engine.start()
        background(self._clean_up(), "what is left over is not removed")
        looking = background(self.disk.look(self.table.bytes_written), "the disk is not looked at")
        signals = Signals(
            stop=lambda: background(self.stop(), "not stopping"),
            reload=lambda: background(self._reload(), "configuration not reloaded"),
        )
        mounts = MountTable(self.engine.reconcile)
        logger().info("ready", engine=self.engine.name, socket=self.run_paths.socket, state=self.state.root)
        on_ready()
        try:
            await self._stopped.wait()
        finally:
            looking.cancel()
            signals.close()
            mounts.close()
            self._server.close()
            self.engine.close()
            self.worker.stop()
            self.verifier.stop()
            await asyncio.gather(*children)
            self.run_paths.close()
        logger().info("stopped")

    async def _clean_up(self) -> None:
        await remove(self.state.left_over())

    async def stop(self) -> list[str]:
        """Unmount everything and end, after the mounts under way; what is busy stays, and the service too."""
        self._stopping = True
        self.scrub.abandon()
        if self._mounting:
            _, late = await asyncio.wait(self._mounting, timeout=_GRACE)
            for mount in late:
                mount.cancel()
            if late:
                await asyncio.wait(late)
        try:
            busy = await self.engine.stop()
            if busy:
                logger().error("not stopping: mounts are in use", busy=busy)
            else:
                await self._drain()
                self._stopped.set()
        finally:
            self._stopping = self._stopped.is_set()
        return busy

    async def _drain(self) -> None:
        """What is not on the disk at the end has to be verified by the next service."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN):
                while self.table.settling.closing:
                    await asyncio.sleep(0.01)
                await self.disk.drained()

    async def _reload(self) -> None:
        """Take what can be changed from the configuration file; with a mistake in it, everything stays as it is."""
        if self._load is None:
            logger().info("nothing to reload: the service was started without a configuration file")
            return
        try:
            self.config, fixed = await reloaded(self.config, self._load)
        except NydusErofsError as error:
            logger().error("configuration not reloaded", error=error.message, hint=error.hint)
            return
        self.engine.config = self.config
        self.bootstraps.require(self.config.backend)
        logger().info("configuration reloaded", needs_restart=fixed)

    # --- requests ---

    def _status(self) -> control.ServiceStatus:
        return control.ServiceStatus(
            version=nydus_erofs.__version__,
            pid=os.getpid(),
            uptime_seconds=round(time.time() - self.started, 1),
            engine=self.engine.name,
            state_dir=self.state.root,
            run_dir=self.run_paths.root,
            worker=control.ProcessStatus(self.worker.pid, max(0, self.worker.restarts)),
            verifier=control.ProcessStatus(self.verifier.pid, max(0, self.verifier.restarts)),
            backends=self.traffic.describe(),
            mounts=self.engine.describe(),
        )

    async def _handle(self, request: control.Request) -> msgspec.Struct | dict[str, Any]:
        match request:
            case control.Mount():
                await self._mount(request)
                return {"target": request.target, "state_dir": self.state.root}
            case control.Umount():
                await self.engine.umount(request.target)
                return {}
            case control.Status():
                return self._status()
            case control.Scrub():
                return await self.scrub.start(request)
            case control.Scrubbing():
                return self.scrub.ask(request)
            case control.Stop():
                return {"busy": await self.stop()}

    async def _mount(self, request: control.Mount) -> None:
        if self._stopping:
            raise ServiceError("the service is stopping", hint="start it again, then mount")
        prefetch = self.config.prefetch if request.prefetch is None else request.prefetch
        given = ImageRequest(
            request.image, request.blob_dirs, request.backend_file, request.plain_http, request.insecure
        )
        flags = mount_flags(request.options)
        order = MountOrder(given, request.target, prefetch, flags, request.digest, request.auth)
        mount = asyncio.get_running_loop().create_task(self.engine.mount(order))
        self._mounting.add(mount)
        mount.add_done_callback(self._mounting.discard)
        await asyncio.wait([mount])
        if mount.cancelled():
            raise ServiceError("the service is stopping", hint="start it again, then mount")
        mount.result()


def _descriptors_for_events() -> int:
    """How many events may wait; ServiceError when the limit on descriptors leaves too little for them."""
    limit = raise_file_limit()
    if limit < _LEAST_FDS:
        raise ServiceError(
            f"the service may open {limit} files at a time, and needs {_LEAST_FDS}",
            hint="raise the hard limit ('ulimit -Hn', or LimitNOFILE= of its unit)",
        )
    return limit // 2  # the others are for images


def _discard(folder: str) -> None:
    if os.path.lexists(folder):
        background(remove([folder]), "what is left over is not removed")


def serve(config: Config, load: Load | None = None, on_ready: Callable[[], None] = lambda: None) -> None:
    """Run the service in this process until it is stopped."""

    async def main() -> None:
        await Keeper(config, load).run(on_ready)

    own_descriptors()
    os.umask(0o077)
    with contextlib.suppress(OSError):
        os.chdir("/")
    try:
        asyncio.run(main())
    except OSError as error:
        if is_bug(error):
            raise
        raise refusal(error) from None

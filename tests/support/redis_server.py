"""Real Redis servers, Sentinels and Clusters on loopback, for as long as a test needs them."""

# ruff: noqa: ASYNC220 (starting a process takes no time worth a thread)
from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from tests.support.wait import eventually


def free_port(offset: int = 0) -> int:
    """Return a port that was free a moment ago, together with the one ``offset`` above it."""
    while True:
        with socket.socket() as probe, socket.socket() as above:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            if not offset:
                return port
            with contextlib.suppress(OSError, OverflowError):
                above.bind(("127.0.0.1", port + offset))
                return port


class RedisServer:
    """One ``redis-server`` process, with data on no disk unless its options say so.

    Args:
        *options: more command line options.
        tcp: listen on a loopback port too, not only on a Unix socket.
        tls: speak TLS on that port.
        offset: distance of a second port that must be free as well (a Cluster's bus).
        sentinel: text of a Sentinel's configuration; makes the process a Sentinel.

    Attributes:
        socket: path of the Unix socket.
        port: the loopback port, 0 without ``tcp``.
    """

    def __init__(
        self,
        *options: str,
        tcp: bool = False,
        tls: bool = False,
        offset: int = 0,
        sentinel: str | None = None,
    ) -> None:
        # Paths of Unix sockets are short: pytest's temporary folders may not fit.
        self._folder = tempfile.TemporaryDirectory(prefix="redis-")
        self.folder = Path(self._folder.name)
        self.socket = self.folder / "s"
        self.port = free_port(offset) if tcp else 0
        self._tls = tls
        self._options = options
        self._sentinel = sentinel
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> RedisServer:
        try:
            await self.start()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def client(self, **options: Any) -> Redis:
        """Return a client over the Unix socket."""
        options.setdefault("retry", Retry(NoBackoff(), 0))
        return Redis(unix_socket_path=str(self.socket), decode_responses=True, **options)

    async def start(self) -> None:
        """Start the process and wait until it answers."""
        binary = shutil.which("redis-server")
        assert binary, "these tests need redis-server on PATH (Debian: apt-get install redis)"
        command = [binary]
        if self._sentinel is not None:
            config = self.folder / "sentinel.conf"
            config.write_text(self._sentinel)
            command += [str(config), "--sentinel"]
        if self._tls:
            command += ["--port", "0", "--tls-port", str(self.port)]
        else:
            command += ["--port", str(self.port)]
        command += ["--bind", "127.0.0.1"]
        command += ["--unixsocket", str(self.socket), "--dir", str(self.folder)]
        if self._sentinel is None:
            command += ["--save", ""]
        command += self._options
        self.socket.unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        await eventually(self._answers)

    async def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()
        try:
            async with self.client() as client:
                # Any answer will do: one that asks for a password too.
                with contextlib.suppress(RedisError):
                    return bool(await client.ping())
        except (RedisError, OSError):
            return False
        return self.socket.exists()

    def close(self) -> None:
        """End the process and remove its folder; idempotent."""
        self.kill()
        self._folder.cleanup()

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End the process at once, stopped or not; idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.asynccontextmanager
async def redis_cluster(masters: int = 3) -> AsyncIterator[list[RedisServer]]:
    """A Cluster of masters without replicas; yields the list of servers."""
    async with contextlib.AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(
                RedisServer("--cluster-enabled", "yes", tcp=True, offset=10000)
            )
            for _ in range(masters)
        ]
        clients = [await stack.enter_async_context(server.client()) for server in servers]
        share = 16384 // masters
        for index, client in enumerate(clients):
            last = 16383 if index == masters - 1 else (index + 1) * share - 1
            await client.execute_command("CLUSTER", "ADDSLOTSRANGE", index * share, last)
            await client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for server in servers[1:]:
            await clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", server.port)

        async def agreed() -> bool:
            return all(
                info.get("cluster_state") == "ok"
                and int(info.get("cluster_known_nodes", 0)) == masters
                for info in [await client.cluster("INFO") for client in clients]
            )

        await eventually(agreed)
        yield servers


@contextlib.asynccontextmanager
async def redis_sentinel(
    name: str = "mymaster",
) -> AsyncIterator[tuple[RedisServer, RedisServer, RedisServer]]:
    """A master, a replica and one Sentinel; yields them in this order."""
    async with (
        RedisServer(tcp=True) as master,
        RedisServer("--replicaof", f"127.0.0.1 {master.port}", tcp=True) as replica,
        RedisServer(
            tcp=True,
            sentinel=(
                f"sentinel monitor {name} 127.0.0.1 {master.port} 1\n"
                f"sentinel down-after-milliseconds {name} 500\n"
                f"sentinel failover-timeout {name} 3000\n"
            ),
        ) as sentinel,
        sentinel.client() as monitor,
        replica.client() as follower,
    ):

        async def knows_replica() -> bool:
            linked = (await follower.info("replication"))["master_link_status"] == "up"
            return linked and len(await monitor.sentinel_slaves(name)) == 1

        await eventually(knows_replica)
        yield master, replica, sentinel

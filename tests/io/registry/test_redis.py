"""The Redis driver against real servers: restarted, stopped, promoted, clustered, behind TLS."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.errors import RegistryUnavailableError, StartupError
from gateway.io.registry import RedisRegistry
from gateway.io.registry import redis_scripts as scripts
from gateway.routing.registry import Change, ChangesLost, PlacementChanged, Registry, ReplicaChanged
from gateway.types import Owner, Placement
from tests.support.certificates import Authority
from tests.support.redis_server import RedisServer, redis_cluster, redis_sentinel
from tests.support.wait import eventually

pytestmark = pytest.mark.redis

ALICE = Owner("acme", "alice")
BOB = Owner("acme", "bob")


@contextlib.asynccontextmanager
async def opened(url: str, within: float = 3.0) -> AsyncIterator[RedisRegistry]:
    registry = RedisRegistry(url, timeout=within)
    await registry.open()
    try:
        yield registry
    finally:
        await registry.close()


def unix(server: RedisServer, settle: float = 0, **settings: str) -> str:
    query = "".join(f"&{name}={value}" for name, value in settings.items())
    return f"unix://{server.socket}?settle={settle}{query}"


async def claimed(registry: Registry, *args: object, unseen: bool = False) -> Placement:
    """Claim as soon as the registry lets us."""

    async def attempt() -> Placement | None:
        with contextlib.suppress(RegistryUnavailableError):
            return await registry.claim(*args, unseen=unseen)  # type: ignore[arg-type]
        return None

    placement: Placement = await eventually(attempt)
    return placement


def answers(registry: Registry) -> Callable[[], object]:
    async def attempt() -> bool:
        try:
            await registry.counts()
        except RegistryUnavailableError:
            return False
        return True

    return attempt


async def exercise(registry: Registry) -> None:
    """Use every kind of call once: scripts, plain commands, scans and the change log."""
    seen: list[Change] = []
    await registry.watch(seen.append)
    await registry.heartbeat("g", 60)
    await registry.claim("s", ALICE, "a", "g")
    assert await registry.move("s", 1, "b", "g") == Placement("s", ALICE, "b", 2)
    assert await registry.get_many(["s", "t"]) == {"s": Placement("s", ALICE, "b", 2)}
    assert set(await registry.owned_by("acme", "alice")) == {"s"}
    assert len(await registry.placed_on("b")) == 1
    assert await registry.counts() == {"b": 1}
    await registry.set_replica_mark("b", "draining")
    assert await registry.replica_marks() == {"b": "draining"}
    assert await registry.fence_replica("b", 0) == 1
    assert await registry.replica_incarnations() == {"b": 1}
    await registry.release(["s"], "g")
    assert await registry.forget("s")
    await registry.leave("g")
    assert seen == []  # own changes


class TestAway:
    async def test_stopped_and_restarted_empty(self, redis_server: RedisServer) -> None:
        async with opened(unix(redis_server), within=1) as registry:
            assert await registry.heartbeat("g", 60) is False
            assert await registry.heartbeat("g", 60) is True
            placed = await registry.claim("s", ALICE, "a", "g")
            redis_server.kill()
            started = time.monotonic()
            for call in (registry.get("s"), registry.heartbeat("g", 60), registry.counts()):
                with pytest.raises(RegistryUnavailableError):
                    await call
            assert time.monotonic() - started < 4
            await redis_server.start()
            # It heals by itself, and says that it lost something.
            assert await registry.get("s") is None
            with pytest.raises(RegistryUnavailableError, match="lease"):
                await registry.claim("t", ALICE, "a", "g")
            assert await registry.heartbeat("g", 60) is False
            assert await registry.republish("g", [placed]) == {"s": placed}
            assert await registry.heartbeat("g", 60) is True
            assert await registry.get("s") == placed

    async def test_hung(self, redis_server: RedisServer) -> None:
        async with opened(unix(redis_server), within=0.6) as registry:
            placed = await registry.claim("s", ALICE, "a")
            redis_server.signal(signal.SIGSTOP)
            started = time.monotonic()
            calls = [registry.claim(f"s{number}", ALICE, "a") for number in range(100)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert time.monotonic() - started < 5
            assert all(isinstance(result, RegistryUnavailableError) for result in results)
            redis_server.signal(signal.SIGCONT)
            await eventually(answers(registry))
            assert await registry.get("s") == placed

    async def test_not_there_at_the_start(self, tmp_path: Path) -> None:
        registry = RedisRegistry(f"unix://{tmp_path}/nothing", timeout=1)
        with pytest.raises(StartupError) as caught:
            await registry.open()
        assert "\n" not in str(caught.value)
        with pytest.raises(RegistryUnavailableError, match="not open"):
            await registry.get("s")

    async def test_closed(self, redis_server: RedisServer) -> None:
        async with opened(unix(redis_server)) as registry:
            await registry.watch(lambda change: None)
        with pytest.raises(RegistryUnavailableError, match="not open"):
            await registry.get("s")
        async with redis_server.client() as client:

            async def all_gone() -> bool:
                return len(await client.client_list()) == 1

            await eventually(all_gone)

    async def test_closing_ends_the_watch_in_the_midst_of_traffic(
        self, redis_server: RedisServer
    ) -> None:
        for _ in range(3):
            async with opened(unix(redis_server)) as registry:
                await registry.watch(lambda change: None)
                await asyncio.gather(
                    *(registry.claim(f"s{number}", ALICE, "a") for number in range(200))
                )
                async with asyncio.timeout(5):
                    await registry.close()

    async def test_scripts_flushed(self, redis_server: RedisServer) -> None:
        async with opened(unix(redis_server)) as registry, redis_server.client() as client:
            await registry.claim("s", ALICE, "a")
            await client.script_flush()
            assert await registry.get("s") == Placement("s", ALICE, "a", 1)

    async def test_full(self, redis_server: RedisServer) -> None:
        async with opened(unix(redis_server)) as registry, redis_server.client() as client:
            placed = await registry.claim("s", ALICE, "a")
            await client.config_set("maxmemory", "1")
            with pytest.raises(RegistryUnavailableError, match="maxmemory"):
                await registry.claim("t", ALICE, "a")
            assert await registry.get("s") == placed
            await client.config_set("maxmemory", "0")
            assert await registry.counts() == {"a": 1}
            assert (await registry.claim("t", ALICE, "a")).epoch == 1


class TestSettling:
    async def test_unknown_sessions_wait_for_their_holders(self, redis_server: RedisServer) -> None:
        """Redis restarts empty; whoever resumes first must not fork what another holds."""
        url = unix(redis_server, settle=2)
        async with opened(url) as holder, opened(url) as other:
            await holder.heartbeat("g1", 60)
            await other.heartbeat("g2", 60)
            held = await claimed(holder, "s", ALICE, "a", "g1")
            moved = await holder.move("s", held.epoch, "b", "g1")
            assert moved is not None
            redis_server.kill()
            await redis_server.start()
            await other.heartbeat("g2", 60)
            resume = asyncio.create_task(claimed(other, "s", ALICE, "c", "g2"))
            with pytest.raises(RegistryUnavailableError, match="hold"):
                await other.claim("s", ALICE, "c", "g2")
            # An id that was never heard of need not wait.
            fresh = await other.claim("fresh", ALICE, "c", "g2", unseen=True)
            assert fresh == Placement("fresh", ALICE, "c", 1)
            assert await holder.heartbeat("g1", 60) is False
            assert await holder.republish("g1", [moved]) == {"s": moved}
            assert await resume == moved
            assert await other.holders("s") == {"g1", "g2"}

    async def test_it_ends(self, redis_server: RedisServer) -> None:
        async with opened(unix(redis_server, settle=0.5)) as registry:
            assert (await claimed(registry, "s", ALICE, "a")).epoch == 1
            await registry.claim("t", ALICE, "a")

    async def test_a_restart_with_its_data_settles_too(self) -> None:
        """What it wrote last may be missing."""
        async with (
            RedisServer("--appendonly", "yes") as server,
            opened(unix(server, settle=1)) as registry,
        ):
            await registry.heartbeat("g", 60)
            placed = await claimed(registry, "s", ALICE, "a", "g")
            server.kill()
            await server.start()
            await eventually(answers(registry))
            with pytest.raises(RegistryUnavailableError):
                await registry.claim("t", ALICE, "a")
            assert await registry.claim("s", ALICE, "b", "g") == placed
            assert await registry.heartbeat("g", 60) is False
            assert await registry.heartbeat("g", 60) is True
            assert (await claimed(registry, "t", ALICE, "a")).epoch == 1


class TestWatch:
    async def test_a_gap_is_told(self, redis_server: RedisServer) -> None:
        async with (
            opened(unix(redis_server), within=1) as here,
            opened(unix(redis_server), within=1) as there,
        ):
            seen: list[Change] = []
            await here.watch(seen.append)
            redis_server.kill()
            # The watcher finds out by itself; what happens before it is back is not its to tell.
            await redis_server.start()
            await there.claim("meanwhile", ALICE, "a")
            await eventually(lambda: ChangesLost() in seen)
            await there.claim("after", ALICE, "a")
            await eventually(
                lambda: PlacementChanged("after", Placement("after", ALICE, "a", 1)) in seen
            )

    async def test_who_falls_too_far_behind_is_told(self, redis_server: RedisServer) -> None:
        async with (
            opened(unix(redis_server)) as here,
            opened(unix(redis_server)) as there,
            redis_server.client() as client,
        ):
            seen: list[Change] = []
            await here.watch(seen.append)
            async with client.pipeline(transaction=True) as pipeline:
                root = "{copilot-gateway}"
                for number in range(3):
                    placed = ["", f"s{number}", "acme", "alice", "a", ""]
                    pipeline.eval(scripts.CLAIM, 1, root, "elsewhere", *placed)
                pipeline.xtrim(f"{root}:changes", maxlen=1, approximate=False)
                await pipeline.execute()
            await eventually(lambda: seen)
            assert seen == [ChangesLost()]
            await there.set_replica_mark("a", "draining")
            await eventually(lambda: len(seen) == 2)
            assert seen[1] == ReplicaChanged("a", "draining", 0)


class TestServers:
    async def test_tcp_with_a_password(self, caplog: pytest.LogCaptureFixture) -> None:
        async with RedisServer("--requirepass", "hunter2", tcp=True) as server:
            where = f"127.0.0.1:{server.port}/3?settle=0"
            async with opened(f"redis://:hunter2@{where}") as registry:
                await exercise(registry)
                assert "hunter2" not in repr(registry)
                server.kill()
                with pytest.raises(RegistryUnavailableError) as away:
                    await registry.get("s")
                assert "hunter2" not in str(away.value)
                await server.start()
            for login in ("", ":hunter3@", "nobody:hunter3@"):
                wrong = RedisRegistry(f"redis://{login}{where}")
                with pytest.raises(StartupError) as refused:
                    await wrong.open()
                assert "hunter" not in str(refused.value)
                assert "\n" not in str(refused.value)
            assert "hunter" not in caplog.text

    async def test_tls(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        certificate, key = authority.issue_server()
        options = ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
        options += ["--tls-ca-cert-file", str(authority.path), "--tls-auth-clients", "no"]
        async with RedisServer(*options, tls=True, tcp=True) as server:
            url = f"rediss://127.0.0.1:{server.port}?settle=0"
            async with opened(f"{url}&ca_file={authority.path}") as registry:
                await exercise(registry)
            with pytest.raises(StartupError, match=r"(?i)certificate"):
                await RedisRegistry(url).open()
            plain = RedisRegistry(f"redis://127.0.0.1:{server.port}", timeout=1)
            with pytest.raises(StartupError):
                await plain.open()

    async def test_prefixes_are_apart(self, redis_server: RedisServer) -> None:
        async with (
            opened(unix(redis_server, prefix="one")) as one,
            opened(unix(redis_server, prefix="two")) as two,
            redis_server.client() as client,
        ):
            await one.claim("s", ALICE, "a")
            assert await two.get("s") is None
            assert await two.owned_by("acme", None) == {}
            assert all(key.startswith(("{one}:", "{two}:")) for key in await client.keys())

    async def test_nothing_is_left_of_a_forgotten_session(self, redis_server: RedisServer) -> None:
        async with opened(unix(redis_server)) as registry, redis_server.client() as client:
            await registry.heartbeat("g", 60)
            before = set(await client.keys())
            for number in range(5):
                await registry.claim(f"s{number}", ALICE, "a", "g")
                await registry.move(f"s{number}", 1, "b", "g")
                await registry.forget(f"s{number}", gateway_id="g")
            assert set(await client.keys()) - before == {"{copilot-gateway}:changes"}

    async def test_newer_schema(self, redis_server: RedisServer) -> None:
        async with redis_server.client() as client:
            await client.hset("{copilot-gateway}:meta", "schema", "2")
        with pytest.raises(StartupError, match="newer version"):
            await RedisRegistry(unix(redis_server)).open()

    async def test_warns_of_eviction(
        self, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with redis_server.client() as client:
            await client.config_set("maxmemory-policy", "allkeys-lru")
        async with opened(unix(redis_server)):
            assert "noeviction" in caplog.text

    async def test_a_user_that_may_not_ask_for_info(self, redis_server: RedisServer) -> None:
        async with redis_server.client() as client:
            rights = ["+@all", "-@dangerous", "~{copilot-gateway}*", "&*"]
            await client.execute_command("ACL", "SETUSER", "low", "on", ">pw", *rights)
        url = f"unix://low:pw@{redis_server.socket}?settle=0"
        async with opened(url) as registry:
            await exercise(registry)


class TestCluster:
    async def test_a_cluster(self) -> None:
        async with redis_cluster() as servers:
            hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
            url = f"redis+cluster://{hosts}?settle=0"
            async with opened(url) as one, opened(url) as two:
                await exercise(one)
                seen: list[Change] = []
                await two.watch(seen.append)
                replies = await asyncio.gather(
                    *(registry.claim("race", BOB, "a") for registry in (one, two) * 5)
                )
                assert len(set(replies)) == 1
                last = Placement("last", BOB, "a", replies[0].epoch)
                await one.claim("last", BOB, "a")
                await eventually(lambda: PlacementChanged("last", last) in seen)
                # The node of our slot goes away; the others cannot know our sessions.
                keeper = await self.keeper(servers)
                keeper.signal(signal.SIGSTOP)
                started = time.monotonic()
                with pytest.raises(RegistryUnavailableError):
                    await one.get("last")
                assert time.monotonic() - started < 5
                keeper.signal(signal.SIGCONT)
                await eventually(answers(one))
                assert await one.get("last") == last

    async def keeper(self, servers: list[RedisServer]) -> RedisServer:
        """Return the server that has our keys."""
        for server in servers:
            async with server.client() as client:
                if await client.dbsize():
                    return server
        raise AssertionError("no server has keys")


class TestSentinel:
    async def test_failover(self) -> None:
        async with redis_sentinel() as (master, replica, sentinel):
            url = f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster?settle=0.5"
            async with opened(url) as registry:
                await registry.heartbeat("g", 60)
                placed = await claimed(registry, "s", ALICE, "a", "g")
                async with replica.client() as follower:

                    async def copied() -> bool:
                        return bool(await follower.exists("{copilot-gateway}:s:s"))

                    await eventually(copied)
                assert await registry.heartbeat("g", 60) is True
                master.kill()

                async def beats() -> bool:
                    try:
                        return await registry.heartbeat("g", 60) is False
                    except RegistryUnavailableError:
                        return False

                await eventually(beats, within=25)
                assert await registry.republish("g", [placed]) == {"s": placed}
                moved = await registry.move("s", placed.epoch, "b", "g")
                assert moved == Placement("s", ALICE, "b", 2)
                assert (await registry.claim("new", BOB, "a", unseen=True)).owner == BOB

    async def test_no_such_master(self) -> None:
        async with redis_sentinel() as (_, _, sentinel):
            url = f"redis+sentinel://127.0.0.1:{sentinel.port}/other"
            with pytest.raises(StartupError, match="other"):
                await RedisRegistry(url).open()

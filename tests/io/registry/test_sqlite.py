"""The SQLite driver as a file that several processes use, and that may be in any state."""

# ruff: noqa: ASYNC220, ASYNC240 (small files and processes; nothing else runs meanwhile)
from __future__ import annotations

import asyncio
import json
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.errors import EXIT_UNAVAILABLE, RegistryUnavailableError, StartupError
from gateway.io.registry import SqliteRegistry
from gateway.io.registry import sqlite as driver
from gateway.routing.registry import Change, ChangesLost, PlacementChanged
from gateway.types import Owner, Placement
from tests.support.wait import eventually

ALICE = Owner("acme", "alice")

CLAIMER = """
import asyncio, json, sys
from gateway.io.registry import SqliteRegistry
from gateway.types import Owner

async def main(path, replica, sessions):
    registry = SqliteRegistry(path, timeout=30)
    await registry.open()
    claims = [registry.claim(f"s{n}", Owner("t", replica), replica) for n in range(sessions)]
    won = [placed.session_id for placed in await asyncio.gather(*claims)
           if placed.replica == replica]
    await registry.close()
    print(json.dumps(won))

sys.stdin.readline()
asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


@pytest.fixture
async def registry(path: Path) -> AsyncIterator[SqliteRegistry]:
    registry = SqliteRegistry(path, timeout=0.3)
    await registry.open()
    yield registry
    await registry.close()


class TestProcesses:
    def test_processes_that_start_and_claim_at_once(self, path: Path) -> None:
        """The file does not exist yet: its creation is part of the race."""
        sessions = 150
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", CLAIMER, str(path), f"r{number}", str(sessions)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(4)
        ]
        try:
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            outputs = [process.communicate(timeout=60)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        winners = [set(json.loads(output)) for output in outputs]
        assert sum(len(won) for won in winners) == sessions
        assert set().union(*winners) == {f"s{number}" for number in range(sessions)}

    async def test_a_killed_process_leaves_a_sound_file(
        self, path: Path, registry: SqliteRegistry
    ) -> None:
        code = (
            "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None);"
            "db.execute('BEGIN IMMEDIATE'); db.execute('DELETE FROM floor');"
            "print('locked', flush=True); sys.stdin.read()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "locked\n"
            with pytest.raises(RegistryUnavailableError):
                await registry.claim("s", ALICE, "a")
        finally:
            process.kill()
            process.communicate()
        assert await registry.claim("t", ALICE, "a") == Placement("t", ALICE, "a", 1)


class TestAway:
    async def test_locked_fails_in_bounded_time_and_heals(
        self, path: Path, registry: SqliteRegistry
    ) -> None:
        known = await registry.claim("known", ALICE, "a")
        with sqlite3.connect(path, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            started = time.monotonic()
            calls = [registry.claim(f"s{number}", ALICE, "a") for number in range(20)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert time.monotonic() - started < 5
            assert all(isinstance(answer, RegistryUnavailableError) for answer in answers)
            other.execute("ROLLBACK")
        other.close()

        async def heals() -> bool:
            try:
                return await registry.get("known") == known
            except RegistryUnavailableError:
                return False

        await eventually(heals)
        # What had not begun when its caller gave up was never done.
        assert len(await registry.owned_by("acme", None)) <= 2
        assert (await registry.claim("s0", ALICE, "a")).epoch == 1

    async def test_the_event_loop_is_not_held_up(
        self, path: Path, registry: SqliteRegistry
    ) -> None:
        with sqlite3.connect(path, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            call = asyncio.create_task(registry.claim("s", ALICE, "a"))
            turns = 0
            while not call.done():
                await asyncio.sleep(0.01)
                turns += 1
            assert turns >= 5
            with pytest.raises(RegistryUnavailableError):
                await call
        other.close()

    async def test_closed(self, path: Path) -> None:
        registry = SqliteRegistry(path)
        with pytest.raises(RegistryUnavailableError, match="not open"):
            await registry.get("s")
        await registry.open()
        await registry.close()
        with pytest.raises(RegistryUnavailableError, match="not open"):
            await registry.get("s")
        await eventually(
            lambda: not any(thread.name.startswith("registry") for thread in threading.enumerate())
        )

    async def test_damaged_while_in_use(self, path: Path, registry: SqliteRegistry) -> None:
        with sqlite3.connect(path) as other:
            other.execute("DROP TABLE holds")
        other.close()
        await registry.heartbeat("g", 60)
        with pytest.raises(RegistryUnavailableError, match="holds"):
            await registry.claim("s", ALICE, "a", "g")
        assert await registry.get("s") is None


class TestFile:
    async def test_survives_closing(self, path: Path) -> None:
        first = SqliteRegistry(path)
        await first.open()
        placed = await first.claim("s", ALICE, "a")
        await first.set_replica_mark("a", "draining")
        await first.close()
        second = SqliteRegistry(path)
        await second.open()
        assert await second.get("s") == placed
        assert await second.replica_marks() == {"a": "draining"}
        await second.close()

    async def test_is_private_and_made_with_its_folder(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "down" / "registry.db"
        registry = SqliteRegistry(path)
        await registry.open()
        await registry.claim("s", ALICE, "a")
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        await registry.close()

    async def test_leases_do_not_survive_a_reboot(
        self, path: Path, registry: SqliteRegistry
    ) -> None:
        """The clock starts again; a lease of before must not count for days."""
        await registry.heartbeat("g", 60)
        with sqlite3.connect(path) as other:
            other.execute("UPDATE gateways SET expires_at = expires_at + 1e6")
        other.close()
        with pytest.raises(RegistryUnavailableError, match="lease"):
            await registry.claim("s", ALICE, "a", "g")
        assert await registry.heartbeat("g", 60) is False

    @pytest.mark.parametrize("replaced", [False, True])
    async def test_deleted_while_in_use(
        self, path: Path, registry: SqliteRegistry, replaced: bool
    ) -> None:
        seen: list[Change] = []
        await registry.watch(seen.append)
        await registry.heartbeat("g", 60)
        placed = await registry.claim("s", ALICE, "a", "g")
        for file in path.parent.iterdir():
            file.unlink()
        other = SqliteRegistry(path)
        if replaced:
            await other.open()
        assert await registry.heartbeat("g", 60) is False
        assert await registry.republish("g", [placed]) == {"s": placed}
        await eventually(lambda: ChangesLost() in seen)
        if not replaced:
            await other.open()
        assert await other.get("s") == placed
        await other.claim("t", ALICE, "a")
        await eventually(lambda: PlacementChanged("t", Placement("t", ALICE, "a", 1)) in seen)
        await other.close()


class TestStartup:
    async def refused(self, path: Path) -> str:
        registry = SqliteRegistry(path, timeout=0.3)
        with pytest.raises(StartupError) as caught:
            await registry.open()
        await registry.close()
        assert caught.value.exit_status == EXIT_UNAVAILABLE
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
        return message

    async def test_newer_schema(self, path: Path) -> None:
        registry = SqliteRegistry(path)
        await registry.open()
        await registry.close()
        with sqlite3.connect(path) as db:
            db.execute(f"PRAGMA user_version = {driver.SCHEMA_VERSION + 1}")
        db.close()
        assert "newer version" in await self.refused(path)

    async def test_a_database_of_another_program(self, path: Path) -> None:
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE placements (anything)")
        db.close()
        before = path.read_bytes()
        assert "another program" in await self.refused(path)
        assert path.read_bytes() == before

    async def test_no_database(self, path: Path) -> None:
        path.write_text("the shopping list, and nothing to do with databases\n" * 100)
        before = path.read_bytes()
        assert "not a database" in await self.refused(path)
        assert path.read_bytes() == before

    async def test_truncated(self, path: Path) -> None:
        registry = SqliteRegistry(path)
        await registry.open()
        await registry.close()
        path.write_bytes(path.read_bytes()[:5000])
        assert "malformed" in await self.refused(path)

    async def test_a_folder(self, tmp_path: Path) -> None:
        assert "unable to open" in await self.refused(tmp_path)

    async def test_in_no_folder(self, path: Path) -> None:
        path.write_text("a file")
        assert "File exists" in await self.refused(path / "registry.db")

    async def test_where_nobody_may_write(self) -> None:
        await self.refused(Path("/proc/registry.db"))

    async def test_locked(self, path: Path) -> None:
        with sqlite3.connect(path, isolation_level=None) as db:
            db.execute("BEGIN EXCLUSIVE")
            assert "locked" in await self.refused(path)
        db.close()


class TestWatch:
    async def test_who_falls_too_far_behind_is_told(
        self, path: Path, registry: SqliteRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver, "CHANGES_KEPT", 3)
        monkeypatch.setattr(driver, "WATCH_INTERVAL", 0.5)
        seen: list[Change] = []
        await registry.watch(seen.append)
        other = SqliteRegistry(path)
        await other.open()
        await asyncio.gather(*(other.claim(f"s{number}", ALICE, "a") for number in range(9)))
        await other.heartbeat("g", 60)
        await eventually(lambda: seen)
        assert seen == [ChangesLost()]
        await other.claim("after", ALICE, "a")
        await eventually(lambda: len(seen) == 2)
        assert seen[1] == PlacementChanged("after", Placement("after", ALICE, "a", 1))
        await other.close()

    async def test_goes_on_after_the_file_was_locked(
        self, path: Path, registry: SqliteRegistry
    ) -> None:
        seen: list[Change] = []
        await registry.watch(seen.append)
        other = SqliteRegistry(path)
        await other.open()
        with sqlite3.connect(path, isolation_level=None) as db:
            db.execute("BEGIN IMMEDIATE")
            with pytest.raises(RegistryUnavailableError):
                await registry.claim("mine", ALICE, "a")
            db.execute("ROLLBACK")
        db.close()
        await other.claim("s", ALICE, "a")
        await eventually(lambda: seen)
        assert seen == [PlacementChanged("s", Placement("s", ALICE, "a", 1))]
        await other.close()

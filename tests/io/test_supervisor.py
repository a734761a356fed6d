"""The supervisor on a stand-in CLI and on the real one, its reaper, and what survives SIGKILL."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway.errors import StartupError
from gateway.io.cli_binary import CliBinary
from gateway.io.cli_home import CliHome
from gateway.io.process import MAX_LINE, Exit, GuardedProcess, LineSplitter
from gateway.io.supervisor import (
    CliState,
    RestartPolicy,
    Supervisor,
    SupervisorSettings,
    scrubber,
)
from gateway.types import ReplicaSpec
from tests.io.standin import (
    command_line,
    descendants,
    is_alive,
    make_standin,
    working_directory,
)
from tests.support.stack import real_cli
from tests.support.wait import eventually

REPOSITORY = Path(__file__).parents[2]


class Bench:
    """A supervisor over stand-ins, and what it told its owner."""

    def __init__(self, folder: Path, binary: Path, **settings: Any) -> None:
        self.state_dir = folder / "state"
        self.changes: list[list[ReplicaSpec]] = []
        defaults: dict[str, Any] = {
            "count": 1,
            "state_dir": self.state_dir,
            "restart": RestartPolicy(delay=0.01, delay_max=0.05),
        }
        self.supervisor = Supervisor(
            SupervisorSettings(**{**defaults, **settings}),
            CliBinary(binary, "9.8.7", no_auto_update=True),
            self.changes.append,
        )

    def starts(self, name: str = "cli-0") -> list[dict[str, Any]]:
        path = self.state_dir / name / "starts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def status(self, name: str = "cli-0") -> Any:
        return next(cli for cli in self.supervisor.replicas if cli.name == name)


@pytest.fixture
def standin(tmp_path: Path) -> Path:
    return make_standin(tmp_path / "copilot")


@pytest.fixture
async def bench(tmp_path: Path, standin: Path) -> AsyncIterator[Any]:
    made: list[Bench] = []

    def make(**settings: Any) -> Bench:
        made.append(Bench(tmp_path, standin, **settings))
        return made[-1]

    yield make
    for one in made:
        await one.supervisor.stop()


# --- decisions ---------------------------------------------------------------------------------


def test_pauses_double_up_to_the_cap() -> None:
    policy = RestartPolicy(delay=0.5, delay_max=30.0)
    pauses = [policy.pause(attempt, 0.0) for attempt in range(1, 9)]
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert policy.pause(10_000, 0.0) == 30


def test_jitter_takes_up_to_half() -> None:
    policy = RestartPolicy(delay=1.0)
    rng = random.Random(1)
    pauses = [policy.pause(3, rng.random()) for _ in range(200)]
    assert 2.0 < min(pauses) < 2.2
    assert 3.8 < max(pauses) <= 4.0


def test_a_row_of_restarts_ends_when_it_was_stable() -> None:
    policy = RestartPolicy(stable_after=60)
    assert policy.next_attempt(0, 0) == 1
    assert policy.next_attempt(4, 59.9) == 5
    assert policy.next_attempt(4, 60) == 1


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_lines_do_not_depend_on_chunks(size: int) -> None:
    data = "a\n\nbé\r\n".encode() + b"x" * 25 + b"\n" + b"\xff\nlast"
    splitter = LineSplitter(limit=10)
    lines = [
        line for at in range(0, len(data), size) for line in splitter.feed(data[at : at + size])
    ]
    assert [*lines, *splitter.flush()] == ["a", "bé", "x" * 10 + " [...]", "\ufffd", "last"]


def test_scrubber_blanks_out_secrets() -> None:
    scrub = scrubber(
        {"X_API_KEY": "abcdef", "MY_TOKEN": "abcdefgh", "A_TOKEN": "on", "HOME": "/home"}
    )
    assert scrub("key abcdef, token abcdefgh, on /home") == "key ***, token ***, on /home"
    assert scrub(f"using ghp_{'a' * 36} and Bearer e30.e30") == "using *** and Bearer ***"


# --- one home, one CLI -------------------------------------------------------------------------


async def test_a_home_is_held_by_one(tmp_path: Path) -> None:
    first, second = CliHome(tmp_path / "h", None), CliHome(tmp_path / "h", None)
    await first.acquire(patience=0)
    with pytest.raises(StartupError, match="used by another gateway"):
        await second.acquire(patience=0)
    waiting = asyncio.create_task(second.acquire(patience=10))
    await asyncio.sleep(0)
    first.release()
    await waiting
    second.release()


async def test_sessions_are_shared_by_a_link(tmp_path: Path) -> None:
    shared = tmp_path / "session-state"
    homes = [CliHome(tmp_path / name, shared) for name in ("a", "b")]
    for home in homes:
        await home.acquire(patience=0)
    (tmp_path / "a/session-state/s1").mkdir()
    assert (tmp_path / "b/session-state/s1").is_dir()
    for home in homes:
        home.release()
    # Back to local storage: the link goes, what is shared stays.
    alone = CliHome(tmp_path / "a", None)
    await alone.acquire(patience=0)
    alone.release()
    assert not (tmp_path / "a/session-state").exists()
    assert (shared / "s1").is_dir()


async def test_sessions_of_its_own_are_never_hidden(tmp_path: Path) -> None:
    (tmp_path / "a/session-state/s1").mkdir(parents=True)
    with pytest.raises(StartupError, match="sessions of its own"):
        await CliHome(tmp_path / "a", tmp_path / "shared").acquire(patience=0)


async def test_unusable_home(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match="cannot use"):
        await CliHome(tmp_path / "file/home", None).acquire(patience=0)


# --- start and stop ----------------------------------------------------------------------------


@pytest.fixture
def others() -> set[int]:
    """Processes below this one that other tests left to the interpreter, such as trackers."""
    return set(descendants(os.getpid()))


async def test_start_and_stop(bench: Any, others: set[int]) -> None:
    one = bench(count=2, env={"EXTRA": "1"}, args=("--log-level", "error"))
    await one.supervisor.start()
    specs = one.changes[-1]
    assert {spec.name for spec in specs} == {"cli-0", "cli-1"}
    assert len({spec.token for spec in specs}) == len({spec.port for spec in specs}) == 2
    pids = []
    for spec in specs:
        (start,) = one.starts(spec.name)
        status = one.status(spec.name)
        assert start["pid"] == status.pid
        assert start["args"] == [
            "--headless", "--port", "0", "--no-auto-update", "--log-level", "error",
        ]  # fmt: skip
        assert start["env"]["COPILOT_CONNECTION_TOKEN"] == spec.token
        assert start["env"]["COPILOT_HOME"] == str(one.state_dir / spec.name)
        assert start["env"]["COPILOT_AUTO_UPDATE"] == "false"
        assert start["env"]["EXTRA"] == "1"
        assert spec.token not in command_line(status.pid)
        assert (status.state, status.port, status.restarts) == (CliState.RUNNING, spec.port, 0)
        socket.create_connection((spec.host, spec.port)).close()
        pids.append(status.pid)
    await one.supervisor.stop()
    assert one.changes[-1] == []
    assert one.supervisor.replicas == []
    assert not any(is_alive(pid) for pid in pids)
    assert set(descendants(os.getpid())) <= others
    await one.supervisor.stop()


async def test_the_gateways_own_secrets_stay_with_it(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COPILOT_GATEWAY_TOKEN", "admin-secret")
    monkeypatch.setenv("GH_TOKEN", "for-the-cli")
    one = bench()
    await one.supervisor.start()
    (start,) = one.starts()
    assert "admin-secret" not in start["env"].values()
    assert start["env"]["GH_TOKEN"] == "for-the-cli"


async def test_working_directory(bench: Any, tmp_path: Path) -> None:
    one = bench(cwd=tmp_path)
    await one.supervisor.start()
    assert working_directory(one.status().pid) == tmp_path


async def test_a_cli_that_ignores_sigterm_is_killed(bench: Any) -> None:
    one = bench(env={"STANDIN": "stubborn"}, stop_timeout=0.1)
    await one.supervisor.start()
    pid = one.status().pid
    await one.supervisor.stop()
    assert not is_alive(pid)


async def test_a_stopped_process_is_killed(bench: Any) -> None:
    one = bench(stop_timeout=0.1)
    await one.supervisor.start()
    pid = one.status().pid
    os.kill(pid, signal.SIGSTOP)
    await one.supervisor.stop()
    assert not is_alive(pid)


async def test_daemons_of_a_cli_end_with_it(bench: Any) -> None:
    one = bench(env={"STANDIN": "family"})
    await one.supervisor.start()
    daemon_file = one.state_dir / "cli-0/daemon"
    await eventually(daemon_file.exists)
    daemon = int(daemon_file.read_text())
    assert is_alive(daemon)
    await one.supervisor.stop()
    assert not is_alive(daemon)


async def test_permanent_failure_is_one_line_with_the_reason(bench: Any) -> None:
    one = bench(count=2, env={"STANDIN": "broken"})
    with pytest.raises(StartupError) as caught:
        await one.supervisor.start()
    message = str(caught.value)
    assert message.endswith("does not start: exit status 7: token is *** | no model for you")
    assert "cli-0" in message
    assert "\n" not in message
    assert one.supervisor.replicas == []
    assert len(one.starts()) == 3


async def test_binary_that_cannot_be_executed(tmp_path: Path) -> None:
    one = Bench(tmp_path, tmp_path / "nothing")
    with pytest.raises(StartupError, match=r"cannot start .*nothing: No such file"):
        await one.supervisor.start()


async def test_a_failure_that_passes_is_forgiven(bench: Any) -> None:
    one = bench(env={"STANDIN": "broken-once"})
    await one.supervisor.start()
    assert (one.status().restarts, one.status().last_exit) == (1, Exit(1))


async def test_start_goes_on_without_a_slow_one(bench: Any) -> None:
    one = bench(env={"STANDIN": "slow"}, patience=0.1)
    await one.supervisor.start()
    assert one.status().state is CliState.STARTING
    assert one.supervisor.specs == []
    (one.state_dir / "cli-0/go").touch()
    await eventually(lambda: one.status().state is CliState.RUNNING)
    assert [spec.name for spec in one.changes[-1]] == ["cli-0"]


async def test_a_cli_that_is_never_ready_is_tried_again(bench: Any) -> None:
    one = bench(env={"STANDIN": "slow"}, patience=0.1, start_timeout=0.2, stop_timeout=1)
    await one.supervisor.start()
    await eventually(lambda: one.status().restarts >= 1)
    (one.state_dir / "cli-0/go").touch()
    await eventually(lambda: one.status().state is CliState.RUNNING)


async def test_stop_while_starting(bench: Any) -> None:
    one = bench(env={"STANDIN": "slow"})
    starting = asyncio.create_task(one.supervisor.start())
    await eventually(lambda: one.supervisor.replicas and one.status().pid)
    pid = one.status().pid
    await one.supervisor.stop()
    with pytest.raises(StartupError, match="stopped before it was ready"):
        await starting
    assert not is_alive(pid)


async def test_cancelled_start_leaves_nothing(bench: Any, others: set[int]) -> None:
    one = bench(count=2, env={"STANDIN": "slow"})
    starting = asyncio.create_task(one.supervisor.start())
    await eventually(lambda: one.supervisor.replicas and one.status().pid)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert set(descendants(os.getpid())) <= others


async def test_output_is_drained_bounded_and_scrubbed(
    bench: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="gateway.io.supervisor")
    one = bench(env={"STANDIN": "chatty"})
    await one.supervisor.start()
    await one.supervisor.stop()
    lines = [r.getMessage() for r in caplog.records if "stderr" in r.getMessage()]
    assert [line[:16] for line in lines] == ["cli-0 stderr: xx", "cli-0 stderr: yy"]
    assert max(map(len, lines)) < MAX_LINE + 50
    assert "cli-0 stdout: CLI server listening" in caplog.text


# --- restarts ----------------------------------------------------------------------------------


async def test_a_crashed_cli_is_started_again_at_its_place(bench: Any) -> None:
    one = bench(count=2)
    await one.supervisor.start()
    before = {spec.name: spec for spec in one.changes[-1]}
    pid = one.status().pid
    seen = len(one.changes)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: one.status().restarts == 1 and one.status().state is CliState.RUNNING)
    assert [spec.name for spec in one.changes[seen]] == ["cli-1"]
    assert {spec.name: spec for spec in one.changes[-1]} == before
    status = one.status()
    assert status.last_exit == Exit(None, signal.SIGKILL)
    assert str(status.last_exit) == "killed by signal 9"
    assert status.pid != pid
    assert one.starts()[-1]["args"][2] == str(status.port)


async def test_a_port_taken_meanwhile_is_replaced(bench: Any) -> None:
    one = bench(restart=RestartPolicy(delay=0.2))
    await one.supervisor.start()
    status = one.status()
    with socket.socket() as thief:
        os.kill(status.pid, signal.SIGKILL)
        await eventually(lambda: one.status().state is CliState.BACKOFF)
        thief.bind(("127.0.0.1", status.port))
        thief.listen()
        await eventually(lambda: one.status().state is CliState.RUNNING)
        assert one.status().port != status.port
        assert one.changes[-1][0].port == one.status().port


async def test_a_reaper_that_is_killed_takes_its_cli_with_it(bench: Any) -> None:
    one = bench()
    await one.supervisor.start()
    pid = one.status().pid
    (reaper,) = (p for p in descendants(os.getpid()) if pid in descendants(p))
    os.kill(reaper, signal.SIGKILL)
    await eventually(lambda: one.status().restarts == 1 and one.status().state is CliState.RUNNING)
    await eventually(lambda: not is_alive(pid))
    assert one.status().last_exit == Exit(None, signal.SIGKILL)


async def test_a_daemon_that_survives_its_reaper_holds_up_nothing(bench: Any) -> None:
    """It still has the CLI's pipes open: their end of file does not come."""
    one = bench(env={"STANDIN": "family"})
    await one.supervisor.start()
    daemon_file = one.state_dir / "cli-0/daemon"
    await eventually(daemon_file.exists)
    daemon, pid = int(daemon_file.read_text()), one.status().pid
    (reaper,) = (p for p in descendants(os.getpid()) if pid in descendants(p))
    try:
        os.kill(reaper, signal.SIGKILL)
        await eventually(
            lambda: one.status().restarts == 1 and one.status().state is CliState.RUNNING
        )
    finally:
        os.kill(daemon, signal.SIGKILL)


async def test_restart_on_request(bench: Any) -> None:
    one = bench()
    await one.supervisor.start()
    before = one.status()
    await one.supervisor.restart("cli-0")
    after = one.status()
    assert after.state is CliState.RUNNING
    assert (after.port, after.restarts) == (before.port, 1)
    assert after.pid != before.pid
    assert not is_alive(before.pid)
    assert [len(specs) for specs in one.changes] == [1, 0, 1]
    with pytest.raises(KeyError):
        await one.supervisor.restart("cli-9")


async def test_restart_ends_a_pause(bench: Any) -> None:
    one = bench(restart=RestartPolicy(delay=600, delay_max=600))
    await one.supervisor.start()
    os.kill(one.status().pid, signal.SIGKILL)
    await eventually(lambda: one.status().state is CliState.BACKOFF)
    await one.supervisor.restart("cli-0")
    assert one.status().state is CliState.RUNNING


async def test_restart_onto_a_new_binary(bench: Any, tmp_path: Path) -> None:
    one = bench()
    await one.supervisor.start()
    newer = make_standin(tmp_path / "newer")
    newer.write_text(newer.read_text().replace("9.8.7", "9.9.0"))
    found = await one.supervisor.replace_binary(newer)
    assert found.version == "9.9.0"
    assert one.status().version == "9.8.7"
    await one.supervisor.restart("cli-0")
    assert one.status().version == "9.9.0"


async def test_an_unusable_new_binary_changes_nothing(bench: Any, tmp_path: Path) -> None:
    one = bench()
    await one.supervisor.start()
    before = one.supervisor.binary
    with pytest.raises(StartupError):
        await one.supervisor.replace_binary(tmp_path / "nothing")
    assert one.supervisor.binary == before


async def test_failed_restart_says_why_and_goes_on_trying(bench: Any, tmp_path: Path) -> None:
    one = bench()
    await one.supervisor.start()
    broken = make_standin(tmp_path / "broken")
    broken.write_text(
        broken.read_text().replace('mode == "broken"', "not (home / 'fixed').exists()")
    )
    await one.supervisor.replace_binary(broken)
    with pytest.raises(StartupError, match="no model for you"):
        await one.supervisor.restart("cli-0")
    (one.state_dir / "cli-0/fixed").touch()
    await eventually(lambda: one.status().state is CliState.RUNNING)


async def test_add_and_remove(bench: Any, tmp_path: Path) -> None:
    one = bench(count=2)
    await one.supervisor.start()
    assert await one.supervisor.add() == "cli-2"
    assert await one.supervisor.add("ada", tmp_path / "ada", {"WHO": "ada"}) == "ada"
    (start,) = (
        json.loads(line) for line in (tmp_path / "ada/starts.jsonl").read_text().splitlines()
    )
    assert start["env"]["WHO"] == "ada"
    with pytest.raises(ValueError, match="ada"):
        await one.supervisor.add("ada")
    await one.supervisor.remove("cli-1")
    assert [spec.name for spec in one.changes[-1]] == ["cli-0", "cli-2", "ada"]
    assert await one.supervisor.add() == "cli-1"


async def test_failed_add_leaves_nothing(bench: Any) -> None:
    one = bench(count=0)
    await one.supervisor.start()
    with pytest.raises(StartupError, match="no model for you"):
        await one.supervisor.add(env={"STANDIN": "broken"})
    assert one.supervisor.replicas == []


def test_life_of_a_cli_on_uvloop(tmp_path: Path, standin: Path, others: set[int]) -> None:
    """The gateway's own event loop, whose subprocesses are made in another way."""
    one = Bench(tmp_path, standin, env={"STANDIN": "family"})

    async def scenario() -> None:
        await one.supervisor.start()
        pid = one.status().pid
        os.kill(pid, signal.SIGKILL)
        await eventually(
            lambda: one.status().restarts == 1 and one.status().state is CliState.RUNNING
        )
        assert one.status().last_exit == Exit(None, signal.SIGKILL)
        await one.supervisor.restart("cli-0")
        assert one.status().restarts == 2
        await one.supervisor.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())
    assert set(descendants(os.getpid())) <= others


# --- the gateway is killed ---------------------------------------------------------------------

OWNER = """
import asyncio, sys
from pathlib import Path
from gateway.io.cli_binary import probe_cli
from gateway.io.supervisor import Supervisor, SupervisorSettings

async def main():
    settings = SupervisorSettings(count=2, state_dir=Path(sys.argv[2]), stop_timeout=1)
    supervisor = Supervisor(settings, await probe_cli(Path(sys.argv[1])), lambda specs: None)
    await supervisor.start()
    print(*(cli.pid for cli in supervisor.replicas), flush=True)
    await asyncio.Event().wait()

RUN
"""


FORKING = """
import os, time

def print(*args, flush):  # the first thing done once the CLIs run
    if not os.fork():
        os.close(1)
        time.sleep(600)
    os.write(1, " ".join(map(str, args)).encode() + b"\\n")

asyncio.run(main())
"""


async def orphan(binary: Path, state_dir: Path, run: str, env: dict[str, str]) -> list[int]:
    """Start a process with a supervisor, SIGKILL it, and return the pids of all below it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        OWNER.replace("RUN", run),
        str(binary),
        str(state_dir),
        stdout=asyncio.subprocess.PIPE,
        cwd=REPOSITORY,
        env={**os.environ, **env},
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in (await process.stdout.readline()).split()]
    below = descendants(process.pid)
    assert set(pids) <= set(below)
    assert all(is_alive(pid) for pid in pids)
    process.kill()
    await process.wait()
    return below


@pytest.mark.parametrize("loop", ["asyncio.run(main())", "import uvloop; uvloop.run(main())"])
@pytest.mark.parametrize("mode", ["", "stubborn", "family"])
async def test_sigkill_of_the_gateway_leaves_no_cli(
    standin: Path, tmp_path: Path, loop: str, mode: str
) -> None:
    below = await orphan(standin, tmp_path / "state", loop, {"STANDIN": mode})
    assert len(below) >= 4  # two CLIs and their reapers
    await eventually(lambda: not any(is_alive(pid) for pid in below))


async def test_the_next_gateway_waits_for_the_last_ones_clis(
    standin: Path, tmp_path: Path, bench: Any
) -> None:
    below = await orphan(
        standin, tmp_path / "state", "asyncio.run(main())", {"STANDIN": "stubborn"}
    )
    one = bench(count=2)
    await one.supervisor.start()
    assert not any(is_alive(pid) for pid in below)


async def test_the_gateways_end_is_noticed_when_a_copy_of_its_socket_survives(
    standin: Path, tmp_path: Path
) -> None:
    """A forked worker that outlives its parent keeps the socket open: no end of file comes."""
    below = await orphan(standin, tmp_path / "state", FORKING, {})
    pids = [
        json.loads(line)["pid"]
        for name in ("cli-0", "cli-1")
        for line in (tmp_path / "state" / name / "starts.jsonl").read_text().splitlines()
    ]
    try:
        await eventually(lambda: not any(is_alive(pid) for pid in pids))
    finally:
        for pid in below:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


async def test_process_reports_how_it_ended() -> None:
    lines: list[tuple[str, str]] = []

    async def run(script: str) -> Exit:
        process = await GuardedProcess.start(
            ["/bin/sh", "-c", script],
            env={},
            cwd=None,
            grace=1,
            on_line=lambda stream, line: lines.append((stream, line)),
        )
        return await process.wait()

    assert await run("echo out; echo err >&2; exit 5") == Exit(5)
    assert sorted(lines) == [("stderr", "err"), ("stdout", "out")]
    assert await run("kill -11 $$") == Exit(None, 11)
    # Signals ignored by Python are not ignored by the command.
    assert await run("kill -13 $$; exit 0") == Exit(None, 13)


# --- the real CLI ------------------------------------------------------------------------------


@pytest.fixture
def real_env() -> dict[str, str]:
    return {
        "COPILOT_OFFLINE": "true",
        "COPILOT_PROVIDER_BASE_URL": "http://127.0.0.1:9/v1",
        "COPILOT_MODEL": "gpt-4.1",
    }


@pytest.mark.real
async def test_real_cli_crash_and_restart(tmp_path: Path, real_env: dict[str, str]) -> None:
    one = Bench(tmp_path, real_cli(), env=real_env)
    try:
        await one.supervisor.start()
        before = one.status()
        # Connections at the time of death leave the port in TIME_WAIT or worse.
        with socket.create_connection(("127.0.0.1", before.port)):
            os.kill(before.pid, signal.SIGKILL)
            await eventually(
                lambda: one.status().restarts == 1 and one.status().state is CliState.RUNNING
            )
        assert one.status().port == before.port
        await one.supervisor.restart("cli-0")
        assert one.status().last_exit == Exit(0)
        assert one.status().port == before.port
    finally:
        await one.supervisor.stop()


@pytest.mark.real
async def test_real_cli_is_gone_when_the_gateway_is_killed(
    tmp_path: Path, real_env: dict[str, str]
) -> None:
    below = await orphan(real_cli(), tmp_path / "state", "asyncio.run(main())", real_env)
    assert len(below) >= 4
    await eventually(lambda: not any(is_alive(pid) for pid in below))


@pytest.mark.real
async def test_real_cli_with_a_bad_argument_says_why(
    tmp_path: Path, real_env: dict[str, str]
) -> None:
    one = Bench(tmp_path, real_cli(), env=real_env, args=("--no-such-flag",))
    with pytest.raises(StartupError, match=r"exit status 1: .*--no-such-flag"):
        await one.supervisor.start()

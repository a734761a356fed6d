"""The program as its operator meets it: starting, stopping, reloading, being killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from gateway import errors
from tests.e2e.conftest import Fleet
from tests.support.fake_cli import FakeCli
from tests.support.gateway import ADMIN_TOKEN, GatewayProcess, alive, children, remove_tokens
from tests.support.rpc import ConnectionEnded, RpcFault
from tests.support.sessions import run_turn, send
from tests.support.stack import REPOSITORY, fake_cli_executable
from tests.support.wait import eventually

# Starting


async def test_the_ready_line_names_the_port(fakes: Fleet) -> None:
    gateway = await fakes.process()
    assert list(gateway.stdout) == [f"copilot-gateway listening on port {gateway.port}"]


async def test_several_listeners(fakes: Fleet) -> None:
    gateway = await fakes.process("--listen", "127.0.0.1:0")
    await eventually(lambda: len(gateway.stdout) == 2)
    ports = {int(line.rsplit(" ", 1)[1]) for line in gateway.stdout}
    assert len(ports) == 2
    for gateway.port in ports:
        await (await fakes.client(gateway)).request("ping")


NOBODY = ("--replica", "cli-0=127.0.0.1:9")
"""A replica that is not there: a gateway without any does not start."""


async def ended(gateway: GatewayProcess) -> tuple[int, list[str]]:
    """Start a program that cannot; return its exit status and what it said."""
    await gateway.launch()
    status = await gateway.wait()
    assert "Traceback" not in gateway.text
    return status, list(gateway.stderr)


async def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listen = f"127.0.0.1:{port}"
        status, said = await ended(GatewayProcess(tmp_path / "g", *NOBODY, "--listen", listen))
    assert status == errors.EXIT_UNAVAILABLE
    assert listen in said[-1]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ("[limits]\nmax_frame = true\n", "limits.max_frame"),
        ("[limits]\nmax_fram = 5\n", "max_fram"),
        ("[nonsense]\n", "nonsense"),
        ("[server\n", "gateway.toml"),
        ('[[replicas]]\nname = "a"\n', "address"),
    ],
)
async def test_bad_configuration(tmp_path: Path, config: str, named: str) -> None:
    status, said = await ended(GatewayProcess(tmp_path / "g", config=config))
    assert status == errors.EXIT_USAGE
    assert named in said[-1]


async def test_no_replicas_at_all(tmp_path: Path) -> None:
    status, said = await ended(GatewayProcess(tmp_path / "g"))
    assert status == errors.EXIT_USAGE
    assert "--spawn" in said[-1]
    assert "--replica" in said[-1]


async def test_a_bad_flag(tmp_path: Path) -> None:
    status, said = await ended(GatewayProcess(tmp_path / "g", "--workers", "none"))
    assert status == errors.EXIT_USAGE
    assert "--workers" in said[-1]


async def test_a_missing_cli_is_one_line_that_says_how_to_get_it(tmp_path: Path) -> None:
    gateway = GatewayProcess(
        tmp_path / "g", "--spawn", "1", env={"COPILOT_GATEWAY_SPAWN_BINARY": "/nowhere/copilot"}
    )
    status, said = await ended(gateway)
    assert status == errors.EXIT_UNAVAILABLE
    (line,) = said
    assert "npm install" in line


async def test_a_token_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "tokens.json").write_text("{broken")
    status, said = await ended(GatewayProcess(tmp_path / "g", *NOBODY))
    assert status == errors.EXIT_USAGE
    assert "tokens.json" in said[-1]


async def test_replicas_may_be_absent_at_start(fakes: Fleet) -> None:
    for cli in fakes.clis:
        await cli.stop()
    gateway = GatewayProcess(fakes.folder / "state", replicas=fakes.clis)
    try:
        await gateway.start(replicas_up=False)
        connecting = asyncio.ensure_future(gateway.connect())
        await fakes.clis[0].start()
        client = await connecting
        await client.request("session.create", fakes.params("s"))
        await client.close()
    finally:
        assert await gateway.stop() == 0


# Supervising


def spawning(folder: Path, *args: str, **options: object) -> GatewayProcess:
    """Return a gateway that starts two fake CLIs itself."""
    folder.mkdir(exist_ok=True)
    binary = fake_cli_executable(folder)
    return GatewayProcess(
        folder / "state",
        "--spawn",
        "2",
        *args,
        env={"COPILOT_GATEWAY_SPAWN_BINARY": str(binary)},
        **options,  # type: ignore[arg-type]
    )


async def test_spawned_clis_serve_and_end_with_the_gateway(tmp_path: Path) -> None:
    async with spawning(tmp_path) as gateway:
        await gateway.until_up(2)
        async with await gateway.connect() as client:
            for number in range(4):
                await client.request("session.create", {"sessionId": f"s{number}"})
        family = children(gateway.pid)
        assert len(family) >= 2
    assert not [pid for pid in family if alive(pid)]


async def test_a_killed_gateway_leaves_no_cli(tmp_path: Path) -> None:
    gateway = spawning(tmp_path)
    await gateway.start()
    await gateway.until_up(2)
    family = children(gateway.pid)
    assert len(family) >= 2
    await gateway.kill()
    await eventually(lambda: not [pid for pid in family if alive(pid)])


async def test_a_killed_main_process_leaves_no_worker(tmp_path: Path) -> None:
    gateway = spawning(tmp_path, "--workers", "2")
    await gateway.start()
    await gateway.until_up(2)
    family = children(gateway.pid)
    assert len(family) >= 4
    await gateway.kill()
    await eventually(lambda: not [pid for pid in family if alive(pid)])


async def test_a_crashed_cli_is_started_again_and_its_sessions_go_on(tmp_path: Path) -> None:
    async with spawning(tmp_path, admin=True) as gateway:
        await gateway.until_up(2)
        async with await gateway.connect() as client:
            provider = {"type": "openai", "baseUrl": "http://127.0.0.1:9", "apiKey": "k"}
            create = {"sessionId": "s", "provider": provider}
            await client.request("session.create", create)
            assert await run_turn(client, "s", "one") == "echo: one [user messages: 1]"
            await client.request("sessions.save", {"sessionId": "s"})
            _, text = await gateway.admin("/sessions")
            (session,) = json.loads(text)["sessions"]
            _, text = await gateway.admin("/replicas")
            pids = {one["name"]: one["pid"] for one in json.loads(text)["replicas"]}
            os.kill(pids[session["replica"]], signal.SIGKILL)
            assert await run_turn(client, "s", "two") == "echo: two [user messages: 2]"


# Stopping


async def test_sigterm_lets_a_running_turn_finish(fakes: Fleet) -> None:
    gateway = await fakes.process()
    busy, idle = await fakes.client(gateway), await fakes.client(gateway)
    await busy.request("session.create", fakes.params("s"))
    await send(busy, "s", "[[gate g]] hello")
    await fakes.model.waiting("g")
    gateway.signal(signal.SIGTERM)
    await idle.wait_ended()
    with pytest.raises(OSError):
        await gateway.connect()
    assert not busy.ended.is_set()
    await fakes.model.release("g")
    await busy.wait_event("s", "session.idle")
    await busy.wait_ended()
    assert await gateway.wait() == 0


async def test_a_drain_is_bounded(fakes: Fleet) -> None:
    gateway = await fakes.process(env={"COPILOT_GATEWAY_DRAIN_TIMEOUT": "300ms"})
    busy = await fakes.client(gateway)
    await busy.request("session.create", fakes.params("s"))
    await send(busy, "s", "[[gate never]] hello")
    await fakes.model.waiting("never")
    gateway.signal(signal.SIGTERM)
    assert await gateway.wait(10) == 0
    await busy.wait_ended()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_second_sigterm_ends_at_once(fakes: Fleet, workers: str) -> None:
    gateway = await fakes.process("--workers", workers)
    busy = await fakes.client(gateway)
    await busy.request("session.create", fakes.params("s"))
    await send(busy, "s", "[[gate never]] hello")
    await fakes.model.waiting("never")
    family = children(gateway.pid)
    gateway.signal(signal.SIGTERM)
    await gateway.said("draining")
    gateway.signal(signal.SIGTERM)
    assert await gateway.wait(5) == errors.EXIT_FAILURE
    await busy.wait_ended()
    await eventually(lambda: not [pid for pid in family if alive(pid)])


async def test_sigint_stops_it_too(fakes: Fleet) -> None:
    gateway = await fakes.process()
    gateway.signal(signal.SIGINT)
    assert await gateway.wait() == 0


# Reloading


async def test_sighup_reads_tokens_again(fakes: Fleet) -> None:
    gateway = await fakes.process(env={"COPILOT_GATEWAY_AUTH_TOKEN_POLL": "1h"})
    token = gateway.add_token("acme", "alice")
    with pytest.raises(RpcFault) as caught:
        await gateway.connect(token)
    assert caught.value.code == errors.AUTHENTICATION_FAILED
    gateway.signal(signal.SIGHUP)
    await gateway.said("reloaded")
    alice = await fakes.client(gateway, token)
    other = await fakes.client(gateway)
    remove_tokens(gateway.tokens, user="alice")
    gateway.signal(signal.SIGHUP)
    await alice.wait_ended()
    await other.request("ping")


async def test_a_changed_token_file_is_noticed_without_a_signal(fakes: Fleet) -> None:
    gateway = await fakes.process(env={"COPILOT_GATEWAY_AUTH_TOKEN_POLL": "50ms"})
    token = gateway.add_token("acme", "alice")
    await gateway.said("tokens=1")
    alice = await fakes.client(gateway, token)
    remove_tokens(gateway.tokens, user="alice")
    await alice.wait_ended()


async def test_sighup_changes_replicas_without_dropping_a_connection(make_fleet) -> None:  # type: ignore[no-untyped-def]
    fleet: Fleet = await make_fleet("fake", 2)
    first, second = fleet.clis
    entry = '[[replicas]]\nname = "{0.name}"\naddress = "{0.host}:{0.port}"\n'
    fleet.clis = []
    gateway = await fleet.process(
        config=entry.format(first), env={"COPILOT_GATEWAY_REPLICA_TOKEN": "replica-token"}
    )
    await gateway.until_up(1)
    client = await fleet.client(gateway)
    await client.request("session.create", fleet.params("s"))
    gateway.config.write_text(entry.format(first) + entry.format(second))
    gateway.signal(signal.SIGHUP)
    await gateway.until_up(2)
    for number in range(8):
        await client.request("session.create", fleet.params(f"s{number}"))
    assert isinstance(second, FakeCli)
    assert second.sessions
    assert "echo" in await run_turn(client, "s", "still here")


async def test_sighup_with_a_bad_configuration_changes_nothing(fakes: Fleet) -> None:
    gateway = await fakes.process(config="[limits]\nmax_frame = 100000\n")
    client = await fakes.client(gateway)
    gateway.config.write_text("[limits]\nmax_frame = nonsense\n")
    gateway.signal(signal.SIGHUP)
    await gateway.said("configuration not reloaded")
    await client.request("ping")
    gateway.config.write_text("[limits]\nmax_frame = 70000\n")
    gateway.signal(signal.SIGHUP)
    await gateway.said("reloaded changes=1")
    late = await fakes.client(gateway)
    with pytest.raises(RpcFault) as caught:
        await late.request("ping", {"message": "x" * 80_000})
    assert caught.value.data["limit"] == "max_frame"


# Workers


async def test_workers_share_sessions_and_tenants(fakes: Fleet) -> None:
    gateway = await fakes.process("--workers", "2", admin=True)
    alice, mallory = gateway.add_token("acme", "alice"), gateway.add_token("evil", "mallory")
    await eventually(lambda: gateway.text.count("tokens=2") >= 2)
    clients = [await fakes.client(gateway, alice) for _ in range(8)]
    await clients[0].request("session.create", fakes.params("s"))
    assert "echo" in await run_turn(clients[0], "s", "hi")
    await clients[0].request("sessions.save", {"sessionId": "s"})
    for client in clients:
        answer = await client.request("session.resume", fakes.params("s"))
        assert answer["sessionId"] == "s"
        listed = await client.request("session.list")
        assert [one["sessionId"] for one in listed["sessions"]] == ["s"]
    homes = [cli for cli in fakes.clis if "s" in fakes.fake(cli.name).sessions]
    assert len(homes) == 1
    for _ in range(4):
        stranger = await fakes.client(gateway, mallory)
        with pytest.raises(RpcFault, match="Session not found"):
            await stranger.request("session.resume", {"sessionId": "s"})
        assert (await stranger.request("session.list"))["sessions"] == []
    status, text = await gateway.admin("/metrics")
    assert status == 200
    assert "copilot_gateway" in text


async def test_a_worker_that_dies_is_replaced(fakes: Fleet) -> None:
    gateway = await fakes.process("--workers", "2")
    victim = children(gateway.pid)[0]
    os.kill(victim, signal.SIGKILL)
    await gateway.said("worker ended")
    await eventually(lambda: len(children(gateway.pid)) == 2)
    for _ in range(6):
        client = await fakes.client(gateway)
        await client.request("ping")


# Admin


async def test_the_admin_api_is_live(fakes: Fleet) -> None:
    gateway = await fakes.process(admin=True)
    client = await fakes.client(gateway)
    await client.request("session.create", fakes.params("s"))
    assert (await gateway.admin("/livez", token=None))[0] == 200
    assert (await gateway.admin("/readyz", token=None))[0] == 200
    for path in ("/replicas", "/sessions"):
        assert (await gateway.admin(path, token=None))[0] == 401
        assert (await gateway.admin(path, token="wrong"))[0] == 401
    replicas = json.loads((await gateway.admin("/replicas"))[1])["replicas"]
    assert [(one["name"], one["state"]) for one in replicas] == [("cli-0", "up"), ("cli-1", "up")]
    (session,) = json.loads((await gateway.admin("/sessions"))[1])["sessions"]
    assert (session["session"], session["tenant"], session["live"]) == ("s", "default", True)
    status, metrics = await gateway.admin("/metrics")
    assert status == 200
    assert 'replica="cli-0"' in metrics


async def test_readiness_follows_the_replicas_and_the_drain(fakes: Fleet) -> None:
    gateway = await fakes.process(admin=True)
    busy = await fakes.client(gateway)
    await busy.request("session.create", fakes.params("s"))
    await send(busy, "s", "[[gate g]] hello")
    await fakes.model.waiting("g")
    assert (await gateway.admin("/readyz"))[0] == 200
    gateway.signal(signal.SIGTERM)
    await gateway.said("draining")
    assert (await gateway.admin("/readyz"))[0] == 503
    await fakes.model.release("g")
    assert await gateway.wait() == 0


async def test_draining_a_replica_by_the_admin_api(fakes: Fleet) -> None:
    gateway = await fakes.process(admin=True)
    client = await fakes.client(gateway)
    status, _ = await gateway.admin("/replicas/cli-0/drain", "POST")
    assert status in (200, 202)
    for number in range(6):
        await client.request("session.create", fakes.params(f"s{number}"))
    assert not fakes.fake("cli-0").sessions
    assert len(fakes.fake("cli-1").sessions) == 6


# Secrets


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode()


async def test_no_secret_reaches_the_log_or_the_command_line(fakes: Fleet) -> None:
    gateway = await fakes.process("--log-level", "debug", admin=True)
    token = gateway.add_token("acme", "alice")
    gateway.signal(signal.SIGHUP)
    await gateway.said("reloaded")
    client = await fakes.client(gateway, token)
    params = fakes.params("s")
    params["provider"]["apiKey"] = "model-key-123456"
    await client.request("session.create", params)
    assert "echo" in await run_turn(client, "s", "a very private prompt")
    with pytest.raises(RpcFault):
        await gateway.connect("guessed-token-123456")
    await fakes.clis[0].restart()
    await fakes.clis[1].restart()
    assert "echo" in await run_turn(client, "s", "another private prompt")
    argv = command_line(gateway.pid)
    for secret in (token, ADMIN_TOKEN, "replica-token", "model-key-123456", "guessed-token-123456",
                   "private prompt"):  # fmt: skip
        assert secret not in gateway.text
        assert secret not in argv


async def test_no_auth_is_for_loopback_only(tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path / "g", *NOBODY, "--auth", "none", "--listen", "0.0.0.0:0")
    status, said = await ended(gateway)
    assert status == errors.EXIT_USAGE
    assert "insecure" in said[-1]


async def test_no_auth_lets_everybody_in(fakes: Fleet) -> None:
    gateway = await fakes.process("--auth", "none")
    client = await fakes.bare(gateway)
    assert (await client.request("connect"))["ok"] is True
    await client.request("session.create", fakes.params("s"))


async def test_check_says_whether_it_could_serve(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    replica = '[[replicas]]\naddress = "127.0.0.1:9"\n'
    good.write_text("[limits]\nmax_frame = 100000\n" + replica)
    bad.write_text("[limits]\nmax_frame = -1\n")
    for path, expected in ((good, 0), (bad, errors.EXIT_USAGE)):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway.cli", "check", "--config", str(path),
            cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, said = await process.communicate()
        assert process.returncode == expected
        assert b"Traceback" not in said


async def test_requests_of_a_killed_gateway_end(fakes: Fleet) -> None:
    gateway = await fakes.process()
    client = await fakes.client(gateway)
    await client.request("session.create", fakes.params("s"))
    await send(client, "s", "[[gate never]] hello")
    waiting = client.post("session.send", {"sessionId": "s", "prompt": "x", "wait": True})
    await gateway.kill()
    with pytest.raises(ConnectionEnded):
        await waiting

"""The audit log of the whole program: who did what, from where, with what outcome."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Fleet
from tests.support.rpc import RpcFault
from tests.support.sessions import run_turn
from tests.support.wait import eventually


def records(path: Path, event: str = "") -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    return [one for one in found if not event or one["event"] == event]


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_life_in_the_audit_log(fakes: Fleet, tmp_path: Path, workers: str) -> None:
    path = tmp_path / "audit.log"
    config = f'[audit]\npath = "{path}"\n[auth]\ntoken_poll = "50ms"\n'
    gateway = await fakes.process("--workers", workers, config=config, admin=True)
    token = gateway.add_token("acme", "ann")
    await eventually(lambda: gateway.text.count("tokens=1") == int(workers))

    stranger = await fakes.bare(gateway)
    with pytest.raises(RpcFault):
        await stranger.request("connect", {"token": "hush-wrong"})
    ann = await fakes.client(gateway, token)
    await ann.request("session.create", fakes.params("s"))
    await run_turn(ann, "s", "hush-prompt")
    await ann.request("session.resume", fakes.params("s"))
    with pytest.raises(RpcFault):
        await ann.request("runtime.shutdown")
    await ann.request("sessions.save", {"sessionId": "s"})
    await ann.request("session.delete", {"sessionId": "s"})
    status, _ = await gateway.admin("/replicas/cli-1/drain", "POST")
    assert status == 202
    await gateway.stop()

    failed, good = records(path, "authentication")
    assert (failed["outcome"], failed["reason"]) == ("failed", "unknown token")
    assert "tenant" not in failed
    assert (good["outcome"], good["tenant"], good["user"]) == ("ok", "acme", "ann")
    assert good["source"].startswith("token:")
    assert good["peer"].startswith("127.0.0.1:")
    for event in ("session.create", "session.resume", "session.delete"):
        (one,) = records(path, event)
        assert (one["session"], one["user"], one["outcome"]) == ("s", "ann", "ok"), event
    (denied,) = records(path, "denied")
    assert (denied["method"], denied["outcome"]) == ("runtime.shutdown", "denied")
    (drained,) = [one for one in records(path) if one["event"].startswith("admin.")]
    assert drained["listener"] == "admin"
    text = path.read_text()
    assert "hush" not in text
    assert token not in text


async def test_who_sent_what_in_a_shared_session(fakes: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    gateway = await fakes.process(
        config=f"""
        [audit]
        path = "{path}"
        [auth]
        token_poll = "50ms"
        [[tenants]]
        name = "acme"
        sessions = "shared"
        """
    )
    who = [gateway.add_token("acme", "ann"), gateway.add_token("acme", "bob")]
    other = gateway.add_token("evil", "eve")
    await gateway.said("tokens=3")
    ann, bob, eve = [await fakes.client(gateway, token) for token in (*who, other)]
    await ann.request("session.create", fakes.params("s"))
    await run_turn(ann, "s", "zero")
    await bob.request("session.resume", {"sessionId": "s"})
    await run_turn(ann, "s", "one")
    await bob.wait_event("s", "session.idle")
    await run_turn(bob, "s", "two")
    with pytest.raises(RpcFault, match="not found"):
        await eve.request("session.resume", {"sessionId": "s"})
    await gateway.stop()
    assert [one["user"] for one in records(path, "session.send")] == ["ann", "ann", "bob"]


async def test_the_file_is_opened_again_on_sighup(fakes: Fleet, tmp_path: Path) -> None:
    path, moved = tmp_path / "audit.log", tmp_path / "audit.log.old"
    gateway = await fakes.process(config=f'[audit]\npath = "{path}"\n')
    await fakes.client(gateway)
    await eventually(lambda: records(path))
    path.rename(moved)
    gateway.signal(signal.SIGHUP)
    await gateway.said("reloaded")
    await fakes.client(gateway)
    await eventually(lambda: records(path))
    assert len(records(moved)) == 1


async def test_the_log_on_standard_output_with_several_workers(fakes: Fleet) -> None:
    gateway = await fakes.process("--workers", "2", config='[audit]\npath = "-"\n')
    await fakes.client(gateway)
    await eventually(lambda: any('"event":"authentication"' in line for line in gateway.stdout))

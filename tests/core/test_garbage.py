"""Damaged input from either side: a typed answer or a closed connection, never an exception."""

from __future__ import annotations

import json
import os
import random
import time

import pytest

from gateway.policy.rules import MethodPolicy, OperatorRule
from gateway.wire.framing import encode
from gateway.wire.methods import METHODS
from tests.core.conftest import MakeStage
from tests.support.playbook import Stage, event, lifecycle, raw
from tests.support.rpc import Message
from tests.support.strategies import FRAGMENTS

SECONDS = float(os.environ.get("FUZZ_SECONDS", "1.5"))
ODD = [None, True, 0, -1, 1.5, "", "s", "x" * 300, [], ["s"], {}, {"a": 1}, [[]], "ü", 2**70]


@pytest.fixture
def rng() -> random.Random:
    """Randomness whose seed a failing test prints."""
    seed = int(os.environ.get("FUZZ_SEED", time.time_ns() % 2**32))
    print(f"FUZZ_SEED={seed}")
    return random.Random(seed)


async def open_stage(make_stage: MakeStage) -> Stage:
    allow = MethodPolicy(rules=(OperatorRule("allow", ("session*",)),))
    return await make_stage(
        "cli-0", options={"policy": allow}, max_auth_failures=10**9, rebind_timeout=0.02
    )


def odd_message(rng: random.Random, method: str) -> Message:
    """Return a message with values of the wrong types in places that matter."""
    names = ["sessionId", "sessionIds", "options", "id", "token", "tools", "prompt"]
    names += [path.split(".")[0].removesuffix("[]") for path in METHODS[method].session_paths]
    params = {name: rng.choice(ODD) for name in names if rng.random() < 0.5}
    message: Message = {
        "jsonrpc": "2.0",
        "id": rng.choice([1, 2, "a", *ODD]),
        "method": rng.choice([method, method, *ODD]),
        "params": rng.choice([params, params, params, *ODD]),
    }
    for name in ("id", "method", "params", "jsonrpc"):
        if rng.random() < 0.08:
            del message[name]
    if rng.random() < 0.1:
        message["result"] = rng.choice(ODD)
    return message


async def test_every_method_with_odd_params(make_stage: MakeStage, rng: random.Random) -> None:
    stage = await open_stage(make_stage)
    bystander = await stage.client("bob")
    await bystander.creates("b")
    give_up = time.monotonic() + SECONDS
    while time.monotonic() < give_up:
        mallory = await stage.client("mallory")
        for method in rng.sample(sorted(METHODS), 30):
            mallory.sends(odd_message(rng, method))
        for _ in range(20):
            await stage.settle()
            for found in list(stage.cli.asked.messages):
                stage.cli.asked.messages.remove(found)
                if rng.random() < 0.7:
                    found["ask"].answers(rng.choice(ODD))
                else:
                    found["ask"].refuses("no")
        mallory.leaves()
    await stage.settle()
    await bystander.prompts("b")


async def test_damaged_bytes_from_clients(make_stage: MakeStage, rng: random.Random) -> None:
    stage = await open_stage(make_stage)
    bystander = await stage.client("bob")
    await bystander.creates("b")
    give_up = time.monotonic() + SECONDS
    while time.monotonic() < give_up:
        actor = await stage.client("alice") if rng.random() < 0.5 else stage.stranger()
        for _ in range(5):
            body = bytearray(json.dumps(odd_message(rng, "session.send")).encode())
            at = rng.randint(0, len(body))
            body[at : at + rng.randint(0, 3)] = rng.choice([b"", *FRAGMENTS])
            stream = bytearray(encode(bytes(body)))
            if rng.random() < 0.2:
                at = rng.randint(0, len(stream))
                stream[at:at] = rng.choice(FRAGMENTS)
            middle = rng.randint(0, len(stream))
            if not actor.sink.closed:
                actor.says(bytes(stream[:middle]))
            if not actor.sink.closed:
                actor.says(bytes(stream[middle:]))
        await stage.settle()
        actor.leaves()
    await stage.settle()
    await bystander.prompts("b")


async def test_damaged_bytes_from_replicas(make_stage: MakeStage, rng: random.Random) -> None:
    stage = await open_stage(make_stage)
    alice = await stage.client("alice")
    await alice.creates("s")
    good: list[Message] = [
        event("s", "assistant.message_delta"),
        event("s", "session.idle"),
        lifecycle("s"),
        {"jsonrpc": "2.0", "id": 1, "method": "hooks.invoke", "params": {"sessionId": "s"}},
        {"jsonrpc": "2.0", "id": "x", "result": {}},
        {"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": 1}},
    ]
    bodies = [json.dumps(message, separators=(",", ":")).encode() for message in good]
    give_up = time.monotonic() + SECONDS
    while time.monotonic() < give_up:
        if not [one for one in stage.cli.lines if one.link.client is alice.core and one.link.ready]:
            await stage.settle()
            for found in list(stage.cli.asked.messages):
                stage.cli.asked.messages.remove(found)
                found["ask"].answers({"sessionId": "s"})
            if stage.stats.sessions_live == 0:
                await alice.resumes("s")
            continue
        line = stage.cli.line_of(alice)
        body = bytearray(rng.choice(bodies))
        at = rng.randint(0, len(body))
        body[at : at + rng.randint(0, 3)] = rng.choice([b"", *FRAGMENTS])
        stream = raw([rng.choice(bodies), bytes(body), rng.choice(bodies)])
        if rng.random() < 0.02:
            stream = b"rubbish\r\n\r\n" + stream
        middle = rng.randint(0, len(stream))
        for part in (stream[:middle], stream[middle:]):
            if not line.link.closed:
                line.says_raw(part)
    assert not alice.core.closed


@pytest.mark.parametrize(
    "rubbish", [b"rubbish\r\n\r\n", b"Content-Length: x\r\n\r\n", b"\0" * 9000]
)
async def test_a_replica_that_speaks_rubbish_loses_the_link_only(
    stage: Stage, rubbish: bytes
) -> None:
    alice, bob = await stage.client("alice"), await stage.client("bob")
    line = (await alice.creates("s")).line
    await bob.creates("b")
    line.says_raw(rubbish)
    assert line.sink.aborted
    (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    await stage.settle()
    await alice.prompts("s")
    await bob.prompts("b")


async def test_an_oversized_frame_of_a_replica_ends_the_link(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", max_replica_frame=10_000)
    alice = await stage.client("alice")
    line = (await alice.creates("s")).line
    line.emits("s", "assistant.message", text="x" * 9_000)
    await alice.hears_event("assistant.message")
    line.says_raw(b"Content-Length: 10001\r\n\r\n" + b"x" * 1000)
    assert line.sink.aborted
    assert not alice.core.closed

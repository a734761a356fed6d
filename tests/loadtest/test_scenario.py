"""Scenario files."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from gateway.loadtest.plan import Check, Plan, Tls
from gateway.loadtest.scenario import Answer, Range, Scenario, parse_scenario
from gateway.loadtest.shape import parse_stages

FULL = """
[mix]
turn = 3
ping = 1
resume = 0

[conversation]
turns = "2..4"
think = "1s..2.5s"
end = "detach"
tool_use = 0.5
permissions = "all"
prompts = ["a", "b"]

[answer]
bytes = 500
chunks = 7
delay = "200ms"
chunk_delay = "10ms"

[session]
model = "m"
provider = { type = "openai", apiKey = "${KEY}" }
"""


def test_a_full_scenario_is_read() -> None:
    scenario = parse_scenario(FULL, {"KEY": "secret-key"})
    assert scenario == Scenario(
        mix={"turn": 3.0, "ping": 1.0},
        turns=Range(2, 4),
        think=Range(1.0, 2.5),
        end="detach",
        tool_use=0.5,
        permissions="all",
        prompts=("a", "b"),
        answer=Answer(bytes=500, chunks=7, delay=0.2, chunk_delay=0.01),
        session={"model": "m", "provider": {"type": "openai", "apiKey": "secret-key"}},
    )
    directives = "[[size 500]] [[chunks 7]] [[delay 0.2]] [[chunk-delay 0.01]]"
    assert scenario.answer.directives == directives


def test_an_empty_file_is_the_default() -> None:
    assert parse_scenario("", {}) == Scenario()


def test_single_values_stand_for_ranges() -> None:
    scenario = parse_scenario('[conversation]\nturns = 3\nthink = "2s"', {})
    assert (scenario.turns, scenario.think) == (Range(3, 3), Range(2, 2))


def test_steps_are_drawn_by_weight() -> None:
    scenario, dice = parse_scenario(FULL, {"KEY": ""}), random.Random(1)
    drawn = Counter(scenario.pick(dice) for _ in range(4000))
    assert drawn.keys() == {"turn", "ping"}
    assert 2800 < drawn["turn"] < 3200


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("x", "TOML"),
        ("[mixx]", "mixx"),
        ("[mix]\nturns = 1", "mix.turns"),
        ("[mix]\nping = 1", "mix.turn"),
        ("[mix]\nturn = -1", "mix.turn"),
        ('[mix]\nturn = "1"', "mix.turn"),
        ("mix = 1", "mix"),
        ("[conversation]\nturns = 0", "conversation.turns"),
        ('[conversation]\nturns = "3..2"', "conversation.turns"),
        ('[conversation]\nthink = "5s..1s"', "conversation.think"),
        ("[conversation]\nthink = 5", "conversation.think"),
        ('[conversation]\nend = "explode"', "conversation.end"),
        ("[conversation]\ntool_use = 2", "conversation.tool_use"),
        ("[conversation]\nprompts = []", "conversation.prompts"),
        ("[answer]\nbytes = 5", "answer.bytes"),
        ("[answer]\nchunks = 0", "answer.chunks"),
        ('[answer]\ndelay = "soon"', "answer.delay"),
        ("session = 3", "session"),
        ("[session]\ntools = []", "session.tools"),
        ('[session]\nmodel = "${NOT_SET}"', "NOT_SET"),
    ],
)
def test_a_mistake_is_named(text: str, culprit: str) -> None:
    with pytest.raises(ValueError, match=culprit.replace(".", r"\.")):
        parse_scenario(text, {})


def test_a_plan_survives_the_way_to_a_process_and_hides_its_secrets() -> None:
    plan = Plan(
        run="abc123",
        host="h",
        port=1,
        token="top-secret",
        tls=Tls(ca="ca.pem", server_name="s"),
        scenario=parse_scenario(FULL, {"KEY": "secret-key"}),
        shape=parse_stages("1s:5,2s:5"),
        check=Check.EVENTS,
        steps=10,
        connections=5,
        processes=2,
    )
    assert Plan.load(json.loads(json.dumps(plan.dump()))) == plan
    assert "secret" not in repr(plan)
    shares = [plan.share(number) for number in range(2)]
    assert [(share.connections, share.steps) for share in shares] == [(3, 5), (2, 5)]
    assert sorted(share.rank(user) for share in shares for user in range(3)) == list(range(6))

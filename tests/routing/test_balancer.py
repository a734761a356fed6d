"""Which replica takes a session where any could."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from gateway.routing.balancer import Candidate, choose


def scripted(*numbers: int) -> Callable[[int], int]:
    """Return a draw that gives these numbers, each checked against what was asked for."""
    left = list(numbers)

    def draw(below: int) -> int:
        number = left.pop(0)
        assert 0 <= number < below
        return number

    return draw


def test_nobody_there() -> None:
    assert choose([], scripted()) is None


def test_only_one() -> None:
    assert choose([Candidate("a", busy=9)], scripted(0)) == "a"


@pytest.mark.parametrize("draws", [(0, 0), (1, 0)])
def test_of_two_drawn_the_less_loaded(draws: tuple[int, int]) -> None:
    assert choose([Candidate("a", sessions=3), Candidate("b")], scripted(*draws)) == "b"


def test_who_was_not_drawn_is_not_looked_at() -> None:
    crowd = [Candidate("a", sessions=5), Candidate("b", sessions=9), Candidate("idle")]
    assert choose(crowd, scripted(0, 0)) == "a"
    assert choose(crowd, scripted(0, 1)) == "idle"
    assert choose(crowd, scripted(2, 1)) == "idle"


def test_both_drawn_are_different_replicas() -> None:
    """The second number counts among the others."""
    crowd = [Candidate("a", sessions=5), Candidate("b")]
    assert choose(crowd, scripted(1, 0)) == "b"


def test_equal_loads_go_to_the_first_drawn() -> None:
    assert choose([Candidate("a"), Candidate("b")], scripted(1, 0)) == "b"


def test_a_running_turn_counts_more_than_a_waiting_session() -> None:
    assert choose([Candidate("a", busy=1), Candidate("b", sessions=3)], scripted(0, 0)) == "b"
    assert choose([Candidate("a", busy=1), Candidate("b", sessions=5)], scripted(0, 0)) == "a"


def test_weights() -> None:
    heavy, light = Candidate("heavy", sessions=5, weight=4), Candidate("light", sessions=2)
    assert choose([heavy, light], scripted(0, 0)) == "heavy"


def test_a_slow_replica_gets_less() -> None:
    assert choose([Candidate("slow", latency=0.2), Candidate("b", sessions=1)], scripted(0, 0)) == (
        "b"
    )


def test_latency_does_not_outweigh_everything() -> None:
    """One probe that took a minute says no more than one that took a second."""
    assert Candidate("a", latency=60.0).score(0) == Candidate("a", latency=1.0).score(0)


def test_a_replica_that_has_just_come_up_begins_with_a_share() -> None:
    old = Candidate("old", sessions=3)
    assert choose([Candidate("new", up_for=0.0), old], scripted(0, 0), 30.0) == "old"
    assert choose([Candidate("new", up_for=15.0), old], scripted(0, 0), 30.0) == "new"
    assert choose([Candidate("new", up_for=0.0), old], scripted(0, 0)) == "new"


def test_the_share_grows_to_the_whole_and_no_further() -> None:
    scores = [Candidate("a", up_for=t).score(10.0) for t in (0.0, 1.0, 5.0, 10.0, 1e9)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == scores[1] == 10 * scores[3]
    assert scores[3] == scores[4]


def test_backups_only_where_there_is_nobody_else() -> None:
    backup = Candidate("backup", backup=True)
    assert choose([backup, Candidate("a", sessions=99)], scripted(0)) == "a"
    assert choose([backup], scripted(0)) == "backup"


def test_sessions_spread_nearly_evenly() -> None:
    draw = random.Random(1).randrange
    load: Counter[str] = Counter(dict.fromkeys("abcde", 0))
    for _ in range(1000):
        crowd = [Candidate(name, sessions=count) for name, count in sorted(load.items())]
        chosen = choose(crowd, draw)
        assert chosen is not None
        load[chosen] += 1
    assert max(load.values()) - min(load.values()) <= 10

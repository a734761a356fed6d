from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.schedule import REGISTRY_KINDS, REPLICA_KINDS, Fault, Kind, plan


def whole(seed: int, seconds: float = 90.0) -> list[Fault]:
    return plan(seed, seconds, list(Kind), replicas=3, gateways=2, clients=6)


def test_a_seed_is_a_plan() -> None:
    assert whole(1) == whole(1)
    assert whole(1) != whole(2)


@given(st.integers())
def test_a_short_run_has_every_kind(seed: int) -> None:
    assert {fault.kind for fault in whole(seed)} == set(Kind)


@given(st.integers(), st.floats(0, 400))
def test_faults_are_in_order_and_over_in_time(seed: int, seconds: float) -> None:
    faults = whole(seed, seconds)
    assert faults == sorted(faults, key=lambda fault: fault.at)
    assert all(fault.at + fault.lasts <= seconds for fault in faults)


@given(st.integers())
def test_one_replica_and_one_gateway_at_a_time(seed: int) -> None:
    faults = whole(seed, 300.0)
    for track in (REPLICA_KINDS, (Kind.GATEWAY,), REGISTRY_KINDS):
        mine = [fault for fault in faults if fault.kind in track]
        assert all(one.at + one.lasts < other.at for one, other in pairwise(mine))


def test_only_the_kinds_asked_for() -> None:
    kinds = {fault.kind for fault in plan(1, 90, [Kind.KILL], replicas=3, gateways=2, clients=6)}
    assert kinds == {Kind.KILL}


def test_a_single_gateway_is_spared() -> None:
    faults = plan(1, 90, list(Kind), replicas=3, gateways=1, clients=6)
    assert Kind.GATEWAY not in {fault.kind for fault in faults}


def test_targets_exist() -> None:
    faults = whole(3, 300.0)
    for kinds, count in ((REPLICA_KINDS, 3), ((Kind.GATEWAY,), 2), ((Kind.RECONNECT,), 6)):
        assert {fault.target for fault in faults if fault.kind in kinds} == set(range(count))

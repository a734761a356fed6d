from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.discovery import (
    MIN_INTERVAL,
    DnsSource,
    FileSource,
    Roster,
    SrvSource,
    changes,
    merged,
    next_look,
    parse_source,
    specs_of_addresses,
    specs_of_targets,
)
from gateway.types import ReplicaSpec

SERVICE = "_copilot._tcp.cli.default.svc.cluster.local"


def spec(name: str, port: int = 4321, host: str | None = None) -> ReplicaSpec:
    return ReplicaSpec(name, host or f"{name}.example", port)


def names(specs: list[ReplicaSpec]) -> list[str]:
    return [one.name for one in specs]


class TestSources:
    @pytest.mark.parametrize(
        ("text", "source"),
        [
            ("file:///etc/replicas", FileSource("/etc/replicas")),
            ("file:///etc/my%20replicas.toml", FileSource("/etc/my replicas.toml")),
            ("dns://cli.default.svc:4321", DnsSource("cli.default.svc", 4321)),
            ("dns://[::1]:4321", DnsSource("::1", 4321)),
            (f"srv://{SERVICE}", SrvSource(SERVICE)),
        ],
    )
    def test_are_written_as_urls(self, text: str, source: object) -> None:
        assert parse_source(text) == source

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "/etc/replicas",
            "file:replicas",
            "file://host/etc/replicas",
            "file:///etc/replicas?x=1",
            "dns://cli.default.svc",
            "dns://cli:0",
            "dns://cli:99999",
            "dns://user@cli:1",
            "dns://cli:1/path",
            "dns://[::1:4321",
            f"srv://{SERVICE}:53",
            "srv://",
            "http://cli:1",
        ],
    )
    def test_other_text_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="must be file:///PATH"):
            parse_source(text)

    def test_say_what_they_are(self) -> None:
        for text in ("file:///etc/replicas", "dns://cli:1", f"srv://{SERVICE}"):
            assert str(parse_source(text)) == text


class TestNames:
    def test_an_address_is_its_own_name(self) -> None:
        found = specs_of_addresses(["10.0.0.2", "10.0.0.10", "10.0.0.2"], 4321, "secret")
        assert found == [
            ReplicaSpec("10.0.0.2:4321", "10.0.0.2", 4321, "secret"),
            ReplicaSpec("10.0.0.10:4321", "10.0.0.10", 4321, "secret"),
        ]

    def test_a_dual_stack_host_is_one_replica(self) -> None:
        assert names(specs_of_addresses(["fd00::1", "10.0.0.1"], 1)) == ["10.0.0.1:1"]

    def test_ipv6_alone_is_used(self) -> None:
        assert specs_of_addresses(["fd00::1"], 1) == [ReplicaSpec("[fd00::1]:1", "fd00::1", 1)]

    def test_a_link_local_address_keeps_its_zone(self) -> None:
        assert specs_of_addresses(["fe80::1%eth0"], 1) == [
            ReplicaSpec("[fe80::1%eth0]:1", "fe80::1%eth0", 1)
        ]

    def test_no_addresses_are_no_replicas(self) -> None:
        assert specs_of_addresses([], 1) == []

    def test_a_pod_of_a_stateful_set_keeps_its_short_name(self) -> None:
        targets = [
            ("cli-1.cli.default.svc.cluster.local.", 4321),
            ("CLI-0.cli.default.svc.cluster.local.", 4321),
        ]
        found = specs_of_targets(SERVICE + ".", targets, "secret")
        assert names(found) == ["cli-0", "cli-1"]
        assert found[0].host == "cli-0.cli.default.svc.cluster.local"
        assert found[0].token == "secret"

    def test_a_target_elsewhere_has_its_full_name(self) -> None:
        targets = [("a.example.org", 1), ("b.cli.default.svc.cluster.local", 1)]
        assert names(specs_of_targets(SERVICE, targets)) == ["a.example.org", "b"]

    def test_the_port_tells_replicas_of_one_host_apart(self) -> None:
        targets = [("a.org", 1), ("a.org", 2), ("b.org", 1), ("b.org", 1)]
        assert names(specs_of_targets(SERVICE, targets)) == ["a.org:1", "a.org:2", "b.org"]

    def test_the_root_is_no_target(self) -> None:
        assert specs_of_targets(SERVICE, [(".", 0)]) == []


class TestMerging:
    def test_keeps_the_order_of_the_sources(self) -> None:
        assert merged([[spec("b")], [], [spec("a")]]) == ([spec("b"), spec("a")], [])

    def test_the_same_replica_from_two_sources_is_one(self) -> None:
        assert merged([[spec("a")], [spec("a")]]) == ([spec("a")], [])

    def test_the_earlier_source_wins_a_name(self) -> None:
        kept, complaints = merged([[spec("a", 1)], [spec("a", 2)]])
        assert kept == [spec("a", 1)]
        assert complaints == ["two replicas have the name a"]

    def test_one_address_is_one_replica(self) -> None:
        kept, complaints = merged([[spec("a", host="h")], [spec("b", host="h")]])
        assert kept == [spec("a", host="h")]
        assert complaints == ["replicas a and b have the same address h:4321"]


class TestChanges:
    def test_of_equal_lists_are_none(self) -> None:
        assert not changes([spec("a"), spec("b")], [spec("b"), spec("a")])

    def test_are_named(self) -> None:
        what = changes([spec("a"), spec("b"), spec("c")], [spec("d"), spec("b", 9), spec("c")])
        assert what
        assert (what.added, what.removed, what.changed) == (["d"], ["a"], ["b"])

    def test_do_not_show_tokens(self) -> None:
        what = changes([spec("a")], [ReplicaSpec("a", "a.example", 4321, "secret")])
        assert what.changed == ["a"]
        assert "secret" not in repr(what)


class TestRoster:
    def test_takes_new_replicas_at_once(self) -> None:
        roster = Roster(30.0)
        roster.update([spec("b"), spec("a")], 0.0)
        assert roster.specs == [spec("a"), spec("b")]

    def test_keeps_the_missing_for_a_while(self) -> None:
        roster = Roster(30.0)
        roster.update([spec("a"), spec("b")], 0.0)
        roster.update([spec("a")], 10.0)
        roster.update([spec("a")], 39.0)
        assert names(roster.specs) == ["a", "b"]
        roster.update([spec("a")], 40.0)
        assert names(roster.specs) == ["a"]

    def test_who_comes_back_has_all_its_time_again(self) -> None:
        roster = Roster(30.0)
        roster.update([spec("a")], 0.0)
        roster.update([], 10.0)
        roster.update([spec("a")], 20.0)
        roster.update([], 45.0)
        roster.update([], 74.0)
        assert names(roster.specs) == ["a"]

    def test_without_grace_the_missing_go_at_once(self) -> None:
        roster = Roster(0.0)
        roster.update([spec("a")], 0.0)
        roster.update([], 0.0)
        assert roster.specs == []

    def test_a_new_address_counts_at_once(self) -> None:
        roster = Roster(30.0)
        roster.update([spec("a", 1)], 0.0)
        roster.update([spec("a", 2)], 1.0)
        assert roster.specs == [spec("a", 2)]

    def test_an_address_that_is_taken_over_is_not_kept(self) -> None:
        roster = Roster(30.0)
        roster.update([spec("old", host="h")], 0.0)
        roster.update([spec("new", host="h")], 1.0)
        assert names(roster.specs) == ["new"]


class TestTiming:
    def test_a_ttl_is_kept_within_bounds(self) -> None:
        assert next_look(30.0, 5.0, 0, 0.5) == 5.0
        assert next_look(30.0, 0.0, 0, 0.5) == MIN_INTERVAL
        assert next_look(30.0, 3600.0, 0, 0.5) == 30.0
        assert next_look(30.0, None, 0, 0.5) == 30.0

    def test_failures_are_repeated_less_and_less_often(self) -> None:
        waits = [next_look(30.0, 300.0, failures, 0.5) for failures in range(1, 8)]
        assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]

    @given(
        st.floats(MIN_INTERVAL, 3600),
        st.none() | st.floats(0, 1e9),
        st.integers(0, 10**6),
        st.floats(0, 1),
    )
    def test_stays_within_the_bounds_and_their_jitter(
        self, interval: float, ttl: float | None, failures: int, chance: float
    ) -> None:
        wait = next_look(interval, ttl, failures, chance)
        assert MIN_INTERVAL * 0.9 <= wait <= interval * 1.1 + 1e-9

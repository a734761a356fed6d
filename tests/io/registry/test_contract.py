"""What every registry driver does alike."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import RegistryUnavailableError
from gateway.routing.registry import Change, PlacementChanged, Registry, ReplicaChanged
from gateway.types import Owner, Placement
from tests.io.registry.conftest import Store
from tests.support.wait import eventually

ALICE = Owner("acme", "alice")
BOB = Owner("acme", "bob")
EVE = Owner("evil", "alice")
LEASE = 60.0


async def alive(registry: Registry, *gateways: str) -> None:
    for gateway in gateways:
        await registry.heartbeat(gateway, LEASE)


class TestRecords:
    async def test_unknown(self, registry: Registry) -> None:
        assert await registry.get("s") is None
        assert await registry.get_many(["s", "t"]) == {}
        assert await registry.move("s", 1, "b") is None
        assert await registry.forget("s") is False
        assert await registry.owned_by("acme", None) == {}
        assert await registry.placed_on("a") == []
        assert await registry.counts() == {}

    async def test_claim_records_once(self, registry: Registry) -> None:
        won = await registry.claim("s", ALICE, "a")
        assert won == Placement("s", ALICE, "a", 1)
        assert await registry.claim("s", ALICE, "a") == won
        assert await registry.claim("s", EVE, "b") == won
        assert await registry.get("s") == won

    async def test_move_compares_and_sets(self, registry: Registry) -> None:
        await registry.claim("s", ALICE, "a")
        moved = Placement("s", ALICE, "b", 2)
        assert await registry.move("s", 1, "b") == moved
        assert await registry.move("s", 1, "b") == moved  # repeated after a lost answer
        assert await registry.move("s", 1, "c") == moved  # an older epoch has lost
        assert await registry.move("s", 3, "c") == moved
        assert await registry.get("s") == moved

    async def test_move_to_where_it_is_is_a_move(self, registry: Registry) -> None:
        await registry.claim("s", ALICE, "a")
        assert await registry.move("s", 1, "a") == Placement("s", ALICE, "a", 2)
        assert await registry.counts() == {"a": 1}

    async def test_forget(self, registry: Registry) -> None:
        await registry.claim("s", ALICE, "a")
        assert await registry.forget("s", 2) is False
        assert await registry.forget("s", 1) is True
        assert await registry.forget("s") is False
        assert await registry.get("s") is None

    async def test_epochs_do_not_start_again(self, registry: Registry) -> None:
        await registry.claim("s", ALICE, "a")
        await registry.move("s", 1, "b")
        await registry.forget("s")
        again = await registry.claim("s", ALICE, "a")
        assert again.epoch == 3
        assert await registry.move("s", 1, "c") == again
        assert await registry.forget("s", 2) is False

    async def test_get_many_takes_any_number(self, registry: Registry) -> None:
        ids = [f"s{number}" for number in range(1203)]
        await asyncio.gather(*(registry.claim(session, ALICE, "a") for session in ids))
        found = await registry.get_many([*ids, "other", ids[0]])
        assert found == {session: Placement(session, ALICE, "a", 1) for session in ids}
        assert await registry.owned_by("acme", None) == found
        assert len(await registry.placed_on("a")) == 1000
        assert len(await registry.placed_on("a", 1202)) == 1202
        assert await registry.counts() == {"a": 1203}

    async def test_listed_by_owner(self, registry: Registry) -> None:
        for session, owner in [("s1", ALICE), ("s2", BOB), ("s3", EVE)]:
            await registry.claim(session, owner, "a")
        assert set(await registry.owned_by("acme", None)) == {"s1", "s2"}
        assert set(await registry.owned_by("acme", "alice")) == {"s1"}
        assert set(await registry.owned_by("evil", None)) == {"s3"}
        assert await registry.owned_by("evil", "bob") == {}
        await registry.forget("s2")
        assert set(await registry.owned_by("acme", None)) == {"s1"}

    async def test_names_that_run_together_stay_apart(self, registry: Registry) -> None:
        owners = [Owner("a", "b:c"), Owner("a:b", "c"), Owner("é", "x"), Owner("{a}", ""), ALICE]
        for number, owner in enumerate(owners):
            await registry.claim(f"s{number}", owner, "a")
        for number, owner in enumerate(owners):
            assert set(await registry.owned_by(owner.tenant, owner.user)) == {f"s{number}"}
            assert set(await registry.owned_by(owner.tenant, None)) == {f"s{number}"}

    async def test_any_text_is_an_id(self, registry: Registry) -> None:
        for session in ["", " ", "'; DROP TABLE placements; --", "{x}:y", "日本", "a" * 5000]:
            placed = await registry.claim(session, Owner("t'", 'u"'), "r%_")
            assert placed == Placement(session, Owner("t'", 'u"'), "r%_", placed.epoch)
            assert await registry.get_many([session]) == {session: placed}
            assert await registry.forget(session)

    async def test_listed_by_replica(self, registry: Registry) -> None:
        await registry.claim("s1", ALICE, "a")
        await registry.claim("s2", ALICE, "a")
        await registry.move("s2", 1, "b")
        assert [item.session_id for item in await registry.placed_on("a")] == ["s1"]
        assert [item.session_id for item in await registry.placed_on("b")] == ["s2"]
        assert await registry.counts() == {"a": 1, "b": 1}
        await registry.forget("s1")
        assert await registry.counts() == {"b": 1}

    async def test_shared(self, store: Store) -> None:
        one, two = await store.open(), await store.open()
        placed = await one.claim("s", ALICE, "a")
        assert await two.claim("s", ALICE, "b") == placed
        moved = await two.move("s", 1, "b")
        assert await one.get("s") == moved

    async def test_close_is_idempotent(self, store: Store) -> None:
        registry = await store.open()
        await registry.watch(lambda change: None)
        await registry.close()
        await registry.close()


class TestRaces:
    async def test_one_claim_wins(self, store: Store) -> None:
        registries = [await store.open() for _ in range(4)]
        for session in ("s1", "s2", "s3"):
            answers = await asyncio.gather(
                *(
                    registry.claim(session, Owner("t", f"u{n}{m}"), f"r{n}")
                    for n, registry in enumerate(registries)
                    for m in range(5)
                )
            )
            assert len(set(answers)) == 1

    async def test_one_move_wins(self, store: Store) -> None:
        registries = [await store.open() for _ in range(4)]
        placed = await registries[0].claim("s", ALICE, "a")
        for epoch in range(1, 6):
            answers = await asyncio.gather(
                *(
                    registry.move("s", epoch, f"r{epoch}{n}")
                    for n, registry in enumerate(registries)
                )
            )
            assert len(set(answers)) == 1
            assert answers[0] is not None
            assert answers[0].epoch == placed.epoch + epoch

    async def test_one_claim_holds_after_a_race_of_gateways(self, store: Store) -> None:
        one, two = await store.open(), await store.open()
        await alive(one, "g1", "g2")
        first, second = await asyncio.gather(
            one.claim("s", ALICE, "a", "g1"), two.claim("s", ALICE, "b", "g2")
        )
        assert first == second
        assert await one.holders("s") == {"g1", "g2"}

    async def test_delete_and_resume_have_one_order(self, store: Store) -> None:
        one, two = await store.open(), await store.open()
        await alive(one, "g1", "g2")
        for number in range(10):
            session = f"s{number}"
            await one.claim(session, ALICE, "a", "g1")
            gone, resumed = await asyncio.gather(
                one.forget(session, gateway_id="g1"), two.claim(session, ALICE, "b", "g2")
            )
            assert await one.get(session) == resumed
            assert "g2" in await one.holders(session)
            # Either the record was kept under its user, or the new one is a later one.
            assert resumed.replica == ("b" if gone else "a")

    async def test_drain_and_resume_have_one_order(self, store: Store) -> None:
        one, two = await store.open(), await store.open()
        await alive(one, "drainer", "g")
        for number in range(10):
            session = f"s{number}"
            placed = await one.claim(session, ALICE, "a")
            moved, resumed = await asyncio.gather(
                one.move(session, placed.epoch, "b", "drainer"),
                two.claim(session, ALICE, "c", "g"),
            )
            assert moved is not None
            assert resumed.replica in ("a", "b")
            assert await one.get(session) == moved
            if resumed.replica == "a":
                assert moved == resumed


class TestHolds:
    async def test_a_held_session_stays(self, registry: Registry) -> None:
        await alive(registry, "g1", "g2")
        placed = await registry.claim("s", ALICE, "a", "g1")
        assert await registry.holders("s") == {"g1"}
        assert await registry.move("s", 1, "b", "g2") == placed
        assert await registry.move("s", 1, "b") == placed
        assert await registry.forget("s", gateway_id="g2") is False
        assert await registry.forget("s") is False
        await registry.release(["s", "unknown"], "g1")
        assert await registry.holders("s") == frozenset()
        moved = await registry.move("s", 1, "b", "g2")
        assert moved == Placement("s", ALICE, "b", 2)
        assert await registry.holders("s") == {"g2"}

    async def test_the_holder_itself_moves_and_forgets(self, registry: Registry) -> None:
        await alive(registry, "g1")
        await registry.claim("s", ALICE, "a", "g1")
        assert await registry.move("s", 1, "b", "g1") == Placement("s", ALICE, "b", 2)
        assert await registry.holders("s") == {"g1"}
        assert await registry.forget("s", 2, "g1") is True

    async def test_a_move_made_by_another_is_held_too(self, registry: Registry) -> None:
        await alive(registry, "g1", "g2")
        await registry.claim("s", ALICE, "a")
        moved = await registry.move("s", 1, "b", "g1")
        assert await registry.move("s", 1, "b", "g2") == moved
        assert await registry.holders("s") == {"g1", "g2"}

    async def test_a_foreign_claim_holds_nothing(self, registry: Registry) -> None:
        await alive(registry, "g1", "g2")
        await registry.claim("s", ALICE, "a", "g1")
        await registry.claim("s", EVE, "a", "g2")
        assert await registry.holders("s") == {"g1"}

    async def test_hold_needs_the_epoch(self, registry: Registry) -> None:
        await alive(registry, "g")
        assert await registry.hold("s", 1, "g") is None
        placed = await registry.claim("s", ALICE, "a")
        assert await registry.hold("s", 2, "g") == placed
        assert await registry.holders("s") == frozenset()
        assert await registry.hold("s", 1, "g") == placed
        assert await registry.holders("s") == {"g"}

    async def test_a_fence_voids_holds(self, registry: Registry) -> None:
        await alive(registry, "g1", "g2")
        await registry.claim("s", ALICE, "a", "g1")
        await registry.claim("other", ALICE, "b", "g1")
        assert await registry.fence_replica("a", 0) == 1
        assert await registry.holders("s") == frozenset()
        assert await registry.holders("other") == {"g1"}
        assert await registry.move("s", 1, "b", "g2") == Placement("s", ALICE, "b", 2)

    async def test_a_fence_is_raised_once(self, store: Store) -> None:
        one, two = await store.open(), await store.open()
        await alive(one, "g")
        answers = await asyncio.gather(one.fence_replica("a", 0), two.fence_replica("a", 0))
        assert answers == [1, 1]
        assert await one.fence_replica("a", 7) == 1
        assert await one.replica_incarnations() == {"a": 1}
        # A session taken up again on the new incarnation is held as before.
        await one.claim("s", ALICE, "a", "g")
        assert await one.holders("s") == {"g"}
        assert await one.fence_replica("a", 0) == 1
        assert await one.holders("s") == {"g"}


class TestLeases:
    async def test_heartbeats(self, registry: Registry) -> None:
        assert await registry.heartbeat("g", LEASE) is False
        assert await registry.heartbeat("g", LEASE) is True
        await registry.leave("g")
        await registry.leave("g")
        assert await registry.heartbeat("g", LEASE) is False

    async def test_a_lease_ends(self, registry: Registry) -> None:
        await alive(registry, "g2")
        await registry.heartbeat("g1", 0.4)
        await registry.claim("s", ALICE, "a", "g1")
        assert await registry.holders("s") == {"g1"}

        async def ended() -> bool:
            return not await registry.holders("s")

        await eventually(ended)
        assert await registry.heartbeat("g1", LEASE) is False
        assert await registry.holders("s") == frozenset()
        moved = await registry.move("s", 1, "b", "g2")
        assert moved == Placement("s", ALICE, "b", 2)
        assert await registry.holders("s") == {"g2"}

    async def test_leaving_ends_all_holds(self, registry: Registry) -> None:
        await alive(registry, "g1", "g2")
        await registry.claim("s", ALICE, "a", "g1")
        await registry.leave("g1")
        assert await registry.holders("s") == frozenset()
        assert await registry.forget("s", gateway_id="g2") is True

    async def test_without_a_lease_nothing_is_done(self, registry: Registry) -> None:
        await alive(registry, "g")
        placed = await registry.claim("s", ALICE, "a")
        for call in (
            registry.claim("new", ALICE, "a", "late"),
            registry.move("s", 1, "b", "late"),
            registry.forget("s", None, "late"),
            registry.hold("s", 1, "late"),
            registry.republish("late", [Placement("s", ALICE, "b", 9)]),
        ):
            with pytest.raises(RegistryUnavailableError, match="lease"):
                await call
        assert await registry.get_many(["s", "new"]) == {"s": placed}
        assert await registry.holders("s") == frozenset()


class TestRepublish:
    async def test_what_is_lost_comes_back(self, registry: Registry) -> None:
        await alive(registry, "g")
        held = [Placement(f"s{number}", ALICE, "a", number) for number in range(1, 450)]
        assert await registry.republish("g", held) == {item.session_id: item for item in held}
        assert await registry.owned_by("acme", "alice") == {item.session_id: item for item in held}
        assert await registry.holders("s7") == {"g"}
        assert await registry.counts() == {"a": 449}
        assert await registry.republish("g", []) == {}

    async def test_conflicts_have_one_winner(self, registry: Registry) -> None:
        await alive(registry, "g1", "g2", "g3")
        await registry.republish("g1", [Placement("s", ALICE, "a", 3)])
        # The same, from another gateway whose clients are attached.
        await registry.republish("g2", [Placement("s", ALICE, "a", 3)])
        assert await registry.holders("s") == {"g1", "g2"}
        # Who knows of no later move has lost.
        kept = {"s": Placement("s", ALICE, "a", 3)}
        assert await registry.republish("g3", [Placement("s", ALICE, "b", 3)]) == kept
        assert await registry.republish("g3", [Placement("s", ALICE, "b", 2)]) == kept
        assert await registry.holders("s") == {"g1", "g2"}
        # Who knows of one has won, and the others' holds are gone.
        later = {"s": Placement("s", ALICE, "b", 4)}
        assert await registry.republish("g3", later.values()) == later
        assert await registry.holders("s") == {"g3"}
        assert await registry.counts() == {"b": 1}

    async def test_owners_do_not_change(self, registry: Registry) -> None:
        await alive(registry, "g")
        placed = await registry.claim("s", ALICE, "a")
        assert await registry.republish("g", [Placement("s", EVE, "a", 5)]) == {"s": placed}
        assert await registry.republish("g", [Placement("s", EVE, "a", 1)]) == {"s": placed}
        assert await registry.holders("s") == frozenset()
        assert await registry.owned_by("evil", None) == {}


class TestReplicas:
    async def test_marks(self, store: Store) -> None:
        one, two = await store.open(), await store.open()
        assert await one.replica_marks() == {}
        await one.set_replica_mark("a", "draining")
        await one.set_replica_mark("a", "draining")
        await one.fence_replica("a", 0)
        assert await two.replica_marks() == {"a": "draining"}
        assert await two.replica_incarnations() == {"a": 1}
        await two.set_replica_mark("a", None)
        await two.set_replica_mark("b", None)
        assert await one.replica_marks() == {}
        assert await one.replica_incarnations() == {"a": 1}


class TestWatch:
    async def test_others_changes_arrive_in_order(self, store: Store) -> None:
        here, there = await store.open(), await store.open()
        await there.claim("before", ALICE, "a")
        seen: list[Change] = []
        await here.watch(seen.append)
        await there.claim("s", ALICE, "a")
        await eventually(lambda: len(seen) == 1)
        await there.move("s", 1, "b")
        await eventually(lambda: len(seen) == 2)
        await here.claim("mine", ALICE, "a")
        await there.set_replica_mark("a", "draining")
        await eventually(lambda: len(seen) == 3)
        await there.fence_replica("a", 0)
        await eventually(lambda: len(seen) == 4)
        await there.forget("s")
        await eventually(lambda: len(seen) == 5)
        assert seen == [
            PlacementChanged("s", Placement("s", ALICE, "a", 1)),
            PlacementChanged("s", Placement("s", ALICE, "b", 2)),
            ReplicaChanged("a", "draining", 0),
            ReplicaChanged("a", "draining", 1),
            PlacementChanged("s", None),
        ]

    async def test_what_changes_nothing_is_not_told(self, store: Store) -> None:
        here, there = await store.open(), await store.open()
        await alive(there, "g")
        await there.claim("s", ALICE, "a", "g")
        seen: list[Change] = []
        await here.watch(seen.append)
        await there.claim("s", ALICE, "b", "g")
        await there.move("s", 7, "b", "g")
        await there.forget("s", 7, "g")
        await there.fence_replica("a", 7)
        await there.release(["s"], "g")
        await there.claim("last", ALICE, "a")
        await eventually(lambda: seen)
        assert seen == [PlacementChanged("last", Placement("last", ALICE, "a", 1))]

    async def test_many_changes_end_in_what_is(self, store: Store) -> None:
        here, there = await store.open(), await store.open()
        known: dict[str, Placement | None] = {}

        def learn(change: Change) -> None:
            assert isinstance(change, PlacementChanged)
            known[change.session_id] = change.placement

        await here.watch(learn)
        for number in range(20):
            await there.claim(f"s{number}", ALICE, "a")
        for epoch in range(1, 60):
            await there.move("s0", epoch, f"r{epoch % 3}")
        await there.forget("s1")

        async def settled() -> bool:
            now = await there.get_many(list(known))
            return len(known) == 20 and all(known[key] == now.get(key) for key in known)

        await eventually(settled)

    async def test_several_watchers_and_one_that_fails(
        self, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        here, there = await store.open(), await store.open()
        seen: list[Change] = []

        def fail(change: Change) -> None:
            raise ValueError("watcher's own fault")

        await here.watch(fail)
        await here.watch(seen.append)
        await there.claim("s", ALICE, "a")
        await there.claim("t", ALICE, "a")
        await eventually(lambda: len(seen) == 2)
        assert "a registry watcher failed" in caplog.text

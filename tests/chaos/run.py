"""One chaos run: start, talk under faults, heal, judge."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.check import (
    Findings,
    Said,
    calls_by_session,
    check_history,
    check_model_calls,
    longest_gap,
    tag_of,
)
from tests.chaos.clients import (
    RESUME_BOUND,
    Application,
    Conversation,
    Record,
    Seen,
    describe,
    said,
)
from tests.chaos.faults import Chaos, Struck
from tests.chaos.fleet import Fleet
from tests.chaos.report import Result
from tests.chaos.schedule import REGISTRY_KINDS, Kind, plan

log = logging.getLogger("tests.chaos")

SESSIONS_PER_CLIENT = 4
GUEST_EVERY = 3
"""Every third conversation has a second client attached."""

START_BOUND = 60.0
"""Seconds until every conversation has its first answer; an idle machine needs about three."""

END_BOUND = 150.0
"""Seconds that the conversations have to finish their last turn: the longest chain of bounds."""

GAP_BEGINS_WITHIN = 0.5
"""Seconds after a fault in which the silence that it causes begins."""

ON_ITS_WAY = 0.1
"""Seconds in which what was sent before a fault has arrived, on a busy machine."""

RESUME_TRIES = 6
"""How often a session is looked for at the end.

A client behind a plain balancer may be sent to a replica that does not have it; more tries than
replicas give it every chance.
"""


class StartError(Exception):
    """The conversations did not get going though nothing was broken; the message says more."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to run.

    Attributes:
        target: ``gateway`` or ``haproxy``.
        seconds: how long faults strike.
        sessions: conversations at a time.
        replicas: number of CLIs.
        gateways: number of gateways or balancers.
        storage: ``shared`` or ``local``.
        durable: gateways acknowledge a prompt when it is in the journal.
        seed: of the plan of faults, and of what the clients say.
        kinds: faults that may strike.
        keep: folder for homes and logs, or None for one that is removed.
    """

    target: str = "gateway"
    seconds: float = 180.0
    sessions: int = 24
    replicas: int = 3
    gateways: int = 2
    storage: str = "shared"
    durable: bool = True
    seed: int = 1
    kinds: tuple[Kind, ...] = tuple(Kind)
    keep: Path | None = None


async def run(options: Options) -> Result:
    """Run it and return what became of the conversations."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, task.cancel)  # so that no process is left behind
    # SDKs write in threads of the default pool: a peer that is stopped must not use them all up.
    loop.set_default_executor(ThreadPoolExecutor(64))
    async with AsyncExitStack() as stack:
        folder = options.keep
        if folder is None:
            temporary = tempfile.TemporaryDirectory(prefix="copilot-chaos-")
            folder = Path(stack.enter_context(temporary))
        fleet = await stack.enter_async_context(
            Fleet(
                options.target,
                folder,
                replicas=options.replicas,
                fronts=options.gateways,
                storage=options.storage,
                durable=options.durable,
            )
        )
        return await _Run(options, fleet).run()


def _gap(struck: Struck) -> float | None:
    """Return the silence that a fault brought to a session; None if its turn was just over."""
    if any(struck.at < idle < struck.at + ON_ITS_WAY for idle in struck.record.idles):
        return None
    return longest_gap(struck.record.events, struck.at, GAP_BEGINS_WITHIN)


class _Run:
    """The clients of a run and what they do."""

    def __init__(self, options: Options, fleet: Fleet) -> None:
        self._options = options
        self._fleet = fleet
        self._seen = Seen()
        clients = -(-options.sessions // SESSIONS_PER_CLIENT)
        guests = 1 if options.sessions >= GUEST_EVERY else 0
        self._mains = [self._application("client", number) for number in range(clients)]
        self._guests = [self._application("guest", number + 1) for number in range(guests)]
        self._conversations = [
            Conversation(
                f"chaos-{number}",
                self._mains[number % clients],
                self._guests[0] if number % GUEST_EVERY == GUEST_EVERY - 1 else None,
                f"{options.seed}/{number}",
                self._seen,
            )
            for number in range(options.sessions)
        ]

    def _application(self, kind: str, number: int) -> Application:
        name = f"{kind}-{number}"
        return Application(
            name,
            number,
            [front.port for front in self._fleet.fronts],
            self._fleet.token,
            self._fleet.model.base_url,
            random.Random(f"{self._options.seed}/{name}"),
            self._seen,
        )

    async def run(self) -> Result:
        """Talk under faults, then judge."""
        applications = [*self._mains, *self._guests]
        chaos = Chaos(self._fleet, applications, self._conversations)
        try:
            await self._begin(applications)
            await self._strike(chaos)
        finally:
            await asyncio.gather(*(each.stop() for each in applications))
        records = [
            record for each in self._conversations for record in each.records if record.prompts
        ]
        findings = await self._judge(records)
        gaps = [(struck.kind, gap) for struck in chaos.struck if (gap := _gap(struck)) is not None]
        return Result(
            target=self._options.target,
            storage=self._options.storage,
            faults=chaos.done,
            overdue=chaos.drains_overdue,
            seen=self._seen,
            records=records,
            findings=findings,
            gaps=gaps,
        )

    async def _begin(self, applications: Sequence[Application]) -> None:
        """Connect, and bring every conversation past its first answer, before anything breaks."""
        try:
            async with asyncio.timeout(START_BOUND):
                await asyncio.gather(*(each.start() for each in applications))
                await asyncio.gather(*(each.begin() for each in self._conversations))
        except TimeoutError:
            problems = [
                f"{record.session}: {problem}"
                for each in self._conversations
                for record in each.records
                for problem in record.problems
            ]
            logs = [f"{front.name}: {front.tail()}" for front in self._fleet.fronts]
            raise StartError("\n".join([*problems[:10], *logs])) from None

    async def _strike(self, chaos: Chaos) -> None:
        options = self._options
        faults = plan(
            options.seed,
            options.seconds,
            [
                kind
                for kind in options.kinds
                if kind not in REGISTRY_KINDS or self._fleet.redis is not None
            ],
            replicas=options.replicas,
            gateways=options.gateways,
            clients=len(self._mains) + len(self._guests),
        )
        loop = asyncio.get_running_loop()
        until = loop.time() + options.seconds
        talks = [
            asyncio.create_task(each.run(until), name=f"conversation {number}")
            for number, each in enumerate(self._conversations)
        ]
        try:
            await chaos.run(faults)
            # The bounds of a single turn are far below this; what goes beyond is stuck.
            _, late = await asyncio.wait(talks, timeout=max(0.0, until - loop.time()) + END_BOUND)
            self._seen.stuck |= {(task.get_name(), 0) for task in late}
        finally:
            for talk in talks:
                talk.cancel()
            results = await asyncio.gather(*talks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _judge(self, records: Sequence[Record]) -> dict[str, Findings]:
        """Compare what was sent with what can be had now, and with the journals."""
        shown = calls_by_session(self._fleet.calls)
        judge = self._application("judge", 0)
        await judge.start()
        all_findings: dict[str, Findings] = {}
        try:
            for record in records:
                findings = all_findings[record.session] = Findings()
                history = await self._history(judge, record)
                findings.join(check_history(record.session, record.prompts, history or []))
                journals = list(self._fleet.journals(record.session))
                for journal in journals:
                    if history is not None:
                        findings.join(check_history(record.session, record.prompts, journal))
                for one in history or []:
                    tag = tag_of(one.text)
                    if not one.user and tag is not None and tag[1] in findings.tool_lost:
                        # Only the answer shows what became of the result.
                        log.info("%s: answered prompt %d: %s", record.session, tag[1], one.text)
                if len(journals) > 1:
                    findings.forks.append(f"{len(journals)} replicas have a journal of it")
                findings.forks += check_model_calls(shown.get(record.session, []))
        finally:
            await judge.stop()
        return all_findings

    async def _history(self, judge: Application, record: Record) -> list[Said] | None:
        """Resume a session on a fresh connection and read its history; None if that fails."""
        for _ in range(RESUME_TRIES):
            try:
                async with asyncio.timeout(RESUME_BOUND):
                    session = await judge.attach(record, lambda event: None, [])
                    history = said(await session.get_events())
            except Exception as error:
                record.problems.append(f"judgement: {describe(error)}")
                judge.drop()
                await asyncio.sleep(0.3)
            else:
                await judge.leave(record)
                return history
        return None

"""Virtual users: each has one session at a time and does the scenario's steps in it."""

from __future__ import annotations

import asyncio
import random
import ssl
from typing import Any

from gateway.loadtest.connection import CallError, Connection, ConnectionLostError, connect
from gateway.loadtest.ledger import FOREIGN_EVENT, LOST_SESSION, STUCK_TURN, Turn
from gateway.loadtest.pace import Pace
from gateway.loadtest.plan import Check, Plan
from gateway.loadtest.recorder import Recorder
from gateway.loadtest.scenario import TOOL
from gateway.loadtest.session import Session, TurnError, session_params

FIRST_BACKOFF = 0.05
LONGEST_BACKOFF = 2.0
"""Seconds a user waits after a failure; doubled at each one that follows, so as not to spin."""

FAILURES_PER_SESSION = 3
"""Failed steps in a row after which a session is given up."""

FAILURES = (CallError, ConnectionLostError, TurnError, TimeoutError, OSError)


def explain(error: BaseException) -> str:
    """Say in a few words what went wrong."""
    match error:
        case TimeoutError():
            return "timed out"
        case ConnectionLostError():
            return "connection lost"
        case OSError():
            return error.strerror or type(error).__name__
    return str(error)


class Link:
    """A connection that is opened again when it is lost; shared by some users.

    Attributes:
        left: sessions that were left behind, to be deleted at the end.
    """

    def __init__(self, plan: Plan, tls: ssl.SSLContext | None, recorder: Recorder) -> None:
        self._plan = plan
        self._tls = tls
        self._recorder = recorder
        self._lock = asyncio.Lock()
        self._own: set[str] = set()
        self._connection: Connection | None = None
        self.left: list[str] = []

    async def ready(self) -> Connection:
        """Return the open connection; open one if there is none.

        Raises:
            CallError, ConnectionLostError, OSError, TimeoutError: it cannot be opened.
        """
        async with self._lock:
            if self._connection is not None and self._connection.is_open:
                return self._connection
            again = self._connection is not None
            self.collect()
            since = self._recorder.clock()
            try:
                connection = await self._connect()
            except FAILURES as error:
                self._recorder.error("connect", explain(error))
                raise
            self._connection = connection
            self._recorder.time("connect", since)
            if again:
                self._recorder.count("reconnects")
            return connection

    async def _connect(self) -> Connection:
        plan = self._plan
        return await connect(
            plan.host,
            plan.port,
            plan.token,
            tls=self._tls,
            server_name=plan.tls.server_name if plan.tls is not None else None,
            stray=self._stray,
        )

    def own(self, session_id: str) -> None:
        """Remember a session as one of this connection's."""
        self._own.add(session_id)

    def _stray(self, session_id: str, kind: str) -> None:
        if session_id not in self._own and self._plan.check is not Check.OFF:
            self._recorder.fault(FOREIGN_EVENT, f"{kind} of session {session_id}, not asked for")

    def collect(self) -> None:
        """Hand what was counted on the connection to the recorder."""
        if self._connection is not None:
            self._recorder.traffic(*self._connection.take_counts())

    async def clean_up(self) -> None:
        """Delete the sessions left behind, as far as that is possible, and close."""
        connection = self._connection
        if connection is None:
            return
        for session_id in () if self._plan.keep_sessions else self.left:
            try:
                await connection.call(
                    "session.delete", {"sessionId": session_id}, self._plan.request_timeout
                )
            except (CallError, TimeoutError):
                continue  # nothing is measured any more; it may have gone by itself
            except ConnectionLostError:
                break
        self.collect()
        await connection.close()


class User:
    """One virtual user."""

    def __init__(
        self,
        number: int,
        link: Link,
        plan: Plan,
        *,
        pace: Pace,
        recorder: Recorder,
        name: str,
    ) -> None:
        """Prepare a user.

        Args:
            number: counts the users of this process from 0.
            link: its connection.
            plan: the run.
            pace: when it does something.
            recorder: where its experience goes.
            name: what the ids of its sessions start with.
        """
        self._number = number
        self._link = link
        self._plan = plan
        self._pace = pace
        self._recorder = recorder
        self._name = name
        self._params = session_params(plan)
        self._dice = random.Random(name)  # noqa: S311 - traffic, not secrets
        self._clock = recorder.clock
        self._session: Session | None = None
        self._generation = 0
        self._failures = 0

    def __repr__(self) -> str:
        return f"<User {self._number} with {self._session}>"

    @property
    def active(self) -> bool:
        """Whether it has a session."""
        return self._session is not None

    async def run(self) -> None:
        """Do steps until the run is over, then end the session."""
        try:
            if self._plan.open_loop:
                await self._run_open()
            else:
                await self._run_closed()
            if self._session is not None:
                await self._end_session(self._session)
        finally:
            if self._session is not None:
                self._link.left.append(self._session.session_id)

    async def _run_open(self) -> None:
        while not self._pace.over:
            # Before a step is due, so that steps are not charged with what they do not consist of.
            session = await self.prepare()
            if session is None:
                await self._back_off()
                continue
            since = await self._pace.next_due()
            if since is None:
                return
            await self._step(session, since)

    async def _run_closed(self) -> None:
        think = self._plan.scenario.think
        while await self._pace.next_turn(self._number):
            session = await self.prepare()
            if session is None:
                await self._back_off()
                continue
            await self._step(session, self._clock())
            if self._failures:
                await self._back_off()
            elif think.high:
                await self._pace.pause(think.draw(self._dice))

    async def _back_off(self) -> None:
        delay = FIRST_BACKOFF * 2 ** min(max(self._failures - 1, 0), 10)
        await self._pace.pause(min(delay, LONGEST_BACKOFF))

    # -- sessions ----------------------------------------------------------------------------

    async def prepare(self) -> Session | None:
        """Return a session that can take a step, made or resumed if need be; None on failure."""
        session = self._session
        if session is not None and (
            not session.turns_left or self._failures >= FAILURES_PER_SESSION
        ):
            await self._end_session(session)
            session = self._session = None
        try:
            if session is None:
                self._session = session = await self._create()
            elif not session.connection.is_open:
                await self._recover(session)
        except FAILURES:
            self._failures += 1
            return None
        return session

    async def _create(self) -> Session:
        connection = await self._link.ready()
        self._generation += 1
        session_id = f"{self._name}-{self._generation}"
        turns = self._plan.scenario.turns.draw_int(self._dice)
        session = Session(session_id, self._plan, self._recorder, connection, turns)
        self._link.own(session_id)
        session.attach(connection)
        try:
            await self._call(connection, "create", "session.create", session_id, self._params)
        except FAILURES:
            connection.receivers.pop(session_id, None)
            raise
        self._recorder.count("sessions")
        self._failures = 0
        return session

    async def _recover(self, session: Session) -> None:
        """Resume a session whose connection was lost."""
        session.ignore_gap()
        connection = await self._link.ready()
        session.attach(connection)
        try:
            await self._call(
                connection, "resume", "session.resume", session.session_id, self._params
            )
            await session.settle()
        except CallError as error:
            self._give_up_if_lost(session, error)
            raise

    def _give_up_if_lost(self, session: Session, error: CallError) -> None:
        """Forget a session that is said not to exist; that is a fault if it ever answered."""
        if "not found" not in str(error).lower():
            return
        if any(turn.completed for turn in session.ledger.turns):
            session.ledger.fault(LOST_SESSION, explain(error))
        session.connection.receivers.pop(session.session_id, None)
        self._session = None

    async def _end_session(self, session: Session) -> None:
        """Check and leave a session; failures are recorded, not raised."""
        turns = len(session.ledger.turns)
        try:
            if not session.connection.is_open:
                await self._recover(session)
            connection, session_id = session.connection, session.session_id
            if self._plan.check is Check.HISTORY and turns:
                answer = await self._call(connection, "history", "session.getMessages", session_id)
                session.ledger.check_history((answer or {}).get("events") or [])
            await self._call(connection, "detach", "session.detach", session_id)
            if not turns:
                pass  # a session without a prompt leaves nothing behind
            elif self._plan.scenario.end == "delete":
                answer = await self._call(connection, "delete", "session.delete", session_id)
                if not (answer or {}).get("success"):
                    self._recorder.error("delete", str((answer or {}).get("error", "no success")))
            else:
                self._link.left.append(session_id)
        except FAILURES as error:
            self._link.left.append(session.session_id)
            if isinstance(error, CallError):
                self._give_up_if_lost(session, error)
        finally:
            self._recorder.count("rolled_back", session.ledger.rolled_back)
            session.connection.receivers.pop(session.session_id, None)
            self._session = None

    async def _call(
        self,
        connection: Connection,
        action: str,
        method: str,
        session_id: str | None,
        params: dict[str, Any] | None = None,
    ) -> Any:
        """Make a timed request; record it, or its failure, under an action's name."""
        since = self._clock()
        given = dict(params or {})
        if session_id is not None:
            given["sessionId"] = session_id
        try:
            result = await connection.call(method, given, self._plan.request_timeout)
        except FAILURES as error:
            self._recorder.error(action, explain(error))
            raise
        self._recorder.time(action, since)
        return result

    # -- steps -------------------------------------------------------------------------------

    async def _step(self, session: Session, since: float) -> None:
        """Do one step that began, or was due, at a moment of the clock."""
        action = self._plan.scenario.pick(self._dice)
        if action == "resume" and not any(turn.completed for turn in session.ledger.turns):
            action = "turn"  # nothing is on disk before the first answer
        try:
            match action:
                case "turn":
                    await self._turn(session, since)
                case "resume":
                    await self._leave_and_resume(session)
                case "history":
                    await self._request(session, "session.getMessages", session.session_id)
                case "list":
                    await self._request(session, "session.list", None)
                case _:
                    await self._request(session, "ping", None)
        except FAILURES as error:
            self._failures += 1
            self._recorder.error(action, explain(error))
            if isinstance(error, CallError) and self._session is session:
                self._give_up_if_lost(session, error)
            return
        self._failures = 0
        self._recorder.step(action, since)

    async def _request(self, session: Session, method: str, session_id: str | None) -> None:
        params = {} if session_id is None else {"sessionId": session_id}
        await session.connection.call(method, params, self._plan.request_timeout)

    async def _leave_and_resume(self, session: Session) -> None:
        connection, session_id = session.connection, session.session_id
        session.ignore_gap()
        timeout = self._plan.request_timeout
        await connection.call("session.detach", {"sessionId": session_id}, timeout)
        await connection.call("session.resume", {**self._params, "sessionId": session_id}, timeout)

    async def _turn(self, session: Session, since: float) -> None:
        scenario = self._plan.scenario
        tool = self._dice.random() < scenario.tool_use
        turn = session.ledger.begin(tool=tool)
        session.turns_left -= 1
        started = self._clock()
        try:
            await session.run_turn(turn, self._prompt(turn, tool=tool), since)
        except TimeoutError:
            session.ledger.fault(STUCK_TURN, f"prompt {turn.number}")
            self._link.left.append(session.session_id)
            session.connection.receivers.pop(session.session_id, None)
            self._session = None
            raise
        if self._plan.open_loop:
            self._recorder.time("turn_service", started)

    def _prompt(self, turn: Turn, *, tool: bool) -> str:
        scenario = self._plan.scenario
        parts = [turn.marker, self._dice.choice(scenario.prompts)]
        if tool and self._plan.echo:
            parts.append(f'[[tool {TOOL} {{"n": {turn.number}}}]]')
        elif tool:
            parts.append(f"Call the tool {TOOL} with n = {turn.number} first.")
        if self._plan.echo and (directives := scenario.answer.directives):
            parts.append(directives)
        return " ".join(parts)

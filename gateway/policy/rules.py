"""Method policy: what the gateway does with a method that a client calls.

Pure decisions over the table of :mod:`gateway.wire.methods`, the pool's isolation mode and the
operator's rules. A client's link to the policy is a :class:`PolicyView`, one dictionary that all
clients of the same tenant and role share, so that the hot path is one lookup. Which sessions a
caller may name is not decided here: see :mod:`gateway.policy.session_ids`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Final, Literal

from gateway.errors import FORBIDDEN, METHOD_NOT_FOUND, ConfigError, RpcError
from gateway.types import Identity, Role
from gateway.wire.methods import METHODS, Access, MethodInfo

Isolation = Literal["shared", "tenant", "user"]
Effect = Literal["allow", "deny"]

MAX_ECHOED_METHOD: Final = 200
"""Characters of an unknown method's name that an error repeats: names come from clients."""

_SESSION_PATH: Final = ("sessionId",)


class Route(enum.IntEnum):
    """How a request is served.

    Attributes:
        LOCAL: by the gateway itself.
        SESSION: by the replica that holds ``params.sessionId``.
        CREATE: makes a session, with the caller's id or one that the CLI mints.
        RESUME: attaches the caller to a session and makes it live if it is not.
        DETACH: the caller leaves a session.
        CLOSE: the session leaves the replica's memory for everybody.
        DELETE: the session ends for good.
        FORK: makes a session, with an id that the CLI mints, from another one.
        ANY: by any healthy replica; about no session.
        MERGE: by all replicas; results are merged and filtered (:mod:`gateway.policy.results`).
        SCATTER: ids in a list, asked where each session lives; answers are merged.
        ALL: a change of the host: by all replicas of the pool.
        SINGLETON: makes the caller a provider for the whole CLI process.
        REPLY: by the replica that began the exchange which the message continues.
        DENY: refused; :meth:`MethodRule.denied` is the answer.
    """

    LOCAL = enum.auto()
    SESSION = enum.auto()
    CREATE = enum.auto()
    RESUME = enum.auto()
    DETACH = enum.auto()
    CLOSE = enum.auto()
    DELETE = enum.auto()
    FORK = enum.auto()
    ANY = enum.auto()
    MERGE = enum.auto()
    SCATTER = enum.auto()
    ALL = enum.auto()
    SINGLETON = enum.auto()
    REPLY = enum.auto()
    DENY = enum.auto()


@dataclass(frozen=True, slots=True)
class MethodRule:
    """What to do with one method for one class of identities.

    Attributes:
        method: the name on the wire, as the client sent it.
        route: how it is served.
        session_paths: where session ids stand in the params; each must be the caller's.
        simple: True if the only such place is plain ``sessionId``.
        minimum_role: the least role for which the default policy of this pool allows it.
        retry_safe: True if it may be sent again when its replica died before answering.
        starts_turn: True if it makes the agent work.
        mutates: True if it changes something.
        live: False if the session need not be in a replica's memory to be asked.
        known: False if the method table does not list it.
        sent_as: the method that is sent to the replica; equals ``method`` but for translations.
        error_code: JSON-RPC code of the refusal, for :attr:`Route.DENY`; otherwise 0.
        reason: why it is refused, in words; may be empty.
    """

    method: str
    route: Route
    session_paths: tuple[str, ...]
    simple: bool
    minimum_role: Role
    retry_safe: bool
    starts_turn: bool
    mutates: bool
    live: bool
    known: bool
    sent_as: str
    error_code: int = 0
    reason: str = ""

    def denied(self) -> RpcError:
        """Return the answer to a request that this rule refuses."""
        name = self.method[:MAX_ECHOED_METHOD]
        if self.error_code == METHOD_NOT_FOUND:
            return RpcError(METHOD_NOT_FOUND, f"Unhandled method {name}")
        message = f"Method {name} is not allowed for this identity"
        if self.reason:
            message = f"{message}: {self.reason}"
        return RpcError(FORBIDDEN, message, {"method": name})


@dataclass(frozen=True, slots=True)
class OperatorRule:
    """One rule of the operator's configuration; the first rule that matches decides.

    Attributes:
        effect: ``allow`` or ``deny``.
        methods: patterns of method names, where ``*`` stands for any characters, dots included.
        tenants: tenants it is for; empty for all.
        roles: roles it is for; empty for all.
    """

    effect: Effect
    methods: tuple[str, ...]
    tenants: frozenset[str] = frozenset()
    roles: frozenset[Role] = frozenset()

    def applies_to(self, identity: Identity) -> bool:
        """Return True if the rule is for this identity."""
        return (not self.tenants or identity.tenant in self.tenants) and (
            not self.roles or identity.role in self.roles
        )


def minimum_role(access: Access, isolation: Isolation) -> Role | None:
    """Return the least role that may call a method of this access, None for nobody."""
    match access:
        case Access.USER:
            return Role.USER
        case Access.TENANT:
            return Role.ADMIN if isolation == "shared" else Role.USER
        case Access.ADMIN:
            return Role.ADMIN
        case Access.NEVER:
            return None


def _may(role: Role, least: Role) -> bool:
    return role is Role.ADMIN or least is Role.USER


class PolicyView:
    """The policy as one class of identities meets it; shared by all their clients.

    Invariants: the rules of known methods are complete from the start and nothing is ever added,
    so a client that makes up method names costs no memory.
    """

    __slots__ = ("_isolation", "_patterns", "_role", "_rules", "_unknown_session_methods")

    def __init__(
        self,
        rules: Mapping[str, MethodRule],
        role: Role,
        isolation: Isolation,
        patterns: Sequence[tuple[Effect, re.Pattern[str]]],
        unknown_session_methods: Effect,
    ) -> None:
        self._rules = dict(rules)
        self._role = role
        self._isolation = isolation
        self._patterns = patterns
        self._unknown_session_methods = unknown_session_methods

    @property
    def rules(self) -> Iterable[MethodRule]:
        """The rules of all known methods."""
        return self._rules.values()

    def rule_for(self, method: str) -> MethodRule:
        """Return what to do with ``method``, known or not."""
        rule = self._rules.get(method)
        return rule if rule is not None else self._unknown(method)

    def _unknown(self, method: str) -> MethodRule:
        """Decide on a method that the table does not list; the result is not kept.

        A method of a later CLI that names a session can be checked and routed like its siblings,
        if it keeps to ``params.sessionId``, which only the operator can vouch for. What any other
        unknown method reaches cannot be known: it takes an administrator in a pool that serves one
        tenant, or an explicit rule.
        """
        session = method.startswith("session.")
        effect = _first_effect(self._patterns, method)
        if effect is not None:
            allowed = effect == "allow"
        elif session and self._unknown_session_methods == "allow":
            allowed = True
        else:
            allowed = self._role is Role.ADMIN and self._isolation != "shared"
        if allowed:
            return MethodRule(
                method=method,
                route=Route.SESSION if session else Route.ANY,
                session_paths=_SESSION_PATH if session else (),
                simple=session,
                minimum_role=self._role,
                retry_safe=False,
                starts_turn=False,
                mutates=True,
                live=True,
                known=False,
                sent_as=method,
            )
        return MethodRule(
            method=method[:MAX_ECHOED_METHOD],
            route=Route.DENY,
            session_paths=(),
            simple=False,
            minimum_role=Role.ADMIN,
            retry_safe=False,
            starts_turn=False,
            mutates=False,
            live=False,
            known=False,
            sent_as=method[:MAX_ECHOED_METHOD],
            error_code=METHOD_NOT_FOUND,
        )


def _first_effect(patterns: Iterable[tuple[Effect, re.Pattern[str]]], method: str) -> Effect | None:
    for effect, pattern in patterns:
        if pattern.match(method):
            return effect
    return None


@dataclass(slots=True)
class MethodPolicy:
    """The method policy of one pool.

    Attributes:
        isolation: who shares the pool's replicas.
        unknown_session_methods: whether users may call ``session.*`` methods that the table does
            not list, on sessions of their own.
        rules: the operator's rules, most important first.
    """

    isolation: Isolation = "shared"
    unknown_session_methods: Effect = "deny"
    rules: tuple[OperatorRule, ...] = ()
    _views: dict[tuple[Role, tuple[int, ...]], PolicyView] = field(
        default_factory=dict, init=False, repr=False
    )
    _shared: dict[MethodRule, MethodRule] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse rules that name, without a wildcard, a method that no rule can allow.

        Raises:
            ConfigError: naming the method and the reason.
        """
        for rule in self.rules:
            for name in rule.methods:
                info = METHODS.get(name)
                if rule.effect == "allow" and info is not None and info.access is Access.NEVER:
                    raise ConfigError(f"method {name!r} cannot be allowed: {info.reason}")

    def view(self, identity: Identity) -> PolicyView:
        """Return the policy for an identity, to be kept as long as its connection.

        Identities to which the same rules apply get the same object.
        """
        applying = tuple(i for i, rule in enumerate(self.rules) if rule.applies_to(identity))
        key = (identity.role, applying)
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = self._build(identity.role, applying)
        return view

    def rule_for(self, method: str, identity: Identity) -> MethodRule:
        """Return what to do with ``method`` when ``identity`` calls it."""
        return self.view(identity).rule_for(method)

    def _build(self, role: Role, applying: tuple[int, ...]) -> PolicyView:
        patterns = [
            (self.rules[i].effect, re.compile(translate(name)))
            for i in applying
            for name in self.rules[i].methods
        ]
        rules = {}
        for method, info in METHODS.items():
            rule = self._decide(info, role, _first_effect(patterns, method))
            rules[method] = self._shared.setdefault(rule, rule)
        return PolicyView(rules, role, self.isolation, patterns, self.unknown_session_methods)

    def _decide(self, info: MethodInfo, role: Role, effect: Effect | None) -> MethodRule:
        least = minimum_role(info.access, self.isolation)
        allowed = least is not None and (
            effect == "allow" if effect is not None else _may(role, least)
        )
        route = Route[info.route.upper()] if allowed else Route.DENY
        code = 0
        if not allowed:
            code = FORBIDDEN if info.documented else METHOD_NOT_FOUND
        return MethodRule(
            method=info.method,
            route=route,
            session_paths=info.session_paths,
            simple=info.session_paths == _SESSION_PATH,
            minimum_role=least or Role.ADMIN,
            retry_safe=info.retry_safe,
            starts_turn=info.starts_turn,
            mutates=info.mutates,
            live=info.live,
            known=True,
            sent_as=info.sent_as or info.method,
            error_code=code,
            reason="" if allowed else info.reason,
        )

"""The definition of every setting: kind, default, meaning, flag.

A section is a frozen dataclass and a setting is one field of it, made by :func:`setting`. Nothing
else about a setting is written anywhere: the parser, the environment variables
``COPILOT_GATEWAY_<SECTION>_<KEY>``, the flags (:mod:`gateway.cli.flags`), the reference page and
the example file (:mod:`gateway.cli.pages`) are derived from :data:`SETTINGS`.
"""
# Defaults made by a call are this module's purpose: setting() returns an immutable field.
# ruff: noqa: RUF009

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit

from gateway.config.kinds import (
    Address,
    Kind,
    SecretRef,
    boolean,
    choice,
    credentials,
    duration,
    environment,
    integer,
    json_table,
    listing,
    mapping,
    number,
    optional_address,
    optional_path,
    parse_address,
    parse_network,
    path,
    secret,
    size,
    string,
    url,
    variables,
)
from gateway.config.tables import REQUIRED, TableList, collect_tables, table, table_list

if TYPE_CHECKING:
    from gateway.config.load import Source

T = TypeVar("T")

ENV_PREFIX = "COPILOT_GATEWAY_"
STATIC_TOKEN_VARIABLE = ENV_PREFIX + "TOKEN"
REPLICA_TOKEN_VARIABLE = ENV_PREFIX + "REPLICA_TOKEN"
CONFIG_VARIABLE = ENV_PREFIX + "CONFIG"
"""Names the configuration file when there is no ``--config``."""

SPAWNED_NAME = "cli-{}"
"""Names of the replicas that the gateway starts itself, counted from 0."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The one definition of a setting.

    Attributes:
        section: TOML section.
        key: TOML key.
        kind: how it is read and shown.
        default: its value when nobody says otherwise.
        meaning: what it does, for the reference page.
        flag: command line flag, or empty.
        variable: environment variable.
        reloadable: whether SIGHUP applies a change; others need a restart.
        private: whether values may hold secrets: never printed, quoted or in a repr.
        in_file: whether the file may set it; secrets come from the environment only.
        required: whether a table of which it is a key must have it.
    """

    section: str
    key: str
    kind: Kind[Any]
    default: Any
    meaning: str
    flag: str = ""
    variable: str = ""
    reloadable: bool = False
    private: bool = False
    in_file: bool = True
    required: bool = False

    @property
    def name(self) -> str:
        """``section.key``; a section without keys stands for itself."""
        return f"{self.section}.{self.key}" if self.key else self.section


def setting(
    kind: Kind[T],
    default: T,
    meaning: str,
    *,
    flag: str = "",
    variable: str = "",
    reloadable: bool = False,
    private: bool = False,
    in_file: bool = True,
    required: bool = False,
) -> T:
    """Declare a field of a section; see :class:`Setting`."""
    made = Setting(
        section="",  # the section and the key are filled in by _collect, which knows them
        key="",
        kind=kind,
        default=default,
        meaning=meaning,
        flag=flag,
        variable=variable,
        reloadable=reloadable,
        private=private,
        in_file=in_file,
        required=required,
    )
    return field(default=default, metadata={"setting": made}, repr=not private)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where clients connect, and the process itself."""

    listen: tuple[Address, ...] = setting(
        listing("HOST:PORT", parse_address, str, ",", low=1),
        (Address("127.0.0.1", 4321),),
        "Addresses that accept clients by the rules of `[auth]`. Port 0 lets the system choose "
        "one, which is printed. The default is not used where there are `[[listeners]]`.",
        flag="--listen",
    )
    workers: int = setting(
        integer(1, 256),
        1,
        "Worker processes that share the port. One worker uses one core.",
        flag="--workers",
    )
    reuse_port: bool = setting(
        boolean(),
        False,
        "Set SO_REUSEPORT on the listeners so that a second gateway on this machine can take over "
        "the port. With several workers it is always set.",
    )
    backlog: int = setting(
        integer(1, 65535), 1024, "Connections that may wait to be accepted, per listener."
    )
    state_dir: Path = setting(
        path(),
        Path(),
        "Directory for what the gateway keeps: registry, tokens, homes of the CLIs it starts. "
        "Empty: `$XDG_STATE_HOME/copilot-gateway`, or `~/.local/state/copilot-gateway`.",
        flag="--state-dir",
    )


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """Who may connect."""

    mode: str = setting(
        choice("token", "none"),
        "token",
        "How clients prove who they are. "
        "`token`: a client presents a token in `connect`. `none`: every client is an admin of "
        "tenant `default`; refused on listeners other than loopback unless `auth.insecure`.",
        flag="--auth",
    )
    insecure: bool = setting(
        boolean(), False, 'Allow `mode = "none"` on any listener.', flag="--insecure"
    )
    static_token: str = setting(
        secret(),
        "",
        "One admin token of tenant `default`, for simple set-ups and tests.",
        variable=STATIC_TOKEN_VARIABLE,
        private=True,
        in_file=False,
    )
    token_file: Path = setting(
        path(),
        Path(),
        "File of hashed tokens, managed by `copilot-gateway token`. "
        "Empty: `tokens.json` in `server.state_dir`.",
        flag="--token-file",
    )
    token_poll: float = setting(
        duration(0.05), 2.0, "How often the token file is checked for changes."
    )
    connect_deadline: float = setting(
        duration(0.1),
        10.0,
        "A connection that has not authenticated by then is closed.",
        reloadable=True,
    )
    max_failures: int = setting(
        integer(1),
        5,
        "Failed attempts after which a connection is closed.",
        reloadable=True,
    )
    source_failures: int = setting(
        integer(1),
        10,
        "Failed attempts that a source address (IPv6: its /64) may make at once before it is "
        "slowed; one is forgiven every `source_recovery`.",
    )
    source_recovery: float = setting(
        duration(0.1), 30.0, "Time after which one failed attempt of a source is forgiven."
    )
    source_max_delay: float = setting(
        duration(0.1), 60.0, "Longest time that a source waits before its next attempt is answered."
    )
    tracked_sources: int = setting(
        integer(16, 10_000_000),
        65536,
        "Source addresses with recent failures that are remembered, about 200 bytes each.",
    )


def _names(what: str, *, low: int = 0) -> Kind[tuple[str, ...]]:
    return listing(what, str, str, ",", low=low)


def _optional(kind: Kind[T]) -> Kind[T | None]:
    return cast("Kind[T | None]", kind)  # None is the default only, never read or shown.


def _pool_name() -> Kind[str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,50}", value):
            raise ValueError("must be 1 to 50 letters, digits and _ -")
        return value

    return Kind("name", read, read, lambda value: f'"{value}"')


def _networks() -> Kind[tuple[str, ...]]:
    return listing("network", parse_network, str, ",")


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """TLS of a listener; PEM files, read again by a reload and when they change."""

    certificate: Path = setting(
        path(), REQUIRED, "The listener's certificate, intermediates after it.", required=True
    )
    key: Path = setting(path(), REQUIRED, "Its private key, not encrypted.", required=True)
    client_ca: Path | None = setting(
        optional_path(),
        None,
        "Authorities whose client certificates are accepted. Without it none are asked for.",
    )
    require_client_certificate: bool = setting(
        boolean(),
        True,
        "Whether `client_ca` turns away clients without a certificate. Those it does not may still "
        "present a token.",
    )


@dataclass(frozen=True, slots=True)
class PlaceIdentitySettings:
    """Who everybody is that connects to a listener."""

    tenant: str = setting(string(), REQUIRED, "Their tenant.", required=True)
    user: str = setting(string(), REQUIRED, "Their user.", required=True)
    role: str = setting(choice("user", "admin"), "user", "Their role.")


@dataclass(frozen=True, slots=True)
class CertificateIdentitySettings:
    """Who a client is by its certificate. A selector is a field of the certificate (`CN`, `O`,
    `OU`, `URI`, `DNS`, `EMAIL`), or with a regular expression `URI:spiffe://example/([^/]+)`, whose
    first group is the name."""

    tenant: str = setting(string(), "", "The tenant of every certificate, or `tenant_from`.")
    tenant_from: str = setting(string("SELECTOR"), "", "Selector of the tenant.")
    user: str = setting(string(), "", "The user of every certificate, or `user_from`.")
    user_from: str = setting(string("SELECTOR"), "", "Selector of the user.")
    admin_from: str = setting(
        string("SELECTOR"), "", "Certificates in which this selects anything are administrators."
    )


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """One entry of ``[[listeners]]``."""

    address: Address = setting(
        optional_address(), REQUIRED, "Address that accepts clients.", required=True
    )
    name: str = setting(string(), "", "Name for logs and the audit. Default: the address.")
    networks: tuple[str, ...] = setting(
        _networks(),
        (),
        "Source networks from which clients may connect; others are closed at once. Empty: any. "
        "Required with `identity`.",
    )
    tls: TlsSettings | None = setting(
        table(TlsSettings),
        None,
        "TLS: `certificate`, `key`, `client_ca`, `require_client_certificate` (default true).",
    )
    identity: PlaceIdentitySettings | None = setting(
        table(PlaceIdentitySettings),
        None,
        "`tenant`, `user` and `role` of everybody who connects here: the network is the proof, and "
        "clients need no token and no `connect`. A token that is presented all the same must be "
        "good and prove the same identity.",
    )
    certificate_identity: CertificateIdentitySettings | None = setting(
        table(CertificateIdentitySettings),
        None,
        "Who a client is by its certificate: `tenant` or `tenant_from`, `user` or `user_from`, "
        "`admin_from`. The latter are `CN`, `O`, `OU`, `URI`, `DNS` or `EMAIL`, optionally with a "
        "regular expression whose first group is the name (`URI:spiffe://example/([^/]+)`). Where "
        "it does not say, the client needs a token.",
    )
    proxy_protocol: bool = setting(
        boolean(),
        False,
        "Whether every connection begins with a PROXY header (version 1 or 2) that names the real "
        "client.",
    )
    proxy_networks: tuple[str, ...] = setting(
        _networks(),
        (),
        "Balancers whose PROXY header is believed; connections from elsewhere are closed at once. "
        "Required with `proxy_protocol`.",
    )

    @property
    def label(self) -> str:
        """The name that logs and the audit show."""
        return self.name or str(self.address)


@dataclass(frozen=True, slots=True)
class QuotaSettings:
    """What a tenant, or each of its users, may use of one worker; 0 means no limit."""

    connections: int = setting(integer(0), 0, "Client connections at a time.")
    sessions: int = setting(integer(0), 0, "Live sessions at a time.")
    turns: int = setting(integer(0), 0, "Sessions that work on a prompt at a time.")
    messages_per_second: float = setting(number(0.0), 0.0, "Messages to the gateway per second.")
    bytes_per_second: int = setting(size(), 0, "Bytes of messages to the gateway per second.")
    max_frame: int = setting(size(), 0, "Largest message, if below `limits.max_frame`.")


@dataclass(frozen=True, slots=True)
class TenantSettings:
    """One entry of ``[[tenants]]``."""

    name: str = setting(
        string(), REQUIRED, "The tenant; `*` for each one that has no entry.", required=True
    )
    sessions: str = setting(
        choice("private", "shared"),
        "private",
        "Whose a session is: `private`, its user's (and the tenant's administrators'); `shared`, "
        "everybody's in the tenant. Prompts to a shared session are in the audit log.",
    )
    limits: QuotaSettings | None = setting(
        table(QuotaSettings),
        None,
        "What the tenant may use: `connections`, `sessions` (live), `turns` (in flight), "
        "`messages_per_second`, `bytes_per_second`, `max_frame`; 0 or absent is no limit. "
        "Each worker counts for itself. Going over one is answered with `-32012` and "
        "`retryAfterMs`.",
    )
    user_limits: QuotaSettings | None = setting(
        table(QuotaSettings), None, "What each of its users may use; the same keys."
    )


@dataclass(frozen=True, slots=True)
class MethodRuleSettings:
    """One entry of ``[[policy.methods]]``."""

    effect: str = setting(
        choice("allow", "deny"), REQUIRED, "What the rule does: `allow` or `deny`.", required=True
    )
    methods: tuple[str, ...] = setting(
        _names("pattern", low=1),
        REQUIRED,
        "Patterns of method names; `*` stands for any characters, dots included.",
        required=True,
    )
    tenants: tuple[str, ...] = setting(_names("tenant"), (), "Tenants it is for. Empty: all.")
    roles: tuple[str, ...] = setting(
        listing("role", choice("user", "admin").read, str, ","), (), "Roles it is for. Empty: all."
    )


@dataclass(frozen=True, slots=True)
class ParamRuleSettings:
    """One entry of ``[[policy.params]]``."""

    tenants: tuple[str, ...] = setting(_names("tenant"), (), "Tenants it is for. Empty: all.")
    users: tuple[str, ...] = setting(_names("user"), (), "Users it is for. Empty: all.")
    roles: tuple[str, ...] = setting(
        listing("role", choice("user", "admin").read, str, ","), (), "Roles it is for. Empty: all."
    )
    force: dict[str, Any] | None = setting(
        json_table(),
        None,
        "Params of `session.create` and `session.resume` that always have these values.",
    )
    default: dict[str, Any] | None = setting(
        json_table(),
        None,
        "Params of `session.create` that have these values unless the client gives others.",
    )
    forbid: tuple[str, ...] = setting(
        _names("param"),
        (),
        "Params of `session.create`, `session.resume` and `session.options.update` that clients "
        "may not give.",
    )
    models: tuple[str, ...] | None = setting(
        _optional(_names("pattern")), None, "Patterns of the models that may be used. Absent: any."
    )
    tools: tuple[str, ...] | None = setting(
        _optional(_names("tool")),
        None,
        "Tools that the agent may have: a name (`view`), a name with its source (`builtin:view`) "
        "or all of a source (`mcp:*`). Absent: any.",
    )
    root: str = setting(
        string("PATH"),
        "",
        "Directory of the replicas that must contain every path that a client names, and where "
        "sessions start that name none; `{tenant}` and `{user}` stand for the client's.",
    )
    commands: tuple[str, ...] = setting(
        _names("pattern"), (), "Patterns of slash commands that are allowed besides the harmless."
    )
    credentials: dict[str, Any] | None = setting(
        credentials(),
        None,
        "Params that choose account or key of a session (`gitHubToken`, `provider`, ...), put in "
        'place of the client\'s. Secrets in it are named, not written: `{ env = "VARIABLE" }` or '
        '`{ file = "path" }`.',
        private=True,
    )


@dataclass(frozen=True, slots=True)
class JwtSettings:
    """Tokens signed by an issuer (JWT, OpenID Connect), beside the gateway's own. Off without
    `issuer`."""

    issuer: str = setting(string("URL"), "", "What `iss` must be. Empty: no such tokens.")
    audience: str = setting(string(), "", "What `aud` must be or contain.")
    jwks_url: str = setting(
        url("https", "http"),
        "",
        "Where the issuer publishes its keys; `http` on loopback only. Fetched every five minutes "
        "and when a token names an unknown key.",
    )
    jwks_file: Path | None = setting(
        optional_path(), None, "File with the issuer's keys instead, read again when it changes."
    )
    jwks_ca: Path | None = setting(
        optional_path(), None, "Authorities to trust for `jwks_url` instead of the system's."
    )
    algorithms: tuple[str, ...] = setting(
        listing("algorithm", str, str, ",", low=1),
        ("RS256", "ES256", "EdDSA"),
        "Accepted signature algorithms; symmetric ones and `none` are not to be had.",
    )
    tenant: str = setting(string(), "", "Tenant of every token. Empty: from `tenant_claim`.")
    tenant_claim: str = setting(
        string("CLAIM"), "tenant", "Claim that names the tenant; dots lead into nested objects."
    )
    user_claim: str = setting(string("CLAIM"), "sub", "Claim that names the user.")
    role_claim: str = setting(
        string("CLAIM"), "", "Claim with a role or a list of them. Empty: all have `default_role`."
    )
    roles: tuple[tuple[str, str], ...] = setting(
        mapping("user", "admin"),
        (),
        "Values of `role_claim` and the role that each gives: `user` or `admin`.",
    )
    default_role: str = setting(
        choice("user", "admin", "none"),
        "user",
        "Role where no value of `role_claim` matches; `none` refuses such tokens.",
    )
    clock_skew: float = setting(
        duration(0.0, 600.0), 30.0, "How far the issuer's clock may differ from ours."
    )


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """Sessions to replicas."""

    mode: str = setting(
        choice("auto", "sticky", "free"),
        "auto",
        "How a session finds its replica. "
        "`sticky`: by consistent hash of the session id. `free`: the least loaded replica, which "
        "needs shared storage. `auto`: free where storage is known to be shared, else sticky.",
        flag="--routing",
    )
    load_factor: float = setting(
        number(1.01, 100.0),
        1.25,
        "Bounded load of sticky routing: no replica takes a new session beyond this multiple of "
        "the average.",
    )
    slow_start: float = setting(
        duration(0.0),
        10.0,
        "Free routing: time over which a replica that came up grows to its full share of new "
        "sessions. 0: at once.",
    )


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """The disks of replicas."""

    mode: str = setting(
        choice("auto", "local", "shared"),
        "auto",
        "Where replicas keep sessions. "
        "`local`: each replica has its own disk. `shared`: all see the same session directory. "
        "`auto`: found out while running, `local` until proven otherwise.",
        flag="--storage",
    )


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """One entry of ``[[pools]]``."""

    name: str = setting(
        _pool_name(), REQUIRED, "Name, for logs and the admin API; not `default`.", required=True
    )
    tenants: tuple[str, ...] = setting(
        _names("tenant", low=1),
        REQUIRED,
        "Tenants that it serves; `*` for each one that no other pool names.",
        required=True,
    )
    isolation: str = setting(
        choice("shared", "tenant", "user"),
        "shared",
        "`shared`: its tenants share its replicas. `tenant`, `user`: each tenant, or each user, "
        "has a CLI of its own, which is started when the first of its clients connects and has its "
        "own home directory in `server.state_dir`; needs `server.workers = 1`.",
    )
    replicas: tuple[str, ...] = setting(
        _names("pattern"),
        (),
        "Its replicas: names, or patterns such as `gpu-*`. The first pool that names a replica "
        "has it. Required where `isolation` is `shared`, and only there.",
    )
    routing: str = setting(
        choice("auto", "sticky", "free"), "auto", "As `routing.mode`, for its replicas."
    )
    storage: str = setting(
        choice("auto", "local", "shared"), "auto", "As `storage.mode`, for its replicas."
    )
    turn_recovery: str = setting(
        choice("continue", "fail"), "continue", "As `sessions.turn_recovery`, for its sessions."
    )
    max_replicas: int = setting(
        integer(1, 10_000),
        32,
        "CLIs that may run at a time for `isolation` other than `shared`. Whoever would need one "
        "more is answered with `-32012` and `retryAfterMs`, unless one that is not in use can be "
        "ended for it.",
    )
    idle_timeout: float = setting(
        duration(1.0),
        600.0,
        "Time after which a CLI that has no clients and no live sessions is ended. Its home stays, "
        "and the next client starts it again.",
    )
    env: dict[str, Any] | None = setting(
        environment(),
        None,
        "Further environment variables for each of its CLIs, as text or by name: "
        '`{ env = "VARIABLE" }` or `{ file = "path" }`, read when the CLI starts. `{tenant}` and '
        "`{user}` in a file's path stand for those whom the CLI is for.",
        private=True,
    )

    @property
    def isolated(self) -> bool:
        """Whether each tenant or user has a CLI of its own."""
        return self.isolation != "shared"


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """One entry of ``[[replicas]]``: a CLI that runs elsewhere.

    Attributes:
        name: stable name; the hash ring is built over names. Default: the address.
        address: where it listens.
        token: its connection token if an environment variable gives it, else None.
        token_file: file that holds its connection token, or None. Wins over ``token``.
        weight: share of new sessions relative to other replicas.
        backup: it takes new sessions only while no other replica of its pool can.
    """

    name: str
    address: Address
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    weight: int = 1
    backup: bool = False


def parse_replica(text: str) -> ReplicaSettings:
    """Read ``[NAME=]HOST:PORT``.

    Raises:
        ValueError: anything else.
    """
    name, equals, rest = text.rpartition("=")
    try:
        address = parse_address(rest)
    except ValueError as error:
        raise ValueError(str(error).replace("HOST:PORT", "[NAME=]HOST:PORT", 1)) from None
    if not address.port:
        raise ValueError("must have a port above 0")
    # Unnamed replicas are named by address, not by position: reordering must move no session.
    return ReplicaSettings(replica_name(name) if equals else str(address), address)


def replica_name(text: object) -> str:
    if not isinstance(text, str) or not re.fullmatch(r"[A-Za-z0-9._:\[\]-]{1,100}", text):
        raise ValueError("must have a name of 1 to 100 letters, digits and . _ : -")
    return text


@dataclass(frozen=True, slots=True)
class SpawnSettings:
    """CLIs that the gateway starts and supervises itself."""

    count: int = setting(
        integer(0, 256), 0, "How many CLIs to start on this machine.", flag="--spawn"
    )
    binary: str = setting(
        string("PATH"),
        "copilot",
        "The CLI: a path, or a name to be found on PATH.",
    )
    args: tuple[str, ...] = setting(
        listing("argument", str, str, " "),
        (),
        "Further command line arguments for each CLI.",
    )
    env: tuple[tuple[str, str], ...] = setting(
        variables(),
        (),
        "Further environment variables for each CLI.",
        private=True,
    )
    start_timeout: float = setting(
        duration(0.1), 30.0, "A CLI that is not ready by then is stopped and tried again."
    )
    stop_timeout: float = setting(
        duration(0.1), 5.0, "Time that a CLI has to end by itself before it is killed."
    )
    restart_delay: float = setting(
        duration(0.01), 0.5, "Pause before a CLI that ended is started again; doubles each time."
    )
    restart_delay_max: float = setting(
        duration(0.01), 30.0, "Longest pause between two starts of a CLI."
    )
    recycle_age: float = setting(
        duration(0.0),
        0.0,
        "Age at which a CLI is drained and started anew, one at a time. 0: never.",
        reloadable=True,
    )
    recycle_sessions: int = setting(
        integer(0),
        0,
        "Sessions made live on a CLI after which it is started anew. 0: no limit.",
        reloadable=True,
    )
    recycle_memory: int = setting(
        size(0),
        0,
        "Resident memory at which a CLI is started anew. 0: no limit.",
        reloadable=True,
    )


@dataclass(frozen=True, slots=True)
class DiscoverySettings:
    """Replicas that are found rather than listed; changes apply while running."""

    sources: tuple[str, ...] = setting(
        listing("URL", str, str, ","),
        (),
        "Where replicas are found: `file:///path` (a list, read again when it changes), "
        "`dns://host:port` (each address is a replica), `srv://_copilot._tcp.service` (each "
        "target is one, under a stable name).",
        flag="--discover",
    )
    interval: float = setting(
        duration(0.1), 30.0, "Time between two looks at a name server; a shorter TTL is kept."
    )
    grace: float = setting(
        duration(0.0), 30.0, "How long a replica stays after a name server no longer names it."
    )
    token: str = setting(
        secret(),
        "",
        "Connection token of the replicas that are found.",
        variable=REPLICA_TOKEN_VARIABLE,
        private=True,
        in_file=False,
    )


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """The store of session owners and placements, shared by workers and gateways."""

    url: str = setting(
        url(
            "sqlite",
            "redis",
            "rediss",
            "unix",
            "redis+sentinel",
            "rediss+sentinel",
            "redis+cluster",
            "rediss+cluster",
            "memory",
        ),
        "",
        "Where the registry is. "
        "`sqlite:///absolute/path` for any number of workers on one machine; `redis://` or "
        "`rediss://` for many machines; `memory://` for one worker and tests. "
        "Empty: `registry.db` in `server.state_dir`.",
        flag="--registry",
        private=True,
    )
    timeout: float = setting(
        duration(0.05),
        2.0,
        "Time that the registry has to answer. Without it no new session is placed; "
        "sessions already placed go on.",
    )
    lease: float = setting(
        duration(1.0),
        60.0,
        "How long the registry counts a gateway as alive after its last heartbeat. Without the "
        "registry, prompts to placed sessions are taken for this long.",
    )


@dataclass(frozen=True, slots=True)
class LimitsSettings:
    """Bounds on what one client may use. Going over one gets a JSON-RPC error."""

    max_frame: int = setting(
        size(64 << 10, 1 << 31), 64 << 20, "Largest message in either direction.", reloadable=True
    )
    max_unauthenticated_frame: int = setting(
        size(1 << 10, 1 << 20),
        16 << 10,
        "Largest message before authentication.",
        reloadable=True,
    )
    max_header: int = setting(
        size(64, 64 << 10), 8 << 10, "Largest header block of a message.", reloadable=True
    )
    max_clients: int = setting(
        integer(1), 10_000, "Client connections per worker.", reloadable=True
    )
    max_pending_requests: int = setting(
        integer(1), 1024, "Unanswered requests per client.", reloadable=True
    )
    queue_bytes: int = setting(
        size(1 << 10),
        64 << 20,
        "Bytes that wait per session while it is being placed or moved, and bytes of its prompts "
        "that were not yet worked off. One message is always accepted.",
        reloadable=True,
    )
    queue_frames: int = setting(
        integer(1),
        256,
        "Messages that wait per session while it is being placed or moved, and prompts of it that "
        "were not yet worked off.",
        reloadable=True,
    )


@dataclass(frozen=True, slots=True)
class FlowSettings:
    """Back pressure, and finding clients that are gone."""

    high_water: int = setting(
        size(1 << 10),
        1 << 20,
        "Unsent bytes towards a peer at which reading from its counterpart pauses.",
        reloadable=True,
    )
    low_water: int = setting(
        size(0), 256 << 10, "Unsent bytes at which reading goes on.", reloadable=True
    )
    stall_timeout: float = setting(
        duration(0.1),
        60.0,
        "A client that takes nothing for this long while bytes wait for it is closed: the CLI "
        "would buffer for it without limit.",
        reloadable=True,
    )
    keepalive_idle: float = setting(
        duration(1.0, 32767.0),
        30.0,
        "Silence after which TCP keepalive probes a peer. Whole seconds.",
        reloadable=True,
    )
    keepalive_interval: float = setting(
        duration(1.0, 32767.0),
        10.0,
        "Time between keepalive probes. Whole seconds.",
        reloadable=True,
    )
    keepalive_count: int = setting(
        integer(1, 127),
        3,
        "Unanswered keepalive probes after which a peer is dead.",
        reloadable=True,
    )


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """Finding replicas that do not work, and when to try them again."""

    probe_interval: float = setting(duration(0.05), 5.0, "Time between probes of a replica.")
    probe_timeout: float = setting(
        duration(0.05), 3.0, "Time that a replica has to answer a probe."
    )
    failures: int = setting(
        integer(1), 3, "Failures in a row, of probes or of traffic, that eject a replica."
    )
    ban_base: float = setting(
        duration(0.05), 5.0, "How long the first ejection lasts; doubles each time."
    )
    ban_max: float = setting(duration(0.05), 300.0, "Longest ejection.")


@dataclass(frozen=True, slots=True)
class DrainSettings:
    """Leaving without cutting anyone off."""

    timeout: float = setting(
        duration(0.0),
        30.0,
        "Time that running turns have to finish after SIGTERM or when a replica is drained.",
        reloadable=True,
    )


@dataclass(frozen=True, slots=True)
class SessionsSettings:
    """What happens to conversations."""

    rebind_timeout: float = setting(
        duration(0.1),
        30.0,
        "Time that requests of a session wait for it to be live again after its replica failed.",
        reloadable=True,
    )
    adopt: str = setting(
        choice("admin", "never", "tenant"),
        "admin",
        "Who may resume a session that a replica knows but that has no recorded owner, and so "
        "become its owner: `admin`, administrators of tenant `default`; `never`, nobody; `tenant`, "
        "anyone, which suits gateways of one tenant.",
        reloadable=True,
    )
    turn_recovery: str = setting(
        choice("continue", "fail"),
        "continue",
        "What becomes of a turn whose replica died: it is finished where the session lives then, "
        "or it ends with an error.",
    )
    durable: bool = setting(
        boolean(),
        False,
        "Acknowledge a prompt only after the CLI has written it to its journal, which it otherwise "
        "does about 100 ms later.",
    )
    linger: float = setting(
        duration(0.0),
        300.0,
        "How long a turn goes on after its client's connection was lost, so that a client that "
        "reconnects and resumes finds it. 0: it ends with the connection.",
        reloadable=True,
    )


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The log, on standard error."""

    level: str = setting(
        choice("debug", "info", "warning", "error"),
        "info",
        "The least severe records to write.",
        flag="--log-level",
        reloadable=True,
    )
    format: str = setting(
        choice("text", "json"),
        "text",
        "One line of text, or one JSON object, per record.",
        flag="--log-format",
        reloadable=True,
    )


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """The audit log: one JSON line for each authentication, session made, resumed, forked or
    deleted, refused method and admin action."""

    path: str = setting(
        string("PATH"), "", "File of the audit log, or `-` for standard output. Empty: none."
    )
    max_size: int = setting(
        size(), 100 << 20, "Size at which the file is renamed to `path.1` and so on; 0: never."
    )
    keep: int = setting(integer(0, 1000), 5, "Renamed files that are kept.")


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """What identities may do with the replicas."""

    isolation: str = setting(
        choice("shared", "tenant", "user"),
        "shared",
        "Who shares the replicas. `shared`: any tenants, so what reaches beyond a caller's own "
        "sessions takes an administrator. `tenant`, `user`: one tenant or one user only, who may "
        "then also become a provider for the whole CLI process; all others are refused.",
    )
    tenant: str = setting(
        string(), "", "The one tenant that may connect, for `isolation` other than `shared`."
    )
    user: str = setting(string(), "", 'The one user that may connect, for `isolation = "user"`.')
    unknown_session_methods: str = setting(
        choice("deny", "allow"),
        "deny",
        "Whether users may call `session.*` methods that the gateway does not know, on sessions of "
        "their own. `deny` answers as a CLI that lacks them.",
        reloadable=True,
    )
    methods: tuple[MethodRuleSettings, ...] = table_list(
        MethodRuleSettings,
        "Rules that allow or deny methods; the first that matches decides, before the defaults of "
        "the reference page of methods. Checks of session ids stay in force.",
        """\
effect = "deny"
methods = ["session.shell.*"]
tenants = ["acme"]
roles = ["user"]""",
        reloadable=True,
    )
    params: tuple[ParamRuleSettings, ...] = table_list(
        ParamRuleSettings,
        "Rules on the params of sessions. Where several apply, each key is taken from the first "
        "that has it; `forbid` and `commands` add up.",
        """\
tenants = ["acme"]
force = { mode = "empty" }
forbid = ["mcpServers"]
models = ["gpt-4.1*"]
tools = ["builtin:view", "builtin:grep"]
root = "/srv/work/{tenant}/{user}"
credentials = { gitHubToken = { file = "/run/secrets/acme-github" } }""",
        reloadable=True,
    )


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """The admin HTTP listener: health, metrics, replicas, sessions."""

    listen: Address | None = setting(
        optional_address(),
        None,
        "Address of the admin listener. Empty: none. The admin commands look at `127.0.0.1:9321` "
        "unless told otherwise.",
        flag="--admin",
    )
    open_metrics: bool = setting(
        boolean(), True, "Whether `/metrics` needs no token; it names tenants and replicas."
    )
    token: str = setting(
        secret(),
        "",
        f"Bearer token of the admin API. Empty: `{STATIC_TOKEN_VARIABLE}` serves as one.",
        private=True,
        in_file=False,
    )
    token_file: Path | None = setting(
        optional_path(),
        None,
        "File that holds the admin token. Wins over the environment. Empty: none.",
    )


SECTIONS: dict[str, type] = {
    "server": ServerSettings,
    "auth": AuthSettings,
    "auth.jwt": JwtSettings,
    "policy": PolicySettings,
    "routing": RoutingSettings,
    "storage": StorageSettings,
    "spawn": SpawnSettings,
    "discovery": DiscoverySettings,
    "registry": RegistrySettings,
    "limits": LimitsSettings,
    "flow": FlowSettings,
    "health": HealthSettings,
    "drain": DrainSettings,
    "sessions": SessionsSettings,
    "log": LogSettings,
    "audit": AuditSettings,
    "admin": AdminSettings,
}
"""Sections by their name in the file; the field of :class:`Settings` has ``_`` for a dot."""

REPLICA_KEYS = {
    "name": "Stable name, for the hash ring, logs and `drain NAME`. Default: the address.",
    "address": "`HOST:PORT` of the CLI. Required.",
    "token_env": "Environment variable that holds its connection token. "
    f"Default: `{REPLICA_TOKEN_VARIABLE}`.",
    "token_file": "File that holds its connection token, read at start and at each reload.",
    "weight": "Share of new sessions relative to other replicas, 1 to 256. Default: 1.",
    "backup": "Whether it takes new sessions only while no other replica of its pool can. "
    "Default: `false`.",
}


def _collect() -> Iterator[Setting]:
    for section, owner in SECTIONS.items():
        for one in dataclasses.fields(owner):
            if "setting" not in one.metadata:
                continue
            made: Setting = one.metadata["setting"]
            variable = made.variable or f"{ENV_PREFIX}{section}_{one.name}".upper().replace(
                ".", "_"
            )
            yield dataclasses.replace(made, section=section, key=one.name, variable=variable)


SETTINGS: dict[str, Setting] = {one.name: one for one in _collect()}
"""All settings by ``section.key``, in the order of the reference page."""

REPLICAS = Setting(
    "replicas",
    "",
    listing("[NAME=]HOST:PORT", parse_replica, str, ","),
    (),
    "CLIs that run elsewhere.",
    flag="--replica",
    variable=ENV_PREFIX + "REPLICAS",
    reloadable=True,
)
"""The list of replicas, which has a shape of its own in the file (``[[replicas]]``)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, complete and validated; made by :func:`build`.

    Attributes:
        origins: where each setting came from (``flag``, ``environment``, ``file``), by name;
            a name that is missing has its default.
        source: repeats the load, for a reload; None if the settings were made by hand.
    """

    server: ServerSettings = field(default_factory=ServerSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    auth_jwt: JwtSettings = field(default_factory=JwtSettings)
    listeners: tuple[ListenerSettings, ...] = table_list(
        ListenerSettings,
        "Addresses that accept clients in ways of their own. `server.listen` stays in use beside "
        "them only where it is set.",
        """\
name = "lab"
address = "10.1.0.1:4321"
networks = ["10.1.0.0/16"]
identity = { tenant = "lab", user = "lab", role = "user" }""",
    )
    tenants: tuple[TenantSettings, ...] = table_list(
        TenantSettings,
        "Tenants that differ from the defaults. Tenants need no entry to exist.",
        """\
name = "acme"
sessions = "shared"
limits = { connections = 100, sessions = 500, turns = 50 }
user_limits = { messages_per_second = 50.0, bytes_per_second = "4MiB" }""",
        reloadable=True,
    )
    pools: tuple[PoolSettings, ...] = table_list(
        PoolSettings,
        "Sets of replicas for some tenants. Tenants that no pool names share the replicas that no "
        "pool names, to which `[routing]`, `[storage]` and `policy.isolation` apply.",
        """\
name = "acme"
tenants = ["acme"]
isolation = "user"
max_replicas = 20
idle_timeout = "15m"
env = { GITHUB_TOKEN = { file = "/run/secrets/{tenant}/{user}" } }""",
    )
    policy: PolicySettings = field(default_factory=PolicySettings)
    routing: RoutingSettings = field(default_factory=RoutingSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    replicas: tuple[ReplicaSettings, ...] = ()
    spawn: SpawnSettings = field(default_factory=SpawnSettings)
    discovery: DiscoverySettings = field(default_factory=DiscoverySettings)
    registry: RegistrySettings = field(default_factory=RegistrySettings)
    limits: LimitsSettings = field(default_factory=LimitsSettings)
    flow: FlowSettings = field(default_factory=FlowSettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    drain: DrainSettings = field(default_factory=DrainSettings)
    sessions: SessionsSettings = field(default_factory=SessionsSettings)
    log: LogSettings = field(default_factory=LogSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    admin: AdminSettings = field(default_factory=AdminSettings)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    source: Source | None = field(default=None, compare=False, repr=False)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """All addresses that accept clients: of ``server.listen``, then of the listeners."""
        return self.server.listen + tuple(one.address for one in self.listeners)

    def secrets(self) -> tuple[str, ...]:
        """Return the tokens and the password that the settings hold, for masking them in logs."""
        found = [self.auth.static_token, self.admin.token, urlsplit(self.registry.url).password]
        found += [replica.token for replica in self.replicas]
        for rule in self.policy.params:
            found += [reference.value for reference in secret_refs(rule.credentials)]
        for pool in self.pools:
            found += [reference.value for reference in secret_refs(pool.env)]
        return tuple(one for one in found if one)

    def get(self, name: str) -> Any:
        """Return the value of ``section.key``, or of a list of tables."""
        section, _, key = name.rpartition(".")
        return getattr(getattr(self, section.replace(".", "_")) if section else self, key)


def secret_refs(value: Any) -> Iterator[SecretRef]:
    """Yield the secrets that a value names, wherever they stand in it."""
    if isinstance(value, SecretRef):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from secret_refs(one)
    elif isinstance(value, list):
        for one in value:
            yield from secret_refs(one)


TABLES: dict[str, TableList] = collect_tables(SECTIONS, Settings)
"""All lists of tables by name."""

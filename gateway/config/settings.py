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
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from gateway.config.kinds import (
    Address,
    Kind,
    boolean,
    choice,
    duration,
    integer,
    listing,
    number,
    optional_address,
    optional_path,
    parse_address,
    path,
    secret,
    size,
    string,
    url,
    variables,
)

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
    )
    return field(default=default, metadata={"setting": made}, repr=not private)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where clients connect, and the process itself."""

    listen: tuple[Address, ...] = setting(
        listing("HOST:PORT", parse_address, str, ",", low=1),
        (Address("127.0.0.1", 4321),),
        "Addresses that accept clients. Port 0 lets the system choose one, which is printed.",
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
class ReplicaSettings:
    """One entry of ``[[replicas]]``: a CLI that runs elsewhere.

    Attributes:
        name: stable name; the hash ring is built over names. Default: the address.
        address: where it listens.
        token: its connection token if an environment variable gives it, else None.
        token_file: file that holds its connection token, or None. Wins over ``token``.
    """

    name: str
    address: Address
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None


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


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """The store of session owners and placements, shared by workers and gateways."""

    url: str = setting(
        url("sqlite", "redis", "rediss", "memory"),
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
        "Bytes that wait per session while it is being placed or moved. One message is always "
        "accepted.",
        reloadable=True,
    )
    queue_frames: int = setting(
        integer(1),
        256,
        "Messages that wait per session while it is being placed or moved.",
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
        "become its owner: admins, nobody, or anyone.",
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
class AdminSettings:
    """The admin HTTP listener: health, metrics, replicas, sessions."""

    listen: Address | None = setting(
        optional_address(), None, "Address of the admin listener. Empty: none.", flag="--admin"
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
    "routing": RoutingSettings,
    "storage": StorageSettings,
    "spawn": SpawnSettings,
    "registry": RegistrySettings,
    "limits": LimitsSettings,
    "flow": FlowSettings,
    "health": HealthSettings,
    "drain": DrainSettings,
    "sessions": SessionsSettings,
    "log": LogSettings,
    "admin": AdminSettings,
}

REPLICA_KEYS = {
    "name": "Stable name, for the hash ring, logs and `drain NAME`. Default: the address.",
    "address": "`HOST:PORT` of the CLI. Required.",
    "token_env": "Environment variable that holds its connection token. "
    f"Default: `{REPLICA_TOKEN_VARIABLE}`.",
    "token_file": "File that holds its connection token, read at start and at each reload.",
}


def _collect() -> Iterator[Setting]:
    for section, owner in SECTIONS.items():
        for one in dataclasses.fields(owner):
            made: Setting = one.metadata["setting"]
            variable = made.variable or f"{ENV_PREFIX}{section}_{one.name}".upper()
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
    routing: RoutingSettings = field(default_factory=RoutingSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    replicas: tuple[ReplicaSettings, ...] = ()
    spawn: SpawnSettings = field(default_factory=SpawnSettings)
    registry: RegistrySettings = field(default_factory=RegistrySettings)
    limits: LimitsSettings = field(default_factory=LimitsSettings)
    flow: FlowSettings = field(default_factory=FlowSettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    drain: DrainSettings = field(default_factory=DrainSettings)
    sessions: SessionsSettings = field(default_factory=SessionsSettings)
    log: LogSettings = field(default_factory=LogSettings)
    admin: AdminSettings = field(default_factory=AdminSettings)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    source: Source | None = field(default=None, compare=False, repr=False)

    def secrets(self) -> tuple[str, ...]:
        """Return the tokens and the password that the settings hold, for masking them in logs."""
        found = [self.auth.static_token, self.admin.token, urlsplit(self.registry.url).password]
        found += [replica.token for replica in self.replicas]
        return tuple(one for one in found if one)

    def get(self, name: str) -> Any:
        """Return the value of ``section.key``."""
        section, _, key = name.partition(".")
        return getattr(getattr(self, section), key)

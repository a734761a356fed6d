"""Building settings from flags, environment and file; contradictions between them; reloads.

A value is taken from the first of: flag, environment, file, default. :func:`build` is pure; only
:meth:`Source.load` reads a file, so that a reload can repeat exactly what start-up did.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from gateway.config.kinds import Address, SecretRef, boolean, integer, path, secret, text_of
from gateway.config.settings import (
    CONFIG_VARIABLE,
    ENV_PREFIX,
    REPLICA_KEYS,
    REPLICA_TOKEN_VARIABLE,
    REPLICAS,
    SECTIONS,
    SETTINGS,
    SPAWNED_NAME,
    TABLES,
    PoolSettings,
    ReplicaSettings,
    Setting,
    Settings,
    parse_replica,
    replica_name,
    secret_refs,
)
from gateway.config.tables import read_tables
from gateway.errors import ConfigError

T = TypeVar("T")

_KUBERNETES_VARIABLE = re.compile(
    r"(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$"
)
"""What Kubernetes puts into every pod's environment for a service named ``copilot-gateway``."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where settings come from: enough to load them again.

    Attributes:
        file: the configuration file, or None.
        environ: the environment; holds secrets.
        flags: flags that were given, by setting name; a URL among them may hold a password.
    """

    file: Path | None = None
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    flags: Mapping[str, object] = field(default_factory=dict, repr=False)

    def load(self) -> Settings:
        """Read the file, if any, and build the settings.

        Raises:
            ConfigError: the file cannot be read, or anything in it, in the environment or in the
                flags is wrong.
        """
        document: dict[str, object] = {}
        if self.file is not None:
            try:
                document = tomllib.loads(self.file.read_text("utf-8"))
            except OSError as error:
                reason = error.strerror or type(error).__name__
                raise ConfigError(f"cannot read {self.file}: {reason}") from None
            except UnicodeDecodeError:
                raise ConfigError(f"{self.file}: not UTF-8 text") from None
            except tomllib.TOMLDecodeError as error:
                raise ConfigError(f"{self.file}: not valid TOML: {error}") from None
        where = str(self.file) if self.file is not None else "file"
        settings = build(document, self.environ, self.flags, where)
        return dataclasses.replace(settings, source=self)


def build(
    document: Mapping[str, object],
    environ: Mapping[str, str],
    flags: Mapping[str, object] | None = None,
    where: str = "file",
) -> Settings:
    """Make settings from a parsed TOML file, the environment and flags.

    Args:
        document: the parsed file.
        environ: environment variables; those without our prefix are not looked at, save
            ``XDG_STATE_HOME``, ``HOME`` and those that ``token_env`` names.
        flags: by setting name: the text, a list of texts for a repeatable flag, or True.
        where: the file's name, for errors.

    Raises:
        ConfigError: an unknown name or a bad value; one line that names it.
    """
    flags = flags or {}
    _refuse_unknown(document, where)
    values: dict[str, dict[str, Any]] = {section: {} for section in ("", *SECTIONS)}
    origins: dict[str, str] = {}
    for name in TABLES:
        section, _, key = name.rpartition(".")
        table = _table(document, section)
        if key in table:
            values[section][key] = _read_tables(name, table[key], where)
            origins[name] = "file"
    named = _resolve_secrets(values["policy"], "policy.", "params", "credentials", environ, where)
    named |= _resolve_secrets(values[""], "", "pools", "env", environ, where)
    _refuse_unknown_variables(environ, named | _token_variables(document))
    for name, one in SETTINGS.items():
        table = _table(document, one.section)
        found = _pick(one, flags=flags, environ=environ, table=table, where=where)
        if found is not None:
            values[one.section][one.key], origins[name] = found
    replicas, origin = _replicas(document, environ, flags, where)
    if origin:
        origins["replicas"] = origin
    if values[""].get("listeners") and "server.listen" not in origins:
        values["server"]["listen"] = ()
    sections = {
        section.replace(".", "_"): owner(**values[section]) for section, owner in SECTIONS.items()
    }
    settings = Settings(**sections, **values[""], replicas=replicas, origins=origins)
    return _with_places(settings, environ)


def check(settings: Settings) -> None:
    """Refuse settings that are each valid but cannot be served together.

    Raises:
        ConfigError: the first such contradiction.
    """
    isolated = any(pool.isolated for pool in settings.pools)
    if not (settings.replicas or settings.spawn.count or settings.discovery.sources or isolated):
        raise ConfigError(
            "no replicas: start some with --spawn N (spawn.count) "
            "or name some with --replica HOST:PORT ([[replicas]])"
        )
    if settings.auth.mode == "none" and not settings.auth.insecure:
        for address in settings.server.listen:
            if not address.is_loopback:
                raise ConfigError(
                    f"auth.mode = none lets anyone who reaches {address} run commands: "
                    "listen on a loopback address, use tokens, or say --insecure"
                )
        for listener in settings.listeners:
            if not listener.address.is_loopback and listener.identity is None:
                raise ConfigError(
                    f"auth.mode = none lets anyone who reaches {listener.label} run commands: "
                    "give the listener an identity, use tokens, or say --insecure"
                )
    _check_listeners(settings)
    _check_jwt(settings)
    _check_policy(settings)
    _check_pools(settings)
    _check_replicas(settings)
    if settings.registry.url.startswith("memory:") and settings.server.workers > 1:
        raise ConfigError("registry.url: memory:// serves one worker only; use sqlite or redis")
    for low, high in _ORDERED:
        if settings.get(low) > settings.get(high):
            raise ConfigError(f"{low} must not be above {high}")


def _check_listeners(settings: Settings) -> None:
    names: set[str] = set()
    for listener in settings.listeners:
        label = f"listeners ({listener.label})"
        mapped = listener.certificate_identity
        if listener.label in names:
            raise ConfigError(f"two listeners have the name {listener.label}")
        names.add(listener.label)
        if listener.identity is not None and not listener.networks:
            raise ConfigError(f"{label}: identity needs networks, the source networks it is for")
        if listener.identity is not None and mapped is not None:
            raise ConfigError(f"{label}: give identity or certificate_identity, not both")
        if listener.proxy_protocol != bool(listener.proxy_networks):
            raise ConfigError(f"{label}: proxy_protocol and proxy_networks need each other")
        if mapped is None:
            continue
        if listener.tls is None or listener.tls.client_ca is None:
            raise ConfigError(f"{label}: certificate_identity needs tls with client_ca")
        for key in ("tenant", "user"):
            if bool(getattr(mapped, key)) == bool(getattr(mapped, f"{key}_from")):
                raise ConfigError(f"{label}: certificate_identity needs either {key} or {key}_from")


def _check_jwt(settings: Settings) -> None:
    jwt = settings.auth_jwt
    if not jwt.issuer:
        if jwt != type(jwt)():
            raise ConfigError("auth.jwt.issuer is not set, so the rest of [auth.jwt] does nothing")
        return
    if not jwt.audience:
        raise ConfigError("auth.jwt.audience must be set: tokens for others must not log in here")
    if bool(jwt.jwks_url) == bool(jwt.jwks_file):
        raise ConfigError("auth.jwt needs either jwks_url or jwks_file")
    if settings.auth.mode == "none":
        raise ConfigError("auth.jwt does nothing with auth.mode = none")


def _check_policy(settings: Settings) -> None:
    policy = settings.policy
    if (policy.isolation != "shared") != bool(policy.tenant):
        raise ConfigError("policy.isolation other than shared and policy.tenant need each other")
    if (policy.isolation == "user") != bool(policy.user):
        raise ConfigError("policy.isolation = user and policy.user need each other")
    names: set[str] = set()
    for tenant in settings.tenants:
        if tenant.name in names:
            raise ConfigError(f"two entries of tenants have the name {tenant.name}")
        names.add(tenant.name)


def _check_pools(settings: Settings) -> None:
    names = {"default"}
    tenants: dict[str, str] = {}
    for pool in settings.pools:
        label = f"pools ({pool.name})"
        if pool.name in names:
            raise ConfigError(f"{label}: the name is taken")
        names.add(pool.name)
        for tenant in pool.tenants:
            if tenant in tenants:
                raise ConfigError(f"{label}: tenant {tenant} belongs to pool {tenants[tenant]}")
            tenants[tenant] = pool.name
        _check_isolation(pool, label)
        if pool.isolated and settings.server.workers > 1:
            raise ConfigError(
                f"{label}: isolation = {pool.isolation} needs server.workers = 1: "
                "only one process can start the CLI of a tenant or user"
            )


def _check_isolation(pool: PoolSettings, label: str) -> None:
    default = PoolSettings()
    for key in ("replicas", "routing", "storage") if pool.isolated else _ISOLATED_ONLY:
        if getattr(pool, key) != getattr(default, key):
            raise ConfigError(f"{label}: {key} does nothing with isolation = {pool.isolation}")
    if pool.isolation == "tenant" and any(
        "{user}" in str(reference.file) for reference in secret_refs(pool.env)
    ):
        raise ConfigError(f"{label}: env names {{user}}, but a CLI serves a whole tenant")
    if not pool.isolated and not pool.replicas:
        raise ConfigError(f"{label}: replicas must name some, unless isolation is tenant or user")


_ISOLATED_ONLY = ("max_replicas", "idle_timeout", "env")


_ORDERED = (
    ("flow.low_water", "flow.high_water"),
    ("limits.max_unauthenticated_frame", "limits.max_frame"),
    ("spawn.restart_delay", "spawn.restart_delay_max"),
    ("health.ban_base", "health.ban_max"),
)


def reloaded(old: Settings, new: Settings) -> tuple[Settings, list[str]]:
    """Apply what a reload may change.

    Returns:
        ``old`` with the reloadable settings of ``new``, and the names of the settings that differ
        but need a restart.
    """
    changed: dict[str, dict[str, Any]] = {section: {} for section in ("", *SECTIONS)}
    restart = []
    reloadable = {name for name, one in SETTINGS.items() if one.reloadable}
    reloadable |= {name for name, one in TABLES.items() if one.reloadable}
    for name in (*SETTINGS, *TABLES):
        value = new.get(name)
        if value == old.get(name):
            continue
        if name in reloadable:
            section, _, key = name.rpartition(".")
            changed[section][key] = value
        else:
            restart.append(name)
    sections: dict[str, Any] = changed.pop("")
    for section, fields in changed.items():
        attribute = section.replace(".", "_")
        if fields:
            sections[attribute] = dataclasses.replace(getattr(old, attribute), **fields)
    result = dataclasses.replace(
        old, **sections, replicas=new.replicas, origins=new.origins, source=new.source
    )
    return result, restart


def _pick(
    one: Setting,
    *,
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    table: Mapping[str, object],
    where: str,
) -> tuple[Any, str] | None:
    """Return the value that wins and where it came from, or None for the default."""
    name = one.name
    if name in flags:
        given = flags[name]
        reader = one.kind.read_text if isinstance(given, str) else one.kind.read
        return _read(reader, given, one.flag or name, private=one.private), "flag"
    # Set but empty is what container tools make of a variable that is not set.
    if text := environ.get(one.variable):
        label = f"{one.variable} ({name})"
        return _read(one.kind.read_text, text, label, private=one.private), "environment"
    if one.key in table:
        label = f"{where}: {name}"
        return _read(one.kind.read, table[one.key], label, private=one.private), "file"
    return None


def _read(reader: Callable[[Any], T], given: object, label: str, *, private: bool) -> T:
    """Read one value; the error names the setting, and quotes the value unless it is private."""
    try:
        return reader(given)
    except ValueError as error:
        shown = "" if private else f", not {_clip(given)}"
        raise ConfigError(f"{label} {error}{shown}") from None


def _clip(value: object) -> str:
    shown = json.dumps(value, default=str)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _table(document: Mapping[str, object], section: str) -> Mapping[str, object]:
    """Return a section's table, which has been checked to be one."""
    table: Any = document
    for step in section.split(".") if section else ():
        table = table.get(step, {})
    return cast(Mapping[str, object], table)


def _read_tables(name: str, value: object, where: str) -> tuple[Any, ...]:
    try:
        return read_tables(TABLES[name], value, where)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _resolve_secrets(
    values: dict[str, Any],
    section: str,
    tables: str,
    key: str,
    environ: Mapping[str, str],
    where: str,
) -> set[str]:
    """Look up the variables that a key of a list of tables names; return their names."""
    entries = values.get(tables, ())
    named: set[str] = set()
    for index, entry in enumerate(entries):
        for reference in secret_refs(getattr(entry, key)):
            if not reference.env:
                continue
            named.add(reference.env)
            label = f"{where}: {section}{tables}[{index}].{key}"
            if not environ.get(reference.env):
                raise ConfigError(f"{label}: the environment has no {reference.env}")
            # Checked like any other secret.
            _read(secret().read, environ[reference.env], f"{label} ({reference.env})", private=True)
    if named:
        values[tables] = tuple(
            dataclasses.replace(entry, **{key: _with_values(getattr(entry, key), environ)})
            for entry in entries
        )
    return named


def _with_values(value: Any, environ: Mapping[str, str]) -> Any:
    if isinstance(value, SecretRef):
        return dataclasses.replace(value, value=environ[value.env]) if value.env else value
    if isinstance(value, dict):
        return {name: _with_values(one, environ) for name, one in value.items()}
    if isinstance(value, list):
        return [_with_values(one, environ) for one in value]
    return value


def _refuse_unknown(document: Mapping[str, object], where: str) -> None:
    lists = {"replicas", *TABLES}
    for section, table in _sections(document):
        if section in lists:
            continue
        if section not in SECTIONS:
            known = [*SECTIONS, *lists]
            raise ConfigError(f"{where}: unknown section {section}{_hint(section, known)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{where}: {section} must be a section: [{section}]")
        for key in table:
            if f"{section}.{key}" in SECTIONS or f"{section}.{key}" in lists:
                continue
            one = SETTINGS.get(f"{section}.{key}")
            if one is None:
                raise ConfigError(f"{where}: unknown setting {section}.{key}{_near(section, key)}")
            if not one.in_file:
                raise ConfigError(
                    f"{where}: {one.name} is a secret and does not belong in the file: "
                    f"set {one.variable} in the environment"
                )


def _sections(document: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield the sections of a file, those inside others too, such as ``auth.jwt``."""
    for section, table in document.items():
        yield section, table
        if isinstance(table, dict):
            for key, inner in table.items():
                if f"{section}.{key}" in SECTIONS:
                    yield f"{section}.{key}", inner


def _near(section: str, key: str) -> str:
    """Name what was probably meant: in the same section, or the same key elsewhere."""
    inside = [one.key for one in SETTINGS.values() if one.section == section and one.in_file]
    close = difflib.get_close_matches(key, inside, 1)
    if close:
        return f"; did you mean {section}.{close[0]}?"
    elsewhere = [name for name, one in SETTINGS.items() if one.key == key and one.in_file]
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    return f"; [{section}] has {', '.join(inside)}"


def _hint(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    if close:
        return f"; did you mean {close[0]}?"
    settings = [name for name, one in SETTINGS.items() if one.key == word]
    return f"; did you mean {settings[0]}?" if settings else f"; known are {', '.join(known)}"


def _token_variables(document: Mapping[str, object]) -> set[str]:
    """Return the variables that ``token_env`` of any replica names."""
    entries = document.get("replicas")
    tables = [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    return {str(table["token_env"]) for table in tables if "token_env" in table}


def _refuse_unknown_variables(environ: Mapping[str, str], named: set[str]) -> None:
    known = named | {one.variable for one in SETTINGS.values()}
    known |= {CONFIG_VARIABLE, REPLICA_TOKEN_VARIABLE, REPLICAS.variable}
    for name in environ:
        if not name.startswith(ENV_PREFIX) or name in known:
            continue
        if not _KUBERNETES_VARIABLE.search(name):
            close = difflib.get_close_matches(name, sorted(known), 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"unknown environment variable {name}{hint}")


def _replicas(
    document: Mapping[str, object],
    environ: Mapping[str, str],
    flags: Mapping[str, object],
    where: str,
) -> tuple[tuple[ReplicaSettings, ...], str]:
    token = environ.get(REPLICA_TOKEN_VARIABLE) or None
    if token is not None:
        token = _read(secret().read, token, REPLICA_TOKEN_VARIABLE, private=True)
    picked = _pick(REPLICAS, flags=flags, environ=environ, table={}, where=where)
    if picked is not None:
        given, origin = picked
        return tuple(dataclasses.replace(one, token=token) for one in given), origin
    entries = document.get("replicas")
    if entries is None:
        return (), ""
    if not isinstance(entries, list):
        raise ConfigError(f"{where}: replicas must be a list of tables: [[replicas]]")
    return tuple(
        _replica(entry, f"{where}: replicas[{index}]", environ, token)
        for index, entry in enumerate(entries)
    ), "file"


def _replica(
    entry: object, label: str, environ: Mapping[str, str], token: str | None
) -> ReplicaSettings:
    if not isinstance(entry, dict):
        raise ConfigError(f"{label} must be a table")
    for key in entry:
        if key not in REPLICA_KEYS:
            raise ConfigError(f"{label}: unknown key {key}{_hint(key, list(REPLICA_KEYS))}")
    try:
        made = parse_replica(text_of(entry.get("address")))
        name = replica_name(entry["name"]) if "name" in entry else made.name
        file = text_of(entry["token_file"]) if "token_file" in entry else ""
        variable = text_of(entry["token_env"]) if "token_env" in entry else ""
    except ValueError as error:
        bad = "address" if not isinstance(entry.get("address"), str) else _clip(entry["address"])
        raise ConfigError(f"{label} ({bad}) {error}") from None
    if variable and variable not in environ:
        raise ConfigError(f"{label}: the environment has no {variable} (token_env)")
    if variable:
        token = _read(secret().read, environ[variable], f"{label}: {variable}", private=True)
    try:
        weight = integer(1, 256).read(entry["weight"]) if "weight" in entry else 1
    except ValueError as error:
        raise ConfigError(f"{label}: weight {error}, not {_clip(entry['weight'])}") from None
    try:
        backup = boolean().read(entry["backup"]) if "backup" in entry else False
    except ValueError as error:
        raise ConfigError(f"{label}: backup {error}, not {_clip(entry['backup'])}") from None
    return ReplicaSettings(
        name, made.address, token, path().read(file) if file else None, weight, backup
    )


def _check_replicas(settings: Settings) -> None:
    names = {SPAWNED_NAME.format(index) for index in range(settings.spawn.count)}
    addresses: dict[Address, str] = {}
    for replica in settings.replicas:
        if replica.name in names:
            raise ConfigError(f"two replicas have the name {replica.name}")
        if replica.address in addresses:
            raise ConfigError(
                f"replicas {addresses[replica.address]} and {replica.name} have the same address "
                f"{replica.address}: one CLI must not stand for two"
            )
        names.add(replica.name)
        addresses[replica.address] = replica.name


def _with_places(settings: Settings, environ: Mapping[str, str]) -> Settings:
    """Fill in the paths whose default lies in the state directory."""
    state = settings.server.state_dir
    if state == Path():
        # The XDG specification has relative values ignored.
        base = Path(environ.get("XDG_STATE_HOME", ""))
        if not base.is_absolute():
            base = Path(environ.get("HOME") or Path.home()) / ".local" / "state"
        state = base / "copilot-gateway"
    token_file = settings.auth.token_file
    return dataclasses.replace(
        settings,
        server=dataclasses.replace(settings.server, state_dir=state),
        auth=dataclasses.replace(
            settings.auth, token_file=token_file if token_file != Path() else state / "tokens.json"
        ),
        registry=dataclasses.replace(
            settings.registry, url=settings.registry.url or f"sqlite://{state / 'registry.db'}"
        ),
    )

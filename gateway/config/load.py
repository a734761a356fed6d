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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from gateway.config.kinds import Address, path, secret, text_of
from gateway.config.settings import (
    CONFIG_VARIABLE,
    ENV_PREFIX,
    REPLICA_KEYS,
    REPLICA_TOKEN_VARIABLE,
    REPLICAS,
    SECTIONS,
    SETTINGS,
    SPAWNED_NAME,
    ReplicaSettings,
    Setting,
    Settings,
    parse_replica,
    replica_name,
)
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
    _refuse_unknown_variables(environ, _token_variables(document))
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    origins: dict[str, str] = {}
    for name, one in SETTINGS.items():
        table = cast(Mapping[str, object], document.get(one.section, {}))
        found = _pick(one, flags=flags, environ=environ, table=table, where=where)
        if found is not None:
            values[one.section][one.key], origins[name] = found
    replicas, origin = _replicas(document, environ, flags, where)
    if origin:
        origins["replicas"] = origin
    sections = {section: owner(**values[section]) for section, owner in SECTIONS.items()}
    settings = Settings(**sections, replicas=replicas, origins=origins)
    return _with_places(settings, environ)


def check(settings: Settings) -> None:
    """Refuse settings that are each valid but cannot be served together.

    Raises:
        ConfigError: the first such contradiction.
    """
    if not settings.replicas and not settings.spawn.count:
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
    _check_replicas(settings)
    if settings.registry.url.startswith("memory:") and settings.server.workers > 1:
        raise ConfigError("registry.url: memory:// serves one worker only; use sqlite or redis")
    for low, high in _ORDERED:
        if settings.get(low) > settings.get(high):
            raise ConfigError(f"{low} must not be above {high}")


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
    changed: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    restart = []
    for name, one in SETTINGS.items():
        value = new.get(name)
        if value == old.get(name):
            continue
        if one.reloadable:
            changed[one.section][one.key] = value
        else:
            restart.append(name)
    sections: dict[str, Any] = {
        section: dataclasses.replace(getattr(old, section), **fields)
        for section, fields in changed.items()
        if fields
    }
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


def _refuse_unknown(document: Mapping[str, object], where: str) -> None:
    for section, table in document.items():
        if section == "replicas":
            continue
        if section not in SECTIONS:
            known = [*SECTIONS, "replicas"]
            raise ConfigError(f"{where}: unknown section {section}{_hint(section, known)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{where}: {section} must be a section: [{section}]")
        for key in table:
            one = SETTINGS.get(f"{section}.{key}")
            if one is None:
                raise ConfigError(f"{where}: unknown setting {section}.{key}{_near(section, key)}")
            if not one.in_file:
                raise ConfigError(
                    f"{where}: {one.name} is a secret and does not belong in the file: "
                    f"set {one.variable} in the environment"
                )


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
    return ReplicaSettings(name, made.address, token, path().read(file) if file else None)


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

"""Settings: sources, precedence, strictness, contradictions, reloads, the written pages."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli import pages
from gateway.config import Address, Settings, Source, build, check, parse_address, reloaded
from gateway.config.kinds import parse_duration, redact_url, show_duration, show_size, size
from gateway.config.settings import ENV_PREFIX, REPLICA_KEYS, SECTIONS, SETTINGS, TABLES
from gateway.errors import EXIT_USAGE, ConfigError

ROOT = Path(__file__).parent.parent
HOME = {"HOME": "/home/someone"}


def error_of(document=None, environ=None, flags=None) -> str:
    """Build settings that must be refused; return the message, which must be one line."""
    with pytest.raises(ConfigError) as caught:
        build(document or {}, {**HOME, **(environ or {})}, flags or {}, "gateway.toml")
    assert caught.value.exit_status == EXIT_USAGE
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- precedence -----------------------------------------------------------------------------------


def test_flag_wins_over_environment_over_file_over_default():
    document = {"server": {"workers": 2}}
    environ = {**HOME, "COPILOT_GATEWAY_SERVER_WORKERS": "3"}
    flags = {"server.workers": "4"}

    def workers(*sources) -> tuple[int, str]:
        settings = build(*sources)
        return settings.server.workers, settings.origins.get("server.workers", "default")

    assert workers({}, HOME) == (1, "default")
    assert workers(document, HOME) == (2, "file")
    assert workers(document, environ) == (3, "environment")
    assert workers(document, environ, flags) == (4, "flag")


def test_an_empty_variable_counts_as_not_set():
    environ = {**HOME, "COPILOT_GATEWAY_TOKEN": "", "COPILOT_GATEWAY_SERVER_WORKERS": ""}
    settings = build({"server": {"workers": 2}}, environ)
    assert (settings.auth.static_token, settings.server.workers) == ("", 2)


def test_every_setting_has_the_environment_variable_that_its_name_says():
    for name, one in SETTINGS.items():
        section, _, key = name.rpartition(".")
        assert one.section == section and one.key == key
        if name not in ("auth.static_token", "discovery.token"):
            assert one.variable == ENV_PREFIX + name.upper().replace(".", "_")
    assert SETTINGS["auth.static_token"].variable == "COPILOT_GATEWAY_TOKEN"
    # One token for all replicas that run elsewhere, listed or found.
    assert SETTINGS["discovery.token"].variable == "COPILOT_GATEWAY_REPLICA_TOKEN"


@pytest.mark.parametrize("name", SETTINGS)
def test_every_default_is_a_value_that_file_and_environment_accept(name):
    one = SETTINGS[name]
    if not one.in_file:
        return
    value = tomllib.loads(f"x = {one.kind.show(one.default)}")["x"]
    assert one.kind.read(value) == one.default
    if isinstance(value, str) and value:
        assert one.kind.read_text(value) == one.default


def test_defaults_contradict_nothing():
    check(build({}, HOME, {"spawn.count": "1"}))


# --- unknown names --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"limts": {}}, "unknown section limts; did you mean limits?"),
        ({"replica": []}, "unknown section replica; did you mean replicas?"),
        ({"listen": []}, "unknown section listen; did you mean listeners?"),
        ({"zzz": {}}, "unknown section zzz; known are server, "),
        (
            {"limits": {"max_fram": 1}},
            "unknown setting limits.max_fram; did you mean limits.max_frame?",
        ),
        (
            {"server": {"token_file": "x"}},
            "unknown setting server.token_file; did you mean auth.token_file?",
        ),
        ({"drain": {"zzz": 1}}, "unknown setting drain.zzz; [drain] has timeout"),
        ({"limits": 1}, "limits must be a section: [limits]"),
        ({"replicas": {}}, "replicas must be a list of tables: [[replicas]]"),
        (
            {"replicas": [{"adress": "a:1"}]},
            "replicas[0]: unknown key adress; did you mean address?",
        ),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_known_one(document, expected):
    assert error_of(document).startswith(f"gateway.toml: {expected}")


def test_unknown_variables_are_refused_with_the_nearest_known_one():
    message = error_of(environ={"COPILOT_GATEWAY_LIMITS_MAX_FRAM": "secret-value"})
    assert "did you mean COPILOT_GATEWAY_LIMITS_MAX_FRAME?" in message
    assert "secret-value" not in message


def test_what_kubernetes_sets_for_a_service_of_our_name_is_no_error():
    build(
        {},
        {
            **HOME,
            "COPILOT_GATEWAY_SERVICE_HOST": "10.0.0.1",
            "COPILOT_GATEWAY_SERVICE_PORT": "4321",
            "COPILOT_GATEWAY_SERVICE_PORT_RPC": "4321",
            "COPILOT_GATEWAY_PORT": "tcp://10.0.0.1:4321",
            "COPILOT_GATEWAY_PORT_4321_TCP": "tcp://10.0.0.1:4321",
            "COPILOT_GATEWAY_PORT_4321_TCP_ADDR": "10.0.0.1",
            "COPILOT_GATEWAY_ADMIN_SERVICE_HOST": "10.0.0.2",
        },
    )


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("server.workers", "2", "must be a whole number"),
        ("server.workers", True, "must be a whole number"),
        ("server.workers", 2.0, "must be a whole number"),
        ("server.workers", 0, "must be at least 1"),
        ("server.workers", 1000, "must be at most 256"),
        ("routing.load_factor", float("nan"), "must be a number"),
        ("routing.load_factor", "1.5", "must be a number"),
        ("routing.load_factor", 1, "must be at least 1.01"),
        ("routing.mode", "random", "must be one of auto, sticky, free"),
        ("routing.mode", 1, "must be a string"),
        ("drain.timeout", "5 parsecs", "must be a number of seconds or a duration"),
        ("drain.timeout", -1, "must be at least 0s"),
        ("drain.timeout", float("inf"), "must be at most"),
        ("drain.timeout", float("nan"), "must be a number of seconds"),
        ("drain.timeout", True, "must be a number of seconds"),
        ("limits.max_frame", "64MB", "must be a number of bytes or a size"),
        ("limits.max_frame", 1.5, "must be a number of bytes or a size"),
        ("limits.max_frame", 1, "must be at least 64KiB"),
        ("server.listen", [], "must not be empty"),
        ("server.listen", "127.0.0.1:1", "must be a list of strings"),
        ("server.listen", ["4321"], "must be HOST:PORT"),
        ("server.listen", ["a:65536"], "must have a port of at most 65535"),
        ("server.listen", ["[::zz]:1"], "must be HOST:PORT"),
        ("server.listen", ["[::1::2]:1"], "must have a valid IPv6 address"),
        ("auth.insecure", "yes", "must be true or false"),
        ("auth.insecure", 1, "must be true or false"),
        ("spawn.env", ["A=1"], "must be a table of strings"),
        ("spawn.env", {"A B": "1"}, "must hold names of environment variables"),
        ("spawn.env", {"A": 1}, "must be a string"),
        ("spawn.binary", "a\0b", "must not contain a null byte"),
        ("registry.url", "mysql://h", "must be a URL that starts with one of sqlite, "),
        ("registry.url", "redis://[", "must be a URL that starts with one of sqlite, "),
    ],
)
def test_bad_values_name_the_setting_and_what_is_accepted(name, value, expected):
    section, key = name.split(".")
    assert error_of({section: {key: value}}).startswith(f"gateway.toml: {name} {expected}")


def test_a_bad_flag_or_variable_is_named_as_the_operator_wrote_it():
    assert error_of(flags={"server.workers": "x"}).startswith("--workers must be a whole number")
    message = error_of(environ={"COPILOT_GATEWAY_LIMITS_MAX_FRAME": "x"})
    assert message.startswith("COPILOT_GATEWAY_LIMITS_MAX_FRAME (limits.max_frame) must be")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("server.listen", "a:1, [::1]:2", (Address("a", 1), Address("::1", 2))),
        ("auth.insecure", "TRUE", True),
        ("auth.insecure", "0", False),
        ("spawn.args", "--a 'b c'", ("--a", "b c")),
        ("spawn.env", "B=2,A=x=y", (("A", "x=y"), ("B", "2"))),
        ("drain.timeout", "1.5", 1.5),
        ("drain.timeout", "200ms", 0.2),
        ("limits.max_frame", "128KiB", 131072),
        ("routing.load_factor", "2", 2.0),
        ("admin.listen", "localhost:0", Address("localhost", 0)),
    ],
)
def test_environment_values(name, text, expected):
    settings = build({}, {**HOME, SETTINGS[name].variable: text})
    assert settings.get(name) == expected


@given(st.integers(0, 10**7))
def test_durations_read_back_as_shown(milliseconds):
    assert round(parse_duration(show_duration(milliseconds / 1000)) * 1000) == milliseconds


@given(st.integers(0, 10**12))
def test_sizes_read_back_as_shown(count):
    assert size().read(show_size(count)) == count


@given(st.text(max_size=40) | st.from_regex(r"[\[\]a-f0-9:.%]{1,20}:[0-9]{1,6}", fullmatch=True))
def test_any_text_is_an_address_that_reads_back_or_a_value_error(text):
    try:
        address = parse_address(text)
    except ValueError:
        return
    assert parse_address(str(address)) == address


# --- secrets --------------------------------------------------------------------------------------


def test_secrets_come_from_the_environment_and_stay_out_of_reprs():
    environ = {
        **HOME,
        "COPILOT_GATEWAY_TOKEN": "hush-static",
        "COPILOT_GATEWAY_ADMIN_TOKEN": "hush-admin",
        "COPILOT_GATEWAY_REPLICA_TOKEN": "hush-replica",
        "COPILOT_GATEWAY_REPLICAS": "a:1",
        "COPILOT_GATEWAY_SPAWN_ENV": "KEY=hush-env",
        "COPILOT_GATEWAY_REGISTRY_URL": "redis://u:hush-url@h",
    }
    settings = Source(None, environ, {}).load()
    assert settings.auth.static_token == "hush-static"
    assert settings.admin.token == "hush-admin"
    assert settings.replicas[0].token == "hush-replica"
    assert settings.spawn.env == (("KEY", "hush-env"),)
    assert set(settings.secrets()) == {"hush-static", "hush-admin", "hush-replica", "hush-url"}
    assert "hush" not in repr(settings)
    assert "hush" not in repr(settings.source)
    assert "hush" not in repr(settings.replicas)


def test_a_secret_in_the_file_is_refused_without_being_shown():
    message = error_of({"auth": {"static_token": "hush"}})
    assert "set COPILOT_GATEWAY_TOKEN in the environment" in message
    assert "hush" not in message


@pytest.mark.parametrize(
    "environ",
    [
        {"COPILOT_GATEWAY_TOKEN": "hush hush\n"},
        {"COPILOT_GATEWAY_TOKEN": "hüsh-hush"},
        {"COPILOT_GATEWAY_REPLICA_TOKEN": " hush"},
        {"COPILOT_GATEWAY_REGISTRY_URL": "http://u:hush@h"},
        {"COPILOT_GATEWAY_SPAWN_ENV": "hush"},
    ],
)
def test_bad_secrets_are_named_not_quoted(environ):
    message = error_of(environ=environ)
    assert next(iter(environ)) in message
    assert "hush" not in message


def test_passwords_in_urls_are_masked():
    assert redact_url("redis://u:p@h:1/2") == "redis://u:***@h:1/2"
    assert redact_url("redis://:p@[::1]:1/2") == "redis://:***@[::1]:1/2"
    assert redact_url("sqlite:///a/b") == "sqlite:///a/b"


# --- replicas -------------------------------------------------------------------------------------


def test_replicas_of_the_file():
    environ = {
        **HOME,
        "COPILOT_GATEWAY_REPLICA_TOKEN": "common",
        "A_TOKEN": "special",
        "COPILOT_GATEWAY_B_TOKEN": "named-like-ours",
    }
    entries = [
        {"address": "10.0.0.1:4321"},
        {"name": "a", "address": "[::1]:4321", "token_env": "A_TOKEN"},
        {"name": "b", "address": "b:1", "token_env": "COPILOT_GATEWAY_B_TOKEN"},
        {"name": "c", "address": "c:1", "token_file": "/run/c"},
    ]
    unnamed, a, b, c = build({"replicas": entries}, environ).replicas
    assert (unnamed.name, unnamed.token) == ("10.0.0.1:4321", "common")
    assert (a.name, a.address, a.token) == ("a", Address("::1", 4321), "special")
    assert b.token == "named-like-ours"
    assert c.token_file == Path("/run/c")


def test_replica_flags_replace_those_of_the_file():
    settings = build({"replicas": [{"address": "x:1"}]}, HOME, {"replicas": ["one=a:1", "[::1]:2"]})
    assert [(one.name, str(one.address)) for one in settings.replicas] == [
        ("one", "a:1"),
        ("[::1]:2", "[::1]:2"),
    ]
    assert settings.origins["replicas"] == "flag"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({}, "replicas[0] (address) must be a string"),
        ({"address": "a"}, 'replicas[0] ("a") must be [NAME=]HOST:PORT'),
        ({"address": "a:0"}, 'replicas[0] ("a:0") must have a port above 0'),
        ({"address": "a:1", "name": "a b"}, 'replicas[0] ("a:1") must have a name of'),
        ({"address": "a:1", "token_env": "NOPE"}, "replicas[0]: the environment has no NOPE"),
        ("a:1", "replicas[0] must be a table"),
    ],
)
def test_bad_replicas(entry, expected):
    assert error_of({"replicas": [entry]}).startswith(f"gateway.toml: {expected}")


# --- contradictions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"spawn.count": "0"}, "no replicas"),
        ({"replicas": ["a=x:1", "a=y:1"]}, "two replicas have the name a"),
        ({"replicas": ["cli-1=x:1"], "spawn.count": "2"}, "two replicas have the name cli-1"),
        ({"replicas": ["a=x:1", "b=x:1"]}, "replicas a and b have the same address x:1"),
        ({"auth.mode": "none", "server.listen": ["127.0.0.1:1", "0.0.0.0:1"]}, "reaches 0.0.0.0:1"),
        ({"auth.mode": "none", "server.listen": ["[::]:1"]}, "reaches [::]:1"),
        (
            {"auth.mode": "none", "server.listen": ["gateway.example:1"]},
            "reaches gateway.example:1",
        ),
        ({"registry.url": "memory://", "server.workers": "2"}, "one worker only"),
        ({"flow.low_water": "2MiB"}, "flow.low_water must not be above flow.high_water"),
        ({"health.ban_base": "1h"}, "health.ban_base must not be above health.ban_max"),
    ],
)
def test_contradictions_are_refused(flags, expected):
    settings = build({}, HOME, {"spawn.count": "1", **flags})
    with pytest.raises(ConfigError, match=re.escape(expected)):
        check(settings)


@pytest.mark.parametrize(
    "flags",
    [
        {"server.listen": ["127.0.0.1:1", "[::1]:1", "localhost:1", "127.8.8.8:1"]},
        {"server.listen": ["0.0.0.0:1"], "auth.insecure": True},
    ],
)
def test_no_authentication_is_allowed_on_loopback_or_when_insisted_on(flags):
    check(build({}, HOME, {"spawn.count": "1", "auth.mode": "none", **flags}))


# --- places ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "state"),
    [
        ({"HOME": "/h"}, "/h/.local/state/copilot-gateway"),
        ({"HOME": "/h", "XDG_STATE_HOME": "/x"}, "/x/copilot-gateway"),
        ({"HOME": "/h", "XDG_STATE_HOME": "relative"}, "/h/.local/state/copilot-gateway"),
        ({"HOME": "/h", "COPILOT_GATEWAY_SERVER_STATE_DIR": "/s"}, "/s"),
    ],
)
def test_what_has_no_place_of_its_own_lies_in_the_state_directory(environ, state):
    settings = build({}, environ)
    assert settings.server.state_dir == Path(state)
    assert settings.auth.token_file == Path(state) / "tokens.json"
    assert settings.registry.url == f"sqlite://{state}/registry.db"


def test_paths_are_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/h")
    settings = build({"auth": {"token_file": "t.json"}, "server": {"state_dir": "~/s"}}, HOME)
    assert settings.auth.token_file == tmp_path / "t.json"
    assert settings.server.state_dir == Path("/h/s")


# --- the file, reloads ----------------------------------------------------------------------------


def test_a_source_loads_again_what_changed(tmp_path):
    file = tmp_path / "gateway.toml"
    file.write_text("[drain]\ntimeout = 1\n[server]\nworkers = 1\n")
    old = Source(file, HOME, {"spawn.count": "1"}).load()
    file.write_text('[drain]\ntimeout = 2\n[server]\nworkers = 2\n[[replicas]]\naddress = "a:1"\n')
    assert old.source is not None
    new, restart = reloaded(old, old.source.load())
    assert new.drain.timeout == 2.0
    assert [one.name for one in new.replicas] == ["a:1"]
    assert restart == ["server.workers"]
    assert new.server.workers == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot read .*: No such file or directory"),
        (b"[server\n", "not valid TOML: .*line 1"),
        (b"\xff", "not UTF-8 text"),
        (b"[zzz]", "gateway.toml: unknown section zzz"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, content, expected):
    file = tmp_path / "gateway.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=expected) as caught:
        Source(file, HOME, {}).load()
    assert str(file) in str(caught.value)


# --- what is written from the definitions ---------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "content"),
    [(pages.REFERENCE, pages.reference_page), (pages.EXAMPLE, pages.example_file)],
)
def test_written_pages_are_up_to_date(path, content):
    assert (ROOT / path).read_text("utf-8") == content(), "run `python -m gateway.cli.pages`"


def test_the_example_file_changes_nothing_as_it_is():
    assert Source(ROOT / pages.EXAMPLE, HOME, {}).load() == build({}, HOME)


def test_the_example_file_shows_every_default():
    text = (ROOT / pages.EXAMPLE).read_text("utf-8")
    uncommented = re.sub(r"(?m)^#(?! )", "", text)
    document = tomllib.loads(uncommented)
    assert set(document.pop("replicas")[0]) == set(REPLICA_KEYS)
    document["auth.jwt"] = document["auth"].pop("jwt")
    for name in TABLES:
        section, _, key = name.rpartition(".")
        assert (document[section] if section else document).pop(key), name
    shown = {f"{section}.{key}" for section, table in document.items() for key in table}
    assert shown == {name for name, one in SETTINGS.items() if one.in_file}
    document["auth"]["jwt"] = document.pop("auth.jwt")
    assert build(document, HOME) == build({}, HOME)


def test_the_tables_of_the_example_file_are_valid():
    text = (ROOT / pages.EXAMPLE).read_text("utf-8")
    settings = build(tomllib.loads(re.sub(r"(?m)^#(?! )", "", text)), {**HOME, "CLI_A_TOKEN": "x"})
    for name in TABLES:
        assert len(settings.get(name)) == 1, name


def test_sections_of_settings_are_those_of_the_file():
    for section, owner in SECTIONS.items():
        assert type(getattr(Settings(), section.replace(".", "_"))) is owner

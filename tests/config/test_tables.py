"""Settings that are tables of the file: listeners, tenants, rules."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from gateway.app.policies import check_policies, param_rules, secrets_of, tenant_rules
from gateway.config import Settings, build, check, reloaded
from gateway.config.kinds import Address, SecretRef
from gateway.errors import ConfigError
from gateway.policy.quotas import QuotaLimits
from gateway.types import Identity, Role

HOME = {"HOME": "/home/someone"}
REPLICA = '[[replicas]]\naddress = "a:1"\n'


def settings_of(text: str, **environ: str) -> Settings:
    return build(tomllib.loads(text), {**HOME, **environ}, {}, "gateway.toml")


def error_of(text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        settings = settings_of(REPLICA + text, **environ)
        check(settings)
        check_policies(settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_listener_in_full() -> None:
    (one,) = settings_of("""
        [[listeners]]
        name = "lab"
        address = "10.0.0.1:4321"
        networks = ["10.0.0.0/8", "::1"]
        tls = { certificate = "/c.pem", key = "/k.pem" }
        identity = { tenant = "lab", user = "all", role = "admin" }
        proxy_protocol = true
        proxy_networks = ["10.0.0.7"]
    """).listeners
    assert (one.name, one.address, one.label) == ("lab", Address("10.0.0.1", 4321), "lab")
    assert one.networks == ("10.0.0.0/8", "::1")
    assert one.tls is not None and one.tls.certificate == Path("/c.pem")
    assert one.tls.require_client_certificate
    assert one.identity is not None and one.identity.role == "admin"


def test_listeners_replace_the_default_address_and_join_a_chosen_one() -> None:
    listener = '[[listeners]]\naddress = "a:1"\n'
    assert settings_of("").addresses == (Address("127.0.0.1", 4321),)
    assert settings_of(listener).addresses == (Address("a", 1),)
    both = settings_of('[server]\nlisten = ["b:2"]\n' + listener)
    assert both.addresses == (Address("b", 2), Address("a", 1))


def test_tenants_become_rules() -> None:
    rules = tenant_rules(
        settings_of("""
        [[tenants]]
        name = "acme"
        sessions = "shared"
        limits = { connections = 5, bytes_per_second = "1MiB" }
        user_limits = { messages_per_second = 2.5, max_frame = "64KiB" }
        [[tenants]]
        name = "*"
    """)
    )
    assert rules["acme"].shared_sessions
    assert rules["acme"].limits == QuotaLimits(connections=5, bytes_per_second=1 << 20)
    assert rules["acme"].user_limits == QuotaLimits(messages_per_second=2.5, max_frame=1 << 16)
    assert not rules["*"].shared_sessions


CREDENTIALS = """
    [[policy.params]]
    tenants = ["acme"]
    roles = ["user"]
    force = { mode = "empty", infinite = { enabled = false } }
    forbid = ["mcpServers"]
    models = []
    root = "/srv/{tenant}"
    [policy.params.credentials]
    gitHubToken = { env = "ACME_GITHUB" }
    [policy.params.credentials.provider]
    type = "openai"
    baseUrl = "https://models.example"
    apiKey = { file = "%s" }
    headers = { X-Team = { env = "ACME_TEAM" } }
"""


def test_credentials_come_from_files_and_variables(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("hush-key\n")
    settings = settings_of(CREDENTIALS % key, ACME_GITHUB="hush-github", ACME_TEAM="hush-team")
    (rule,) = param_rules(settings)
    assert rule.credentials == {
        "gitHubToken": "hush-github",
        "provider": {
            "type": "openai",
            "baseUrl": "https://models.example",
            "apiKey": "hush-key",
            "headers": {"X-Team": "hush-team"},
        },
    }
    assert rule.models == () and rule.tools is None
    assert rule.applies_to(Identity("acme", "a", Role.USER))
    assert "hush" not in repr(settings)
    assert {"hush-github", "hush-team", "hush-key"} <= set(secrets_of(settings))


def test_a_changed_secret_file_is_read_by_the_next_reload(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("first-key")
    settings = settings_of(CREDENTIALS % key, ACME_GITHUB="g", ACME_TEAM="t")
    assert param_rules(settings)[0].credentials["provider"]["apiKey"] == "first-key"
    key.write_text("other-key")
    assert param_rules(settings)[0].credentials["provider"]["apiKey"] == "other-key"


@pytest.mark.parametrize(
    "line",
    [
        'gitHubToken = "hush"',
        'provider = { apiKey = "hush" }',
        'provider = { bearerToken = "hush" }',
        'providers = [{ apiKey = "hush" }]',
        'provider = { headers = { Authorization = "hush" } }',
    ],
)
def test_a_credential_in_the_file_is_refused_without_being_shown(line: str) -> None:
    message = error_of(f"[[policy.params]]\n[policy.params.credentials]\n{line}\n")
    assert "must not hold the secret" in message
    assert "hush" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[listeners]\n", "listeners must be a list of tables: [[listeners]]"),
        ("[[listeners]]\n", "listeners[0] lacks address"),
        ('[[listeners]]\naddress = "x"\n', 'listeners[0] address must be HOST:PORT'),
        ('[[listeners]]\naddress = "a:1"\nport = 1\n', "listeners[0] has an unknown key port"),
        (
            '[[listeners]]\naddress = "a:1"\nnetworks = ["10.0.0.1/8"]\n',
            "listeners[0] networks must be a network such as",
        ),
        (
            '[[listeners]]\naddress = "a:1"\ntls = { certificate = "/c" }\n',
            "listeners[0] tls lacks key",
        ),
        (
            '[[listeners]]\naddress = "a:1"\nidentity = { tenant = "t", user = "u" }\n',
            "identity needs networks",
        ),
        (
            '[[listeners]]\naddress = "a:1"\nproxy_protocol = true\n',
            "proxy_protocol and proxy_networks need each other",
        ),
        (
            '[[listeners]]\naddress = "a:1"\ncertificate_identity = { tenant = "t", user = "u" }\n',
            "certificate_identity needs tls with client_ca",
        ),
        (
            '[[listeners]]\naddress = "a:1"\nname = "x"\n[[listeners]]\naddress = "a:2"\n'
            'name = "x"\n',
            "two listeners have the name x",
        ),
        (
            '[[listeners]]\naddress = "a:1"\ntls = { certificate = "/nope", key = "/nope" }\n',
            "TLS certificate /nope: No such file",
        ),
        ('[[tenants]]\nname = "a"\nlimits = { turn = 1 }\n', "limits has an unknown key turn; did"),
        (
            '[[tenants]]\nname = "a"\nlimits = { turns = -1 }\n',
            "tenants[0] limits turns must be at least 0, not -1",
        ),
        ('[[tenants]]\nname = "a"\n[[tenants]]\nname = "a"\n', "two entries of tenants"),
        ('[[policy.methods]]\neffect = "deny"\n', "policy.methods[0] lacks methods"),
        (
            '[[policy.methods]]\neffect = "no"\nmethods = ["x"]\n',
            'policy.methods[0] effect must be one of allow, deny, not "no"',
        ),
        (
            '[[policy.methods]]\neffect = "allow"\nmethods = ["runtime.shutdown"]\n',
            "cannot be allowed",
        ),
        ('[[policy.params]]\nroot = "work"\n', "policy.params[0]: root 'work' must be an absolute"),
        (
            '[[policy.params]]\nforce = { a = 1 }\nforbid = ["a"]\n',
            "policy.params[0]: param 'a' is both set and forbidden",
        ),
        (
            '[[policy.params]]\ncredentials = { gitHubToken = { env = "NOPE" } }\n',
            "policy.params[0].credentials: the environment has no NOPE",
        ),
        (
            '[[policy.params]]\ncredentials = { gitHubToken = { file = "/nope" } }\n',
            "policy.params[0].credentials: cannot read /nope",
        ),
        ('[[policy.params]]\ncredentials = { model = "x" }\n', "credentials 'model' is not one of"),
        ('[policy]\nisolation = "tenant"\n', "isolation other than shared and policy.tenant"),
        ('[policy]\ntenant = "a"\n', "isolation other than shared and policy.tenant"),
        (
            '[policy]\nisolation = "user"\ntenant = "a"\n',
            "policy.isolation = user and policy.user need each other",
        ),
        ('[auth.jwt]\naudience = "a"\n', "auth.jwt.issuer is not set"),
        ('[auth.jwt]\nissuer = "i"\n', "auth.jwt.audience must be set"),
        ('[auth.jwt]\nissuer = "i"\naudience = "a"\n', "either jwks_url or jwks_file"),
        (
            '[auth.jwt]\nissuer = "i"\naudience = "a"\njwks_url = "http://far.example/k"\n',
            "jwks_url must be https",
        ),
        (
            '[auth.jwt]\nissuer = "i"\naudience = "a"\njwks_url = "https://e/k"\n'
            'algorithms = ["HS256"]\n',
            "algorithm 'HS256' is not accepted",
        ),
        (
            '[auth]\nmode = "none"\n[[listeners]]\naddress = "0.0.0.0:1"\n',
            "reaches 0.0.0.0:1",
        ),
        ("[auth.jwd]\n", "unknown setting auth.jwd"),
        ("[auth.jwt]\nissuers = 1\n", "unknown setting auth.jwt.issuers"),
    ],
)  # fmt: skip
def test_mistakes_are_named(text: str, expected: str) -> None:
    assert expected in error_of(text)


def test_a_reload_takes_tenants_and_rules_and_names_listeners() -> None:
    old = settings_of("")
    new = settings_of("""
        [[tenants]]
        name = "a"
        [[policy.methods]]
        effect = "deny"
        methods = ["x"]
        [[listeners]]
        address = "a:1"
    """)
    result, restart = reloaded(old, new)
    assert result.tenants == new.tenants
    assert result.policy.methods == new.policy.methods
    assert result.listeners == ()
    assert restart == ["server.listen", "listeners"]


def test_a_variable_that_a_credential_names_may_look_like_a_setting() -> None:
    rule = '[[policy.params]]\ncredentials = { gitHubToken = { env = "COPILOT_GATEWAY_GH" } }\n'
    (one,) = settings_of(rule, COPILOT_GATEWAY_GH="x").policy.params
    assert one.credentials == {"gitHubToken": SecretRef("COPILOT_GATEWAY_GH", value="x")}

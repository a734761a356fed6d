from __future__ import annotations

import pytest

from gateway.errors import ConfigError
from gateway.policy.listener_identity import ListenerRule, listener_identity, parse_networks
from gateway.types import Identity, Role

RULE = ListenerRule(
    name="internal",
    tenant="acme",
    user="batch",
    networks=parse_networks("listener.networks", ["10.1.0.0/16", "192.0.2.7", "2001:db8::/32"]),
)


@pytest.mark.parametrize(
    "peer",
    ["10.1.0.1", "10.1.255.255", "192.0.2.7", "2001:db8::1", "::ffff:10.1.2.3", "2001:db8::1%eth0"],
)
def test_inside_the_networks_everybody_is_the_rules_identity(peer: str) -> None:
    expected = Identity("acme", "batch", Role.USER, None, "listener:internal")
    assert listener_identity(RULE, peer) == expected


@pytest.mark.parametrize(
    "peer",
    [
        "10.2.0.1",
        "192.0.2.8",
        "127.0.0.1",
        "2001:db9::1",
        "::ffff:10.2.0.1",
        "::10.1.2.3",
        "",
        "localhost",
        "10.1.0.1 ",
        "010.1.0.1",
        "10.1.0.1:80",
        None,
    ],
)
def test_outside_them_and_without_an_address_nobody_is(peer: str | None) -> None:
    assert listener_identity(RULE, peer) is None


def test_the_role_is_the_rules() -> None:
    networks = parse_networks("n", ["127.0.0.0/8"])
    identity = listener_identity(ListenerRule("ops", "t", "u", networks, Role.ADMIN), "127.0.0.1")
    assert identity is not None and identity.role is Role.ADMIN


@pytest.mark.parametrize("text", ["10.1.0.1/16", "10.0.0.0/33", "lan", "", "10.1.0.0-10.2.0.0"])
def test_a_bad_network_names_the_setting(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^listener\.networks: "):
        parse_networks("listener.networks", ["10.0.0.0/8", text])


def test_no_network_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        parse_networks("listener.networks", [])

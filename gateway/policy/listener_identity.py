"""Identity by place: a listener whose network is itself the proof of who connects. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from gateway.errors import ConfigError
from gateway.types import Identity, Role

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class ListenerRule:
    """What a connection to one listener proves.

    Attributes:
        name: the listener's name, for logs and the audit.
        tenant: tenant of everybody who connects there.
        user: user of everybody who connects there.
        role: role of everybody who connects there.
        networks: source networks that count; nobody outside them gets an identity.
    """

    name: str
    tenant: str
    user: str
    networks: tuple[Network, ...]
    role: Role = Role.USER


def parse_networks(setting: str, values: Iterable[str]) -> tuple[Network, ...]:
    """Read networks such as ``10.1.0.0/16`` or single addresses.

    Args:
        setting: name of the setting, for the error.
        values: the networks as written.

    Raises:
        ConfigError: one of them is not a network, or has bits set beyond its prefix.
    """
    networks: list[Network] = []
    for value in values:
        try:
            networks.append(ipaddress.ip_network(value))
        except ValueError as error:
            raise ConfigError(f"{setting}: {error}") from None
    if not networks:
        raise ConfigError(f"{setting}: give at least one network, such as 10.1.0.0/16")
    return tuple(networks)


def in_networks(networks: Iterable[Network], peer_address: str | None) -> bool:
    """Tell whether a peer's address lies in one of the networks.

    An IPv4 client of a dual-stack socket (``::ffff:10.0.0.1``) counts as the IPv4 address it is.
    A text that is no address, and a peer without one (a unix socket), lies in none.
    """
    if peer_address is None:
        return False
    try:
        address = ipaddress.ip_address(peer_address)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or ipaddress.IPv6Address(int(address))  # without its zone
    return any(address in network for network in networks)


def listener_identity(rule: ListenerRule, peer_address: str | None) -> Identity | None:
    """Return who a connection from ``peer_address`` is, or None if it is nobody.

    Args:
        rule: the listener's rule.
        peer_address: the client's IP address: the socket's, or the one a PROXY header states
            where the listener demands such a header.
    """
    if not in_networks(rule.networks, peer_address):
        return None
    return Identity(rule.tenant, rule.user, rule.role, None, f"listener:{rule.name}")

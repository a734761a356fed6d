from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ConfigError
from gateway.policy.certificate_identity import (
    CertificateMapping,
    FieldSelector,
    identity_from_certificate,
)
from gateway.types import Role
from tests.support.certificates import Authority


def select(text: str) -> FieldSelector:
    return FieldSelector.parse("tls.identity", text)


def decode(path: Path) -> dict[str, Any]:
    """A certificate as getpeercert() gives it after verification."""
    certificate: dict[str, Any] = ssl._ssl._test_decode_cert(str(path))  # type: ignore[attr-defined]
    return certificate


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_subject_names_become_tenant_and_user(authority: Authority) -> None:
    path, _ = authority.issue("c", [("O", "acme"), ("OU", "build"), ("CN", "ada")])
    certificate = decode(path)
    identity = identity_from_certificate(
        certificate, CertificateMapping(select("O"), select("CN"), select("OU:ops"))
    )
    assert identity is not None
    assert (identity.tenant, identity.user, identity.role) == ("acme", "ada", Role.USER)
    assert identity.expires_at == ssl.cert_time_to_seconds(certificate["notAfter"])
    assert identity.source == f"certificate:{certificate['serialNumber']}"


def test_an_organizational_unit_can_make_an_administrator(authority: Authority) -> None:
    path, _ = authority.issue("c", [("O", "acme"), ("OU", "ops"), ("OU", "x"), ("CN", "ada")])
    identity = identity_from_certificate(
        decode(path), CertificateMapping(select("O"), select("CN"), select("OU:ops"))
    )
    assert identity is not None and identity.role is Role.ADMIN


def test_a_spiffe_id_is_taken_apart(authority: Authority) -> None:
    path, _ = authority.issue("c", uris=["spiffe://example.org/ns/acme/sa/agent"])
    mapping = CertificateMapping(
        select(r"URI:spiffe://example\.org/ns/([^/]+)/sa/[^/]+"),
        select(r"URI:spiffe://example\.org/ns/[^/]+/sa/([^/]+)"),
    )
    identity = identity_from_certificate(decode(path), mapping)
    assert identity is not None and (identity.tenant, identity.user) == ("acme", "agent")


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://example.com/ns/acme/sa/agent",
        "spiffe://exampleXorg/ns/acme/sa/agent",
        "spiffe://example.org/ns/acme/sa/agent/more",
        "xspiffe://example.org/ns/acme/sa/agent",
        "spiffe://example.org/ns//sa/agent",
    ],
)
def test_a_pattern_must_match_the_whole_value(authority: Authority, uri: str) -> None:
    path, _ = authority.issue("c", uris=[uri])
    mapping = CertificateMapping(select(r"URI:spiffe://example\.org/ns/([^/]+)/sa/agent"), "u")
    assert identity_from_certificate(decode(path), mapping) is None


def test_dns_and_mail_names_and_fixed_names(authority: Authority) -> None:
    path, _ = authority.issue("c", dns=["ci.acme.test"], emails=["ada@acme.test"])
    certificate = decode(path)
    identity = identity_from_certificate(
        certificate, CertificateMapping("acme", select(r"DNS:(\w+)\.acme\.test"))
    )
    assert identity is not None and (identity.tenant, identity.user) == ("acme", "ci")
    identity = identity_from_certificate(
        certificate, CertificateMapping("acme", select(r"EMAIL:(.+)@acme\.test"))
    )
    assert identity is not None and identity.user == "ada"


def test_a_certificate_with_two_meanings_has_none(authority: Authority) -> None:
    two_names, _ = authority.issue("a", [("O", "acme"), ("CN", "ada"), ("CN", "root")])
    two_tenants, _ = authority.issue("b", [("O", "acme"), ("O", "other"), ("CN", "ada")])
    twice, _ = authority.issue("c", [("O", "acme"), ("O", "acme"), ("CN", "ada")])
    mapping = CertificateMapping(select("O"), select("CN"))
    assert identity_from_certificate(decode(two_names), mapping) is None
    assert identity_from_certificate(decode(two_tenants), mapping) is None
    assert identity_from_certificate(decode(twice), mapping) is not None


def test_a_certificate_without_the_field_is_nobody(authority: Authority) -> None:
    path, _ = authority.issue("c", [("CN", "ada")])
    assert identity_from_certificate(decode(path), CertificateMapping(select("O"), "u")) is None
    assert identity_from_certificate(decode(path), CertificateMapping("t", select("OU"))) is None


@pytest.mark.parametrize("certificate", [None, {}])
def test_no_certificate_is_nobody_even_where_names_are_fixed(certificate: Any) -> None:
    assert identity_from_certificate(certificate, CertificateMapping("t", "u")) is None


def test_unprintable_names_are_refused() -> None:
    certificate = {
        "subject": ((("commonName", "ada\x00root"),),),
        "notAfter": "Jan  1 00:00:00 2030 GMT",
    }
    assert identity_from_certificate(certificate, CertificateMapping("t", select("CN"))) is None


@pytest.mark.parametrize("text", ["", "C", "subject", "CN:(", "cn"])
def test_a_bad_selector_names_the_setting(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^tls\.identity: "):
        select(text)

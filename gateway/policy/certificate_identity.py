"""Who a verified client certificate says a client is. Pure; :mod:`gateway.io.tls` verifies."""

from __future__ import annotations

import enum
import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.errors import ConfigError
from gateway.types import Identity, Role


class CertificateField(enum.StrEnum):
    """Where in a certificate a name may stand."""

    COMMON_NAME = "CN"
    ORGANIZATION = "O"
    ORGANIZATIONAL_UNIT = "OU"
    URI = "URI"
    DNS = "DNS"
    EMAIL = "EMAIL"


_SUBJECT_NAMES = {
    CertificateField.COMMON_NAME: "commonName",
    CertificateField.ORGANIZATION: "organizationName",
    CertificateField.ORGANIZATIONAL_UNIT: "organizationalUnitName",
}
_ALTERNATIVE_NAMES = {
    CertificateField.URI: "URI",
    CertificateField.DNS: "DNS",
    CertificateField.EMAIL: "email",
}


@dataclass(frozen=True, slots=True)
class FieldSelector:
    """One name out of a certificate.

    Attributes:
        field: where it stands.
        pattern: what the whole value must match; its first group is the name, or the whole value
            where it has none. None takes any value.
    """

    field: CertificateField
    pattern: re.Pattern[str] | None = None

    @classmethod
    def parse(cls, setting: str, text: str) -> FieldSelector:
        r"""Read a selector: ``CN``, or with a pattern ``URI:spiffe://example\.org/([^/]+)/.*``.

        Args:
            setting: name of the setting, for the error.
            text: the selector.

        Raises:
            ConfigError: no such field, or not a regular expression.
        """
        name, separator, pattern = text.partition(":")
        try:
            return cls(CertificateField(name), re.compile(pattern) if separator else None)
        except ValueError:
            known = ", ".join(CertificateField)
            raise ConfigError(f"{setting}: {name!r} is none of {known}") from None
        except re.error as error:
            raise ConfigError(f"{setting}: not a regular expression: {error}") from None

    def names(self, certificate: Mapping[str, Any]) -> set[str]:
        """Return every name it selects in a certificate as :meth:`ssl.SSLSocket.getpeercert`
        gives it."""
        found: set[str] = set()
        for value in _values(certificate, self.field):
            if self.pattern is None:
                found.add(value)
            elif match := self.pattern.fullmatch(value):
                found.add((match[1] or "") if self.pattern.groups else value)
        return found


@dataclass(frozen=True, slots=True)
class CertificateMapping:
    """How certificates become identities.

    Attributes:
        tenant: a selector, or the fixed tenant of every certificate.
        user: a selector, or the fixed user of every certificate.
        admin: certificates in which it selects anything are administrators; None makes none.
    """

    tenant: FieldSelector | str
    user: FieldSelector | str
    admin: FieldSelector | None = None


def identity_from_certificate(
    certificate: Mapping[str, Any] | None, mapping: CertificateMapping
) -> Identity | None:
    """Return who a verified certificate's bearer is, or None if the mapping does not say.

    A selector that finds two different names says nothing: a certificate must have one meaning.

    Args:
        certificate: the peer's certificate as :meth:`ssl.SSLSocket.getpeercert` gives it; empty or
            None where the peer showed none.
        mapping: how to read it.

    Returns:
        The identity; it ends when the certificate does.
    """
    if not certificate:
        return None
    tenant, user = _single(certificate, mapping.tenant), _single(certificate, mapping.user)
    if tenant is None or user is None:
        return None
    admin = mapping.admin is not None and bool(mapping.admin.names(certificate))
    return Identity(
        tenant,
        user,
        Role.ADMIN if admin else Role.USER,
        float(ssl.cert_time_to_seconds(certificate["notAfter"])),
        f"certificate:{certificate.get('serialNumber', '')}",
    )


def _single(certificate: Mapping[str, Any], selector: FieldSelector | str) -> str | None:
    if isinstance(selector, str):
        return selector
    names = selector.names(certificate)
    name = names.pop() if len(names) == 1 else ""
    return name if name and name.isprintable() else None


def _values(certificate: Mapping[str, Any], field: CertificateField) -> Iterator[str]:
    if field in _SUBJECT_NAMES:
        for relative_name in certificate.get("subject", ()):
            for name, value in relative_name:
                if name == _SUBJECT_NAMES[field]:
                    yield value
    else:
        for name, value in certificate.get("subjectAltName", ()):
            if name == _ALTERNATIVE_NAMES[field]:
                yield value

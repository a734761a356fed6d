"""A certificate for the length of a round: nobody verifies it, every proxy can load it."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_LIFETIME = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files in PEM form.

    Attributes:
        path: The certificate.
        key: Its private key, on P-256.
        combined: Both in one file, as HAProxy takes them.
    """

    path: Path
    key: Path
    combined: Path

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Make one and write it to ``folder``."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + _LIFETIME)
            .sign(key, hashes.SHA256())
        )
        texts = (
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )
        made = cls(folder / "tls.crt", folder / "tls.key", folder / "tls.pem")
        for path, text in zip(
            (made.path, made.key, made.combined), (*texts, b"".join(texts)), strict=True
        ):
            path.touch(mode=0o600)
            path.write_bytes(text)
        return made

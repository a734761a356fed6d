"""TLS on listeners and connections: contexts built from files, and listeners that reload theirs."""

from __future__ import annotations

import logging
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from gateway.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerTlsFiles:
    """The PEM files of a TLS listener.

    Attributes:
        certificate: the listener's certificate, intermediates after it.
        key: its private key, not encrypted; may be the same file.
        client_ca: authorities whose client certificates are accepted, or None not to ask for one.
        require_client_certificate: whether a client without a certificate is turned away in the
            handshake; where it is not, it may still prove who it is by a token.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    require_client_certificate: bool = True


def _refuse_encrypted_key() -> NoReturn:
    """Stand in for OpenSSL's prompt, which would wait for a terminal for ever."""
    raise ValueError("the private key is encrypted")


def _load_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    for what, path in (("certificate", certificate), ("private key", key)):
        _check_readable(what, path)
    try:
        context.load_cert_chain(certificate, key, password=_refuse_encrypted_key)
    except ValueError:
        raise ConfigError(f"TLS private key {key} is encrypted: give one without") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            text = f"TLS private key {key} does not belong to certificate {certificate}"
        else:
            text = f"TLS certificate {certificate} or private key {key} is not valid PEM"
        raise ConfigError(text) from None
    except OSError as error:
        raise ConfigError(f"TLS certificate {certificate}: {error.strerror}") from None


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    _check_readable("CA file", path)
    try:
        context.load_verify_locations(path)
    except (ssl.SSLError, OSError):
        raise ConfigError(f"TLS CA file {path} holds no valid PEM certificate") from None


def _check_readable(what: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"TLS {what} {path}: {error.strerror}") from None


def server_context(files: ServerTlsFiles) -> ssl.SSLContext:
    """Return a context for a listener: TLS 1.2 or later, client certificates as the files say.

    Raises:
        ConfigError: a file is missing, unreadable, no PEM, or does not fit the others.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    _load_certificate(context, files.certificate, files.key)
    if files.client_ca is not None:
        _load_authorities(context, files.client_ca)
        required = files.require_client_certificate
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
        # A resumed session would skip the check of a certificate whose authority has been removed
        # since; connections are long-lived, so resumption saves nothing anyway.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def client_context(
    ca: Path | None = None, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Return a context for a connection to a TLS server, whose certificate is always verified.

    Args:
        ca: authorities to trust instead of the system's.
        certificate: certificate to show, or None.
        key: its private key; may be left out where the certificate's file holds it.

    Raises:
        ConfigError: as for :func:`server_context`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca is not None:
        _load_authorities(context, ca)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if certificate is not None:
        _load_certificate(context, certificate, key or certificate)
    return context


class ServerTls:
    """A listener's TLS, renewed without touching its socket or its connections.

    The context given to the listener stays; at every handshake it hands over to the newest one, so
    that certificate, key and client authorities are all those of the last good reload. Handshakes
    that are done are not affected.

    Attributes:
        context: what to give to the listener, once.
    """

    def __init__(self, files: ServerTlsFiles) -> None:
        """Load the files.

        Raises:
            ConfigError: see :func:`server_context`.
        """
        self._files = files
        self._stamp = self._read_stamp()
        self._current = server_context(files)
        self.context = server_context(files)
        # Called at every handshake, also without a server name.
        self.context.sni_callback = self._hand_over

    def _hand_over(
        self, connection: ssl.SSLObject, _server_name: str | None, _context: ssl.SSLContext
    ) -> None:
        connection.context = self._current

    def reload(self) -> None:
        """Load the files anew for the handshakes to come.

        Raises:
            ConfigError: they are not usable; those loaded before stay in use.
        """
        stamp = self._read_stamp()
        self._current = server_context(self._files)
        self._stamp = stamp
        logger.info("reloaded TLS certificate %s", self._files.certificate)

    def reload_if_changed(self) -> bool:
        """Reload if a file has changed since the last good load; True if it did.

        A change that is not usable is logged and tried again by the next call: certificate and key
        are often replaced one after the other.
        """
        if self._read_stamp() == self._stamp:
            return False
        try:
            self.reload()
        except ConfigError as error:
            logger.warning("keeping the TLS certificate loaded before: %s", error)
            return False
        return True

    def _read_stamp(self) -> tuple[object, ...]:
        return tuple(
            _stamp(path)
            for path in (self._files.certificate, self._files.key, self._files.client_ca)
            if path is not None
        )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is written or replaced, or None if it cannot be read."""
    try:
        status = os.stat(path)  # noqa: PTH116 - follows links, as mounted secrets need
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size

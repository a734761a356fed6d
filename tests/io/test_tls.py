from __future__ import annotations

import asyncio
import inspect
import logging
import shutil
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.errors import EXIT_USAGE, ConfigError
from gateway.io.tls import ServerTls, ServerTlsFiles, client_context, server_context
from tests.support.certificates import Authority, write_key


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on the standard loop and on uvloop, whose TLS is its own."""

    def run(runner: Callable[[Coroutine[Any, Any, None]], None], **fixtures: Any) -> None:
        runner(test(**fixtures))

    signature = inspect.signature(test)
    runner = inspect.Parameter("runner", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), runner]
    )
    run.__name__ = test.__name__
    run.__dict__.update(test.__dict__)
    return pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])(
        run
    )


class EchoServer:
    """A TLS listener that tells each client the subject it sees, then echoes."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self.port = 0

    async def __aenter__(self) -> EchoServer:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, ssl=self._context, ssl_handshake_timeout=5
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        certificate = writer.get_extra_info("peercert") or {}
        writer.write(repr(certificate.get("subject")).encode() + b"\n")
        try:
            while data := await reader.read(100):
                writer.write(data)
        except (ConnectionError, ssl.SSLError):
            pass
        writer.close()


class Client:
    """A TLS client of :class:`EchoServer`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.server_serial = writer.get_extra_info("peercert")["serialNumber"]
        self.version = writer.get_extra_info("ssl_object").version()

    @classmethod
    async def connect(
        cls, port: int, context: ssl.SSLContext, name: str = "localhost"
    ) -> tuple[Client, str]:
        """Connect; return the client and the subject that the server saw."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname=name
        )
        client = cls(reader, writer)
        try:
            line = await reader.readline()
            if not line:
                raise ConnectionResetError("closed by the server")
        except (ssl.SSLError, ConnectionError):
            await client.close()
            raise
        return client, line.decode().strip()

    async def echo(self, data: bytes) -> bytes:
        self.writer.write(data)
        return await self.reader.readexactly(len(data))

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except (ConnectionError, ssl.SSLError):
            pass


def replace(pair: tuple[Path, Path], new: tuple[Path, Path]) -> None:
    """Replace certificate and key as a renewal tool does."""
    for old_path, new_path in zip(pair, new, strict=True):
        copy = old_path.with_suffix(".new")
        shutil.copy(new_path, copy)
        copy.replace(old_path)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"], ids=["sni", "no sni"])
@on_both_loops
async def test_new_certificate_serves_new_handshakes_and_old_connections_stay(
    tmp_path: Path, name: str
) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue_server()
    tls = ServerTls(ServerTlsFiles(*pair))
    trust = client_context(authority.path)
    async with EchoServer(tls.context) as server:
        before, _ = await Client.connect(server.port, trust, name)
        replace(pair, authority.issue_server("renewed"))
        assert tls.reload_if_changed()
        after, _ = await Client.connect(server.port, trust, name)
        assert after.server_serial != before.server_serial
        assert await before.echo(b"still here") == b"still here"
        assert not tls.reload_if_changed()
        await before.close()
        await after.close()


@on_both_loops
async def test_a_removed_client_authority_is_no_longer_trusted(tmp_path: Path) -> None:
    authority, old, new = (Authority(tmp_path, name) for name in ("ca", "old", "new"))
    trusted = tmp_path / "clients.pem"
    shutil.copy(old.path, trusted)
    tls = ServerTls(ServerTlsFiles(*authority.issue_server(), trusted))
    old_client = client_context(authority.path, *old.issue("one", [("O", "acme"), ("CN", "ada")]))
    new_client = client_context(authority.path, *new.issue("two", [("CN", "bob")]))
    async with EchoServer(tls.context) as server:
        client, subject = await Client.connect(server.port, old_client)
        assert "ada" in subject
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await Client.connect(server.port, new_client)
        shutil.copy(new.path, trusted)
        tls.reload()
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await Client.connect(server.port, old_client)
        second, subject = await Client.connect(server.port, new_client)
        assert "bob" in subject
        assert await client.echo(b"x") == b"x"
        await client.close()
        await second.close()


@on_both_loops
async def test_a_client_without_a_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue_server()
    trust = client_context(authority.path)
    strict = server_context(ServerTlsFiles(*pair, authority.path))
    async with EchoServer(strict) as server:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await Client.connect(server.port, trust)
    lenient = server_context(
        ServerTlsFiles(*pair, authority.path, require_client_certificate=False)
    )
    async with EchoServer(lenient) as server:
        client, subject = await Client.connect(server.port, trust)
        assert subject == "None"
        await client.close()


@on_both_loops
async def test_versions_before_1_2_are_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = server_context(ServerTlsFiles(*authority.issue_server()))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    async with EchoServer(context) as server:
        for version in ("TLSv1_2", "TLSv1_3"):
            trust = client_context(authority.path)
            trust.minimum_version = trust.maximum_version = ssl.TLSVersion[version]
            client, _ = await Client.connect(server.port, trust)
            assert client.version == version.replace("_", ".")
            await client.close()


@on_both_loops
async def test_the_servers_name_and_authority_are_verified(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    async with EchoServer(server_context(ServerTlsFiles(*authority.issue_server()))) as server:
        with pytest.raises(ssl.SSLCertVerificationError):
            await Client.connect(server.port, client_context(authority.path), "example.com")
        for trust in (client_context(other.path), client_context()):
            with pytest.raises(ssl.SSLCertVerificationError):
                await Client.connect(server.port, trust)


@on_both_loops
async def test_a_half_written_renewal_keeps_the_old_certificate_and_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue_server()
    tls = ServerTls(ServerTlsFiles(*pair))
    new = authority.issue_server("renewed")
    shutil.copy(new[0], pair[0])
    with caplog.at_level(logging.WARNING):
        assert not tls.reload_if_changed()
    assert "does not belong" in caplog.text
    async with EchoServer(tls.context) as server:
        client, _ = await Client.connect(server.port, client_context(authority.path))
        await client.close()
        shutil.copy(new[1], pair[1])
        assert tls.reload_if_changed()
        renewed, _ = await Client.connect(server.port, client_context(authority.path))
        assert renewed.server_serial != client.server_serial
        await renewed.close()


def test_bad_files_are_named_in_one_line(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue_server()
    _, other_key = authority.issue_server("other")
    junk = tmp_path / "junk.pem"
    junk.write_text("nothing")
    absent = tmp_path / "absent.pem"
    encrypted = write_key(ec.generate_private_key(ec.SECP256R1()), tmp_path / "enc.key", b"secret")
    cases = [
        (ServerTlsFiles(absent, key), f"TLS certificate {absent}: No such file"),
        (ServerTlsFiles(certificate, absent), f"TLS private key {absent}: No such file"),
        (ServerTlsFiles(tmp_path, key), "Is a directory"),
        (ServerTlsFiles(junk, key), "is not valid PEM"),
        (ServerTlsFiles(certificate, junk), "is not valid PEM"),
        (ServerTlsFiles(certificate, other_key), f"{other_key} does not belong"),
        (ServerTlsFiles(certificate, encrypted), f"{encrypted} is encrypted"),
        (ServerTlsFiles(certificate, key, absent), f"TLS CA file {absent}: No such file"),
        (ServerTlsFiles(certificate, key, junk), f"TLS CA file {junk} holds no"),
        (ServerTlsFiles(certificate, key, key), "holds no valid PEM certificate"),
    ]
    for files, expected in cases:
        with pytest.raises(ConfigError) as caught:
            server_context(files)
        text = str(caught.value)
        assert expected in text and "\n" not in text
        assert caught.value.exit_status == EXIT_USAGE
    with pytest.raises(ConfigError, match="CA file"):
        client_context(absent)

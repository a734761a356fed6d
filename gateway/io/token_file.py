"""The token file: edited by ``copilot-gateway token``, watched by the gateway.

The form of records is :mod:`gateway.policy.tokens`' business; this module reads and writes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from gateway.errors import ConfigError
from gateway.policy.tokens import TokenRecord, dump_records, ended, parse_records, verify
from gateway.types import Identity

log = logging.getLogger(__name__)

MAX_FILE = 64 << 20
"""Bytes; about 200,000 tokens. A larger file is a mistake, such as a path to something else."""

MAX_SECRET_FILE = 64 << 10
"""Bytes; a token takes less than a hundred, a JWT a few thousand."""


class TokenFileError(Exception):
    """The token file cannot be read or used; the message says why and names the file."""


def read_tokens(path: Path) -> dict[str, TokenRecord]:
    """Return the records of a token file by id; a file that does not exist holds none.

    Raises:
        TokenFileError: it cannot be read, anyone may write it, or its content is wrong.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise TokenFileError(f"{path}: not a regular file")
            if status.st_mode & stat.S_IWOTH:
                # Whoever can write the file can make an admin token.
                raise TokenFileError(f"{path}: anyone may write it: chmod 600 {path}")
            content = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise TokenFileError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > MAX_FILE:
        raise TokenFileError(f"{path}: larger than {MAX_FILE >> 20} MiB")
    try:
        return parse_records(json.loads(content))
    except (ValueError, RecursionError) as error:
        # JSON's errors say where, never what; those of parse_records hold no hash.
        raise TokenFileError(f"{path}: {error}") from None


@contextlib.contextmanager
def edit_tokens(path: Path) -> Iterator[dict[str, TokenRecord]]:
    """Change the token file: the records yielded, as changed by the body, replace it.

    Concurrent edits wait for each other. Readers see the old file or the new one, never a part,
    also after a power cut. If the body raises, nothing changes.

    Raises:
        TokenFileError: it cannot be read or written.
    """
    path = path.resolve()  # a link stays a link: what it points to is replaced
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The lock is on a file of its own, since replacing a file leaves its locks behind.
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise TokenFileError(f"cannot write {path}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        records = read_tokens(path)
        yield records
        try:
            _replace(path, records)
        except OSError as error:
            raise TokenFileError(f"cannot write {path}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _replace(path: Path, records: Mapping[str, TokenRecord]) -> None:
    content = json.dumps(dump_records(records.values()), indent=2) + "\n"
    descriptor, name = tempfile.mkstemp(prefix=path.name + ".", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
            _keep_owner(path, file.fileno())
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)  # noqa: PTH105 - the name is what mkstemp returned
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)  # noqa: PTH108
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _keep_owner(path: Path, descriptor: int) -> None:
    """Leave the file to its owner when root edits it: the gateway may run as that owner."""
    if os.geteuid() != 0:
        return
    with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        os.fchown(descriptor, status.st_uid, status.st_gid)


def read_secret_file(path: Path, what: str) -> str:
    """Return the secret that a file holds, without the line end after it.

    Args:
        path: the file.
        what: what the secret is, for errors, such as ``admin.token_file``.

    Raises:
        ConfigError: the file cannot be read, or does not hold one printable line.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SECRET_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{what}: cannot read {path}: {error.strerror}") from None
    try:
        text = content.decode("ascii").strip()
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isprintable() or " " in text or len(content) > MAX_SECRET_FILE:
        raise ConfigError(f"{what}: {path} must hold one token and nothing else")
    return text


_Signature = tuple[int, int, int, int] | None


class TokenStore:
    """The records of a token file, kept up to date.

    Once loaded, the last good records stay in use while the file is broken or missing: an edit
    gone wrong must not lock everyone out. To end tokens, revoke or remove them in the file.

    Args:
        path: the token file; it may come to exist later.
        on_ended: called with the ids of tokens that were good and are so no longer (revoked,
            removed, changed, expired), so that connections that rest on them can be closed.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        path: Path,
        on_ended: Callable[[frozenset[str]], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._on_ended = on_ended
        self._clock = clock
        self._records: dict[str, TokenRecord] = {}
        self._checked_at = clock()
        # What the file looked like when it was last read, well or badly; None while missing.
        self._signature: _Signature = None
        self._complaint = ""

    def __repr__(self) -> str:
        return f"TokenStore({str(self._path)!r}, {len(self._records)} tokens)"

    @property
    def records(self) -> Mapping[str, TokenRecord]:
        """The records in use, by id."""
        return self._records

    def load(self) -> None:
        """Read the file at start-up.

        Raises:
            ConfigError: the file is there and cannot be used.
        """
        self._checked_at = self._clock()
        self._signature = self._look()
        try:
            self._records = read_tokens(self._path)
        except TokenFileError as error:
            raise ConfigError(str(error)) from None
        log.info("tokens loaded", extra={"file": str(self._path), "tokens": len(self._records)})

    def verify(self, presented: object) -> Identity | None:
        """Return who presents a token, or None."""
        return verify(self._records, presented, self._clock())

    def reload(self) -> bool:
        """Read the file again, whether or not it seems to have changed; True if that worked.

        A failure is logged, once as long as it stays the same.
        """
        self._signature = self._look()
        records = self._records
        complaint = ""
        if self._signature is None:
            if records:
                complaint = f"{self._path} is gone"
        else:
            try:
                records = read_tokens(self._path)
            except TokenFileError as error:
                complaint = str(error)
        if complaint and complaint != self._complaint:
            log.error("the last good tokens stay in use", extra={"reason": complaint})
        elif not complaint:
            log.info("tokens loaded", extra={"file": str(self._path), "tokens": len(records)})
        self._complaint = complaint
        self._adopt(records)
        return not complaint

    def poll(self) -> None:
        """Read the file if it changed, and end what has expired since the last call."""
        if self._look() != self._signature:
            self.reload()
        else:
            self._adopt(self._records)

    async def watch(self, interval: float) -> None:
        """Call :meth:`poll` every ``interval`` seconds until cancelled."""
        while True:
            await asyncio.sleep(interval)
            try:
                self.poll()
            except Exception:
                # One bad round, such as a callback that fails, must not end the watch: later
                # revocations depend on it.
                log.exception("token watch failed")

    def _adopt(self, records: dict[str, TokenRecord]) -> None:
        now = self._clock()
        gone = ended(self._records, records, self._checked_at, now)
        self._records = records
        self._checked_at = now
        if gone:
            log.info("tokens ended", extra={"tokens": sorted(gone)})
            self._on_ended(gone)

    def _look(self) -> _Signature:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns

"""The audit log: one harmless line per record, rotation, overflow, failing disks."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.core.ports import Audit
from gateway.core.stats import Stats
from gateway.errors import EXIT_UNAVAILABLE, StartupError
from gateway.io.audit import MAX_VALUE_LENGTH, AuditLog
from gateway.types import Identity, Role

ANN = Identity("acme", "ann", Role.ADMIN, source="token:k1")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


class _Gate(AuditLog):
    """An audit log whose disk stands still until told otherwise."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.writing = threading.Event()
        self.go_on = threading.Event()
        super().__init__(*args, **kwargs)

    def _write(self, data: bytes) -> None:
        self.writing.set()
        assert self.go_on.wait(10)
        super()._write(data)


def test_a_record_is_one_line_with_who_what_and_where(tmp_path: Path) -> None:
    log = AuditLog(str(tmp_path / "audit.log"))
    log.record(
        "session.fork",
        identity=ANN,
        peer="10.0.0.1:5000",
        session="s1",
        target="s2",
        replica="cli-0",
        method="sessions.fork",
        outcome="ok",
    )
    log.record("auth", peer="10.0.0.2:1", outcome="failed", code=-32002, reason="wrong token")
    log.close()
    first, second = _lines(tmp_path / "audit.log")
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "event": "session.fork",
        "tenant": "acme",
        "user": "ann",
        "role": "admin",
        "source": "token:k1",
        "peer": "10.0.0.1:5000",
        "session": "s1",
        "target": "s2",
        "replica": "cli-0",
        "method": "sessions.fork",
        "outcome": "ok",
    }
    second.pop("time")
    assert second == {
        "event": "auth",
        "peer": "10.0.0.2:1",
        "outcome": "failed",
        "code": -32002,
        "reason": "wrong token",
    }


def test_text_from_clients_is_escaped_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(str(path))
    evil = 'a\n{"event":"auth"}\x1b[2J\x7f\x9b\u2028\u202e\ud800"\\'
    log.record("method.denied", method=evil, session="s" * 5000)
    log.close()
    raw = path.read_bytes()
    assert raw.count(b"\n") == 1
    assert all(0x20 <= byte < 0x7F for byte in raw[:-1])
    (record,) = _lines(path)
    assert record["method"] == evil
    assert record["session"] == "s" * MAX_VALUE_LENGTH


def test_what_is_not_a_known_field_is_named_but_not_written(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(str(path))
    log.record("auth", peer=None, token="hunter2", prompt="my secret", outcome="ok")
    log.close()
    assert "hunter2" not in path.read_text()
    (record,) = _lines(path)
    del record["time"]
    assert record == {"event": "auth", "outcome": "ok", "omitted": ["prompt", "token"]}


def test_values_of_any_type_are_written_as_text(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log: Audit = AuditLog(str(path))
    log.record("auth", identity="nobody", session=["a", 1], role=Role.USER, code=-1)
    assert isinstance(log, AuditLog)
    log.close()
    (record,) = _lines(path)
    assert (record["session"], record["role"], record["code"]) == ("['a', 1]", "user", -1)


def test_the_file_is_appended_to_and_private(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    for number in range(2):
        log = AuditLog(str(path))
        log.record("auth", session=str(number))
        log.close()
        log.close()
    assert [line["session"] for line in _lines(path)] == ["0", "1"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_rotation_keeps_so_many_files(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(str(path), max_bytes=1, keep=2)
    for number in range(5):
        # One record at a time: a batch is written as a whole.
        log.record("auth", session=str(number))
        _wait_written(path, str(number))
    log.close()
    assert _sessions(path) == ["4"]
    assert _sessions(tmp_path / "audit.log.1") == ["3"]
    assert _sessions(tmp_path / "audit.log.2") == ["2"]
    assert not (tmp_path / "audit.log.3").exists()


def test_rotation_may_keep_nothing(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(str(path), max_bytes=1, keep=0)
    for number in range(3):
        log.record("auth", session=str(number))
        _wait_written(path, str(number))
    log.close()
    assert _sessions(path) == ["2"]
    assert {entry.name for entry in tmp_path.iterdir()} == {"audit.log", "audit.log.lock"}


def _sessions(path: Path) -> list[str]:
    return [line["session"] for line in _lines(path)]


def _wait_written(path: Path, session: str) -> None:
    _until(lambda: path.exists() and session in _sessions(path))


def _until(condition: Callable[[], object]) -> None:
    """Wait for the writer thread."""
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_another_programs_rotation_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(str(path))
    log.record("auth", session="before")
    _wait_written(path, "before")
    path.rename(tmp_path / "moved")
    log.record("auth", session="after")
    log.close()
    assert _sessions(tmp_path / "moved") == ["before"]
    assert _sessions(path) == ["after"]


def test_reopen_makes_the_file_without_waiting_for_a_record(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(str(path))
    path.unlink()
    log.reopen()
    _until(path.exists)
    log.close()
    assert path.read_bytes() == b""


def test_overflow_is_counted_and_said(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    stats = Stats()
    log = _Gate(str(path), max_queued=3, stats=stats)
    log.record("auth", session="first")
    assert log.writing.wait(10)
    for number in range(5):
        log.record("auth", session=str(number))
    assert log.lost == stats.audit_lost == 2
    log.go_on.set()
    log.close()
    *records, gap = _lines(path)
    assert [record["session"] for record in records] == ["first", "0", "1", "2"]
    assert (gap["event"], gap["reason"]) == ("audit.gap", "2 records lost")


def test_a_full_disk_loses_records_not_the_gateway(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    log = AuditLog("/dev/full")
    with caplog.at_level(logging.ERROR):
        log.record("auth", session="x")
        log.close()
    assert log.lost == 1
    assert "audit log /dev/full: No space left on device" in caplog.text


def test_a_line_cut_short_does_not_spoil_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(str(path))
    real_write = os.write

    def disk_filling_up(fd: int, data: memoryview) -> int:
        if fd != log._fd:
            return real_write(fd, data)
        if path.stat().st_size:
            monkeypatch.setattr(os, "write", real_write)
            raise OSError(28, "No space left on device")
        return real_write(fd, data[:20])

    monkeypatch.setattr(os, "write", disk_filling_up)
    log.record("auth", session="torn")
    _until(lambda: log.lost)
    log.record("auth", session="whole")
    log.close()
    torn, *rest = path.read_text().splitlines()
    assert len(torn) == 20
    assert json.loads(rest[0])["session"] == "whole"
    assert json.loads(rest[1])["reason"] == "1 records lost"


def test_a_device_is_neither_rotated_nor_replaced() -> None:
    log = AuditLog("/dev/null", max_bytes=1)
    log.record("auth")
    log.close()
    assert log.lost == 0
    assert not Path("/dev/null.1").exists()


def test_records_after_the_close_are_counted(tmp_path: Path) -> None:
    log = AuditLog(str(tmp_path / "audit.log"))
    log.close()
    log.record("auth")
    assert log.lost == 1
    assert "1 lost" in repr(log)


def test_a_file_that_cannot_be_opened_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"audit log .*: No such file or directory") as caught:
        AuditLog(str(tmp_path / "missing" / "audit.log"))
    assert caught.value.exit_status == EXIT_UNAVAILABLE


def test_standard_output() -> None:
    program = (
        "from gateway.io.audit import AuditLog\n"
        "log = AuditLog('-'); log.record('auth', outcome='ok'); log.close(); print('still open')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    record, rest = done.stdout.splitlines()
    assert json.loads(record)["outcome"] == "ok"
    assert rest == "still open"


def _worker(path: str, name: str, count: int) -> None:
    log = AuditLog(path, max_bytes=2000, keep=1000)
    for number in range(count):
        log.record("auth", session=f"{name}-{number}")
    log.close()
    os._exit(1 if log.lost else 0)


def test_workers_share_a_file_and_its_rotation(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_worker, args=(str(path), name, 2000)) for name in ("a", "b")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    files = [entry for entry in tmp_path.iterdir() if not entry.name.endswith(".lock")]
    assert len(files) > 2
    sessions = [session for entry in files for session in _sessions(entry)]
    assert sorted(sessions) == sorted(f"{name}-{n}" for name in "ab" for n in range(2000))

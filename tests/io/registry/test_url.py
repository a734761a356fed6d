"""Which driver a URL names, and what it says of a Redis."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.io.registry import MemoryRegistry, RedisRegistry, SqliteRegistry, open_registry
from gateway.io.registry.redis_url import parse_redis_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory:", "<MemoryRegistry sessions=0>"),
        ("registry.db", "<SqliteRegistry registry.db>"),
        ("/var/lib/x y/registry.db", "<SqliteRegistry /var/lib/x y/registry.db>"),
        ("~/registry.db", f"<SqliteRegistry {Path.home()}/registry.db>"),
        ("sqlite:///var/lib/r.db", "<SqliteRegistry /var/lib/r.db>"),
        ("sqlite:////var/lib/r.db", "<SqliteRegistry //var/lib/r.db>"),
        ("sqlite:r%20x.db", "<SqliteRegistry r x.db>"),
        ("redis://h", "<RedisRegistry redis://h:6379 prefix=copilot-gateway>"),
        ("redis://u:pw@h:1/2?prefix=p", "<RedisRegistry redis://h:1 prefix=p>"),
        ("rediss://[::1]:1", "<RedisRegistry rediss://[::1]:1 prefix=copilot-gateway>"),
        ("unix:///run/redis.sock", "<RedisRegistry unix:///run/redis.sock prefix=copilot-gateway>"),
        (
            "redis+sentinel://:pw@a,b:2/main/3",
            "<RedisRegistry redis+sentinel://a:26379,b:2/main prefix=copilot-gateway>",
        ),
        (
            "rediss+cluster://a:1,b:2",
            "<RedisRegistry rediss+cluster://a:1,b:2 prefix=copilot-gateway>",
        ),
    ],
)
def test_accepted(url: str, shown: str) -> None:
    assert repr(open_registry(url)) == shown


def test_kinds() -> None:
    assert isinstance(open_registry("memory:"), MemoryRegistry)
    assert isinstance(open_registry("x"), SqliteRegistry)
    assert isinstance(open_registry("redis://h"), RedisRegistry)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/",
        "a\0b",
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite://host/path",
        "http://user:hunter2@h",
        "redis:h",
        "redis://[::1",
        "redis://:hunter2@[::1",
        "unix://[::1",
        "redis://",
        "redis://u:hunter2@",
        "redis://h:0",
        "redis://h:65536",
        "redis://h:port:hunter2",
        "redis://a,b",
        "redis://h/x",
        "redis://h/1/2",
        "redis://h?settle=-1",
        "redis://h?settle=nan",
        "redis://h?settle=soon",
        "redis://h?prefix={x}",
        "redis://h?prefix=",
        "redis://h?timeout=3",
        "redis://h?password_file=/does/not/exist",
        "redis://h?ca_file=/does/not/exist",
        "redis://h?db=-1",
        "redis+sentinel://:hunter2@a:1",
        "redis+sentinel://a:1/main/x",
        "redis+cluster://a:1/x",
        "redis+cluster://a:1?db=1",
        "unix://",
        "unix://host/path",
    ],
)
def test_refused_in_one_line_without_secrets(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_registry(url)
    message = str(caught.value)
    assert message.startswith("registry: ")
    assert "\n" not in message
    assert "hunter2" not in message


def test_parts_of_a_redis_url(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("from file\n")
    target = parse_redis_url(
        "rediss+sentinel://user:p%40ss%2F@a:1,[::1]:2,c/main/4"
        f"?prefix=x:y&settle=0.5&sentinel_password_file={secret}&ca_file={secret}"
    )
    assert target.kind == "sentinel"
    assert target.tls
    assert target.hosts == (("a", 1), ("::1", 2), ("c", 26379))
    assert (target.service, target.db) == ("main", 4)
    assert (target.username, target.password) == ("user", "p@ss/")
    assert target.sentinel_password == "from file"
    assert (target.prefix, target.settle, target.ca_file) == ("x:y", 0.5, str(secret))
    assert "p@ss" not in repr(target)
    assert "from file" not in repr(target)
    assert "p@ss" not in str(target)


def test_a_password_file_wins(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("from file\n")
    target = parse_redis_url(f"unix:///run/s%20x?db=3&password_file={secret}")
    assert (target.path, target.db, target.password) == ("/run/s x", 3, "from file")

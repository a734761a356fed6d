"""Pools, weights and backups in the file."""

from __future__ import annotations

import tomllib

import pytest

from gateway.config.kinds import SecretRef
from gateway.config.load import build, check
from gateway.config.settings import PoolSettings, Settings
from gateway.errors import ConfigError

ENV = {"HOME": "/home/me", "KEY": "hush-hush"}


def read(text: str) -> Settings:
    return build(tomllib.loads(text), ENV)


def pool(**keys: str) -> str:
    """One pool as TOML; values are TOML."""
    given = {"name": '"p"', "tenants": '["acme"]', **keys}
    return "\n".join(["[[pools]]", *(f"{key} = {value}" for key, value in given.items())])


OWN = {"isolation": '"user"'}
SHARED = {"replicas": '["cli-*"]'}
SPAWN = "[spawn]\ncount = 2\n"


def test_a_pool_with_all_keys() -> None:
    text = pool(
        **OWN, max_replicas="3", idle_timeout='"1m"', env='{ A = "x", B = { env = "KEY" } }'
    )
    settings = read(text)
    check(settings)
    (found,) = settings.pools
    assert found == PoolSettings(
        name="p",
        tenants=("acme",),
        isolation="user",
        max_replicas=3,
        idle_timeout=60.0,
        env={"A": "x", "B": SecretRef(env="KEY", value="hush-hush")},
    )
    assert "hush-hush" not in repr(settings)
    assert "hush-hush" in settings.secrets()


def test_pools_that_start_clis_need_no_other_replicas() -> None:
    check(read(pool(**OWN)))
    with pytest.raises(ConfigError, match="no replicas"):
        check(read(pool(**SHARED)))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (pool(name='"default"', **OWN), "the name is taken"),
        (pool(**OWN) + "\n" + pool(tenants='["best"]', **OWN), "the name is taken"),
        (pool(**OWN) + "\n" + pool(name='"q"', **OWN), "tenant acme belongs to pool p"),
        (pool(), "replicas must name some"),
        (pool(**OWN, **SHARED), "replicas does nothing with isolation = user"),
        (pool(**OWN, routing='"free"'), "routing does nothing"),
        (pool(**OWN, storage='"shared"'), "storage does nothing"),
        (pool(**SHARED, max_replicas="3"), "max_replicas does nothing with isolation = shared"),
        (pool(**SHARED, idle_timeout='"1m"'), "idle_timeout does nothing"),
        (pool(**SHARED, env='{ A = "x" }'), "env does nothing"),
        (pool(**OWN) + "\n[server]\nworkers = 2", r"needs server\.workers = 1"),
        (pool(isolation='"tenant"', env='{ A = { file = "/{user}" } }'), "serves a whole tenant"),
    ],
)
def test_contradictions(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        check(read(SPAWN + text))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (pool(name='"a/b"'), "name must be"),
        (pool(tenants="[]"), "tenants must"),
        (pool(isolation='"none"'), "isolation must be"),
        (pool(max_replicas="0"), "max_replicas must"),
        (pool(idle_timeout='"0s"'), "idle_timeout must"),
        (pool(env='{ "A B" = "x" }'), "names of environment variables"),
        (pool(env="{ A = 1 }"), "env "),
        (pool(env='{ A = { b = "x" } }'), "must name secrets as"),
        (pool(env='{ MY_API_KEY = "sk-very-secret" }'), "must not hold the secret MY_API_KEY"),
        (
            pool(env='{ A = { env = "MISSING" } }'),
            r"pools\[0\]\.env: the environment has no MISSING",
        ),
    ],
)
def test_bad_values(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        read(text)
    assert "sk-very-secret" not in str(caught.value)


def test_weights_and_backups() -> None:
    settings = read(
        """
        [[replicas]]
        address = "a:1"
        weight = 5
        [[replicas]]
        address = "b:1"
        backup = true
        """
    )
    assert [(one.weight, one.backup) for one in settings.replicas] == [(5, False), (1, True)]


@pytest.mark.parametrize("line", ["weight = 0", "weight = 257", 'weight = "a"', 'backup = "maybe"'])
def test_bad_weights_and_backups(line: str) -> None:
    with pytest.raises(ConfigError, match=rf"replicas\[0\]: {line.split(maxsplit=1)[0]} must"):
        read(f'[[replicas]]\naddress = "a:1"\n{line}\n')

"""What is measured: nothing, a blind TCP proxy, or the gateway, in front of stub replicas."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.certificate import Certificate
from bench.process import Process, free_port
from bench.results import BenchError

READY_LINE = r"copilot-gateway listening on port (\d+)\n"
CONNECTOR_READY_LINE = r"copilot-gateway connect listening on port (\d+)\n"

MAX_CONNECTIONS = 8000
"""Of each proxy: above the largest scenario, and within 20,000 descriptors at two each."""

_HAPROXY = """\
global
    nbthread 1
    maxconn {maximum}
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen replicas
    bind 127.0.0.1:{port} maxconn {maximum}{tls}
    balance roundrobin
{servers}
"""

_NGINX = """\
load_module {module};
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log warn;
events {{ worker_connections 18000; }}
stream {{
    upstream replicas {{
{servers}
    }}
    server {{
        listen 127.0.0.1:{port}{tls} backlog=4096;{certificate}
        proxy_pass replicas;
        proxy_timeout 1h;
    }}
}}
"""

_TLS_LISTENER = """\
[[listeners]]
address = "127.0.0.1:0"
tls = {{ certificate = "{certificate}", key = "{key}" }}
"""

SCRAPE_SECONDS = 1.0
"""Between two readings of the metrics; Prometheus takes fifteen by default."""

_NGINX_MODULES = (Path("/usr/lib/nginx/modules"), Path("/usr/lib64/nginx/modules"))


@dataclass(frozen=True, slots=True)
class Fleet:
    """What a target is put in front of, and where it may run.

    Attributes:
        replicas: Addresses of the replicas.
        replica_token: The token that they expect.
        client_token: The token that clients of the gateway present.
        cores: CPU cores for the target; ``None`` for any.
        load_cores: CPU cores for what is neither target nor client; ``None`` for any.
        directory: For configuration, state and logs.
        certificate: With which the target speaks TLS with clients; ``None`` for plain TCP.
    """

    replicas: tuple[str, ...]
    replica_token: str
    client_token: str
    cores: tuple[int, ...] | None
    load_cores: tuple[int, ...] | None
    directory: Path
    certificate: Certificate | None = None


@dataclass(frozen=True, slots=True)
class Deployed:
    """A target that is running.

    Attributes:
        addresses: Where clients connect, in turn.
        token: What they present.
        processes: The processes in the path, whose cost is measured.
    """

    addresses: tuple[str, ...]
    token: str
    processes: tuple[Process, ...] = ()


@contextmanager
def _direct(fleet: Fleet, options: Sequence[str]) -> Iterator[Deployed]:
    yield Deployed(fleet.replicas, fleet.replica_token)


@contextmanager
def _haproxy(fleet: Fleet, options: Sequence[str]) -> Iterator[Deployed]:
    port = free_port()
    servers = "\n".join(
        f"    server replica{number} {address}" for number, address in enumerate(fleet.replicas)
    )
    config = fleet.directory / "haproxy.cfg"
    tls = f" ssl crt {fleet.certificate.combined}" if fleet.certificate else ""
    config.write_text(_HAPROXY.format(maximum=MAX_CONNECTIONS, port=port, servers=servers, tls=tls))
    command = [_find("haproxy"), "-db", "-f", str(config)]
    with Process(command, cores=fleet.cores, log=fleet.directory / "haproxy.log") as process:
        process.await_port(port)
        yield Deployed((f"127.0.0.1:{port}",), fleet.replica_token, (process,))


@contextmanager
def _nginx(fleet: Fleet, options: Sequence[str]) -> Iterator[Deployed]:
    port = free_port()
    config = fleet.directory / "nginx.conf"
    servers = "\n".join(f"        server {address};" for address in fleet.replicas)
    tls = certificate = ""
    if fleet.certificate:
        tls = " ssl"
        certificate = (
            f"\n        ssl_certificate {fleet.certificate.path};"
            f"\n        ssl_certificate_key {fleet.certificate.key};"
        )
    config.write_text(
        _NGINX.format(
            module=_nginx_module(),
            directory=fleet.directory,
            servers=servers,
            port=port,
            tls=tls,
            certificate=certificate,
        )
    )
    command = [_find("nginx"), "-p", str(fleet.directory), "-c", str(config)]
    with Process(command, cores=fleet.cores, log=fleet.directory / "nginx.out") as process:
        process.await_port(port)
        yield Deployed((f"127.0.0.1:{port}",), fleet.replica_token, (process,))


@contextmanager
def _gateway(fleet: Fleet, options: Sequence[str]) -> Iterator[Deployed]:
    with start_gateway(fleet, options) as process:
        yield Deployed((f"127.0.0.1:{process.port}",), fleet.client_token, (process,))


@contextmanager
def _scraped_gateway(fleet: Fleet, options: Sequence[str]) -> Iterator[Deployed]:
    port = free_port()
    with (
        start_gateway(fleet, ("--admin", f"127.0.0.1:{port}", *options)) as process,
        _scraping(f"http://127.0.0.1:{port}/metrics"),
    ):
        yield Deployed((f"127.0.0.1:{process.port}",), fleet.client_token, (process,))


@contextmanager
def _scraping(url: str) -> Iterator[None]:
    """Read ``url`` every :data:`SCRAPE_SECONDS`, for the length of a ``with`` block.

    Raises:
        BenchError: It could not be read even once.
    """
    ended = threading.Event()
    read = 0

    def scrape() -> None:
        nonlocal read
        while not ended.wait(SCRAPE_SECONDS):
            try:
                with urllib.request.urlopen(url, timeout=10) as answer:
                    read += len(answer.read())
            except OSError:
                continue  # counted by what was read

    thread = threading.Thread(target=scrape, name="scrape")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if not read:
        raise BenchError(f"nothing could be read from {url}")


@contextmanager
def _redis_gateway(fleet: Fleet, options: Sequence[str]) -> Iterator[Deployed]:
    port = free_port()
    command = [_find("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    command += ["--dir", str(fleet.directory)]
    log = fleet.directory / "redis.log"
    with Process(command, cores=fleet.load_cores, log=log) as redis:
        redis.await_port(port)
        url = f"redis://127.0.0.1:{port}/0"
        with _gateway(fleet, ("--registry", url, *options)) as deployed:
            yield deployed


@contextmanager
def _connected_gateway(fleet: Fleet, options: Sequence[str]) -> Iterator[Deployed]:
    token = fleet.directory / "token"
    token.touch(mode=0o600)
    token.write_text(fleet.client_token)
    with start_gateway(fleet, options) as process:
        command = [sys.executable, "-m", "gateway.cli", "connect", "--listen", "127.0.0.1:0"]
        command += ["--gateway", f"127.0.0.1:{process.port}", "--token-file", str(token)]
        connector = Process(
            command,
            cores=fleet.cores,
            ready=CONNECTOR_READY_LINE,
            log=fleet.directory / "connector.log",
        )
        with connector:
            yield Deployed((f"127.0.0.1:{connector.port}",), "", (process, connector))


def start_gateway(fleet: Fleet, options: Sequence[str] = ()) -> Process:
    """Start a gateway with a registry of its own in front of ``fleet``."""
    command = [sys.executable, "-m", "gateway.cli", "serve", "--auth", "token", *options]
    if fleet.certificate is None:
        command += ["--listen", "127.0.0.1:0"]
    else:
        config = fleet.directory / "gateway.toml"
        config.write_text(
            _TLS_LISTENER.format(certificate=fleet.certificate.path, key=fleet.certificate.key)
        )
        command += ["--config", str(config)]
    for address in fleet.replicas:
        command += ["--replica", address]
    return Process(
        command,
        cores=fleet.cores,
        env={
            "COPILOT_GATEWAY_TOKEN": fleet.client_token,
            "COPILOT_GATEWAY_REPLICA_TOKEN": fleet.replica_token,
            "COPILOT_GATEWAY_SERVER_STATE_DIR": str(fleet.directory / "state"),
            "COPILOT_GATEWAY_LIMITS_MAX_CLIENTS": str(MAX_CONNECTIONS),
        },
        ready=READY_LINE,
        log=fleet.directory / "gateway.log",
    )


def _find(program: str) -> str:
    # Debian keeps servers where an ordinary user's PATH does not look.
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    found = shutil.which(program, path=path)
    if found is None:
        raise BenchError(f"{program} is not installed (Debian: apt install {program})")
    return found


def _nginx_module() -> Path:
    for folder in _NGINX_MODULES:
        module = folder / "ngx_stream_module.so"
        if module.exists():
            return module
    raise BenchError("nginx has no stream module (Debian: apt install libnginx-mod-stream)")


@dataclass(frozen=True, slots=True)
class Target:
    """Something that can stand between clients and replicas.

    Attributes:
        name: How it is called in scenarios and result files.
        title: For tables and plots.
        start: Runs it in front of a fleet for the length of a ``with`` block; takes ``options``.
        needs: Programs and modules to look for; each raises :class:`BenchError` if it is missing.
        options: Additional arguments of the program.
        subject: Whether it is ours: what the regression guard judges.
        cores: CPU cores that it can use.
    """

    name: str
    title: str
    start: Callable[[Fleet, Sequence[str]], AbstractContextManager[Deployed]]
    needs: tuple[Callable[[], object], ...] = ()
    options: tuple[str, ...] = ()
    subject: bool = False
    cores: int = 1

    def missing(self) -> str | None:
        """Why it cannot run on this machine, or ``None``."""
        try:
            for need in self.needs:
                need()
        except BenchError as error:
            return str(error)
        return None

    def deploy(self, fleet: Fleet) -> AbstractContextManager[Deployed]:
        """Run it in front of ``fleet`` for the length of a ``with`` block."""
        return self.start(fleet, self.options)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("direct", "direct", _direct),
        Target("haproxy", "HAProxy (TCP, 1 thread)", _haproxy, (lambda: _find("haproxy"),)),
        Target(
            "nginx", "nginx (stream, 1 worker)", _nginx, (lambda: _find("nginx"), _nginx_module)
        ),
        Target("gateway", "copilot-gateway", _gateway, subject=True),
        Target(
            "gateway-2-workers",
            "copilot-gateway, 2 workers",
            _gateway,
            options=("--workers", "2"),
            subject=True,
            cores=2,
        ),
        Target(
            "gateway-admin",
            "copilot-gateway, admin listener",
            _gateway,
            options=("--admin", "127.0.0.1:0"),
            subject=True,
        ),
        Target(
            "gateway-scraped",
            "copilot-gateway, metrics read each second",
            _scraped_gateway,
            subject=True,
        ),
        Target(
            "gateway-connector",
            "copilot-gateway behind its connector",
            _connected_gateway,
            subject=True,
        ),
        Target(
            "gateway-memory",
            "copilot-gateway, registry in memory",
            _gateway,
            options=("--registry", "memory://"),
            subject=True,
        ),
        Target(
            "gateway-redis",
            "copilot-gateway, registry in Redis",
            _redis_gateway,
            (lambda: _find("redis-server"),),
            subject=True,
        ),
    )
}

BASELINE = "haproxy"
"""The target that others are expressed as a ratio to."""

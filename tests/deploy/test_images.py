"""The Dockerfile and the compose file, held against the real programs (no container engine)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.cli.main import build_parser
from gateway.config.settings import SETTINGS
from tests.support.stack import real_cli

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = REPOSITORY / "Dockerfile"
COMPOSE = REPOSITORY / "deploy/compose.yaml"
LOCK = REPOSITORY / "deploy/cli/package-lock.json"

VARIABLES = {one.variable: name for name, one in SETTINGS.items()}
# Read by the gateway, yet not settings with a section.
OTHER_VARIABLES = {"COPILOT_GATEWAY_REPLICA_TOKEN"}


@dataclass
class Stage:
    """One FROM of a Dockerfile, with what the tests ask about."""

    image: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        return [value for word, value in self.instructions if word == keyword]

    def last(self, keyword: str) -> str:
        return self.all(keyword)[-1]

    @property
    def env(self) -> dict[str, str]:
        pairs = (pair for value in self.all("ENV") for pair in value.split())
        return dict(pair.split("=", 1) for pair in pairs)


def parse_dockerfile(text: str) -> list[Stage]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    stages: list[Stage] = []
    for instruction in re.split(r"(?<!\\)\n", "\n".join(lines)):
        word, _, value = instruction.replace("\\\n", " ").partition(" ")
        if word == "FROM":
            image, _, name = value.partition(" AS ")
            stages.append(Stage(image, name))
        else:
            stages[-1].instructions.append((word, value.strip()))
    return stages


def interpolate(value: Any) -> Any:
    """Replace compose's ``${NAME:?why}`` by the name, as a stand-in for its value."""
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)[^}]*\}", r"\1", value)
    if isinstance(value, list):
        return [interpolate(item) for item in value]
    if isinstance(value, dict):
        return {key: interpolate(item) for key, item in value.items()}
    return value


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    return parse_dockerfile(DOCKERFILE.read_text())


@pytest.fixture(scope="module")
def image(stages: list[Stage]) -> Stage:
    return stages[-1]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return interpolate(yaml.safe_load(COMPOSE.read_text()))["services"]


def accepted(arguments: list[str]) -> Any:
    """Parse a command line with the program's own parser; it exits if it does not like it."""
    return build_parser().parse_args(arguments)


def settings_with(env: dict[str, str], arguments: list[str]) -> dict[str, Any]:
    """Let the real program check an environment and print what it makes of it."""
    known = {name: value for name, value in env.items() if name.startswith("COPILOT_GATEWAY_")}
    unknown = set(known) - set(VARIABLES) - OTHER_VARIABLES
    assert not unknown, f"no such settings: {unknown}"
    accepted(arguments)
    return {VARIABLES[name]: value for name, value in known.items() if name in VARIABLES}


# --- Dockerfile --------------------------------------------------------------------------------


def test_parser_of_the_test() -> None:
    text = "FROM a AS b\n# no\nRUN x \\\n    && y\nFROM c\nENV A=1 \\\n    B=2\n"
    first, second = parse_dockerfile(text)
    assert (first.image, first.name, first.instructions) == ("a", "b", [("RUN", "x      && y")])
    assert second.env == {"A": "1", "B": "2"}


@pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64", reason="hadolint's wheels"
)
def test_hadolint() -> None:
    program = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([program, DOCKERFILE], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_command_line(image: Stage) -> None:
    program, *arguments = [*json.loads(image.last("ENTRYPOINT")), *json.loads(image.last("CMD"))]
    assert program == "copilot-gateway"
    accepted(arguments)


def test_program_is_on_the_path(stages: list[Stage], image: Stage) -> None:
    venv = "/opt/copilot-gateway"
    assert any(f"{venv}/bin/pip install" in run for run in stages[1].all("RUN"))
    assert f"--from=build {venv} {venv}" in image.all("COPY")
    assert image.env["PATH"].split(":")[0] == f"{venv}/bin"


def test_variables_are_settings(image: Stage) -> None:
    settings = settings_with(image.env, ["serve"])
    assert set(settings) == {"server.listen", "server.state_dir", "admin.listen"}


def test_ports_match(image: Stage) -> None:
    exposed = image.last("EXPOSE").split()
    listen = image.env["COPILOT_GATEWAY_SERVER_LISTEN"].rpartition(":")[2]
    admin = image.env["COPILOT_GATEWAY_ADMIN_LISTEN"].rpartition(":")[2]
    assert exposed == [listen, admin]
    assert f"http://127.0.0.1:{admin}/livez" in image.last("HEALTHCHECK")


def test_healthcheck_is_valid_python(image: Stage) -> None:
    command = json.loads(image.last("HEALTHCHECK").partition("CMD ")[2])
    assert command[:2] == ["python", "-c"]
    compile(command[2], "healthcheck", "exec")


def test_it_does_not_run_as_root_and_owns_its_volumes(image: Stage) -> None:
    uid = image.last("USER").split(":")[0]
    assert int(uid) > 0
    (setup,) = image.all("RUN")
    assert f"--uid {uid} " in setup
    for volume in json.loads(image.last("VOLUME")):
        assert volume in setup.split()
    assert image.env["COPILOT_GATEWAY_SERVER_STATE_DIR"] in json.loads(image.last("VOLUME"))
    assert image.env["COPILOT_HOME"] in json.loads(image.last("VOLUME"))


def test_copied_files_exist_and_are_in_the_context(stages: list[Stage]) -> None:
    kept = [
        line[1:]
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    names = {stage.name for stage in stages}
    copied = 0
    for stage in stages:
        for copy in stage.all("COPY"):
            if match := re.match(r"--from=(\S+) ", copy):
                assert match.group(1) in names
                continue
            for source in copy.split()[:-1]:
                assert (REPOSITORY / source).exists(), source
                assert any(Path(source).is_relative_to(keep) for keep in kept), source
                copied += 1
    assert copied


def test_all_that_the_build_needs_is_copied(stages: list[Stage]) -> None:
    copied = " ".join(stages[1].all("COPY"))
    assert {"pyproject.toml", "setup.py", "README.md", "gateway"} <= set(copied.split())


def test_python_is_new_enough(stages: list[Stage]) -> None:
    versions = [re.match(r"python:3\.(\d+)-", stage.image) for stage in stages[1:]]
    assert all(match and int(match.group(1)) >= 11 for match in versions)
    assert len({match.group(1) for match in versions if match}) == 1  # a venv is copied


def test_cli_is_pinned_alike_everywhere() -> None:
    wanted = json.loads(LOCK.with_name("package.json").read_text())["dependencies"]
    packages = json.loads(LOCK.read_text())["packages"]
    version = wanted["@github/copilot"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    for platform in ("linux-x64", "linux-arm64"):
        package = packages[f"node_modules/@github/copilot-{platform}"]
        assert package["version"] == version
        assert package["integrity"].startswith("sha512-")


# --- compose -----------------------------------------------------------------------------------


def test_gateway_command_line(services: dict[str, Any]) -> None:
    gateway = services["gateway"]
    assert "entrypoint" not in gateway
    arguments = accepted(gateway["command"])
    assert arguments.run


def test_alternative_in_the_comment_is_accepted() -> None:
    comment = " ".join(
        line.lstrip("# ") for line in COMPOSE.read_text().splitlines() if line.startswith("#")
    )
    match = re.search(r"the command (\[.*?\])", comment)
    assert match
    accepted(json.loads(match.group(1)))


def test_replicas_are_services_that_listen_there(services: dict[str, Any]) -> None:
    command = services["gateway"]["command"]
    replicas = [command[at + 1] for at, word in enumerate(command) if word == "--replica"]
    assert len(replicas) == len(services) - 1 == 2
    for replica in replicas:
        name, _, address = replica.partition("=")
        host, _, port = address.partition(":")
        assert name == host
        cli = services[host]
        assert cli["entrypoint"] == ["copilot"]
        assert cli["command"][cli["command"].index("--port") + 1] == port
        assert port in cli["healthcheck"]["test"][-1]
        assert "ports" not in cli


def test_tokens_fit_and_are_required(services: dict[str, Any]) -> None:
    gateway = services["gateway"]["environment"]
    settings_with(gateway, services["gateway"]["command"])
    for name in ("cli-0", "cli-1"):
        token = services[name]["environment"]["COPILOT_CONNECTION_TOKEN"]
        assert token == gateway["COPILOT_GATEWAY_REPLICA_TOKEN"] == "COPILOT_GATEWAY_REPLICA_TOKEN"
    for name in ("COPILOT_GATEWAY_TOKEN", "COPILOT_GATEWAY_REPLICA_TOKEN"):
        assert "${" + name + ":?" in COMPOSE.read_text()


def test_published_ports_are_the_images(services: dict[str, Any], image: Stage) -> None:
    published = [port.split(":") for port in services["gateway"]["ports"]]
    assert [inside for *_, inside in published] == image.last("EXPOSE").split()
    assert {host for host, *_ in published} == {"127.0.0.1"}


def test_volumes_are_the_images(services: dict[str, Any], image: Stage) -> None:
    declared = set(yaml.safe_load(COMPOSE.read_text())["volumes"])
    used = [volume.split(":") for service in services.values() for volume in service["volumes"]]
    assert {name for name, _ in used} == declared
    assert len(used) == len(declared)  # none is shared by accident
    assert {where for _, where in used} == set(json.loads(image.last("VOLUME")))


def test_build_context_holds_the_dockerfile(services: dict[str, Any]) -> None:
    context = COMPOSE.parent / services["gateway"]["build"]["context"]
    assert (context / "Dockerfile").resolve() == DOCKERFILE.resolve()
    assert {service["image"] for service in services.values()} == {"copilot-gateway"}


def test_stop_leaves_time_to_drain(services: dict[str, Any]) -> None:
    grace = int(services["gateway"]["stop_grace_period"].removesuffix("s"))
    assert grace > SETTINGS["drain.timeout"].default


@pytest.mark.real
def test_cli_command_line_on_the_real_cli(services: dict[str, Any], tmp_path: Path) -> None:
    command = services["cli-0"]["command"]
    # Taken as it stands, but for what would open a port of this machine to others.
    command = ["127.0.0.1" if word == "0.0.0.0" else word for word in command]
    command[command.index("--port") + 1] = "0"
    with subprocess.Popen(
        [real_cli(), *command],
        env={
            "PATH": os.environ["PATH"],
            "COPILOT_HOME": str(tmp_path),
            "COPILOT_AUTO_UPDATE": "false",
            "COPILOT_OFFLINE": "true",
            "COPILOT_PROVIDER_BASE_URL": "http://127.0.0.1:9/v1",
            "COPILOT_MODEL": "gpt-4.1",
            "COPILOT_CONNECTION_TOKEN": "secret",
        },
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert "listening on port" in process.stdout.readline()
        finally:
            process.kill()


@pytest.mark.real
def test_cli_variables_are_known_to_the_real_cli(services: dict[str, Any], tmp_path: Path) -> None:
    text = subprocess.run(
        [real_cli(), "help", "environment"],
        env={
            "PATH": os.environ["PATH"],
            "COPILOT_HOME": str(tmp_path),
            "COPILOT_AUTO_UPDATE": "false",
        },
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    # The token of headless mode is the one that the help does not mention.
    names = set(services["cli-0"]["environment"]) - {"COPILOT_CONNECTION_TOKEN"}
    assert names
    assert all(f"`{name}`" in text for name in names)


# --- set-up ------------------------------------------------------------------------------------

SCRIPTS = [*sorted((REPOSITORY / "deploy").glob("*.sh")), REPOSITORY / ".ci/run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script: Path) -> None:
    program = Path(sys.executable).with_name("shellcheck")
    result = subprocess.run([program, script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()


def test_missing_servers_are_named(tmp_path: Path) -> None:
    """A machine without apt: one clear line."""
    for tool in ("bash", "id"):
        found = shutil.which(tool)
        assert found
        (tmp_path / tool).symlink_to(found)
    script = (REPOSITORY / "deploy/install-test-servers.sh").read_text()
    script = script.replace(":/usr/sbin", "")
    result = subprocess.run(
        [tmp_path / "bash", "-c", script],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "need redis-server haproxy" in result.stderr
    assert result.stderr.count("\n") == 1


def test_make_targets_are_listed() -> None:
    output = subprocess.run(
        ["make", "-s", "-C", REPOSITORY], capture_output=True, text=True, check=True
    ).stdout
    listed = {line.split()[0] for line in output.splitlines()}
    assert {"setup", "run", "test", "check", "fmt", "bench", "clean"} <= listed

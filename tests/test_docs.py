"""The documentation, held against the program: links, commands, settings, codes, manifests."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway import errors
from gateway.cli.command_page import command_page
from gateway.cli.main import build_parser
from gateway.cli.pages import COMMANDS
from gateway.config.settings import (
    CONFIG_VARIABLE,
    REPLICA_TOKEN_VARIABLE,
    REPLICAS,
    SECTIONS,
    SETTINGS,
)
from gateway.core import answers
from gateway.errors import RpcError
from gateway.wire.methods import METHODS

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = sorted(
    [
        *DOCS.rglob("*.md"),
        REPOSITORY / "README.md",
        REPOSITORY / "CHANGELOG.md",
        REPOSITORY / "bench/README.md",
    ]
)
IDS = [str(page.relative_to(REPOSITORY)) for page in PAGES]

every_page = pytest.mark.parametrize("page", PAGES, ids=IDS)

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


def fences(text: str, *languages: str) -> list[str]:
    """The contents of fenced blocks of these languages."""
    return [body for language, body in _FENCE.findall(text) if language in languages]


def prose(text: str) -> str:
    """The text without fenced and indented blocks."""
    return re.sub(r"^(?: {4}|\t).*$", "", _FENCE.sub("", text), flags=re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    found = set()
    for heading in _HEADING.findall(_FENCE.sub("", page.read_text())):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        kept = re.sub(r"[^\w\- ]", "", words.lower())
        found.add(kept.strip().replace(" ", "-"))
    return found


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every `copilot-gateway` in shell blocks, fenced or indented."""
    blocks = fences(text, "sh", "bash", "console")
    blocks.append("\n".join(re.findall(r"^    (.*)$", _FENCE.sub("", text), re.MULTILINE)))
    for block in blocks:
        for line in re.sub(r"\\\n", " ", block).splitlines():
            start = re.match(r"\s*(?:\$ )?(?:exec )?copilot-gateway\s", line)
            if start is None:
                continue
            lexer = shlex.shlex(line[start.end() :], posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            arguments = []
            for word in lexer:
                if set(word) <= set(";<>|&()"):
                    break
                arguments.append(word)
            yield arguments


# --- links --------------------------------------------------------------------------------------


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(prose(page.read_text())):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in anchors(file), f"{target}: no such heading"


def test_the_index_leads_to_every_page() -> None:
    index = DOCS / "README.md"
    linked = {(DOCS / target).resolve() for target in _LINK.findall(index.read_text())}
    assert linked >= set(DOCS.rglob("*.md")) - {index}


def test_anchors_are_those_of_github(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A b\n## [auth.jwt]\n### -32013 REGISTRY_UNAVAILABLE\n```\n# no\n```\n")
    assert anchors(page) == {"a-b", "authjwt", "-32013-registry_unavailable"}


# --- commands -----------------------------------------------------------------------------------


def test_commands_are_found() -> None:
    text = (
        "    copilot-gateway status # why\n\n```sh\ncopilot-gateway serve --spawn 2 \\\n"
        "  --workers 2 > log &\n```\n```\ncopilot-gateway no\n```\n"
    )
    assert list(commands(text)) == [["serve", "--spawn", "2", "--workers", "2"], ["status"]]


@every_page
def test_commands_parse(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in commands(page.read_text()):
        try:
            build_parser().parse_args(arguments)
        except SystemExit:
            pytest.fail(f"copilot-gateway {shlex.join(arguments)}: {capsys.readouterr().err}")


def test_the_pages_have_commands() -> None:
    counts = {page.name: len(list(commands(page.read_text()))) for page in PAGES}
    assert counts["tutorial.md"] > 5 and counts["tokens.md"] > 3 and counts["connector.md"] > 1


def test_the_page_of_commands_is_up_to_date() -> None:
    assert (REPOSITORY / COMMANDS).read_text() == command_page(), (
        "run `python -m gateway.cli.pages`"
    )


def test_python_examples_compile() -> None:
    for page in PAGES:
        for code in fences(page.read_text(), "python"):
            compile(code, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


# --- settings -----------------------------------------------------------------------------------


@every_page
def test_settings_exist(page: Path) -> None:
    sections = "|".join(map(re.escape, sorted(SECTIONS, key=len, reverse=True)))
    named = re.findall(rf"`((?:{sections})\.[a-z_.]+)`", page.read_text())
    # Two kinds of names only look like settings: methods of the CLI, and files.
    assert {name for name in named if name not in METHODS} <= {*SETTINGS, *SECTIONS, "registry.db"}


@every_page
def test_variables_exist(page: Path) -> None:
    known = {one.variable for one in SETTINGS.values()}
    known |= {REPLICAS.variable, CONFIG_VARIABLE, REPLICA_TOKEN_VARIABLE}
    named = set(re.findall(r"COPILOT_GATEWAY_[A-Z_]*[A-Z]", page.read_text()))
    assert named - known <= {"COPILOT_GATEWAY_"}


# --- errors -------------------------------------------------------------------------------------

CODES = {
    name: value
    for name, value in vars(errors).items()
    if name.isupper() and isinstance(value, int) and value < 0
}


def error_rows() -> dict[int, tuple[str, set[str]]]:
    """Name and fields by code, as the page has them."""
    text = (DOCS / "reference/errors.md").read_text()
    rows = re.findall(r"^\| `(-\d+)` \| `(\w+)` \|.*\|([^|]*)\|$", text, re.MULTILINE)
    return {int(code): (name, set(re.findall(r"`(\w+)`", data))) for code, name, data in rows}


def test_every_code_is_on_the_page() -> None:
    assert {name: code for code, (name, _) in error_rows().items()} == CODES


@pytest.mark.parametrize(
    "error",
    [
        answers.replica_unavailable("s", 1.0),
        answers.replica_unavailable(None, 1.0),
        answers.overloaded("queue_frames", 1),
        answers.turn_interrupted("s", None),
    ],
    ids=repr,
)
def test_fields_of_errors_are_on_the_page(error: RpcError) -> None:
    assert set(error.data or {}) <= error_rows()[error.code][1]


def test_fields_of_errors_in_the_sources_are_on_the_page() -> None:
    """Every `RpcError(code, message, {...})` that is written out in the sources."""
    documented = dict(error_rows().values())
    seen = 0
    for path in (REPOSITORY / "gateway").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "RpcError"):
                continue
            code, *_, data = node.args
            name = getattr(code, "attr", getattr(code, "id", ""))
            if name in CODES and isinstance(data, ast.Dict):
                keys = {key.value for key in data.keys if isinstance(key, ast.Constant)}
                assert keys <= documented[name], f"{path}:{node.lineno}"
                seen += 1
    assert seen >= 4


def test_exit_statuses_are_on_the_page() -> None:
    text = (DOCS / "reference/errors.md").read_text()
    on_page = set(re.findall(r"^\| (\d) \|", text, re.MULTILINE))
    known = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert on_page == {str(value) for value in known}


# --- manifests ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifests() -> dict[tuple[str, str], Any]:
    text = (DOCS / "how-to/kubernetes.md").read_text()
    found = [one for block in fences(text, "yaml") for one in yaml.safe_load_all(block)]
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def container(manifest: Any) -> Any:
    (found,) = manifest["spec"]["template"]["spec"]["containers"]
    return found


def test_kubernetes_gateway(manifests: dict[tuple[str, str], Any]) -> None:
    gateway = container(manifests["Deployment", "copilot-gateway"])
    arguments = build_parser().parse_args(gateway["args"])
    (source,) = vars(arguments)["setting:discovery.sources"]
    service = manifests["Service", "copilot-cli"]
    (port,) = service["spec"]["ports"]
    name = service["metadata"]["name"]
    # The name that Kubernetes gives the SRV record of a named port.
    record = f"_{port['name']}._tcp.{name}.default.svc.cluster.local"
    assert source == f"srv://{record}"
    cli = manifests["StatefulSet", "copilot-cli"]
    assert cli["spec"]["serviceName"] == name
    assert [one["containerPort"] for one in container(cli)["ports"]] == [port["port"]]
    variables = {one.variable for one in SETTINGS.values()} | {REPLICA_TOKEN_VARIABLE}
    assert {one["name"] for one in gateway["env"]} <= variables
    ports = {port["name"]: port["containerPort"] for port in gateway["ports"]}
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    assert f"SERVER_LISTEN=0.0.0.0:{ports['rpc']}" in dockerfile
    assert f"ADMIN_LISTEN=0.0.0.0:{ports['admin']}" in dockerfile
    for probe in ("readinessProbe", "livenessProbe"):
        assert gateway[probe]["httpGet"]["port"] in ports


def test_kubernetes_clis(manifests: dict[tuple[str, str], Any]) -> None:
    stateful = manifests["StatefulSet", "copilot-cli"]
    cli = container(stateful)
    compose = yaml.safe_load((REPOSITORY / "deploy/compose.yaml").read_text())["x-cli"]
    assert cli["command"] == compose["entrypoint"]
    assert cli["args"] == compose["command"]
    (claim,) = stateful["spec"]["volumeClaimTemplates"]
    (mount,) = cli["volumeMounts"]
    assert mount["name"] == claim["metadata"]["name"]
    assert f"COPILOT_HOME={mount['mountPath']}" in (REPOSITORY / "Dockerfile").read_text()


# --- the readme ---------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["sdk", "proxies", "chaos"])
def test_the_readme_has_room_for_generated_tables(table: str) -> None:
    text = (REPOSITORY / "README.md").read_text()
    assert text.count(f"<!-- table: {table} -->") == 1
    assert text.count(f"<!-- /table: {table} -->") == 1
    assert text.index(f"<!-- table: {table} -->") < text.index(f"<!-- /table: {table} -->")


def test_the_readme_names_targets_that_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z-]+)", (REPOSITORY / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target

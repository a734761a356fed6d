"""The operator's rules on params, and the credentials that the gateway provides."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import FORBIDDEN, INVALID_PARAMS, ConfigError, RpcError
from gateway.policy.params import (
    DEFAULT_COMMANDS,
    ParamPolicy,
    ParamRule,
    common_tools,
    is_within,
    policy_for,
)
from gateway.policy.rules import Isolation, MethodPolicy, Route
from gateway.types import Identity, Role

ANN = Identity("acme", "ann")
ROOT = Identity("acme", "root", Role.ADMIN)


def policy(
    *rules: ParamRule, identity: Identity = ANN, isolation: Isolation = "tenant"
) -> ParamPolicy:
    return policy_for(rules, identity, isolation)


def refusal(one: ParamPolicy, method: str, params: dict[str, Any]) -> RpcError:
    assert method in one.methods
    with pytest.raises(RpcError) as refused:
        one.apply(method, params)
    return refused.value


def refused_param(one: ParamPolicy, method: str, params: dict[str, Any]) -> Any:
    error = refusal(one, method, params)
    assert error.code == FORBIDDEN
    assert error.data is not None
    assert error.data["method"] == method
    return error.data.get("param")


def test_without_rules_hardly_any_params_are_read() -> None:
    assert policy(isolation="user").methods == {"sessions.delete"}
    for isolation in ("shared", "tenant", "user"):
        methods = policy(isolation=isolation).methods
        assert not methods & {"session.send", "session.create", "session.resume", "ping"}


def test_params_that_nothing_changes_are_the_same_object() -> None:
    one = policy(ParamRule(forbid=frozenset({"hooks"}), models=("gpt-*",), root="/srv"))
    for method, params in (
        ("session.resume", {"sessionId": "a", "model": "gpt-4.1"}),
        ("session.create", {"workingDirectory": "/srv/a"}),
        ("session.send", {"sessionId": "a", "prompt": "hi"}),
    ):
        assert one.apply(method, params) is params


def test_every_method_with_rules_is_one_that_users_can_reach() -> None:
    everything = policy(
        ParamRule(models=(), tools=(), root="/", credentials={"gitHubToken": "t"}),
        isolation="shared",
    )
    views = [MethodPolicy("user").view(ANN), MethodPolicy("shared").view(ROOT)]
    for method in everything.methods:
        rules = [view.rule_for(method) for view in views]
        assert all(rule.known for rule in rules), method
        assert any(rule.route is not Route.DENY for rule in rules), method


# Forced, default and forbidden params


def test_forced_params_replace_what_the_client_gave() -> None:
    one = policy(ParamRule(force={"enableSkills": False, "mcpServers": {}}))
    given_ = {"sessionId": "a", "enableSkills": True, "mcpServers": {"x": {"command": "sh"}}}
    before = copy.deepcopy(given_)
    wanted = {"sessionId": "a", "enableSkills": False, "mcpServers": {}}
    assert one.apply("session.create", given_) == wanted
    assert one.apply("session.resume", given_) == wanted
    assert given_ == before


def test_forced_options_cannot_be_changed_later() -> None:
    one = policy(ParamRule(force={"enableSkills": False, "mcpServers": {}}))
    params = {"sessionId": "a", "enableSkills": True, "verbosity": "low"}
    assert one.apply("session.options.update", params) == {**params, "enableSkills": False}


def test_defaults_fill_what_the_client_left_open_at_creation() -> None:
    one = policy(ParamRule(default={"model": "gpt-4.1"}))
    assert one.apply("session.create", {}) == {"model": "gpt-4.1"}
    assert one.apply("session.create", {"model": None}) == {"model": "gpt-4.1"}
    assert one.apply("session.create", {"model": "o3"}) == {"model": "o3"}
    assert one.apply("session.resume", {"sessionId": "a"}) == {"sessionId": "a"}


@pytest.mark.parametrize("method", ["session.create", "session.resume", "session.options.update"])
def test_forbidden_params_are_refused_by_name(method: str) -> None:
    one = policy(ParamRule(forbid=frozenset({"provider"})))
    assert refused_param(one, method, {"provider": {"baseUrl": "http://x"}}) == "provider"
    assert one.apply(method, {"provider": None}) == {"provider": None}


def test_the_first_rule_that_sets_something_decides_and_bans_add_up() -> None:
    one = policy(
        ParamRule(users=frozenset({"bob"}), models=("bobs",)),
        ParamRule(tenants=frozenset({"acme"}), force={"a": 1}, forbid=frozenset({"x"})),
        ParamRule(force={"a": 2, "b": 2}, forbid=frozenset({"y"}), models=("gpt-*",)),
        ParamRule(roles=frozenset({Role.ADMIN}), models=("other",), tools=()),
    )
    assert one.force == {"a": 1, "b": 2}
    assert one.forbid == {"x", "y"}
    assert one.models == ("gpt-*",)
    assert one.tools is None


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"root": "work"}, "work"),
        ({"force": {"hooks": True}, "forbid": frozenset({"hooks"})}, "hooks"),
        ({"credentials": {"password": "p"}}, "password"),
    ],
)
def test_contradictory_rules_are_refused_at_start(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ParamRule(**wrong)


# Models


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("session.create", {"model": "o3"}),
        ("session.resume", {"model": "o3"}),
        ("session.create", {"customAgents": [{"name": "a"}, {"model": "o3"}]}),
        ("session.model.switchTo", {"modelId": "o3"}),
        ("session.model.switchTo", {"modelId": "GPT-4.1"}),
        ("session.model.setAllowedModels", {"allowedModels": ["gpt-4.1", "o3"]}),
        ("session.model.setAllowedModels", {"allowedModels": None}),
        ("session.model.setAllowedModels", {}),
        ("session.options.update", {"model": "o3"}),
        ("session.mode.set", {"planModel": "o3"}),
        ("session.tasks.startAgent", {"model": "o3"}),
        ("session.factory.agent", {"opts": {"model": "o3"}}),
        ("session.tools.updateSubagentSettings", {"subagents": {"agents": {"x": {"model": "o3"}}}}),
        ("session.commands.invoke", {"name": "model", "input": "o3"}),
    ],
)
def test_other_models_are_refused_wherever_they_are_chosen(
    method: str, params: dict[str, Any]
) -> None:
    assert refused_param(policy(ParamRule(models=("gpt-*",)), isolation="user"), method, params)


def test_allowed_models_pass() -> None:
    one = policy(ParamRule(models=("gpt-*",)))
    for method, params in (
        ("session.create", {"model": "gpt-4.1"}),
        ("session.create", {}),
        ("session.model.switchTo", {"modelId": "gpt-5"}),
        ("session.model.setAllowedModels", {"allowedModels": ["gpt-4.1"]}),
    ):
        assert one.apply(method, params) is params


def test_a_model_of_another_type_is_refused() -> None:
    one = policy(ParamRule(models=("*",)))
    assert refusal(one, "session.create", {"model": ["gpt-4.1"]}).code == INVALID_PARAMS
    assert refusal(one, "session.create", {"customAgents": {"model": "x"}}).code == INVALID_PARAMS


def test_forced_and_default_models_are_held_to_the_list_too() -> None:
    one = policy(ParamRule(models=("gpt-*",), default={"model": "o3"}))
    assert refused_param(one, "session.create", {}) == "model"


# Tools


@pytest.mark.parametrize(
    ("wanted", "allowed", "both"),
    [
        (["view", "bash"], ["view"], ["view"]),
        (["bash"], ["view"], []),
        (["builtin:*"], ["view", "mcp:x"], ["builtin:view"]),
        (["view"], ["builtin:*"], ["builtin:view"]),
        (["mytool", "bash"], ["builtin:view", "custom:*"], ["custom:mytool", "custom:bash"]),
        (["mcp:*", "custom:a"], ["mcp:*"], ["mcp:*"]),
        (["mcp:a"], ["custom:a"], []),
        (["*"], ["builtin:*"], []),
        (["builtin:view"], ["*"], []),
        (["view", "view"], ["view"], ["view"]),
        ([], ["view"], []),
    ],
)
def test_two_filters_let_through_what_both_do(
    wanted: list[str], allowed: list[str], both: list[str]
) -> None:
    assert common_tools(wanted, allowed) == both


def test_a_session_that_names_no_tools_gets_the_allowed_ones() -> None:
    one = policy(ParamRule(tools=("view",)))
    assert one.apply("session.create", {})["availableTools"] == ["view"]
    assert one.apply("session.resume", {"sessionId": "a"})["availableTools"] == ["view"]
    asked = {"availableTools": ["bash", "view"]}
    assert one.apply("session.create", asked)["availableTools"] == ["view"]


def test_options_cannot_lift_the_limit() -> None:
    one = policy(ParamRule(tools=("view",)))
    update = {"sessionId": "a", "availableTools": None}
    assert one.apply("session.options.update", update)["availableTools"] == ["view"]
    assert one.apply("session.options.update", {"sessionId": "a"}) == {"sessionId": "a"}


@pytest.mark.parametrize("method", ["session.shell.exec", "session.mcp.startServer"])
def test_there_is_no_way_around_the_list_of_tools(method: str) -> None:
    refused_param(policy(ParamRule(tools=("view",))), method, {"sessionId": "a"})


@pytest.mark.parametrize("wrong", ["view", {"0": "view"}, [5], [["view"]]])
def test_tools_of_another_type_are_refused(wrong: Any) -> None:
    one = policy(ParamRule(tools=("view",)))
    assert refusal(one, "session.create", {"availableTools": wrong}).code == INVALID_PARAMS


# Directories


@pytest.mark.parametrize(
    "inside",
    ["/srv", "/srv/", "/srv/a", "/srv/a/../b", "//srv/a", "/srv/./a", "/x/../srv", "/srv/..a"],
)
def test_paths_inside(inside: str) -> None:
    assert is_within(inside, "/srv")


@pytest.mark.parametrize(
    "outside",
    [
        *("/", "", ".", "srv", "/srv/..", "/srvx", "/srv/../etc", "/srv/a/../../etc", "~", "~/srv"),
        *("/srv/\0/../..", "/srv/a\\..\\..\\..\\etc", "file:///srv/a", "../srv", "/SRV"),
    ],
)
def test_paths_outside(outside: str) -> None:
    assert not is_within(outside, "/srv")


@given(st.lists(st.sampled_from(["..", ".", "a", "srv", "", "..."]), max_size=8))
def test_a_path_that_is_inside_never_climbs_out(parts: list[str]) -> None:
    path = "/srv/" + "/".join(parts)
    depth: list[str] = []
    for part in path.split("/"):
        if part == "..":
            depth = depth[:-1]
        elif part not in ("", "."):
            depth.append(part)
    assert is_within(path, "/srv") is (depth[:1] == ["srv"])


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("session.create", {"workingDirectory": "/etc"}),
        ("session.create", {"workingDirectory": "sub"}),
        ("session.create", {"additionalDirectories": ["/srv/acme/a", "/srv/other"]}),
        ("session.create", {"configDir": "/home/copilot/.copilot"}),
        ("session.create", {"mcpServers": {"x": {"command": "sh", "cwd": "/"}}}),
        ("session.resume", {"pluginDirectories": ["/opt"]}),
        ("session.options.update", {"trajectoryFile": "/tmp/x"}),
        ("session.metadata.setWorkingDirectory", {"workingDirectory": "/srv/acme/../other"}),
        ("session.permissions.paths.add", {"path": "/"}),
        ("session.permissions.configure", {"paths": {"additionalDirectories": ["/etc"]}}),
        ("session.permissions.configure", {"paths": {"unrestricted": True}}),
        ("session.shell.exec", {"command": "ls", "cwd": "/etc"}),
        ("session.send", {"attachments": [{"type": "file", "path": "/etc/passwd"}]}),
        ("session.send", {"attachments": [{"type": "file", "path": "../other/x"}]}),
        ("session.send", {"attachments": [{"type": "file", "path": "file:///etc/passwd"}]}),
        ("session.send", {"attachments": [{"type": "selection", "filePath": "~/.ssh/id"}]}),
        (
            "session.sendMessages",
            {"messages": [{"prompt": "a"}, {"attachments": [{"type": "directory", "path": "/"}]}]},
        ),
        ("session.commands.execute", {"commandName": "add-dir", "args": "/etc"}),
    ],
)
def test_paths_outside_the_root_are_refused_wherever_they_are_given(
    method: str, params: dict[str, Any]
) -> None:
    one = policy(ParamRule(root="/srv/{tenant}"), isolation="user")
    assert refused_param(one, method, params)


def test_sessions_start_in_the_root() -> None:
    one = policy(ParamRule(root="/srv/{tenant}/{user}/"))
    assert one.apply("session.create", {}) == {"workingDirectory": "/srv/acme/ann"}
    inside = {"workingDirectory": "/srv/acme/ann/project"}
    assert one.apply("session.create", inside) is inside
    assert one.apply("session.resume", {"sessionId": "a"}) == {"sessionId": "a"}


def test_attachments_inside_and_those_that_are_not_files_pass() -> None:
    one = policy(ParamRule(root="/srv"))
    params = {
        "sessionId": "a",
        "attachments": [
            {"type": "file", "path": "/srv/a.py"},
            {"type": "file", "path": "src/a.py"},
            {"type": "github_file", "path": "../outside.py"},
            {"type": "blob", "data": ""},
        ],
    }
    assert one.apply("session.send", params) is params


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a\0b"])
def test_an_identity_cannot_be_named_out_of_the_root(name: str) -> None:
    rule = ParamRule(root="/srv/{tenant}/{user}")
    for identity in (Identity(name, "ann"), Identity("acme", name)):
        with pytest.raises(RpcError) as refused:
            policy_for([rule], identity, "shared")
        assert refused.value.code == FORBIDDEN


@pytest.mark.parametrize("wrong", [5, ["/srv"], {"path": "/srv"}, True])
def test_paths_of_another_type_are_refused(wrong: Any) -> None:
    one = policy(ParamRule(root="/srv"))
    assert refusal(one, "session.create", {"workingDirectory": wrong}).code == INVALID_PARAMS


# Credentials

TOKEN = {"gitHubToken": "gho_secret"}


@pytest.mark.parametrize("method", ["session.create", "session.resume"])
def test_credentials_replace_those_of_the_client(method: str) -> None:
    one = policy(ParamRule(credentials=TOKEN))
    params = {
        "sessionId": "a",
        "gitHubToken": "mine",
        "gitHubTokenProviderRegistrationId": "r",
        "provider": {"baseUrl": "http://elsewhere"},
        "providers": [],
        "models": [],
    }
    assert one.apply(method, params) == {"sessionId": "a", **TOKEN}


@pytest.mark.parametrize(
    "method",
    [
        "session.gitHubAuth.getCurrentAuthInfo",
        "session.gitHubAuth.setCredentials",
        "session.provider.add",
        "session.provider.getEndpoint",
    ],
)
def test_provided_credentials_are_neither_given_out_nor_replaced(method: str) -> None:
    for identity in (ANN, ROOT):
        one = policy(ParamRule(credentials=TOKEN), identity=identity, isolation="user")
        refused_param(one, method, {"sessionId": "a"})


@pytest.mark.parametrize("name", ["provider", "copilotUrl"])
def test_a_live_session_cannot_be_pointed_elsewhere(name: str) -> None:
    one = policy(ParamRule(credentials=TOKEN))
    update = {"sessionId": "a", name: "http://elsewhere"}
    assert refused_param(one, "session.options.update", update) == name


def test_models_are_listed_for_the_account_that_sessions_use() -> None:
    one = policy(ParamRule(credentials=TOKEN))
    assert one.apply("models.list", {"gitHubToken": "mine", "selectionId": "x"}) == TOKEN
    byok = policy(ParamRule(credentials={"provider": {"apiKey": "k"}}))
    assert byok.apply("models.list", {"gitHubToken": "mine"}) == {}


def test_credentials_show_up_in_no_repr_and_no_error() -> None:
    rule = ParamRule(credentials=TOKEN)
    one = policy(rule)
    assert "secret" not in repr(rule) + repr(one)
    error = refusal(one, "session.provider.add", {"sessionId": "a"})
    assert "secret" not in repr(error.to_object())


# Users of shared pools


def test_sessions_are_deleted_by_id_only() -> None:
    for identity in (ANN, ROOT):
        one = policy(identity=identity)
        params = {"sessionId": "a", "sessionPath": "/home/copilot/session-state/b"}
        assert refused_param(one, "sessions.delete", params) == "sessionPath"
        plain = {"sessionId": "a", "sessionPath": None}
        assert one.apply("sessions.delete", plain) is plain


@pytest.mark.parametrize(
    ("method", "param"),
    [
        ("session.model.switchTo", "pickerPersistence"),
        ("session.mode.set", "persistPlanSelection"),
        ("session.mode.set", "pickerSettingsContext"),
        ("session.options.update", "copilotUrl"),
        ("session.options.update", "eventsLogDirectory"),
    ],
)
def test_params_that_reach_the_host_are_refused(method: str, param: str) -> None:
    given_ = {"sessionId": "a", param: "x"}
    assert refused_param(policy(isolation="shared"), method, given_) == param
    for open_ in (policy(identity=ROOT, isolation="shared"), policy(isolation="tenant")):
        assert method not in open_.methods or open_.apply(method, given_) is given_


@pytest.mark.parametrize(
    ("kind", "becomes"),
    [
        ("approve-for-location", "approve-for-session"),
        ("approve-permanently", "approve-for-session"),
        ("approved-for-location", "approved-for-session"),
        ("approve-once", "approve-once"),
        ("reject", "reject"),
        (5, 5),
    ],
)
def test_approvals_last_no_longer_than_the_session(kind: Any, becomes: Any) -> None:
    method = "session.permissions.handlePendingPermissionRequest"
    approval = {"kind": "commands", "commandIdentifiers": ["ls"]}
    params = {
        "sessionId": "a",
        "requestId": "r",
        "result": {"kind": kind, "approval": approval, "locationKey": "/w"},
    }
    result = policy(isolation="shared").apply(method, params)["result"]
    assert result["kind"] == becomes
    assert result["approval"] == approval
    assert ("locationKey" in result) is (kind == becomes)


def test_only_rules_of_the_session_may_be_modified() -> None:
    one = policy(isolation="shared")
    method = "session.permissions.modifyRules"
    assert refused_param(one, method, {"scope": "location"}) == "scope"
    params = {"scope": "session", "add": []}
    assert one.apply(method, params) is params


COMMAND_PARAMS = [
    ("session.commands.invoke", "name"),
    ("session.commands.execute", "commandName"),
    ("session.commands.enqueue", "command"),
]


@pytest.mark.parametrize(("method", "param"), COMMAND_PARAMS)
@pytest.mark.parametrize(
    "command", ["plugin", "/plugin install x", "  /session prune", "mcp", "remote", "brand-new", ""]
)
def test_slash_commands_that_reach_the_host_are_refused(
    method: str, param: str, command: str
) -> None:
    for one in (policy(isolation="shared"), policy(), policy(identity=ROOT, isolation="shared")):
        assert refused_param(one, method, {param: command}) == param


@pytest.mark.parametrize(("method", "param"), COMMAND_PARAMS)
def test_slash_commands_of_the_session_pass(method: str, param: str) -> None:
    one = policy(ParamRule(commands=("deploy-*",)), isolation="shared")
    for command in (*DEFAULT_COMMANDS, "/compact keep the plan", "deploy-now"):
        params = {"sessionId": "a", param: command}
        assert one.apply(method, params) is params


def test_a_command_must_be_text() -> None:
    error = refusal(policy(isolation="shared"), "session.commands.invoke", {"name": ["plugin"]})
    assert error.code == INVALID_PARAMS


@given(
    method=st.sampled_from(
        sorted(
            policy(
                ParamRule(models=("a",), tools=("a",), root="/a", credentials=TOKEN),
                isolation="shared",
            ).methods
        )
    ),
    params=st.dictionaries(
        st.sampled_from(
            ["model", "availableTools", "customAgents", "attachments", "paths", "result", "name"]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=2),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(st.sampled_from(["model", "type", "path", "kind"]), inner)
            ),
            max_leaves=6,
        ),
    ),
)
def test_any_params_give_params_or_a_typed_error(method: str, params: dict[str, Any]) -> None:
    one = policy(
        ParamRule(models=("a",), tools=("a",), root="/a", credentials=TOKEN), isolation="shared"
    )
    before = copy.deepcopy(params)
    try:
        one.apply(method, params)
    except RpcError as error:
        assert error.code in (FORBIDDEN, INVALID_PARAMS)
    assert params == before

"""The method policy: defaults per isolation mode and role, and the operator's rules."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gateway.errors import FORBIDDEN, METHOD_NOT_FOUND, ConfigError
from gateway.policy import pages
from gateway.policy.rules import (
    MAX_ECHOED_METHOD,
    Isolation,
    MethodPolicy,
    OperatorRule,
    Route,
)
from gateway.types import Identity, Role
from gateway.wire.methods import METHODS

USER = Identity("acme", "ann")
ADMIN = Identity("acme", "root", Role.ADMIN)
ISOLATIONS: tuple[Isolation, ...] = ("shared", "tenant", "user")

# What the clients and sessions of the Python SDK 1.0.27 and the Node SDK 1.0.14 call by themselves
# or through their own methods, without `rpc`.
SDK_SURFACE = [
    "connect",
    "ping",
    "status.get",
    "auth.getStatus",
    "models.list",
    "session.create",
    "session.resume",
    "session.detach",
    "session.destroy",
    "session.delete",
    "session.list",
    "session.getLastId",
    "session.getForeground",
    "session.setForeground",
    "session.getMetadata",
    "session.getMessages",
    "session.send",
    "session.abort",
    "session.log",
    "session.model.switchTo",
    "session.model.switchAutoTier",
    "session.model.getCurrent",
    "session.options.update",
    "session.eventLog.registerInterest",
    "session.tools.set",
    "session.tools.getCurrentMetadata",
    "session.tools.handlePendingToolCall",
    "session.permissions.handlePendingPermissionRequest",
    "session.commands.handlePendingCommand",
    "session.mcp.oauth.handlePendingRequest",
    "session.ui.elicitation",
    "session.ui.handlePendingElicitation",
    "session.factory.run",
    "session.factory.getRun",
    "session.factory.log",
    "session.factory.agent",
]


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_what_the_sdks_call_is_never_denied_by_default(isolation: Isolation) -> None:
    view = MethodPolicy(isolation).view(USER)
    denied = [m for m in SDK_SURFACE if view.rule_for(m).route is Route.DENY]
    assert denied == []


@pytest.mark.parametrize(
    "method",
    [
        "user.settings.set",
        "plugins.install",
        "mcp.config.add",
        "account.getAllUsers",
        "agents.discover",
        "instructions.getDiscoveryPaths",
        "sessionFs.setProvider",
        "llmInference.setProvider",
        "registerExtensionLaunchProvider",
        "session.shell.exec",
        "session.mcp.startServer",
        "session.debug.collectLogs",
    ],
)
def test_a_user_of_a_shared_pool_does_not_reach_the_host(method: str) -> None:
    policy = MethodPolicy("shared")
    rule = policy.rule_for(method, USER)
    assert rule.route is Route.DENY
    assert rule.minimum_role is Role.ADMIN
    assert rule.denied().code == FORBIDDEN
    assert rule.denied().data == {"method": method}
    assert METHODS[method].reason in rule.denied().message
    assert policy.rule_for(method, ADMIN).route is not Route.DENY


def test_no_host_wide_change_is_open_to_users_of_a_shared_pool() -> None:
    view = MethodPolicy("shared").view(USER)
    open_ = [
        info.method
        for info in METHODS.values()
        if info.kind == "host-global" and view.rule_for(info.method).route is not Route.DENY
    ]
    assert open_ == []


@pytest.mark.parametrize("isolation", ["tenant", "user"])
def test_where_nobody_else_is_in_the_process_its_providers_and_shell_are_open(
    isolation: Isolation,
) -> None:
    view = MethodPolicy(isolation).view(USER)
    assert view.rule_for("sessionFs.setProvider").route is Route.SINGLETON
    assert view.rule_for("session.shell.exec").route is Route.SESSION
    assert view.rule_for("plugins.install").route is Route.DENY


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize(
    "method",
    ["runtime.shutdown", "sessions.open", "sessions.pruneOld", "agentRegistry.spawn"],
)
def test_some_methods_are_for_nobody(method: str, isolation: Isolation) -> None:
    opened = MethodPolicy(isolation, rules=(OperatorRule("allow", ("*",)),))
    assert opened.rule_for(method, ADMIN).route is Route.DENY


def test_allowing_by_name_what_is_for_nobody_is_a_mistake_in_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"'runtime\.shutdown' cannot be allowed: .*drains"):
        MethodPolicy(rules=(OperatorRule("allow", ("runtime.shutdown",)),))


def test_shutdown_points_to_draining() -> None:
    assert "drain" in MethodPolicy().rule_for("runtime.shutdown", ADMIN).denied().message


def test_undocumented_methods_are_denied_as_if_they_did_not_exist() -> None:
    denial = MethodPolicy().rule_for("globalState.writeKey", USER).denied()
    assert (denial.code, denial.message) == (
        METHOD_NOT_FOUND,
        "Unhandled method globalState.writeKey",
    )


def test_sdks_are_told_to_fall_back_from_send_and_wait() -> None:
    denial = MethodPolicy("user").rule_for("session.sendAndWait", ADMIN).denied()
    assert denial.to_object() == {
        "code": METHOD_NOT_FOUND,
        "message": "Unhandled method session.sendAndWait",
    }


def test_shutting_a_session_down_becomes_closing_it() -> None:
    rule = MethodPolicy().rule_for("session.shutdown", USER)
    assert (rule.route, rule.sent_as) == (Route.CLOSE, "sessions.close")


def test_unknown_methods_are_denied() -> None:
    view = MethodPolicy().view(USER)
    for method in ("session.new.thing", "brand.new", "", "session."):
        rule = view.rule_for(method)
        assert (rule.route, rule.known) == (Route.DENY, False)
        assert rule.denied().message == f"Unhandled method {method}"


def test_unknown_session_methods_can_be_allowed() -> None:
    view = MethodPolicy(unknown_session_methods="allow").view(USER)
    rule = view.rule_for("session.new.thing")
    assert (rule.route, rule.session_paths, rule.simple) == (Route.SESSION, ("sessionId",), True)
    assert not rule.retry_safe
    assert view.rule_for("sessions.newThing").route is Route.DENY
    assert view.rule_for("brand.new").route is Route.DENY


def test_unknown_methods_of_the_process_take_an_administrator_alone_in_it() -> None:
    assert MethodPolicy("shared").rule_for("brand.new", ADMIN).route is Route.DENY
    assert MethodPolicy("tenant").rule_for("brand.new", USER).route is Route.DENY
    assert MethodPolicy("tenant").rule_for("brand.new", ADMIN).route is Route.ANY


def test_made_up_methods_cost_no_memory() -> None:
    view = MethodPolicy(unknown_session_methods="allow").view(USER)
    rules = view._rules
    before = (len(rules), sys.getsizeof(rules))
    for number in range(1000):
        view.rule_for(f"session.made.up.{number}")
        view.rule_for(f"made.up.{number}")
    assert (len(rules), sys.getsizeof(rules)) == before


def test_a_denial_does_not_repeat_a_long_name() -> None:
    denial = MethodPolicy().rule_for("x" * 100_000, USER).denied()
    assert len(denial.message) < MAX_ECHOED_METHOD + 100


def test_the_first_rule_that_matches_decides() -> None:
    policy = MethodPolicy(
        rules=(
            OperatorRule("deny", ("session.shell.*",), tenants=frozenset({"evil"})),
            OperatorRule("allow", ("session.shell.*", "plugins.list")),
            OperatorRule("deny", ("plugins.*", "session.fleet.start", "session.new.*")),
        )
    )
    assert policy.rule_for("session.shell.exec", USER).route is Route.SESSION
    assert policy.rule_for("session.shell.exec", Identity("evil", "eve")).route is Route.DENY
    assert policy.rule_for("plugins.list", USER).route is Route.ANY
    assert policy.rule_for("plugins.install", ADMIN).route is Route.DENY
    assert policy.rule_for("session.fleet.start", USER).denied().code == FORBIDDEN


def test_rules_are_for_roles_too() -> None:
    policy = MethodPolicy(
        rules=(OperatorRule("deny", ("session.send",), roles=frozenset({Role.ADMIN})),)
    )
    assert policy.rule_for("session.send", ADMIN).route is Route.DENY
    assert policy.rule_for("session.send", USER).route is Route.SESSION


def test_rules_reach_unknown_methods() -> None:
    policy = MethodPolicy(
        unknown_session_methods="allow",
        rules=(
            OperatorRule("allow", ("brand.*",)),
            OperatorRule("deny", ("session.new.*",)),
        ),
    )
    assert policy.rule_for("brand.new", USER).route is Route.ANY
    assert policy.rule_for("session.new.thing", USER).route is Route.DENY
    assert policy.rule_for("session.other", USER).route is Route.SESSION


def test_patterns_match_whole_names_and_case() -> None:
    policy = MethodPolicy(rules=(OperatorRule("allow", ("plugins.list", "mcp.config.l?st")),))
    assert policy.rule_for("plugins.list", USER).route is Route.ANY
    assert policy.rule_for("mcp.config.list", USER).route is Route.ANY
    assert policy.rule_for("plugins.listX", USER).route is Route.DENY
    assert policy.rule_for("Plugins.list", USER).route is Route.DENY


def test_identities_of_one_class_share_a_view() -> None:
    policy = MethodPolicy(rules=(OperatorRule("deny", ("ping",), tenants=frozenset({"special"})),))
    assert policy.view(USER) is policy.view(Identity("other", "bob"))
    assert policy.view(USER) is not policy.view(Identity("special", "sue"))
    assert policy.view(USER) is not policy.view(ADMIN)


def test_session_ids_are_checked_for_administrators_as_well() -> None:
    view = MethodPolicy().view(ADMIN)
    for info in METHODS.values():
        assert view.rule_for(info.method).session_paths == info.session_paths


def test_lifecycle_is_told_apart() -> None:
    view = MethodPolicy().view(USER)
    assert {
        method: view.rule_for(method).route
        for method in ("session.create", "session.resume", "session.delete", "sessions.delete")
    } == {
        "session.create": Route.CREATE,
        "session.resume": Route.RESUME,
        "session.delete": Route.DELETE,
        "sessions.delete": Route.DELETE,
    }
    assert view.rule_for("sessions.fork").route is Route.FORK
    assert view.rule_for("session.detach").route is Route.DETACH
    assert view.rule_for("session.getMetadata").live is False
    assert view.rule_for("session.send").live is True


def test_only_plain_session_ids_are_simple() -> None:
    view = MethodPolicy().view(USER)
    assert view.rule_for("session.send").simple
    assert not view.rule_for("session.mode.set").simple
    assert not view.rule_for("ping").simple


def test_the_reference_page_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / pages.REFERENCE
    assert page.read_text("utf-8") == pages.reference_page(), "run python -m gateway.policy.pages"


def test_the_reference_page_names_every_method_and_closed_ones_with_a_reason() -> None:
    page = pages.reference_page()
    for info in METHODS.values():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{info.method}`"))
        assert row.count(" | ") == 4
        assert info.reason in row

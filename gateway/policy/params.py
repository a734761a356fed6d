"""What the gateway does to params: the operator's rules on sessions, and their credentials.

Everything here is pure: params in, params out, or an :class:`~gateway.errors.RpcError`. A request
whose method is not in :attr:`ParamPolicy.methods` passes byte for byte and never gets here.

What these rules can bound, and what not: they decide what a client may *ask* for. A path is
contained by its text: whether a directory under the root holds a symbolic link that leads out of it
is for the replica's file system to prevent. Neither does the root confine the agent's tools, which
follow the client's permission answers: that is what sandboxes, separate system users and the list
of tools are for.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final

from gateway.errors import FORBIDDEN, INVALID_PARAMS, ConfigError, RpcError
from gateway.policy.rules import Isolation
from gateway.types import Identity, Role

OPENING_METHODS: Final = frozenset({"session.create", "session.resume"})
"""Methods whose params set a session up."""

DEFAULT_COMMANDS: Final = (
    "after",
    "allow-all",
    "autopilot",
    "blame",
    "compact",
    "context",
    "env",
    "every",
    "fleet",
    "init",
    "list-dirs",
    "permissions",
    "plan",
    "rename",
    "research",
    "reset-allowed-tools",
    "review",
    "security-review",
    "usage",
)
"""Slash commands that users may run: those that stay inside the session and its directory.

Left out are those that configure plugins, MCP servers or memory for the host, list or prune
everybody's sessions, publish a session, or pass the rules on models and directories by.
"""

_COMMANDS: Final = {
    "session.commands.invoke": "name",
    "session.commands.execute": "commandName",
    "session.commands.enqueue": "command",
}

_HOST_PARAMS: Final[dict[str, frozenset[str]]] = {
    "session.mode.set": frozenset({"persistPlanSelection", "pickerSettingsContext"}),
    "session.model.switchTo": frozenset({"pickerPersistence"}),
    "session.options.update": frozenset({"copilotUrl", "eventsLogDirectory", "trajectoryFile"}),
}
"""Params of session methods that reach past the session: they write settings or files of the host,
or send the host's credentials to an address that the caller names."""

_LASTING_APPROVALS: Final = {
    "approve-for-location": "approve-for-session",
    "approve-permanently": "approve-for-session",
    "approved-for-location": "approved-for-session",
}
"""Answers to a permission request that the host would remember for others, and what becomes of
them in a shared pool."""

_CREDENTIALS: Final = frozenset(
    {
        "authInfo",
        "gitHubToken",
        "gitHubTokenProviderRegistrationId",
        "models",
        "provider",
        "providers",
    }
)
"""Params of session.create and session.resume that choose whose account or key a session uses."""

_CREDENTIAL_METHODS: Final = frozenset(
    {
        "session.gitHubAuth.getAllAuthAvailable",
        "session.gitHubAuth.getCurrentAuthInfo",
        "session.gitHubAuth.login",
        "session.gitHubAuth.logout",
        "session.gitHubAuth.logoutUser",
        "session.gitHubAuth.setCredentials",
        "session.gitHubAuth.switchToAuth",
        "session.mcp.configureGitHub",
        "session.provider.add",
        "session.provider.getEndpoint",
        "session.provider.sync",
        "session.provider.withdraw",
    }
)
"""Methods that would give injected credentials out or put others in their place."""

_TOOL_BYPASSES: Final = frozenset(
    {
        "session.mcp.reloadWithConfig",
        "session.mcp.restartServer",
        "session.mcp.startServer",
        "session.shell.exec",
        "session.shell.executeUserRequested",
    }
)
"""Methods that do what a tool outside the allowed list would do."""

_MODEL_PATHS: Final[dict[str, tuple[str, ...]]] = {
    "session.create": ("model", "customAgents[].model"),
    "session.resume": ("model", "customAgents[].model"),
    "session.factory.agent": ("opts.model",),
    "session.mode.set": ("planModel",),
    "session.model.applyStartupOverlay": (
        "cliModel",
        "deviceManagedModel",
        "policyHelperModel",
        "repoModel",
        "serverManagedModel",
    ),
    "session.model.setAllowedModels": ("allowedModels[]",),
    "session.model.switchTo": ("modelId",),
    "session.options.update": ("model",),
    "session.permissions.setMode": ("assistedApprovalModel",),
    "session.provider.add": ("models[].id",),
    "session.tasks.startAgent": ("model",),
    "session.tools.updateSubagentSettings": ("subagents.agents.*.model",),
    "session.workflow.agent": ("opts.model",),
}

_OPENING_PATHS: Final = (
    "workingDirectory",
    "additionalDirectories[]",
    "agentDirectories[]",
    "configDir",
    "extensionSdkPath",
    "hookDirectories[]",
    "instructionDirectories[]",
    "largeOutput.outputDir",
    "mcpServers.*.cwd",
    "pluginDirectories[]",
    "skillDirectories[]",
)
_DIRECTORY_PATHS: Final[dict[str, tuple[str, ...]]] = {
    "session.create": _OPENING_PATHS,
    "session.resume": _OPENING_PATHS,
    "session.lsp.initialize": ("workingDirectory", "gitRoot"),
    "session.mcp.reloadWithConfig": ("config.mcpServers.*.cwd",),
    "session.mcp.restartServer": ("config.cwd",),
    "session.mcp.startServer": ("config.cwd",),
    "session.metadata.setWorkingDirectory": ("workingDirectory",),
    "session.options.update": (
        "workingDirectory",
        "eventsLogDirectory",
        "installedPlugins[].cache_path",
        "shell.initScripts[].path",
        "skillDirectories[]",
        "trajectoryFile",
    ),
    "session.permissions.configure": ("paths.additionalDirectories[]", "paths.workspacePath"),
    "session.permissions.locations.apply": ("workingDirectory",),
    "session.permissions.paths.add": ("path",),
    "session.permissions.paths.updatePrimary": ("path",),
    "session.shell.exec": ("cwd",),
}
_ATTACHMENT_PATHS: Final[dict[str, str]] = {
    "session.extensions.sendAttachmentsToMessage": "attachments[]",
    "session.fleet.start": "attachments[]",
    "session.queue.insertAt": "message.attachments[]",
    "session.send": "attachments[]",
    "session.sendMessages": "messages[].attachments[]",
}
_HOST_ATTACHMENTS: Final = {"file": "path", "directory": "path", "selection": "filePath"}
"""Where each type of attachment that the CLI reads from its own disk names the file."""

_UNRESTRICTED: Final = {"session.permissions.configure": "paths.unrestricted"}


@dataclass(frozen=True, slots=True)
class ParamRule:
    """The operator's rule on the sessions of some identities.

    Attributes:
        tenants: tenants it is for; empty for all.
        users: users it is for; empty for all.
        roles: roles it is for; empty for all.
        force: params of session.create and session.resume that always have these values.
        default: params of session.create that have these values unless the client gives others.
        forbid: params of session.create, session.resume and session.options.update that a client
            may not give.
        models: patterns of the models that may be used; None for any.
        tools: the tools that the agent may have, as the SDKs write them: a name (``view``), a
            name with its source (``builtin:view``) or all of a source (``mcp:*``); None for any.
        root: directory that must contain every directory and file that a client names, and where
            sessions start that name none; ``{tenant}`` and ``{user}`` stand for the identity's.
        commands: patterns of slash commands that may be run besides :data:`DEFAULT_COMMANDS`.
        credentials: params of session.create and session.resume (``gitHubToken``, ``provider``)
            that replace whatever credentials the client gives.
    """

    tenants: frozenset[str] = frozenset()
    users: frozenset[str] = frozenset()
    roles: frozenset[Role] = frozenset()
    force: Mapping[str, Any] = field(default_factory=dict)
    default: Mapping[str, Any] = field(default_factory=dict)
    forbid: frozenset[str] = frozenset()
    models: tuple[str, ...] | None = None
    tools: tuple[str, ...] | None = None
    root: str | None = None
    commands: tuple[str, ...] = ()
    credentials: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Check what can be checked without an identity.

        Raises:
            ConfigError: for a relative root, a param both forced and forbidden, or credentials
                under a name that is not one.
        """
        if self.root is not None and not self.root.startswith("/"):
            raise ConfigError(f"root {self.root!r} must be an absolute path")
        both = self.forbid & (self.force.keys() | self.default.keys())
        if both:
            raise ConfigError(f"param {min(both)!r} is both set and forbidden")
        strange = self.credentials.keys() - _CREDENTIALS
        if strange:
            raise ConfigError(
                f"credentials {min(strange)!r} is not one of {', '.join(sorted(_CREDENTIALS))}"
            )

    def applies_to(self, identity: Identity) -> bool:
        """Return True if the rule is for this identity."""
        return (
            (not self.tenants or identity.tenant in self.tenants)
            and (not self.users or identity.user in self.users)
            and (not self.roles or identity.role in self.roles)
        )


def policy_for(rules: Iterable[ParamRule], identity: Identity, isolation: Isolation) -> ParamPolicy:
    """Return what holds for an identity, to be kept as long as its connection.

    Where several rules apply, each setting is taken from the first rule that makes it; forbidden
    params and allowed commands add up.

    Raises:
        RpcError: FORBIDDEN, if the identity's names cannot be part of a path and the root needs
            them.
    """
    force: dict[str, Any] = {}
    default: dict[str, Any] = {}
    credentials: dict[str, Any] = {}
    forbid: frozenset[str] = frozenset()
    models = tools = None
    root: str | None = None
    commands: tuple[str, ...] = ()
    for rule in rules:
        if not rule.applies_to(identity):
            continue
        force = {**rule.force, **force}
        default = {**rule.default, **default}
        credentials = credentials or dict(rule.credentials)
        forbid |= rule.forbid
        models = rule.models if models is None else models
        tools = rule.tools if tools is None else tools
        root = rule.root if root is None else root
        commands += rule.commands
    return ParamPolicy(
        isolation=isolation,
        role=identity.role,
        force=force,
        default=default,
        forbid=forbid - force.keys(),
        models=models,
        tools=tools,
        root=None if root is None else _root_of(root, identity),
        commands=(*DEFAULT_COMMANDS, *commands),
        credentials=credentials,
    )


def _root_of(template: str, identity: Identity) -> str:
    names = {"{tenant}": identity.tenant, "{user}": identity.user}
    for mark, name in names.items():
        if mark not in template:
            continue
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise RpcError(FORBIDDEN, "This identity's name cannot be part of a directory")
        template = template.replace(mark, name)
    return posixpath.normpath(template)


@dataclass(frozen=True, slots=True)
class ParamPolicy:
    """The rules on params as one identity meets them.

    Attributes:
        isolation: who shares the pool's replicas.
        role: the identity's role.
        force, default, forbid, models, tools, root, credentials: as in :class:`ParamRule`.
        commands: patterns of the slash commands that may be run, where they could reach past
            the session.
        methods: the methods whose params must pass through :meth:`apply`; all others are
            forwarded as they came.
    """

    isolation: Isolation = "shared"
    role: Role = Role.USER
    force: Mapping[str, Any] = field(default_factory=dict)
    default: Mapping[str, Any] = field(default_factory=dict)
    forbid: frozenset[str] = frozenset()
    models: tuple[str, ...] | None = None
    tools: tuple[str, ...] | None = None
    root: str | None = None
    commands: tuple[str, ...] = DEFAULT_COMMANDS
    credentials: Mapping[str, Any] = field(default_factory=dict, repr=False)
    methods: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        """Gather the methods to which any of the rules apply."""
        methods = {"sessions.delete"}
        if self._confined:
            methods |= {*_HOST_PARAMS, "session.permissions.modifyRules"}
            methods.add("session.permissions.handlePendingPermissionRequest")
        if self._commands_limited:
            methods |= _COMMANDS.keys()
        if self.force or self.default or self.forbid:
            methods |= OPENING_METHODS
        if self.forbid or self.force:
            methods.add("session.options.update")
        if self.models is not None:
            methods |= _MODEL_PATHS.keys()
        if self.tools is not None:
            methods |= {*OPENING_METHODS, *_TOOL_BYPASSES, "session.options.update"}
        if self.root is not None:
            methods |= {*_DIRECTORY_PATHS, *_ATTACHMENT_PATHS, *_UNRESTRICTED}
        if self.credentials:
            methods |= {*OPENING_METHODS, *_CREDENTIAL_METHODS, "session.options.update"}
            methods |= {"models.list", "account.getQuota"}
        object.__setattr__(self, "methods", frozenset(methods))

    @property
    def _confined(self) -> bool:
        """True for a user whose replicas serve other tenants too."""
        return self.isolation == "shared" and self.role is Role.USER

    @property
    def _commands_limited(self) -> bool:
        """True unless slash commands can neither reach others nor pass the other rules by."""
        others = self.isolation == "shared" or (
            self.isolation == "tenant" and self.role is Role.USER
        )
        return others or bool(self.models is not None or self.tools is not None or self.root)

    def apply(self, method: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the params to send on; the same object if nothing changes.

        Args:
            method: one of :attr:`methods`.
            params: what the client gave.

        Raises:
            RpcError: FORBIDDEN with ``data`` naming the method and the param, or INVALID_PARAMS
                for a value of the wrong type where a rule must read it.
        """
        if self.credentials and method in _CREDENTIAL_METHODS:
            raise _forbidden(method, None, "the gateway provides the credentials of sessions")
        if self.tools is not None and method in _TOOL_BYPASSES:
            raise _forbidden(method, None, "the tools of sessions are limited")
        if method == "sessions.delete" and params.get("sessionPath") is not None:
            raise _forbidden(method, "sessionPath", "sessions are named by their id")
        if self._confined:
            params = self._confine(method, params)
        if method in OPENING_METHODS:
            params = self._open(method, params)
        elif method == "session.options.update":
            params = self._update(method, params)
        elif self.credentials and method in ("models.list", "account.getQuota"):
            params = self._look_up(params)
        if self.models is not None:
            self._check_models(method, params)
        if self.root is not None:
            self._check_paths(method, params, self.root)
        if method in _COMMANDS and self._commands_limited:
            self._check_command(method, params)
        return params

    def _confine(self, method: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Keep a user of a shared pool from what outlasts or leaves the session."""
        for name in _HOST_PARAMS.get(method, ()):
            if params.get(name):
                raise _forbidden(method, name, "it reaches past the session")
        if method == "session.permissions.modifyRules":
            if params.get("scope") not in (None, "session"):
                raise _forbidden(method, "scope", "only rules of the session may be changed")
        elif method == "session.permissions.handlePendingPermissionRequest":
            result = params.get("result")
            if isinstance(result, Mapping):
                kind = result.get("kind")
                shorter = _LASTING_APPROVALS.get(kind) if isinstance(kind, str) else None
                if shorter is not None:
                    kept = {k: v for k, v in result.items() if k != "locationKey"}
                    return {**params, "result": {**kept, "kind": shorter}}
        return params

    def _open(self, method: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        self._refuse_forbidden(method, params)
        changed = dict(params)
        if self.credentials:
            for name in _CREDENTIALS:
                changed.pop(name, None)
            changed.update(self.credentials)
        if method == "session.create":
            for name, value in self.default.items():
                if changed.get(name) is None:
                    changed[name] = value
        changed.update(self.force)
        if self.root is not None and method == "session.create":
            changed["workingDirectory"] = changed.get("workingDirectory") or self.root
        if self.tools is not None:
            _limit_tools(changed, self.tools, fill=True)
        return params if changed == params else changed

    def _update(self, method: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Hold a change of a live session's options to the rules for opening one."""
        self._refuse_forbidden(method, params)
        if self.credentials:
            for name in ("provider", "copilotUrl"):
                if params.get(name) is not None:
                    raise _forbidden(
                        method, name, "the gateway provides the credentials of sessions"
                    )
        changed = dict(params)
        changed.update({name: self.force[name] for name in self.force.keys() & changed.keys()})
        if self.tools is not None:
            _limit_tools(changed, self.tools, fill=False)
        return params if changed == params else changed

    def _look_up(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer questions about models and quota for the account that sessions will use."""
        changed = {k: v for k, v in params.items() if k not in ("gitHubToken", "selectionId")}
        if "gitHubToken" in self.credentials:
            changed["gitHubToken"] = self.credentials["gitHubToken"]
        return changed

    def _refuse_forbidden(self, method: str, params: Mapping[str, Any]) -> None:
        for name in self.forbid:
            if params.get(name) is not None:
                raise _forbidden(method, name, "the operator does not allow it")

    def _check_models(self, method: str, params: Mapping[str, Any]) -> None:
        models = self.models or ()
        if method == "session.model.setAllowedModels" and params.get("allowedModels") is None:
            raise _forbidden(method, "allowedModels", "the models of sessions are limited")
        for path in _MODEL_PATHS.get(method, ()):
            for model in _values(path, params):
                if not isinstance(model, str):
                    raise _invalid(path, "must be a string")
                if not any(fnmatchcase(model, pattern) for pattern in models):
                    raise _forbidden(method, path, "this model is not allowed")

    def _check_paths(self, method: str, params: Mapping[str, Any], root: str) -> None:
        for path in _DIRECTORY_PATHS.get(method, ()):
            for value in _values(path, params):
                _check_path(method, path, value, root, relative=False)
        for attachment in _values(_ATTACHMENT_PATHS.get(method, ""), params):
            key = None
            if isinstance(attachment, Mapping) and isinstance(attachment.get("type"), str):
                key = _HOST_ATTACHMENTS.get(attachment["type"])
            if key is not None and attachment.get(key) is not None:
                path = f"{_ATTACHMENT_PATHS[method]}.{key}"
                _check_path(method, path, attachment[key], root, relative=True)
        unrestricted = _UNRESTRICTED.get(method)
        if unrestricted is not None and any(_values(unrestricted, params)):
            raise _forbidden(method, unrestricted, f"paths are limited to {root}")

    def _check_command(self, method: str, params: Mapping[str, Any]) -> None:
        command = params.get(_COMMANDS[method])
        if not isinstance(command, str):
            raise _invalid(_COMMANDS[method], "must be a string")
        words = command.strip().removeprefix("/").split(maxsplit=1)
        name = words[0] if words else ""
        if not any(fnmatchcase(name, pattern) for pattern in self.commands):
            raise _forbidden(method, _COMMANDS[method], "this command is not allowed")


def is_within(path: str, root: str) -> bool:
    """Return True if an absolute POSIX path, once normalised, is ``root`` or below it.

    Only the text counts: nothing is looked up, links are not followed.
    """
    if not path.startswith("/") or "\0" in path or "\\" in path:
        return False
    # normpath keeps two leading slashes, which POSIX leaves to the system to interpret.
    normal = "/" + posixpath.normpath(path).lstrip("/")
    root = posixpath.normpath(root)
    return root in ("/", normal) or normal.startswith(root + "/")


def _check_path(method: str, where: str, value: Any, root: str, *, relative: bool) -> None:
    if not isinstance(value, str):
        raise _invalid(where, "must be a string")
    if relative and not value.startswith(("/", "~")) and ":" not in value:
        value = posixpath.join(root, value)
    if not is_within(value, root):
        raise _forbidden(method, where, f"it must be inside {root}")


def _limit_tools(params: dict[str, Any], tools: Sequence[str], *, fill: bool) -> None:
    """Reduce the tools that a session may have to those that are allowed.

    The list bounds custom agents too: what they name beyond it they do not get.

    Args:
        params: changed in place.
        tools: the allowed tools.
        fill: whether a session that names no tools is given the allowed ones.
    """
    wanted = params.get("availableTools")
    if wanted is None:
        if fill or "availableTools" in params:
            params["availableTools"] = list(tools)
        return
    if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
        raise _invalid("availableTools", "must be a list of strings")
    params["availableTools"] = common_tools(wanted, tools)


def common_tools(wanted: Iterable[str], allowed: Iterable[str]) -> list[str]:
    """Return the tool filter that lets through what both filters let through.

    A filter entry is a tool's name, or ``source:name`` or ``source:*`` with a source of
    ``builtin``, ``mcp`` or ``custom``. A bare ``*`` stands for nothing, as in the CLI.
    """
    found: dict[str, None] = {}
    for entry in wanted:
        for other in allowed:
            both = _common_tool(entry, other)
            if both is not None:
                found[both] = None
    return list(found)


def _common_tool(one: str, other: str) -> str | None:
    if "*" in (one, other):
        return None
    one_source, _, one_name = one.rpartition(":")
    other_source, _, other_name = other.rpartition(":")
    if one_source and other_source and one_source != other_source:
        return None
    if one_name != other_name and "*" not in (one_name, other_name):
        return None
    source = one_source or other_source
    name = other_name if one_name == "*" else one_name
    return f"{source}:{name}" if source else name


def _values(path: str, params: Any) -> Iterator[Any]:
    """Yield what stands at a path; ``[]`` are the items of a list, ``*`` the values of an object.

    Raises:
        RpcError: INVALID_PARAMS for a value of the wrong type on the way, which the CLI might read
            in a way that no rule has looked at.
    """
    if path:
        yield from _walk(path, path.split("."), params)


def _walk(path: str, steps: list[str], value: Any) -> Iterator[Any]:
    if value is None:
        return
    if not steps:
        yield value
        return
    if not isinstance(value, Mapping):
        raise _invalid(path, "must be inside an object")
    step, rest = steps[0], steps[1:]
    if step == "*":
        for inner in value.values():
            yield from _walk(path, rest, inner)
        return
    key = step.removesuffix("[]")
    inner = value.get(key)
    if not step.endswith("[]"):
        yield from _walk(path, rest, inner)
    elif inner is not None:
        if not isinstance(inner, list):
            raise _invalid(path, "must be in a list")
        for item in inner:
            yield from _walk(path, rest, item)


def _forbidden(method: str, param: str | None, reason: str) -> RpcError:
    data = {"method": method} if param is None else {"method": method, "param": param}
    what = f"Method {method}" if param is None else f"Param {param} of {method}"
    return RpcError(FORBIDDEN, f"{what} is not allowed for this identity: {reason}", data)


def _invalid(path: str, problem: str) -> RpcError:
    return RpcError(INVALID_PARAMS, f"Invalid params: {path} {problem}", {"path": path})

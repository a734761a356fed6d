"""Event payloads that the SDKs insist on decoding in full."""

from __future__ import annotations

from typing import Any

MANAGED_SETTINGS: dict[str, Any] = {
    "source": "none",
    "serverManaged": False,
    "deviceManaged": False,
    "clientManaged": False,
    "policyHelperManaged": False,
    "failClosed": False,
    "sandboxEnabledByUndeterminedPolicy": False,
    "bypassPermissionsDisabled": False,
    "managedKeys": [],
    "permissionsContext": {"failClosed": False},
}


def shutdown(start_time: float, model: str) -> dict[str, Any]:
    """Return the data of ``session.shutdown``."""
    return {
        "shutdownType": "routine",
        "totalPremiumRequests": 0,
        "totalNanoAiu": 0,
        "totalApiDurationMs": 0,
        "sessionStartTime": int(start_time * 1000),
        "codeChanges": {"linesAdded": 0, "linesRemoved": 0, "filesModified": []},
        "modelMetrics": {},
        "currentModel": model,
    }


def permission(
    call_id: str, name: str, description: str, arguments: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a tool call's ``permissionRequest``, and the prompt that is made of it."""
    if name != "bash":
        custom: dict[str, Any] = {
            "kind": "custom-tool",
            "toolCallId": call_id,
            "toolName": name,
            "toolDescription": description,
            "args": arguments,
        }
        return custom, custom
    shell: dict[str, Any] = {
        "fullCommandText": str(arguments.get("command", "")),
        "intention": str(arguments.get("description", "")),
        "canOfferSessionApproval": False,
        "toolCallId": call_id,
    }
    request: dict[str, Any] = {
        "kind": "shell",
        **shell,
        "commands": [{"identifier": shell["fullCommandText"], "readOnly": False}],
        "possiblePaths": [],
        "possibleUrls": [],
        "hasWriteFileRedirection": False,
    }
    prompt = {
        "kind": "commands",
        **shell,
        "commandIdentifiers": [shell["fullCommandText"]],
    }
    return request, prompt

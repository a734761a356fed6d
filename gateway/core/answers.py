"""Errors of the gateway's own about sessions, replicas and limits. Pure.

Answers about sessions that do not exist are worded in :mod:`gateway.policy.results`.
"""

from __future__ import annotations

from typing import Any

from gateway import errors
from gateway.errors import RpcError
from gateway.policy.results import MAX_ECHOED_ID, failed


def invalid_session_id(method: str, session_id: str) -> RpcError:
    """Return the CLI's answer to an id outside of its alphabet."""
    return failed(
        method, f"Rejected {method} request with invalid sessionId: {session_id[:MAX_ECHOED_ID]}"
    )


def replica_unavailable(session_id: str | None, retry_after: float) -> RpcError:
    """Return the error for a session or request that no replica can serve right now."""
    data: dict[str, Any] = {"retryAfterMs": max(100, int(retry_after * 1000))}
    if session_id is None:
        return RpcError(errors.REPLICA_UNAVAILABLE, "No replica is available", data)
    data["session"] = session_id
    return RpcError(
        errors.REPLICA_UNAVAILABLE, "The replica that holds this session is not available", data
    )


def overloaded(limit: str, value: int, retry_after_ms: int = 1000) -> RpcError:
    """Return the error for a limit that was reached.

    Args:
        limit: name of the limit, as in the settings.
        value: what it is set to.
        retry_after_ms: when it makes sense to try again.
    """
    return RpcError(
        errors.OVERLOADED,
        f"The limit {limit} ({value}) is reached",
        {"limit": limit, "value": value, "retryAfterMs": retry_after_ms},
    )


def turn_interrupted(session_id: str, prompt_recorded: bool | None) -> RpcError:
    """Return the error for a request of a turn that died with its replica.

    Args:
        session_id: the session.
        prompt_recorded: whether the prompt is in the session's history; None if unknown.
    """
    return RpcError(
        errors.TURN_INTERRUPTED,
        "The replica died during this turn",
        {"session": session_id, "promptRecorded": prompt_recorded},
    )

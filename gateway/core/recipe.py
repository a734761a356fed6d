"""What it takes to make a session live again: the parameters the CLI does not persist. Pure.

The CLI keeps transcript, working directory, names and model; tools, provider, filters, hooks,
system message and the rest live only in its memory. The recipe is what this client's creates and
resumes said, later ones over earlier ones, as the CLI itself merges them for a live session.
"""

from __future__ import annotations

from typing import Any

Recipe = dict[str, Any]

_NOT_KEPT = frozenset(
    {
        "sessionId",
        # One call's trace, not the session's.
        "traceparent",
        "tracestate",
        # Instructions for one resume.
        "disableResume",
        "continuePendingWork",
    }
)

_SUPERSEDED_BY = {
    "session.model.switchTo": ("model", "reasoningEffort", "reasoningSummary", "contextTier"),
    "session.model.setReasoningEffort": ("reasoningEffort",),
    "session.mode.set": ("mode",),
    "session.options.update": (),
}
"""Methods after which a parameter of the recipe no longer holds: the CLI persists what they set."""


def merged(recipe: Recipe | None, params: dict[str, Any]) -> Recipe:
    """Return the recipe after one more create or resume with ``params``."""
    kept = {key: value for key, value in params.items() if key not in _NOT_KEPT}
    return {**recipe, **kept} if recipe else kept


def after_call(recipe: Recipe, method: str, params: dict[str, Any]) -> Recipe:
    """Return the recipe after a successful call of another session method."""
    if method == "session.options.update":
        changed = {key: value for key, value in params.items() if key in recipe}
        return {**recipe, **merged(None, changed)}
    stale = _SUPERSEDED_BY.get(method)
    if not stale:
        return recipe
    return {key: value for key, value in recipe.items() if key not in stale}


def changes_recipe(method: str) -> bool:
    """Whether :func:`after_call` may give another recipe for ``method``."""
    return method in _SUPERSEDED_BY


def resume_params(recipe: Recipe, session_id: str, *, continue_pending_work: bool) -> Recipe:
    """Return the params of the ``session.resume`` that makes the session live again.

    The resume event is suppressed: for the client nothing has happened.
    """
    return {
        **recipe,
        "sessionId": session_id,
        "disableResume": True,
        "continuePendingWork": continue_pending_work,
    }


def create_params(recipe: Recipe, session_id: str) -> Recipe:
    """Return the params that make a session anew which never had a message."""
    return {**recipe, "sessionId": session_id}


def tool_names(recipe: Recipe) -> frozenset[str]:
    """Return the names of the tools that the client brings."""
    tools = recipe.get("tools")
    if type(tools) is not list:
        return frozenset()
    names = (tool.get("name") for tool in tools if type(tool) is dict)
    return frozenset(name for name in names if type(name) is str)

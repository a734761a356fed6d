"""The reference page of methods, written from the method table.

``python -m gateway.policy.pages`` writes it; a test holds it up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from gateway.policy.rules import Route
from gateway.wire.methods import CLI_VERSION, METHODS, Access, MethodInfo

REFERENCE = Path("docs/reference/methods.md")

_ROUTES = {
    Route.LOCAL: "answered by the gateway",
    Route.SESSION: "the replica that holds the session",
    Route.CREATE: "a replica chosen for the new session",
    Route.RESUME: "the replica that holds the session, or one chosen for it",
    Route.DETACH: "the replica that holds the session; the caller leaves it",
    Route.CLOSE: "the replica that holds the session; it leaves memory for everybody",
    Route.DELETE: "the replica that holds the session; it ends for good",
    Route.FORK: "the replica that holds the session; the copy belongs to the caller",
    Route.ANY: "any healthy replica",
    Route.MERGE: "every replica; one answer about the caller's sessions",
    Route.SCATTER: "for each id the replica that holds it; one answer",
    Route.ALL: "every replica of the pool",
    Route.SINGLETON: "every replica that the client uses, for the whole CLI process",
    Route.REPLY: "the replica that began the exchange",
}

_ACCESS = {
    Access.USER: "everyone",
    Access.TENANT: "everyone; in shared pools administrators only",
    Access.ADMIN: "administrators",
    Access.NEVER: "nobody",
}


def reference_page() -> str:
    """Return the reference page in Markdown."""
    return "\n".join(_reference()) + "\n"


def main() -> int:
    """Write the page into the repository that is the current directory."""
    REFERENCE.write_text(reference_page(), "utf-8")
    return 0


def _reference() -> Iterator[str]:
    yield "# Methods"
    yield ""
    yield (
        "<!-- Written by `python -m gateway.policy.pages` from gateway/wire/methods.json. "
        "Do not edit. -->"
    )
    yield ""
    yield (
        f"What the gateway does by default with each method that clients of CLI {CLI_VERSION} may "
        "call. Rules of the operator come first; they can open or close any method, save those "
        "that *nobody* may call. Every session id in the params must be one of the caller's "
        "sessions, whatever the rules."
    )
    yield ""
    yield (
        "A method that is closed to the caller is answered with `-32003`. Those marked "
        "*undocumented* are missing from the CLI's published schema; closed, they are answered "
        "with `-32601`, as by a CLI that lacks them, and so are methods that this page does not "
        "list."
    )
    yield ""
    yield "## Served by"
    yield ""
    yield "| word | meaning |"
    yield "|---|---|"
    for route, meaning in _ROUTES.items():
        yield f"| {route.name.lower()} | {meaning} |"
    yield ""
    yield "## Methods"
    yield ""
    yield "| method | served by | session ids | who may call it | why not everyone |"
    yield "|---|---|---|---|---|"
    for _, info in sorted(METHODS.items()):
        yield _row(info)


def _row(info: MethodInfo) -> str:
    name = f"`{info.method}`" if info.documented else f"`{info.method}` *undocumented*"
    route = info.route if info.sent_as is None else f"{info.route}, as `{info.sent_as}`"
    paths = ", ".join(f"`{path}`" for path in info.session_paths)
    cells = (name, route, paths, _ACCESS[info.access], info.reason)
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())

"""The first two minutes: a gateway in front of two CLIs, and what to paste into an application.

``python -m gateway.cli.quickstart`` becomes ``copilot-gateway serve --spawn 2``: the same process,
with the same signals and exit status. A small child reads its output, passes it on, and prints the
address, the token and a snippet once the gateway accepts connections.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import sys
from collections.abc import Mapping

LISTEN = "127.0.0.1:4321"
TOKEN_VARIABLE = "COPILOT_GATEWAY_TOKEN"  # noqa: S105 - the name, not the token
GITHUB_VARIABLES = ("COPILOT_GITHUB_TOKEN", "GH_TOKEN", "GITHUB_TOKEN")
PROVIDER_VARIABLE = "COPILOT_PROVIDER_BASE_URL"

_READY = re.compile(r"^copilot-gateway listening on port (\d+)$")


def snippet(url: str, token: str, env: Mapping[str, str]) -> str:
    """Return a few lines of Python that hold a conversation through the gateway at ``url``.

    Good for a file and for the prompt, which takes an empty line for the end of a function.

    With a GitHub token in ``env`` the CLIs know their model. A provider in their environment is
    not used for the sessions of SDKs, so that the application has to name it.
    """
    gateway = f'RuntimeConnection.for_uri("{url}", connection_token="{token}")'
    imports, session = "import asyncio", ""
    if env.get(PROVIDER_VARIABLE) and not _has_github_token(env):
        # The key stays in the environment; this text is printed.
        key = ""
        if env.get("COPILOT_PROVIDER_API_KEY"):
            imports, key = (
                "import asyncio, os",
                '"api_key": os.environ["COPILOT_PROVIDER_API_KEY"], ',
            )
        session = (
            f"model={json.dumps(env.get('COPILOT_MODEL') or 'gpt-4.1')}, provider={{"
            f'"type": {json.dumps(env.get("COPILOT_PROVIDER_TYPE") or "openai")}, '
            f'{key}"base_url": {json.dumps(env[PROVIDER_VARIABLE])}}}'
        )
    return f"""\
{imports}; from copilot import CopilotClient, RuntimeConnection
async def main():
    async with CopilotClient(connection={gateway}) as client:
        print((await (await client.create_session({session})).send_and_wait("Say hello!")).data.content)

asyncio.run(main())
"""  # noqa: E501 - five lines, to be pasted


def _has_github_token(env: Mapping[str, str]) -> bool:
    return any(env.get(name) for name in GITHUB_VARIABLES)


def missing_credentials(env: Mapping[str, str]) -> str:
    """Return which variable to set if the CLIs will reach no model, else an empty text."""
    if _has_github_token(env) or env.get(PROVIDER_VARIABLE):
        return ""
    return (
        "The CLIs have no access to a model yet. Set one of these and start again:\n"
        f"  {' or '.join(GITHUB_VARIABLES)}: a GitHub token with access to Copilot\n"
        f"  {PROVIDER_VARIABLE} and COPILOT_MODEL: an OpenAI-compatible endpoint and its model\n"
    )


def banner(port: int, env: Mapping[str, str]) -> str:
    """Return what is printed once the gateway accepts connections on ``port``."""
    url = f"127.0.0.1:{port}"
    token = env[TOKEN_VARIABLE]
    parts = [
        f"cli_url: {url}\ntoken:   {token}\n",
        "Paste this into .venv/bin/python, or wherever github-copilot-sdk is installed:\n\n"
        + snippet(url, token, env),
        "(The SDK logs that session.sendAndWait is unknown to this CLI, and does without it.)\n",
        missing_credentials(env),
        "Stop it with Ctrl-C.\n",
    ]
    return "\n" + "\n".join(part for part in parts if part)


def _announce(output: int, env: Mapping[str, str]) -> None:
    """Copy the gateway's output to ours, with the banner behind its ready line."""
    # Ctrl-C is for the gateway; this process ends when the gateway has said its last word.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with os.fdopen(output, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            sys.stdout.write(line)
            if ready := _READY.match(line.rstrip()):
                sys.stdout.write(banner(int(ready.group(1)), env))
            sys.stdout.flush()


def main(argv: list[str]) -> None:
    """Become the gateway; ``argv`` are further arguments of ``copilot-gateway serve``."""
    env = dict(os.environ)
    # One that is empty is none.
    env[TOKEN_VARIABLE] = env.get(TOKEN_VARIABLE) or secrets.token_urlsafe(24)
    output, output_end = os.pipe()
    if os.fork() == 0:
        os.close(output_end)
        _announce(output, env)
        os._exit(0)
    os.close(output)
    os.dup2(output_end, sys.stdout.fileno())
    os.close(output_end)
    command = [sys.executable, "-m", "gateway.cli", "serve", "--spawn", "2", "--listen", LISTEN]
    os.execve(sys.executable, [*command, *argv], env)  # noqa: S606 - there is no shell, on purpose


if __name__ == "__main__":
    main(sys.argv[1:])

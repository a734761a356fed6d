"""The environment of the demo's gateway."""

from __future__ import annotations

from pathlib import Path

from gateway.demo.process import clean_environment


def test_credentials_settings_and_proxies_stay_outside() -> None:
    given = {
        "PATH": "/bin",
        "HOME": "/home/x",
        "GH_TOKEN": "hush",
        "GITHUB_TOKEN": "hush",
        "COPILOT_GITHUB_TOKEN": "hush",
        "COPILOT_PROVIDER_API_KEY": "hush",
        "COPILOT_GATEWAY_SERVER_WORKERS": "8",
        "COPILOT_HOME": "/home/x/.copilot",
        "https_proxy": "http://proxy",
        "HTTP_PROXY": "http://proxy",
        "NO_PROXY": "localhost",
    }
    env = clean_environment(given, "http://127.0.0.1:1/v1", Path("/opt/copilot"))
    assert env == {
        "PATH": "/bin",
        "HOME": "/home/x",
        "COPILOT_CLI": "/opt/copilot",
        "COPILOT_OFFLINE": "true",
        "COPILOT_PROVIDER_BASE_URL": "http://127.0.0.1:1/v1",
        "COPILOT_MODEL": "gpt-4.1",
    }

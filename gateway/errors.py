"""Errors that reach a person or a program: JSON-RPC errors and start-up failures.

Every JSON-RPC error the gateway itself produces is a :class:`RpcError`, so that its code, message
and ``data`` are decided in one place. Start-up failures are :class:`StartupError` and carry the
process exit status.
"""

from __future__ import annotations

from typing import Any

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
AUTHENTICATION_REQUIRED = -32001
AUTHENTICATION_FAILED = -32002
FORBIDDEN = -32003
REPLICA_UNAVAILABLE = -32010
TURN_INTERRUPTED = -32011
OVERLOADED = -32012
REGISTRY_UNAVAILABLE = -32013

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 3


class RpcError(Exception):
    """A JSON-RPC error to be sent to a client.

    Attributes:
        code: stable JSON-RPC error code.
        message: one sentence for a person; never holds secrets or prompts.
        data: fields for a program, or None.
    """

    def __init__(self, code: int, message: str, data: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data

    def to_object(self) -> dict[str, Any]:
        """Return the JSON-RPC ``error`` member."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.data is not None:
            error["data"] = self.data
        return error


class StartupError(Exception):
    """The program cannot start; the message is the one line shown to the operator.

    Attributes:
        exit_status: :data:`EXIT_USAGE` for a bad command line or configuration,
            :data:`EXIT_UNAVAILABLE` for a port, a CLI binary or a registry that is not to be had.
    """

    def __init__(self, message: str, exit_status: int = EXIT_UNAVAILABLE) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class ConfigError(StartupError):
    """Bad configuration: names the setting and what would be accepted."""

    def __init__(self, message: str) -> None:
        super().__init__(message, EXIT_USAGE)


class RegistryUnavailableError(Exception):
    """The registry could not be reached or did not answer in time; nothing was decided."""

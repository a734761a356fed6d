"""What lets SDKs and CLIs of different ages work together. Pure; small by intent.

Three differences are bridged, all others are left alone:

* SDKs before 1.0 expect the ``timestamp`` of a ping to be integer milliseconds; newer CLIs send an
  ISO 8601 text.
* The 0.1 and 0.2 generations cannot decode ``session.idle`` events whose data names a ``mode``, and
  then wait for ever.
* Today's SDKs leave a session by ``session.detach``; CLIs that lack it know ``session.destroy``,
  which did then what detach does now.

Whether a client is an old one is decided once, by the first message it sends: newer ones send
``connect``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import orjson

from gateway.errors import METHOD_NOT_FOUND
from gateway.wire.stream import EVENT_PREFIX

PING = "ping"
DETACH = "session.detach"
DESTROY = "session.destroy"
IDLE = "session.idle"

_PING_MARK = b'"timestamp":"'
_IDLE_MARK = b'"session.idle"'
_SMALL = 4096
"""Neither a ping's answer (whose text the client chose) nor an idle event is usually longer."""


def is_old_client(first_method: str) -> bool:
    """Tell from the method of a client's first message whether it needs :func:`for_old_client`."""
    return first_method == PING


def for_old_client(body: bytes) -> bytes:
    """Return a replica's message as an old client can read it.

    All but the answers to pings and ``session.idle`` events are returned as they are, without being
    parsed. Needs nothing to be remembered: a ping's answer is told by its shape, which no other
    answer has.
    """
    if body.startswith(EVENT_PREFIX):
        # The type follows the session id, at most 250 characters long.
        if body.find(_IDLE_MARK, 0, 512) < 0:
            return body
        return idle_without_mode(body)
    if _PING_MARK in body and (len(body) < _SMALL or b'"protocolVersion":' in body[-64:]):
        return integer_timestamp(body)
    return body


def integer_timestamp(body: bytes) -> bytes:
    """Return a ping's answer with its timestamp in integer milliseconds; else what was given."""
    message = _load(body)
    result = message.get("result")
    if not isinstance(result, dict) or result.keys() != {"message", "timestamp", "protocolVersion"}:
        return body
    timestamp = result["timestamp"]
    if not isinstance(timestamp, str):
        return body
    try:
        moment = datetime.fromisoformat(timestamp)
    except ValueError:
        return body
    result["timestamp"] = int(moment.timestamp() * 1000)
    return orjson.dumps(message)


def idle_without_mode(body: bytes) -> bytes:
    """Return a ``session.idle`` event without its ``mode``; anything else as it was given."""
    message = _load(body)
    params = message.get("params")
    event = params.get("event") if isinstance(params, dict) else None
    if not isinstance(event, dict) or event.get("type") != IDLE:
        return body
    data = event.get("data")
    if not isinstance(data, dict) or data.pop("mode", None) is None:
        return body
    return orjson.dumps(message)


def lacks_detach(error: dict[str, Any]) -> bool:
    """Tell from the error that a ``session.detach`` was answered with whether the CLI lacks it.

    Then the request is to be sent again as :func:`destroy_for_detach`, and from then on at once to
    the same replica.
    """
    return error.get("code") == METHOD_NOT_FOUND


def destroy_for_detach(request: dict[str, Any]) -> dict[str, Any]:
    """Return a ``session.detach`` request as the ``session.destroy`` that older CLIs know.

    The answers have the same shape. Any other request is returned as it was given.
    """
    if request.get("method") != DETACH:
        return request
    return {**request, "method": DESTROY}


def _load(body: bytes) -> dict[str, Any]:
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return message if isinstance(message, dict) else {}

"""Settings: defined once, read from flags, environment and file.

:mod:`~gateway.config.settings` defines them, :mod:`~gateway.config.kinds` says how values are read
and shown, :mod:`~gateway.config.load` puts them together.
"""

from gateway.config.kinds import Address, parse_address, parse_duration, redact_url
from gateway.config.load import Source, build, check, reloaded
from gateway.config.settings import (
    AdminSettings,
    AuditSettings,
    AuthSettings,
    DrainSettings,
    FlowSettings,
    HealthSettings,
    JwtSettings,
    LimitsSettings,
    ListenerSettings,
    LogSettings,
    PolicySettings,
    QuotaSettings,
    RegistrySettings,
    ReplicaSettings,
    RoutingSettings,
    ServerSettings,
    SessionsSettings,
    Settings,
    SpawnSettings,
    StorageSettings,
    TenantSettings,
)

__all__ = [
    "Address",
    "AdminSettings",
    "AuditSettings",
    "AuthSettings",
    "DrainSettings",
    "FlowSettings",
    "HealthSettings",
    "JwtSettings",
    "LimitsSettings",
    "ListenerSettings",
    "LogSettings",
    "PolicySettings",
    "QuotaSettings",
    "RegistrySettings",
    "ReplicaSettings",
    "RoutingSettings",
    "ServerSettings",
    "SessionsSettings",
    "Settings",
    "Source",
    "SpawnSettings",
    "StorageSettings",
    "TenantSettings",
    "build",
    "check",
    "parse_address",
    "parse_duration",
    "redact_url",
    "reloaded",
]

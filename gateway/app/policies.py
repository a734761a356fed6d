"""From settings to policy: the objects that decide, made of what the operator wrote.

What only policy can judge about settings is found out here, so ``check`` makes these objects, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.config.kinds import SecretRef
from gateway.config.settings import (
    ListenerSettings,
    PoolSettings,
    QuotaSettings,
    Settings,
    secret_refs,
)
from gateway.core.hub import Serves
from gateway.errors import ConfigError
from gateway.io.jwks import FileKeys, JwtAuthenticator, UrlKeys, check_jwks_url
from gateway.io.listeners import ListenerPlan
from gateway.io.tls import ServerTls, ServerTlsFiles, client_context
from gateway.io.token_file import read_secret_file
from gateway.policy.certificate_identity import CertificateMapping, FieldSelector
from gateway.policy.jwt_identity import JwtConfig, JwtVerifier
from gateway.policy.listener_identity import ListenerRule, parse_networks
from gateway.policy.params import ParamRule
from gateway.policy.quotas import NO_LIMITS, QuotaLimits, TenantRule
from gateway.policy.rules import Isolation, MethodPolicy, OperatorRule
from gateway.types import Identity, Role


def check_policies(settings: Settings) -> None:
    """Refuse what cannot work, files that are not there included.

    Raises:
        ConfigError: the first such setting.
    """
    method_policy(settings)
    param_rules(settings)
    jwt_authenticator(settings)
    for listener in settings.listeners:
        listener_plan(listener, None, 1.0)


def method_policy(settings: Settings, pool: PoolSettings | None = None) -> MethodPolicy:
    """Return the policy on methods, in a pool or in the default one.

    Raises:
        ConfigError: a rule allows what cannot be allowed.
    """
    policy = settings.policy
    return MethodPolicy(
        isolation=_isolation(policy.isolation if pool is None else pool.isolation),
        unknown_session_methods="allow" if policy.unknown_session_methods == "allow" else "deny",
        rules=tuple(
            OperatorRule(
                effect="allow" if rule.effect == "allow" else "deny",
                methods=rule.methods,
                tenants=frozenset(rule.tenants),
                roles=frozenset(map(Role, rule.roles)),
            )
            for rule in policy.methods
        ),
    )


def _isolation(word: str) -> Isolation:
    return "user" if word == "user" else "tenant" if word == "tenant" else "shared"


def serves(settings: Settings) -> Serves | None:
    """Return whom the replicas serve alone, or None for all."""
    policy = settings.policy
    return None if policy.isolation == "shared" else Serves(policy.tenant, policy.user)


def param_rules(settings: Settings) -> tuple[ParamRule, ...]:
    """Return the rules on params, with the credentials read from their files.

    Raises:
        ConfigError: a rule contradicts itself, or a file cannot be read.
    """
    rules = []
    for index, rule in enumerate(settings.policy.params):
        label = f"policy.params[{index}]"
        try:
            rules.append(
                ParamRule(
                    tenants=frozenset(rule.tenants),
                    users=frozenset(rule.users),
                    roles=frozenset(map(Role, rule.roles)),
                    force=rule.force or {},
                    default=rule.default or {},
                    forbid=frozenset(rule.forbid),
                    models=rule.models,
                    tools=rule.tools,
                    root=rule.root or None,
                    commands=rule.commands,
                    credentials=_revealed(rule.credentials or {}, label),
                )
            )
        except ConfigError as error:
            text = str(error)
            raise ConfigError(text if text.startswith(label) else f"{label}: {text}") from None
    return tuple(rules)


def _revealed(value: Any, label: str) -> Any:
    if isinstance(value, SecretRef):
        if value.file is not None:
            return read_secret_file(value.file, f"{label}.credentials")
        return value.value
    if isinstance(value, Mapping):
        return {name: _revealed(one, label) for name, one in value.items()}
    if isinstance(value, list):
        return [_revealed(one, label) for one in value]
    return value


def secrets_of(settings: Settings) -> tuple[str, ...]:
    """Return all secrets that the settings hold or name, for masking them in logs.

    A file that cannot be read is left out: whoever needs it reports that.
    """
    files = [settings.admin.token_file, *(replica.token_file for replica in settings.replicas)]
    for rule in settings.policy.params:
        files += [reference.file for reference in secret_refs(rule.credentials)]
    for pool in settings.pools:
        files += [reference.file for reference in secret_refs(pool.env)]
    found = list(settings.secrets())
    for file in files:
        if file is not None:
            try:
                found.append(read_secret_file(file, "secret"))
            except ConfigError:
                continue
    return tuple(found)


def tenant_rules(settings: Settings) -> dict[str, TenantRule]:
    """Return what is settled for tenants, by name."""
    return {
        tenant.name: TenantRule(
            limits=_limits(tenant.limits),
            user_limits=_limits(tenant.user_limits),
            shared_sessions=tenant.sessions == "shared",
        )
        for tenant in settings.tenants
    }


def _limits(limits: QuotaSettings | None) -> QuotaLimits:
    if limits is None:
        return NO_LIMITS
    return QuotaLimits(
        connections=limits.connections,
        sessions=limits.sessions,
        turns=limits.turns,
        messages_per_second=limits.messages_per_second,
        bytes_per_second=float(limits.bytes_per_second),
        max_frame=limits.max_frame,
    )


def jwt_authenticator(settings: Settings) -> JwtAuthenticator | None:
    """Return the verifier of an issuer's tokens, not yet started, or None.

    Raises:
        ConfigError: a value cannot work, or a file cannot be read.
    """
    jwt = settings.auth_jwt
    if not jwt.issuer:
        return None
    config = JwtConfig(
        issuer=jwt.issuer,
        audience=jwt.audience,
        algorithms=jwt.algorithms,
        tenant=jwt.tenant or None,
        tenant_claim=jwt.tenant_claim,
        user_claim=jwt.user_claim,
        role_claim=jwt.role_claim or None,
        roles={value: Role(role) for value, role in jwt.roles},
        default_role=None if jwt.default_role == "none" else Role(jwt.default_role),
        clock_skew=jwt.clock_skew,
    )
    keys: FileKeys | UrlKeys
    if jwt.jwks_file is not None:
        keys = FileKeys(jwt.jwks_file)
    else:
        check_jwks_url(jwt.jwks_url)
        keys = UrlKeys(jwt.jwks_url, ca=client_context(jwt.jwks_ca) if jwt.jwks_ca else None)
    return JwtAuthenticator(JwtVerifier(config), keys)


def listener_plan(
    listener: ListenerSettings, fallback: Identity | None, handshake_timeout: float
) -> ListenerPlan:
    """Return how a listener treats connections.

    Args:
        listener: what the operator wrote.
        fallback: who a client is that has proven nothing, where authentication is off.
        handshake_timeout: seconds for PROXY header and TLS handshake.

    Raises:
        ConfigError: a value cannot work, or a file cannot be read.
    """
    label = f"listeners ({listener.label})"
    tls = listener.tls
    place = listener.identity
    networks = parse_networks(label, listener.networks) if listener.networks else ()
    return ListenerPlan(
        name=listener.label,
        networks=networks,
        identity=None
        if place is None
        else ListenerRule(listener.label, place.tenant, place.user, networks, Role(place.role)),
        certificates=_certificate_mapping(listener, label),
        fallback=fallback,
        tls=None
        if tls is None
        else ServerTls(
            ServerTlsFiles(tls.certificate, tls.key, tls.client_ca, tls.require_client_certificate)
        ),
        proxies=parse_networks(label, listener.proxy_networks) if listener.proxy_networks else (),
        handshake_timeout=handshake_timeout,
    )


def _certificate_mapping(listener: ListenerSettings, label: str) -> CertificateMapping | None:
    mapped = listener.certificate_identity
    if mapped is None:
        return None

    def selector(key: str, text: str) -> FieldSelector:
        return FieldSelector.parse(f"{label}.certificate_identity.{key}", text)

    return CertificateMapping(
        tenant=mapped.tenant or selector("tenant_from", mapped.tenant_from),
        user=mapped.user or selector("user_from", mapped.user_from),
        admin=selector("admin_from", mapped.admin_from) if mapped.admin_from else None,
    )

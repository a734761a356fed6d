# The gateway and the Copilot CLI in one image: `copilot-gateway serve` fronts CLIs that run
# elsewhere (--replica) or inside the container (--spawn); `copilot --headless` is such a CLI.
# Tools that the CLI's agent shall use (git, compilers) belong into an image built on this one.

FROM node:22-bookworm-slim AS cli
WORKDIR /cli
COPY deploy/cli/package.json deploy/cli/package-lock.json ./
# The native binary needs neither Node.js nor the rest of the package.
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund --loglevel=error \
    && cp node_modules/@github/copilot-linux-*/copilot /usr/local/bin/copilot

# With a compiler, for the optional native scanner.
FROM python:3.12-bookworm AS build
WORKDIR /src
COPY pyproject.toml setup.py README.md ./
COPY gateway ./gateway
RUN python -m venv /opt/copilot-gateway \
    && /opt/copilot-gateway/bin/pip install --no-cache-dir --quiet .

FROM python:3.12-slim-bookworm
RUN useradd --system --uid 10001 --user-group --create-home --home-dir /home/gateway gateway \
    && install -d -o gateway -g gateway -m 0700 /var/lib/copilot-gateway /var/lib/copilot
COPY --from=build /opt/copilot-gateway /opt/copilot-gateway
COPY --from=cli /usr/local/bin/copilot /usr/local/bin/copilot
ENV PATH=/opt/copilot-gateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    COPILOT_AUTO_UPDATE=false \
    COPILOT_HOME=/var/lib/copilot \
    COPILOT_GATEWAY_SERVER_LISTEN=0.0.0.0:4321 \
    COPILOT_GATEWAY_SERVER_STATE_DIR=/var/lib/copilot-gateway \
    COPILOT_GATEWAY_ADMIN_LISTEN=0.0.0.0:4322
USER 10001:10001
WORKDIR /home/gateway
VOLUME ["/var/lib/copilot-gateway", "/var/lib/copilot"]
EXPOSE 4321 4322
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:4322/livez', timeout=2)"]
# The gateway handles signals and its children itself: no init is needed. SIGTERM drains.
ENTRYPOINT ["copilot-gateway"]
CMD ["serve"]

#!/usr/bin/env bash
# Installs the servers that the tests talk to, where they are missing. Quick when they are there.
set -euo pipefail

missing=()
for pair in redis-server:redis-server haproxy:haproxy; do
  # Debian keeps haproxy in /usr/sbin, which is not on every PATH.
  PATH="$PATH:/usr/sbin" command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if ((${#missing[@]} == 0)); then
  exit 0
fi
if ! command -v apt-get >/dev/null || [[ $(id -u) != 0 ]]; then
  echo "the tests need ${missing[*]}: install them with your package manager" \
    "(Debian, Ubuntu: sudo apt-get install ${missing[*]})" >&2
  exit 1
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The packages start their servers where there is an init system; the tests start their own.
if ! { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  cat "$log" >&2
  exit 1
fi

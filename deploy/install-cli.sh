#!/usr/bin/env bash
# Installs the pinned Copilot CLI and Node SDK (deploy/cli) into a folder: install-cli.sh FOLDER
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
target=${1:?usage: install-cli.sh FOLDER}
if ! command -v npm >/dev/null; then
  echo "npm is needed to install the Copilot CLI: install Node.js 20 or later," \
    "or put a copilot on PATH" >&2
  exit 1
fi
mkdir -p "$target"
cp "$here/cli/package.json" "$here/cli/package-lock.json" "$target/"
# Nothing of it needs its installation scripts: they would only fetch what is bundled.
npm ci --prefix "$target" --ignore-scripts --no-audit --no-fund --loglevel=error

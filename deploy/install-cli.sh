#!/usr/bin/env bash
# Installs the pinned Copilot CLI (deploy/cli), and further npm packages, into a folder:
# install-cli.sh FOLDER [PACKAGE@VERSION...]
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
target=${1:?usage: install-cli.sh FOLDER [PACKAGE@VERSION...]}
shift
if ! command -v npm >/dev/null; then
  echo "npm is needed to install the Copilot CLI: install Node.js 20 or later," \
    "or put a copilot on PATH" >&2
  exit 1
fi
mkdir -p "$target"
cp "$here/cli/package.json" "$here/cli/package-lock.json" "$target/"
# Nothing of it needs its installation scripts: they would only fetch what is bundled.
options=(--prefix "$target" --ignore-scripts --no-audit --no-fund --loglevel=error)
npm ci "${options[@]}" >/dev/null
if (($#)); then
  npm install --no-save "${options[@]}" "$@" >/dev/null
fi

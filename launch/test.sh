#!/usr/bin/env bash
# Lint, format, types, then the tests. Arguments go to pytest: bash launch/test.sh -m "dist and not slow"
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
NEEDS=test
. "$ROOT/launch/setup.sh"
cd "$ROOT"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
exec "$PYTHON" -m pytest "$@"

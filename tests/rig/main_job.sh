#!/usr/bin/env bash
# Runs the README's first command and checks what it promises: the job trains to 0.92 and says so as JSON.
set -euo pipefail
cd "$(dirname "$0")/../.."

command=$(sed -nE 's/^(cargo run --release -p launcher -- job submit .*)$/\1/p' README.md | head -n 1)
[ -n "$command" ] || { echo "README.md has no 'cargo run --release -p launcher -- job submit …' line" >&2; exit 1; }

SLIPWAY_HOME=$(mktemp -d)
export SLIPWAY_HOME
trap 'rm -rf "$SLIPWAY_HOME"' EXIT
bash -c "$command --output json" >"$SLIPWAY_HOME/summary.json"
python3 - "$SLIPWAY_HOME/summary.json" <<'PYTHON'
import json, sys

summary = json.load(open(sys.argv[1]))
print(json.dumps(summary, indent=1))
accuracy = summary["summary"]["reported"]["accuracy"]
assert accuracy >= 0.92, f"accuracy {accuracy} < 0.92"
PYTHON

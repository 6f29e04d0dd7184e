#!/usr/bin/env bash
# Makes a Python environment with the transfer engines that our lane is compared with: Mooncake's and NIXL (with UCX).
#
#   benches/peers/lane_env.sh VENV_DIR
#
# Both run without CUDA. A second call returns at once.
set -euo pipefail

peers=(mooncake-transfer-engine-non-cuda==0.3.13.post1 nixl-cu12==1.5.1 'numpy<3')

if [ $# -ne 1 ]; then
  echo "usage: $0 VENV_DIR" >&2
  exit 2
fi
mkdir -p "$1"
venv=$(cd "$1" && pwd)
marker=$venv/.lane-recipe
recipe=$(printf '%s\n' "${peers[@]}")

exec 9>"$venv.lock"
flock 9
if [ -f "$marker" ] && [ "$(cat "$marker")" = "$recipe" ]; then
  exit 0
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
step() {
  if ! "$@" >"$log" 2>&1; then
    echo "failed: $*" >&2
    tail -n 40 "$log" >&2
    exit 1
  fi
}

rm -f "$marker"
step "${PYTHON:-python3}" -m venv --clear "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input)
# NIXL's package asks for torch, which only its examples import.
step "${pip[@]}" 'numpy<3'
step "${pip[@]}" --no-deps "${peers[@]}"
step "$venv/bin/python" -c 'import mooncake.engine, nixl_cu12'
printf '%s\n' "$recipe" >"$marker"

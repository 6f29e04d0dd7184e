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
# shellcheck source=../../tests/rig/python_env.sh
. "$(dirname "$0")/../../tests/rig/python_env.sh"
env_of lane "$1" "${peers[@]}"
step "${PYTHON:-python3}" -m venv --clear "$venv"
# NIXL's package asks for torch, which only its examples import.
install 'numpy<3'
install --no-deps "${peers[@]}"
step "$venv/bin/python" -c 'import mooncake.engine, nixl_cu12'
env_is_whole

#!/usr/bin/env bash
# Makes a Python environment that can `import torch` and run torch.distributed with gloo: what the conformance
# tests and the store's bench compare with.
#
#   tests/rig/torch_env.sh VENV_DIR
#
# PyPI's Linux wheel of torch is linked against CUDA and does not import without NVIDIA's libraries, also on a host
# without a GPU. Not needed for what is done here, and left out: triton and cuda-bindings. About 4.5 GB on disk.
# Quiet unless it fails; a second call finds the environment complete and returns at once. Two at the same time are
# safe: the later one waits. `PYTHON` chooses the interpreter (3.11 or newer).
set -euo pipefail

torch=torch==2.15.0
# From torch's own metadata (Requires-Dist), the same versions.
nvidia=(
  'cuda-toolkit[cublas,cudart,cufft,cufile,cupti,cusolver,cusparse,nvjitlink,nvrtc,nvtx]==13.2.2'
  nvidia-cudnn-cu13==9.26.0.51
  nvidia-cusparselt-cu13==0.8.1
  nvidia-nccl-cu13==2.30.7
  nvidia-nvshmem-cu13==3.7.2
)
small=(filelock 'typing-extensions>=4.13' 'sympy>=1.13.3' networkx jinja2 fsspec numpy)

if [ $# -ne 1 ]; then
  echo "usage: $0 VENV_DIR" >&2
  exit 2
fi
# shellcheck source=python_env.sh
. "$(dirname "$0")/python_env.sh"
env_of torch "$1" "$torch" "${nvidia[@]}" "${small[@]}"
step "${PYTHON:-python3}" -m venv --clear "$venv"
install "${small[@]}" "${nvidia[@]}"
install --no-deps "$torch"
step "$venv/bin/python" -c 'import torch, torch.distributed as d; assert d.is_gloo_available()'
env_is_whole

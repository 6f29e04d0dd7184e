#!/usr/bin/env bash
# Makes a Python environment with the loaders that ours is compared with: mosaicml-streaming and webdataset.
#
#   benches/peers/loader_env.sh VENV_DIR TORCH_VENV_DIR
#
# torch comes from TORCH_VENV_DIR (tests/rig/torch_env.sh). mosaicml-streaming asks for the clients of four clouds,
# none of which it imports for a local folder: they are left out. A second call returns at once.
set -euo pipefail

peers=(mosaicml-streaming==0.13.0 webdataset==1.0.2 torchvision==0.29.2 catalogue==2.0.10)
needed=('numpy<2.2' 'transformers<5' 'xxhash<4' 'zstd<2' 'python-snappy<1' Brotli pillow tqdm braceexpand pyyaml)

if [ $# -ne 2 ]; then
  echo "usage: $0 VENV_DIR TORCH_VENV_DIR" >&2
  exit 2
fi
torch=$(cd "$2" && bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# shellcheck source=../../tests/rig/python_env.sh
. "$(dirname "$0")/../../tests/rig/python_env.sh"
env_of loader "$1" "${peers[@]}" "${needed[@]}" "$torch"
step "$2/bin/python" -m venv --clear "$venv"
# Behind the environment's own packages, so that peers get the older numpy that they ask for.
echo "$torch" >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth"
install "${needed[@]}"
install --no-deps "${peers[@]}"
step "$venv/bin/python" -c 'import streaming, torch, webdataset'
env_is_whole

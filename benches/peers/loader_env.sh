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
mkdir -p "$1"
venv=$(cd "$1" && pwd)
torch=$(cd "$2" && bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
marker=$venv/.loader-recipe
recipe=$(printf '%s\n' "${peers[@]}" "${needed[@]}" "$torch")

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
step "$2/bin/python" -m venv --clear "$venv"
# Behind the environment's own packages, so that peers get the older numpy that they ask for.
echo "$torch" >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input)
step "${pip[@]}" "${needed[@]}"
step "${pip[@]}" --no-deps "${peers[@]}"
step "$venv/bin/python" -c 'import streaming, torch, webdataset'
printf '%s\n' "$recipe" >"$marker"

# Sourced by what makes a Python environment: made once for each recipe, by one process at a time, quietly unless it fails.
# shellcheck shell=bash

# env_of NAME VENV_DIR RECIPE…: ends the script when the environment was made from the same recipe; sets `venv`.
env_of() {
  local name=$1
  mkdir -p "$2"
  venv=$(cd "$2" && pwd)
  shift 2
  marker=$venv/.$name-recipe
  recipe=$(printf '%s\n' "$@")
  exec 9>"$venv.lock"
  flock 9
  if [ -f "$marker" ] && [ "$(cat "$marker")" = "$recipe" ] && [ -x "$venv/bin/python" ]; then
    exit 0
  fi
  rm -f "$marker"
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
}

# step COMMAND…: shows what it said only when it fails, which ends the script.
step() {
  if ! "$@" >"$log" 2>&1; then
    echo "failed: $*" >&2
    tail -n 40 "$log" >&2
    exit 1
  fi
}

# install ARGUMENT…: what pip is to install into it.
install() { step "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --no-compile --no-cache-dir "$@"; }

# env_is_whole: the next call with this recipe returns at once.
env_is_whole() { printf '%s\n' "$recipe" >"$marker"; }

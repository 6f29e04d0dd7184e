# What every part of the rig stands on: settings, recorded processes, certificates, waiting.
# shellcheck shell=bash

kubernetes_version=1.36.3
rig=$(realpath -m "${KUBE_DIR:-$here/../../.cache/kubernetes/rig}")
cache=$(realpath -m "${SLIPWAY_KUBE_CACHE:-$HOME/.cache/slipway-kube}")
# Programs are kept by what they are built from, so that two checkouts share them and an update builds anew.
bin=$cache/bin-$(cat "$here"/*/go.mod "$here"/*/go.sum "$here"/drivers/*/main.go | sha256sum | cut -c1-16)
export PATH=${KUBEBUILDER_ASSETS:+$KUBEBUILDER_ASSETS:}$bin:$PATH

# Waits of the rig end after this many tenths of a second: everything is there within 20 s on two idle cores.
patience=1800

die() {
  echo "kube-rig: $*" >&2
  exit 1
}

# until_ok COMMAND…: again and again until it succeeds.
until_ok() {
  local try
  for ((try = 0; try < patience; try++)); do
    if "$@" >/dev/null 2>&1; then return 0; fi
    sleep 0.1
  done
  die "gave up waiting for: $*"
}

# A TCP port that is free now, on any address.
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

# ---- numbers, names and addresses -----------------------------------------------------------------------------------

# The rig's number is claimed by making its bridge, which only one of several rigs can do.
claim_number() {
  local number
  for number in $(seq 0 63); do
    if ip link add "kube-rig$number" type bridge 2>/dev/null; then
      echo "$number" >"$rig/number"
      return
    fi
  done
  die "64 rigs are running (ip link show type bridge)"
}

number() { cat "$rig/number" 2>/dev/null || die "no rig in $rig: run kube-rig up first"; }
bridge() { echo "kube-rig$(number)"; }
# The host's address on the bridge: pods and nodes reach what runs here by it.
host_address() { echo "${KUBE_NET:-10.77}.$(number).1"; }
node_address() { echo "${KUBE_NET:-10.77}.$(number).1$1"; }
pod_network() { echo "10.$((128 + $1)).$(number).0/24"; }
namespace() { echo "kube-rig$(number)-node$1"; }
link() { echo "rig$(number)n$1"; }
# A kubelet kills what it finds in its cgroups and does not know, so each has a root of its own.
cgroup() { echo "slipway-rig$(number)-node$1"; }
admin() { kubectl --kubeconfig "$rig/admin.kubeconfig" "$@"; }

# ---- processes ------------------------------------------------------------------------------------------------------

# started_at PID: the tick at which it started, which together with the pid names a process for good (proc_pid_stat(5)).
started_at() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  # shellcheck disable=SC2086 # split into fields, beginning after the command's closing parenthesis
  set -- ${stat##*) }
  echo "${20}"
}

# start NAME COMMAND…: in a session of its own, recorded, its output in log/NAME.log.
start() {
  local name=$1 pid
  shift
  setsid "$@" >"$rig/log/$name.log" 2>&1 </dev/null &
  pid=$!
  echo "$pid $(started_at "$pid")" >"$rig/process/$name"
}

is_running() {
  local pid began
  [ -e "$rig/process/$1" ] && read -r pid began <"$rig/process/$1" && [ "$(started_at "$pid")" = "$began" ]
}

# process_of NAME: its pid.
process_of() { cut -d' ' -f1 "$rig/process/$1"; }

# stop NAME…: by kill -9, at once. Nothing here has a state that outlives its rig, and the API server would otherwise
# drain its watches for a minute.
stop() {
  local name pid began
  for name in "$@"; do
    if is_running "$name" && read -r pid began <"$rig/process/$name"; then kill -9 "$pid" 2>/dev/null || true; fi
    rm -f "$rig/process/$name"
  done
}

# ---- certificates ---------------------------------------------------------------------------------------------------

# Clusters are older than their clocks are off: what is signed is valid since yesterday.
yesterday() { LD_PRELOAD=$(false_clock) FAKETIME=-1d "$@"; }

# Path of a library that shows programs a false clock.
false_clock() { dpkg -L libfaketime | grep '/libfaketimeMT\.so'; }

authority() {
  openssl ecparam -name prime256v1 -genkey -noout -out "$rig/pki/ca.key"
  yesterday openssl req -x509 -new -key "$rig/pki/ca.key" -subj /CN=rig-ca -days 3650 -out "$rig/pki/ca.crt"
}

# certificate PATH SUBJECT EXTENSION…: PATH.crt and PATH.key, signed by the rig's authority.
certificate() {
  local path=$1 subject=$2
  shift 2
  openssl ecparam -name prime256v1 -genkey -noout -out "$path.key"
  openssl req -new -key "$path.key" -subj "$subject" | yesterday openssl x509 -req -CA "$rig/pki/ca.crt" -CAkey "$rig/pki/ca.key" \
    -set_serial "0x$(openssl rand -hex 8)" -days 3650 -extfile <(printf '%s\n' "$@") -out "$path.crt" 2>/dev/null
}

# kubeconfig OUT USER: USER is the text of the user entry. Everything is inside, so the file can be moved and mounted.
kubeconfig() {
  cat >"$1" <<YAML
apiVersion: v1
kind: Config
current-context: rig
contexts: [{name: rig, context: {cluster: rig, user: rig}}]
clusters:
- name: rig
  cluster:
    server: https://$(host_address):$(cat "$rig/api.port")
    certificate-authority-data: $(base64 -w0 "$rig/pki/ca.crt")
users:
- name: rig
  user: $2
YAML
  chmod 600 "$1"
}

# certificate_user PATH: the user entry of a client certificate.
certificate_user() {
  printf '{client-certificate-data: %s, client-key-data: %s}' "$(base64 -w0 "$1.crt")" "$(base64 -w0 "$1.key")"
}

# token NAMESPACE ACCOUNT: a kubeconfig that speaks as the service account, for an hour.
token() {
  local out=$rig/$1-$2.kubeconfig
  kubeconfig "$out" "{token: $(admin create token --namespace "$1" "$2")}"
  echo "$out"
}

# ---- Debian packages ------------------------------------------------------------------------------------------------

# packages NAME…: installs those that are missing.
packages() {
  local missing=() name
  for name in "$@"; do
    dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
  done
  [ ${#missing[@]} -eq 0 ] && return
  [ "$(id -u)" = 0 ] || die "missing Debian packages: ${missing[*]}"
  # apt ends when another holds its lists, as a rig that starts beside this one does.
  exec 7>/run/lock/slipway-kube-rig.packages
  flock 7
  apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null \
    || die "cannot install ${missing[*]}"
  exec 7>&-
}

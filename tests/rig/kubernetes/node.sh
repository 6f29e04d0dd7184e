# A node: network and mount namespace, containerd and kubelet. The files that the two read are written here for vm/ as well.
# shellcheck shell=bash

# Paths that are fixed in kubelet, containerd and CNI plugins; each node has its own there (node_space.sh).
node_folders=(/var/lib/kubelet /var/lib/cni /var/log/containers /run/containerd)

# node N [LABEL=VALUE…]
node() {
  local n=${1:-} name=node${1:-}
  [[ $n =~ ^[1-9]$ ]] || die "node N: N is 1 to 9"
  shift
  [ ! -e "$rig/process/$name-kubelet" ] || die "$name is running already"
  local folder=$rig/$name
  mkdir -p "$folder"/{cni,cdi,logs}
  mkdir -p "${node_folders[@]}"
  node_network "$n"
  node_cgroups "$n"
  containerd_config "$folder" "$n" >"$folder/containerd.toml"
  pod_network_config "$folder" "$n" >"$folder/cni/10-pods.conflist"
  kubelet_identity "$folder" "$n"
  kubelet_config "$folder" "$n" >"$folder/kubelet.yaml"

  # `ip netns exec` would mount a fresh /sys, without cgroups.
  start "$name-containerd" nsenter "--net=/run/netns/$(namespace "$n")" unshare --mount --propagation private \
    bash "$here/node_space.sh" "$folder" containerd -c "$folder/containerd.toml"
  pause_image
  until_ok ctr -a "$folder/containerd.sock" version
  load_images "$folder"
  in_node "$n" kubelet kubelet --config "$folder/kubelet.yaml" --kubeconfig "$folder/kubeconfig" \
    --cert-dir "$folder/kubelet-pki" --hostname-override "$name" --node-ip "$(node_address "$n")" --v=2
  node_ready "$name" "$@"
}

# in_node N NAME COMMAND…: starts a process that sees the network and the files that node N's containerd sees.
in_node() {
  local n=$1 name=$2
  shift 2
  start "node$n-$name" nsenter "--net=/run/netns/$(namespace "$n")" \
    "--mount=/proc/$(process_of "node$n-containerd")/ns/mnt" "$@"
}

node_ready() {
  local name=$1
  shift
  # A killed node's object says Ready until the controller manager notices: ask the kubelet of now.
  until_ok admin get "node/$name"
  [ $# -eq 0 ] || admin label --overwrite "node/$name" "$@" >/dev/null
  until_ok admin wait --for=condition=Ready "node/$name" --timeout=1s
}

node_network() {
  local n=$1 other space
  space=$(namespace "$n")
  ip netns add "$space"
  ip link add "$(link "$n")" mtu 9000 type veth peer name eth0 mtu 9000 netns "$space"
  ip link set "$(link "$n")" master "$(bridge)" up
  ip -n "$space" addr add "$(node_address "$n")/24" dev eth0
  ip -n "$space" link set eth0 up
  ip -n "$space" link set lo up
  ip -n "$space" route add default via "$(host_address)"
  # Pods of other nodes, and from the host to pods: what runs here is as reachable as it would be in a pod.
  for other in $(seq 9); do
    [ "$other" = "$n" ] || ip -n "$space" route add "$(pod_network "$other")" via "$(node_address "$other")"
  done
  ip route replace "$(pod_network "$n")" via "$(node_address "$n")" dev "$(bridge)"
  nsenter "--net=/run/netns/$space" sysctl -qw net.ipv4.ip_forward=1
}

node_cgroups() {
  local group hierarchy name
  group=$(cgroup "$1")
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    mkdir -p "/sys/fs/cgroup/$group"
    return
  fi
  for hierarchy in /sys/fs/cgroup/*/; do mkdir -p "$hierarchy$group" 2>/dev/null || true; done
  for name in cpus mems; do
    cat "/sys/fs/cgroup/cpuset/cpuset.$name" >"/sys/fs/cgroup/cpuset/$group/cpuset.$name"
  done
}

# containerd_config FOLDER N
containerd_config() {
  cat <<TOML
version = 3
root = "$1/containerd"
state = "$1/run"
[grpc]
  address = "$1/containerd.sock"
# One socket for a whole machine: the second containerd that starts would end.
[plugins."io.containerd.nri.v1.nri"]
disable = true
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "slipway.test/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  # Without CAP_SYS_RESOURCE, runc cannot lower a score and dies with "can't get final child's PID from pipe: EOF".
  restrict_oom_score_adj = true
  # In the node's own mount namespace, so that they go with it.
  netns_mounts_under_state_dir = true
  enable_cdi = true
  cdi_spec_dirs = ["$1/cdi"]
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "$1/cni"
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
TOML
}

# pod_network_config FOLDER N: routed, without address translation, as most clusters for training are.
pod_network_config() {
  cat <<JSON
{"cniVersion": "0.4.0", "name": "$(cgroup "$2")", "plugins": [{"type": "ptp", "mtu": 9000,
 "ipam": {"type": "host-local", "dataDir": "$1/ipam", "ranges": [[{"subnet": "$(pod_network "$2")"}]],
          "routes": [{"dst": "0.0.0.0/0"}]}}]}
JSON
}

# kubelet_identity FOLDER N: certificate (both for the API server and as a server) and kubeconfig.
kubelet_identity() {
  certificate "$1/kubelet-identity" "/O=system:nodes/CN=system:node:node$2" "extendedKeyUsage=clientAuth,serverAuth" \
    "subjectAltName=IP:$(node_address "$2")"
  kubeconfig "$1/kubeconfig" "$(certificate_user "$1/kubelet-identity")"
  cp "$rig/pki/ca.crt" "$1/ca.crt"
}

# kubelet_config FOLDER N [LINE…]: further lines go to the end.
kubelet_config() {
  local folder=$1 n=$2
  shift 2
  cat <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /$(cgroup "$n")
enforceNodeAllocatable: []
containerRuntimeEndpoint: unix://$folder/containerd.sock
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}, x509: {clientCAFile: $folder/ca.crt}}
authorization: {mode: AlwaysAllow}
tlsCertFile: $folder/kubelet-identity.crt
tlsPrivateKeyFile: $folder/kubelet-identity.key
address: $(node_address "$n")
healthzPort: 0
podLogsDir: $folder/logs
volumePluginDir: $folder/volumeplugins
failSwapOn: false
makeIPTablesUtilChains: false
# Several nodes share one disk, and nothing of it is theirs to clean up.
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}
imageGCHighThresholdPercent: 100
nodeLeaseDurationSeconds: ${node_lease:-8}
# Stories read what a pod's end was from its status: report it soon.
nodeStatusUpdateFrequency: 4s
YAML
  [ $# -eq 0 ] || printf '%s\n' "$@"
}

# kill_node N: as if its power had failed.
kill_node() {
  local n=${1:-}
  [[ $n =~ ^[1-9]$ ]] || die "kill-node N: N is 1 to 9"
  [ -d "$rig/node$n" ] || die "no node $n"
  clear_node "$n"
}

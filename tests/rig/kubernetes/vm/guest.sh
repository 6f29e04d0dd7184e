#!/bin/bash
# In the emulated machine, as its first process: network, virtual functions, cgroups, containerd, kubelet, device plugins,
# and what tells others of its NUMA nodes.
# Its files come from vm.sh, in /run/rig, and what it says goes there as well.
exec >/run/rig/guest.log 2>&1
set -x
export HOME=/root LANG=C
pod_routes=()
# shellcheck source=/dev/null
source /run/rig/settings
export PATH=$programs:$vm_programs:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

network() {
  local path route
  hostname "$node"
  ip link set lo up
  for path in /sys/class/net/*; do
    [[ $(readlink "$path/device/driver") != */virtio_net ]] || ip link set "$(basename "$path")" name rig
  done
  ip addr add "$address/24" dev rig
  ip link set rig up
  ip route add default via "$gateway"
  # shellcheck disable=SC2086 # several words
  for route in "${pod_routes[@]}"; do ip route add $route; done
  echo 1 >/proc/sys/net/ipv4/ip_forward
}

# The physical functions have to be up before virtual ones are made.
virtual_functions() {
  local path count=0
  for path in /sys/bus/pci/drivers/igb/0*; do
    ip link set "$(ls "$path/net")" mtu 9000 up
    echo "$functions" >"$path/sriov_numvfs"
  done
  # A function comes into a pod under its name here, and no pod may have two eth0.
  for path in /sys/bus/pci/drivers/igbvf/0*/net/*; do
    ip link set "$(basename "$path")" name "vf$((count++))"
  done
}

control_groups() {
  local controllers
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  mkdir -p /sys/fs/cgroup/"$cgroup"
  for controllers in /sys/fs/cgroup /sys/fs/cgroup/"$cgroup"; do
    sed 's/\(^\| \)/ +/g' "$controllers/cgroup.controllers" >"$controllers/cgroup.subtree_control"
  done
}

# Layers of images cannot be on the root, which is itself one.
folders() {
  mkdir -p /node
  mount -t tmpfs -o size=75% node /node
  cp -r /run/rig/{cni,containerd.toml,kubelet.yaml,kubeconfig,kubelet-identity.crt,kubelet-identity.key,ca.crt,others.kubeconfig} /node/
  ln -s "$vm_programs/multus" /usr/lib/cni/multus
  mkdir -p /node/{cdi,logs,kubelet} /var/lib/kubelet
  mount --bind /node/kubelet /var/lib/kubelet
  mount --make-rshared /
}

# device ID@NUMA of every virtual function, and of as many stand-ins for GPUs.
function_list() {
  local path
  for path in /sys/bus/pci/drivers/igb/0*/virtfn*; do
    path=$(realpath "$path")
    echo "$(basename "$path")@$(cat "$path/numa_node")"
  done | paste -sd,
}
gpu_list() {
  local numa gpu
  for numa in 0 1; do for gpu in $(seq "$gpus"); do echo "gpu-$numa-$gpu@$numa"; done; done | paste -sd,
}

# Archives that are new, each marked when it is loaded: the host waits for the mark.
load_images() {
  local archive
  for archive in /run/rig/images/*.tar; do
    if [ ! -e "$archive.loaded" ] && ctr -a /node/containerd.sock -n k8s.io images import --local "$archive"; then
      touch "$archive.loaded"
    fi
  done
}

network
virtual_functions
control_groups
folders
containerd -c /node/containerd.toml >/run/rig/containerd.log 2>&1 &
until ctr -a /node/containerd.sock version; do sleep 1; done
load_images
kubelet --config /node/kubelet.yaml --kubeconfig /node/kubeconfig --cert-dir /node/kubelet-pki --hostname-override "$node" \
  --node-ip "$address" --v=2 >/run/rig/kubelet.log 2>&1 &
until [ -S /var/lib/kubelet/device-plugins/kubelet.sock ]; do sleep 1; done
touch /run/rig/booted
device-plugin --resource slipway.test/vf --env PCIDEVICE_SLIPWAY_TEST_VF --devices "$(function_list)" >/run/rig/vf.log 2>&1 &
device-plugin --resource slipway.test/gpu --env SLIPWAY_STAND_IN_GPUS --tell-nodes --devices "$(gpu_list)" >/run/rig/gpu.log 2>&1 &
# Tells the API server what of the kubelet's devices and CPUs is free on which NUMA node, all the time.
NODE_NAME=$node KUBERNETES_NAMESPACE=kube-system nfd-topology-updater --kubeconfig=/node/others.kubeconfig --kubelet-config-uri=file:///node/kubelet.yaml --sleep-interval=5s \
  --config=/dev/null >/run/rig/nfd.log 2>&1 &
updater=$!
cat /proc/uptime
set +x
# The first process reaps whatever loses its parent, and never ends.
while true; do
  load_images
  if [ -e /run/rig/untold ]; then
    kill -STOP "$updater" && touch /run/rig/untold.done
  elif [ -e /run/rig/untold.done ]; then
    kill -CONT "$updater" && rm /run/rig/untold.done
  fi
  sleep 1
done

# A node in an emulated machine, for what a network namespace cannot have: two NUMA nodes, an SR-IOV NIC on a PCIe root of
# each, and a kubelet whose Topology Manager admits pods by them.
# shellcheck shell=bash
#
# The guest's root is this machine's root, read only, under a layer in its memory; so it has the same programs. It is on the
# rig's bridge, as the other nodes are. Emulated by software everywhere: what is shown is right, and slow.
# Pods get virtual functions by Multus and the CNI plugin host-device; NFD's topology updater says what is free on which NUMA
# node. Both NICs are on one fabric.
# Needs QEMU 8 or newer, whose igb device has virtual functions (Debian 12: from bookworm-backports).

# Half on each NUMA node; kubelet, containerd and images, all in memory. Below 2816, so that none lies above 4 GiB and the
# firmware puts no device there either: QEMU 10.0 maps the virtual functions' registers as if their addresses had 32 bits.
vm_memory_mib=2800
vm_cpus=6            # three on each NUMA node, of which one is kept for the system
vm_functions=2       # virtual functions of each NIC, of 7
vm_gpus=3            # stand-ins for GPUs, on each NUMA node
# What the guest's kernel loads (tests/rig/vm).
# shellcheck disable=SC2034
vm_modules=(virtio_pci 9pnet_virtio 9p overlay veth bridge virtio_net virtio_rng igb igbvf)
# In tenths of a second: one minute alone, and ten times that beside compilers.
vm_patience=9000

# vm_node N [LABEL=VALUE…]
vm_node() {
  local n=${1:-} name=node${1:-}
  [[ $n =~ ^[1-9]$ ]] || die "vm N: N is 1 to 9"
  shift
  [ ! -d "$rig/$name" ] || die "$name is there already"
  vm_build
  vm_definitions
  local folder=$rig/$name
  mkdir -p "$folder"/share/{cni,images}
  pause_image
  vm_files "$n" "$folder/share"
  vm_link "$n"
  vm_boot "$n" "$folder"
  patience=$vm_patience node_ready "$name" "$@"
  # The kubelet counts devices only when their plugins have registered.
  patience=$vm_patience until_ok vm_has_devices "$name"
  patience=$vm_patience until_ok admin get noderesourcetopologies "$name"
}

# Everything that is not of one machine.
vm_build() {
  vm_packages
  vm_kernel
  vm_compile
}

# vm_boot N FOLDER: until its kubelet starts. An emulated processor sometimes gets no timer interrupts any more while the guest
# boots, and the guest's kernel says so: then it is switched off and on.
vm_boot() {
  local name=node$1-vm folder=$2 again
  for again in 1 2 3; do
    rm -f "$folder/console"
    # shellcheck disable=SC2046 # one word each; paths of a rig have no blanks, as vm_files has checked
    # Before compilers: its clock goes on while it waits for a processor, and leases run out.
    start "$name" nice -n -10 qemu-system-x86_64 $(vm_machine "$1" "$folder") \
      -append "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off audit=0 random.trust_cpu=on"
    patience=$vm_patience until_ok vm_decided "$name" "$folder"
    if [ -e "$folder/share/booted" ]; then return 0; fi
    echo "$name did not boot, try $again:" >&2
    tail -n 5 "$folder/console" >&2 || true
    stop "$name"
  done
  die "$name does not boot"
}

vm_decided() {
  [ -e "$2/share/booted" ] || ! is_running "$1" || grep -q 'kthread timer wakeup didn.t happen' "$2/console"
}

vm_has_devices() { [ "$(admin get node "$1" -o 'jsonpath={.status.allocatable.slipway\.test/vf}')" = $((2 * vm_functions)) ]; }

# vm_told N yes|no: whether the machine goes on telling what is free on its NUMA nodes; such news is always late somewhere.
vm_told() {
  local share=$rig/node$1/share
  case $2 in
    yes) rm -f "$share/untold" && until_ok [ ! -e "$share/untold.done" ] ;;
    no) touch "$share/untold" && until_ok [ -e "$share/untold.done" ] ;;
    *) die "vm-told N yes|no" ;;
  esac
}

# vm_load SHARE ARCHIVE: the guest looks for new archives and tells which it has loaded.
vm_load() {
  local name
  name=$(basename "$2")
  rm -f "$1/images/$name.loaded"
  cp -L "$2" "$1/images/.$name"
  mv "$1/images/.$name" "$1/images/$name"
  patience=$vm_patience until_ok [ -e "$1/images/$name.loaded" ]
}

# What only the machine needs, beside the rig's programs and by the versions that its own files say.
vm_programs=$cache/vm-bin-$(cat "$here"/vm/*/go.mod "$here"/vm/*/go.sum | sha256sum | cut -c1-16)

vm_compile() {
  local bin=$vm_programs version=sigs.k8s.io/node-feature-discovery/pkg/version.version
  mkdir -p "$bin"
  exec 8>"$bin/.lock"
  flock 8
  export CGO_ENABLED=0 GOFLAGS=-buildvcs=false
  compile vm/multus "-ldflags '-s -w'" gopkg.in/k8snetworkplumbingwg/multus-cni.v4/cmd/multus
  compile vm/nfd "-ldflags '-s -w -X $version=v0.18.3'" sigs.k8s.io/node-feature-discovery/cmd/nfd-topology-updater
  exec 8>&-
}

vm_definitions() {
  local networks topologies
  networks=$(cd "$here/vm/multus" && go list -m -f '{{.Dir}}' github.com/k8snetworkplumbingwg/network-attachment-definition-client)
  topologies=$(cd "$here/vm/nfd" && go list -m -f '{{.Dir}}' sigs.k8s.io/node-feature-discovery)
  definitions "$networks/artifacts/networks-crd.yaml"
  definitions "$topologies/deployment/base/noderesourcetopologies-crd/noderesourcetopologies.yaml"
}

vm_packages() {
  packages busybox-static cpio kmod iproute2 xz-utils
  vm_qemu
}

# Configuration of the same form as other nodes have; in the guest it lies in memory at /node, since neither sockets nor
# layers of images can be on a shared folder.
vm_files() {
  local n=$1 share=$2 other
  [[ ! $rig$cache =~ [[:space:],] ]] || die "QEMU takes no blank and no comma in KUBE_DIR and SLIPWAY_KUBE_CACHE"
  containerd_config /node "$n" >"$share/containerd.toml"
  pod_network_config /node "$n" >"$share/pods.conflist"
  cat >"$share/cni/00-multus.conf" <<JSON
{"cniVersion": "0.4.0", "name": "multus", "type": "multus", "kubeconfig": "/node/others.kubeconfig",
 "clusterNetwork": "/run/rig/pods.conflist", "binDir": "/usr/lib/cni", "cniDir": "/node/multus", "logLevel": "verbose",
 "logFile": "/run/rig/multus.log"}
JSON
  cp "$rig/admin.kubeconfig" "$share/others.kubeconfig"
  kubelet_identity "$share" "$n"
  # Renewed each quarter of it: an emulated kubelet may be late by seconds beside a compiler.
  node_lease=24 kubelet_config /node "$n" "registerWithTaints: [{key: slipway.test/vm, value: 'true', effect: NoSchedule}]" \
    "cpuManagerPolicy: static" "reservedSystemCPUs: '0,$((vm_cpus / 2))'" \
    "topologyManagerPolicy: single-numa-node" "topologyManagerScope: pod" "memoryManagerPolicy: Static" \
    "reservedMemory: [{numaNode: 0, limits: {memory: 50Mi}}, {numaNode: 1, limits: {memory: 50Mi}}]" >"$share/kubelet.yaml"
  cp "$here/vm/guest.sh" "$share/guest.sh"
  cp -L "$rig"/images/*.tar "$share/images/"
  {
    printf '%s=%q\n' node "node$n" address "$(node_address "$n")" gateway "$(host_address)" cgroup "$(cgroup "$n")" \
      programs "$bin" vm_programs "$vm_programs" functions "$vm_functions" gpus "$vm_gpus"
    for other in $(seq 9); do
      [ "$other" = "$n" ] || echo "pod_routes+=('$(pod_network "$other") via $(node_address "$other")')"
    done
  } >"$share/settings"
}

vm_link() {
  ip tuntap add dev "$(link "$1")" mode tap
  ip link set "$(link "$1")" mtu 9000 master "$(bridge)" up
  ip route replace "$(pod_network "$1")" via "$(node_address "$1")" dev "$(bridge)"
}

# vm_machine N FOLDER: QEMU's arguments, one word each.
vm_machine() {
  local n=$1 folder=$2 numa half=$((vm_cpus / 2)) files="-fsdev local,security_model=none,multidevs=remap"
  echo "-accel tcg,thread=multi -cpu max,la57=off,pku=off -M q35 -nodefaults -display none -no-reboot -no-user-config"
  echo "-smp $vm_cpus,sockets=2,cores=$half -m $vm_memory_mib -serial file:$folder/console"
  echo "-kernel $vm_cache/vmlinuz -initrd $vm_cache/initrd.gz -device virtio-rng-pci"
  echo "$files,id=root,path=/,readonly=on -device virtio-9p-pci,fsdev=root,mount_tag=root"
  echo "$files,id=share,path=$folder/share -device virtio-9p-pci,fsdev=share,mount_tag=share"
  echo "-netdev tap,id=rig,ifname=$(link "$n"),script=no,downscript=no"
  echo "-device virtio-net-pci,bus=pcie.0,netdev=rig,host_mtu=9000,mac=52:54:00:77:$(printf %02x "$(number)"):0$n"
  for numa in 0 1; do
    echo "-object memory-backend-ram,id=memory$numa,size=$((vm_memory_mib / 2))M"
    echo "-numa node,nodeid=$numa,cpus=$((numa * half))-$((numa * half + half - 1)),memdev=memory$numa"
    # Buses 0x10 and 0x40: the virtual functions are 0000:11:10.0 and on, and 0000:41:10.0 and on.
    echo "-device pxb-pcie,id=root$numa,bus_nr=$((16 + 48 * numa)),bus=pcie.0,numa_node=$numa"
    echo "-device pcie-root-port,id=port$numa,bus=root$numa,chassis=$((numa + 1)),slot=$((numa + 1))"
    echo "-netdev hubport,hubid=0,id=fabric$numa -device igb,bus=port$numa,netdev=fabric$numa,mac=52:54:00:00:0$numa:01"
  done
}

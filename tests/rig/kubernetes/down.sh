# Takes down what the rig made, and only that: recorded processes, and what carries the rig's names.
# shellcheck shell=bash

down() {
  set +e
  if [ ! -e "$rig/number" ]; then
    rm -rf "$rig"
    return 0
  fi
  local name n
  for name in "$rig"/process/*; do stop "$(basename "$name")"; done
  for n in $(seq 9); do [ ! -d "$rig/node$n" ] || clear_node "$n"; done
  # The empty node_folders stay: another rig's nodes have mounts there, and a removed directory takes them along.
  [ ! -e "$rig/kueue.certificates" ] || rm -rf /etc/kueue
  ip link del "$(bridge)"
  restore_kernel_settings
  rm -rf "$rig"
}

# clear_node N: its processes, containers and shims, links, cgroups, folder. Mounts go with the last of the processes.
clear_node() (
  set +e
  n=$1 folder=$rig/node$1
  for process in "$rig/process/node$n"-*; do stop "$(basename "$process")"; done
  kill_shims "$folder/containerd.sock"
  kill_cgroup "$(cgroup "$n")"
  ip netns del "$(namespace "$n")" 2>/dev/null
  ip link del "$(link "$n")" 2>/dev/null
  ip route del "$(pod_network "$n")" dev "$(bridge)" 2>/dev/null
  for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do
    group=$hierarchy/$(cgroup "$n")
    [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null
  done
  rm -rf "$folder"
)

# kill_cgroup NAME: whatever runs in it, until nothing does: a process being born may be missed once.
kill_cgroup() {
  local try pids
  for ((try = 0; try < 100; try++)); do
    pids=$(find /sys/fs/cgroup/"$1" /sys/fs/cgroup/*/"$1" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -un)
    [ -n "$pids" ] || return 0
    # shellcheck disable=SC2086 # one word each
    kill -9 $pids 2>/dev/null
    sleep 0.05
  done
  echo "kube-rig: processes of $1 do not die: $pids" >&2
}

# kill_shims SOCKET: shims are children of init; their command line names the socket of their containerd.
kill_shims() {
  local process
  for process in $(grep -lzxsF -- "$1" /proc/[0-9]*/cmdline); do
    process=$(dirname "$process")
    if [[ $(readlink "$process/exe") == */containerd-shim-runc-v2* ]]; then kill -9 "${process#/proc/}"; fi
  done
}

restore_kernel_settings() {
  local name value
  [ -z "$(ip -br link show type bridge | grep -E '^kube-rig[0-9]')" ] || return 0
  while read -r name value; do echo "$value" >"/proc/sys/$name"; done <"$rig/kernel.before"
}

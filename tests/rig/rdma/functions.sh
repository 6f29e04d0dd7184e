#!/bin/bash
# Virtual functions of the guest's two NICs: va on NUMA node 0, vb on node 1, and another one of each that nobody uses.
set -euo pipefail

for physical in /sys/bus/pci/drivers/igb/0*; do
  # Up before it has virtual functions: they have no link otherwise.
  ip link set "$(ls "$physical/net")" mtu 9000 up
  echo 2 >"$physical/sriov_numvfs"
done

# interface ADDRESS NAME: its driver takes a moment.
interface() {
  local folder=/sys/bus/pci/devices/$1/net
  for _ in $(seq 50); do
    if [ -e "$folder" ]; then
      ip link set "$(ls "$folder")" down
      ip link set "$(ls "$folder")" name "$2"
      return
    fi
    sleep 0.1
  done
  echo "functions: $1 has no interface" >&2
  return 1
}
interface 0000:11:10.0 va
interface 0000:41:10.0 vb

#!/bin/bash
# In the emulated machine, as its first process: the two devices, then the command. Its files come from verbs-rig, in /run/rig.
export HOME=/root LANG=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin SLIPWAY_RDMA=1
# shellcheck source=/dev/null
source /run/rig/settings
{
  ip link set lo up
  # shellcheck disable=SC2154 # set in settings
  if [ -n "$sriov" ]; then "$rig/functions.sh" && export SLIPWAY_SRIOV=1; fi
  "$rig/fabric.sh"
  # udev would do this: verbs are for every user.
  chmod 666 /dev/infiniband/uverbs*
  echo "guest: ready after $(cut -d' ' -f1 /proc/uptime) s"
  # shellcheck disable=SC2154 # set in settings
  cd "$folder" && "${command[@]}"
} </dev/null >/run/rig/output 2>&1
echo $? >/run/rig/status
sync
echo o >/proc/sysrq-trigger
# The first process must not end before the machine does.
sleep 60

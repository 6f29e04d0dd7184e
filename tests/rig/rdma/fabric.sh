#!/bin/bash
# The cable between the guest's two devices: made, or mended after a test has pulled it. Run as often as one likes.
#
# It is a veth pair, or, where functions.sh has made va and vb of virtual functions, what their NICs are on.
# Both ends are in one network namespace, where the kernel would hand packets over inside. So the table of local addresses is
# asked only about packets that came in on va or vb, and whatever goes from one address to the other has its way out by a rule.
set -euo pipefail

address() { echo "10.9.0.$1"; }

[ -e /sys/class/net/va ] || ip link add va type veth peer name vb
# With a whole page of data in each packet. Larger ones than these do not come through an emulated virtual function.
mtu=9000
if [ -e /sys/class/net/va/device ]; then mtu=4200; fi
for name in all default; do echo 0 >/proc/sys/net/ipv4/conf/$name/rp_filter; done
for own in 1 2; do
  link=$([ $own = 1 ] && echo va || echo vb)
  other=$((3 - own))
  ip link set $link mtu $mtu up
  ip addr replace "$(address $own)/32" dev $link
  echo 1 >/proc/sys/net/ipv4/conf/$link/accept_local
  echo 0 >/proc/sys/net/ipv4/conf/$link/rp_filter
  # One processor for all that an end receives. Otherwise packets overtake each other between processors, as on no cable, and
  # the devices take that for losses: reads with a megabyte under way took twice as long.
  processor=$own
  # The first one of the other node.
  if [ -e /sys/class/net/va/device ] && [ $own = 2 ]; then processor=4; fi
  echo $processor >/sys/class/net/$link/queues/rx-0/rps_cpus
  ip route replace "$(address $other)/32" dev $link table 10$own
  ip rule del pref 1$own 2>/dev/null || true
  ip rule add pref 1$own iif $link lookup local
  ip rule del pref 2$own 2>/dev/null || true
  ip rule add pref 2$own from "$(address $own)" to "$(address $other)" lookup 10$own
done
ip rule del pref 100 2>/dev/null || true
ip rule add pref 100 lookup local
ip rule del pref 0 2>/dev/null || true
ip neigh replace "$(address 2)" lladdr "$(cat /sys/class/net/vb/address)" dev va nud permanent
ip neigh replace "$(address 1)" lladdr "$(cat /sys/class/net/va/address)" dev vb nud permanent
for end in a b; do
  [ -e /sys/class/infiniband/rxe_$end ] || rdma link add rxe_$end type rxe netdev v$end
done
for _ in $(seq 50); do
  [ "$(cat /sys/class/infiniband/rxe_*/ports/1/state | grep -c ACTIVE)" = 2 ] && exit 0
  sleep 0.1
done
echo "fabric: the ports are not active" >&2
exit 1

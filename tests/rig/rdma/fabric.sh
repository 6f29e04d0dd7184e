#!/bin/bash
# The cables between the guest's devices: made, or mended after a test has pulled one. Run as often as one likes.
#
#   fabric.sh [CABLES]
#
# One cable is va–vb, with rxe_a (10.9.0.1) and rxe_b (10.9.0.2); a second is vc–vd, with rxe_c (10.9.1.1) and rxe_d (10.9.1.2).
# A cable is a veth pair; where functions.sh has made va and vb of virtual functions, the first is what their NICs are on.
#
# All ends are in one network namespace, where the kernel would hand packets over inside. So the table of local addresses is
# asked only about packets that came in on a cable, and whatever goes from one address to its other end has its way out by a rule.
set -euo pipefail

cables=${1:-1}
names=(a b c d)

# link END, address END, other END: of ends 1 and 2 of the first cable, 3 and 4 of the second.
link() { echo "v${names[$1 - 1]}"; }
address() { echo "10.9.$((($1 - 1) / 2)).$((2 - $1 % 2))"; }
other() { echo $(($1 % 2 == 1 ? $1 + 1 : $1 - 1)); }

# With a whole page of data in each packet. Larger ones than these do not come through an emulated virtual function.
mtu=9000
if [ -e /sys/class/net/va/device ]; then mtu=4200; fi
for name in all default; do echo 0 >/proc/sys/net/ipv4/conf/$name/rp_filter; done
for own in $(seq $((2 * cables))); do
  link=$(link "$own") other=$(other "$own")
  [ -e "/sys/class/net/$link" ] || ip link add "$link" type veth peer name "$(link "$other")"
  ip link set "$link" mtu $mtu up
  ip addr replace "$(address "$own")/32" dev "$link"
  echo 1 >"/proc/sys/net/ipv4/conf/$link/accept_local"
  echo 0 >"/proc/sys/net/ipv4/conf/$link/rp_filter"
  # One processor for all that an end receives. Otherwise packets overtake each other between processors, as on no cable, and
  # the devices take that for losses: reads with a megabyte under way took twice as long. The second cable has them turned.
  processor=$(((own + (own - 1) / 2) % 2 == 1 ? 1 : 2))
  # The first one of the other node.
  if [ -e /sys/class/net/va/device ] && [ "$own" = 2 ]; then processor=4; fi
  echo $processor >"/sys/class/net/$link/queues/rx-0/rps_cpus"
  ip route replace "$(address "$other")/32" dev "$link" table "10$own"
  ip rule del pref "1$own" 2>/dev/null || true
  ip rule add pref "1$own" iif "$link" lookup local
  ip rule del pref "2$own" 2>/dev/null || true
  ip rule add pref "2$own" from "$(address "$own")" to "$(address "$other")" lookup "10$own"
done
ip rule del pref 100 2>/dev/null || true
ip rule add pref 100 lookup local
ip rule del pref 0 2>/dev/null || true
for own in $(seq $((2 * cables))); do
  other=$(other "$own")
  ip neigh replace "$(address "$other")" lladdr "$(cat "/sys/class/net/$(link "$other")/address")" dev "$(link "$own")" nud permanent
  device=rxe_${names[own - 1]}
  [ -e "/sys/class/infiniband/$device" ] || rdma link add "$device" type rxe netdev "$(link "$own")"
done
for _ in $(seq 50); do
  [ "$(cat /sys/class/infiniband/rxe_*/ports/1/state | grep -c ACTIVE)" -ge $((2 * cables)) ] && exit 0
  sleep 0.1
done
echo "fabric: the ports are not active" >&2
exit 1

# Runs a program where a node's own folders are at the paths that are fixed in what nodes run: node_space.sh FOLDER COMMAND…
# In a mount namespace of its own; all of a node's mounts go when its last process does. Kubelet and container share them,
# as they would on a host of their own.
# shellcheck shell=bash
set -euo pipefail
folder=$1
shift
mount --make-rshared /
for path in /var/lib/kubelet /var/lib/cni /var/log/containers /run/containerd; do
  mkdir -p "$folder/root$path"
  mount --bind "$folder/root$path" "$path"
done
exec "$@"

# QEMU for emulated machines, the same for all rigs: whichever comes first installs it.
# shellcheck shell=bash
#
# Sourced by a rig, which has `die`. Gives vm_qemu, which installs QEMU 8 or newer (its igb device has virtual functions) where it
# is missing or older: from bookworm-backports on Debian 12, as root.

VM_QEMU_MIN=8

vm_qemu() {
  local version=0 suite from=()
  if command -v qemu-system-x86_64 >/dev/null; then
    version=$(qemu-system-x86_64 --version | sed -nE '1s/.* version ([0-9]+).*/\1/p')
  fi
  [ "${version:-0}" -lt "$VM_QEMU_MIN" ] || return 0
  [ "$(id -u)" -eq 0 ] || die "install qemu-system-x86 (QEMU $VM_QEMU_MIN or newer), or run this as root"
  # shellcheck disable=SC1091
  suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  # apt ends when another rig holds its lists.
  exec 7>/run/lock/slipway-kube-rig.packages
  flock 7
  if [ "$suite" = bookworm ]; then
    echo 'deb http://deb.debian.org/debian bookworm-backports main' >/etc/apt/sources.list.d/slipway-backports.list
    from=(-t bookworm-backports)
  fi
  apt-get -qq update >&2
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${from[@]}" qemu-system-x86 >&2 ||
    die "cannot install QEMU $VM_QEMU_MIN or newer"
  exec 7>&-
}

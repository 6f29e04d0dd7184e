# Debian's kernel and a first root for an emulated machine; made once and kept.
# shellcheck shell=bash
#
# Sourced by a rig, which has `die`, and has set `cache` (the folder that keeps it) and `vm_modules` (the kernel's modules in
# the order in which they are loaded, with what they depend on: the guest has no udev). Gives vm_kernel, which leaves vmlinuz
# and initrd.gz in $vm_cache.

vm_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2154 # set by the rig
vm_cache=$cache/vm-$({ cat "$vm_folder/kernel.sh" "$vm_folder/init" && echo "${vm_modules[@]}"; } | sha256sum | cut -c1-16)

vm_kernel() {
  [ ! -f "$vm_cache/initrd.gz" ] || return 0
  local work version
  mkdir -p "$vm_cache"
  work=$(mktemp -d)
  # Lists may be missing, or older than what is there to be fetched.
  if ! vm_fetch_kernel "$work"; then
    (flock 7 && apt-get -qq update >&2) 7>/run/lock/slipway-kube-rig.packages
    vm_fetch_kernel "$work" || { rm -rf "$work"; die "cannot fetch the kernel that linux-image-amd64 depends on"; }
  fi
  mkdir -p "$work/kernel/lib"
  ln -s . "$work/kernel/usr"
  dpkg-deb --fsys-tarfile "$work"/*.deb | tar -x --keep-directory-symlink -C "$work/kernel" --exclude='*/drivers/gpu/*' --exclude='*/sound/*'
  version=$(ls "$work/kernel/lib/modules")
  # Newer kernels pack their modules, which depmod reads and busybox's insmod does not.
  find "$work/kernel/lib/modules" -name '*.ko.xz' -exec xz -d {} +
  depmod -b "$work/kernel" "$version"
  cp "$work/kernel/boot/vmlinuz-$version" "$vm_cache/.vmlinuz"
  mv "$vm_cache/.vmlinuz" "$vm_cache/vmlinuz"
  vm_first_root "$work" "$version"
  rm -rf "$work"
}

vm_fetch_kernel() {
  local package
  package=$(apt-cache depends linux-image-amd64 2>/dev/null | sed -nE 's/.*Depends: (linux-image-[0-9][^ ]*)$/\1/p' | head -n 1)
  [ -n "$package" ] && (cd "$1" && apt-get -qq -o APT::Sandbox::User=root download "$package" >&2)
}

vm_first_root() {
  local work=$1 version=$2 root=$1/root module file count=0
  mkdir -p "$root"/{bin,modules,proc,sys,dev,new,lower,upper}
  cp "$(command -v busybox)" "$root/bin/busybox"
  cp "$vm_folder/init" "$root/init"
  chmod +x "$root/init"
  for module in "${vm_modules[@]}"; do
    modprobe -d "$work/kernel" -S "$version" --show-depends "$module" | sed -n 's/^insmod //p'
  done | awk '!seen[$1]++ {print $1}' | while read -r file; do
    cp "$file" "$root/modules/$(printf %02d $count)-$(basename "$file")"
    count=$((count + 1))
  done
  (cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$vm_cache/.initrd.gz"
  mv "$vm_cache/.initrd.gz" "$vm_cache/initrd.gz"
}

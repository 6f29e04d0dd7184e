# Images: folders packed by mkimage.py, kept as archives, and loaded into each node's containerd.
# shellcheck shell=bash

# image ROOTFS NAME:TAG [ENTRYPOINT…]. The tag may not be `latest`, which kubelets always pull.
image() {
  local archive
  [ -d "$rig/images" ] || die "no rig in $rig: run kube-rig up first"
  archive=$rig/images/$(tr '/:' '--' <<<"$2").tar
  python3 "$here/mkimage.py" "$1" "$2" "$archive" "${@:3}"
  load_everywhere "$archive"
}

load_everywhere() {
  local socket share pids=() pid
  for socket in "$rig"/node*/containerd.sock; do
    [ -S "$socket" ] || continue
    load "$socket" "$1" &
    pids+=($!)
  done
  for share in "$rig"/node*/share; do
    [ -d "$share" ] || continue
    vm_load "$share" "$1" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || die "cannot load $1"; done
}

load() {
  local said
  said=$(ctr -a "$1" -n k8s.io images import --local "$2" 2>&1) || die "cannot load $2: $said"
}

# load_images NODE_FOLDER: all that the rig has, into a node that begins.
load_images() {
  local archive
  for archive in "$rig"/images/*.tar; do load "$1/containerd.sock" "$archive"; done
}

# The program of a pod's first container, which holds the namespaces: it waits, and reaps nothing, as nothing is its child.
pause_image() {
  local root=$rig/pause
  # Nodes may start at the same time.
  (
    flock 7
    [ ! -e "$rig/images/slipway.test-pause-1.tar" ] || exit 0
    mkdir -p "$root"
    gcc -x c -O2 -static -o "$root/pause" - <<'C'
#include <signal.h>
#include <unistd.h>
static void leave(int signal) { _exit(0); }
int main(void) { signal(SIGTERM, leave); signal(SIGINT, leave); for (;;) pause(); }
C
    python3 "$here/mkimage.py" "$root" slipway.test/pause:1 "$rig/images/.pause.tar" /pause
    mv "$rig/images/.pause.tar" "$rig/images/slipway.test-pause-1.tar"
  ) 7>"$rig/pause.lock"
}

# worker_image PROGRAM: the image as the Dockerfile makes it, a static program and nothing else.
worker_image() {
  local root
  [ -x "${1:-}" ] || die "worker-image PROGRAM: no program ${1:-}"
  ! ldd "$1" >/dev/null 2>&1 || ! ldd "$1" | grep -q '=>' || die "$1 is not a static program"
  root=$(mktemp -d -p "$rig")
  mkdir -p "$root"/{usr/bin,tmp,etc/ssl/certs}
  chmod 755 "$root"
  chmod 1777 "$root/tmp"
  cp "$1" "$root/usr/bin/worker"
  strip "$root/usr/bin/worker"
  # The name that sidecars with a NIC execute; its file capability is left to the real image (deploy/images).
  ln "$root/usr/bin/worker" "$root/usr/bin/worker-memlock"
  # Without any a client of S3 does not start, whether it is to use TLS or not.
  cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
  echo 'nonroot:x:65532:65532::/:/usr/bin/worker' >"$root/etc/passwd"
  image "$root" slipway.test/worker:dev /usr/bin/worker
  rm -rf "$root"
}

# Debian's interpreter, its library and what they link: what a user's own image would have.
python_packages=(
  python3.11-minimal libpython3.11-minimal libpython3.11-stdlib python3-minimal
  libc6 libcrypt1 libexpat1 zlib1g libssl3 libffi8 libbz2-1.0 liblzma5 libuuid1 libgcc-s1 coreutils libselinux1 libpcre2-8-0
  libacl1 libattr1 libgmp10 dash
)

# python_image: made once and kept; then only loaded.
python_image() {
  local root=$cache/python-$(printf '%s\n' "${python_packages[@]}" | cat - "$here/image.sh" | sha256sum | cut -c1-16)
  local archive=$rig/images/slipway.test-python-dev.tar
  [ -e "$root.tar" ] || build_python_root "$root"
  [ -d "$rig/images" ] || die "no rig in $rig: run kube-rig up first"
  ln -sf "$root.tar" "$archive"
  load_everywhere "$archive"
}

build_python_root() {
  local work package
  work=$(mktemp -d)
  mkdir -p "$work"/{debs,root}
  chmod 755 "$work/root"
  (cd "$work/debs" && apt-get -qq -o APT::Sandbox::User=root download "${python_packages[@]}") || die "cannot fetch Debian's python3 (apt-get update?)"
  for package in "$work"/debs/*.deb; do dpkg-deb -x "$package" "$work/root"; done
  merge_usr "$work/root"
  rm -rf "$work"/root/usr/share/{doc,man,locale,lintian,bug} "$work"/root/usr/lib/python3.11/{test,lib2to3,idlelib,tkinter,ensurepip,pydoc_data}
  mkdir -p "$work"/root/{tmp,etc,proc,sys,dev}
  chmod 1777 "$work/root/tmp"
  printf 'root:x:0:0::/root:/bin/sh\nnonroot:x:65532:65532::/:/bin/sh\n' >"$work/root/etc/passwd"
  ln -sf python3.11 "$work/root/usr/bin/python3"
  chroot "$work/root" /usr/bin/python3 -c 'import ctypes, hashlib, json, mmap, socket, ssl, struct, tarfile, threading' \
    || die "the python image cannot import what a trainer needs"
  find "$work/root" -name __pycache__ -prune -exec rm -rf {} +
  python3 "$here/mkimage.py" "$work/root" slipway.test/python:dev "$work/image.tar"
  mkdir -p "$cache"
  mv "$work/image.tar" "$1.tar"
  rm -rf "$work"
}

# merge_usr ROOT: packages of this Debian still carry /lib and /bin, which have to be links into /usr.
merge_usr() {
  local name
  for name in bin lib lib64 sbin; do
    mkdir -p "$1/usr/$name"
    if [ -d "$1/$name" ] && [ ! -L "$1/$name" ]; then
      cp -a "$1/$name/." "$1/usr/$name/"
      rm -rf "${1:?}/$name"
    fi
    ln -sfn "usr/$name" "$1/$name"
  done
}

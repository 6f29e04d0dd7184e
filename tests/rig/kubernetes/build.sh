# Compiles Kubernetes and what runs on it out of Go modules, into a folder named by their versions.
# shellcheck shell=bash

# Oldest Go that compiles the modules, as their go.mod files say.
go_needed=1.26

check_go() {
  local found
  found=$(go env GOVERSION 2>/dev/null | sed 's/^go//')
  [ -n "$found" ] || die "Go is missing: Kubernetes is compiled for these tests by Go $go_needed or newer"
  [ "$(printf '%s\n' "$go_needed" "$found" | sort -V | head -n 1)" = "$go_needed" ] \
    || die "Go $found is too old: Kubernetes is compiled for these tests by Go $go_needed or newer"
}

# compile FOLDER "FLAGS" PACKAGE…: those whose program is not there yet. A program appears under its name only when whole.
compile() {
  local folder=$1 flags=$2 package name
  shift 2
  for package in "$@"; do
    name=$(basename "$package")
    case $package in go.etcd.io/etcd/server/v3) name=etcd ;; esac
    if [ -x "$bin/$name" ] || [ -x "${KUBEBUILDER_ASSETS:-/nonexistent}/$name" ]; then continue; fi
    echo "kube-rig: compiling $name"
    # shellcheck disable=SC2086 # several flags
    (cd "$here/$folder" && eval go build -trimpath $flags -o "$bin/.$name.new" "$package") || die "$name does not compile"
    mv "$bin/.$name.new" "$bin/$name"
  done
}

build() {
  local version='k8s.io/component-base/version'
  check_go
  mkdir -p "$bin"
  # Two checkouts may build at the same time; the later one waits and finds everything there.
  exec 8>"$bin/.lock"
  flock 8
  export CGO_ENABLED=0 GOFLAGS=-buildvcs=false
  # Components that disagree about the version refuse each other, and a build by module has none.
  compile kube "-ldflags '-s -w -X $version.gitVersion=v$kubernetes_version -X $version.gitMajor=1 -X $version.gitMinor=36'" \
    k8s.io/kubernetes/cmd/{kube-apiserver,kube-controller-manager,kube-scheduler,kubectl,kubelet}
  compile kube "-ldflags '-s -w'" go.etcd.io/etcd/server/v3 sigs.k8s.io/jobset sigs.k8s.io/kwok/cmd/kwok
  compile containerd "-ldflags '-s -w' -tags no_btrfs,no_devmapper,no_zfs" \
    github.com/containerd/containerd/v2/cmd/{containerd,containerd-shim-runc-v2,ctr}
  compile helm "-ldflags '-s -w'" helm.sh/helm/v3/cmd/helm
  compile drivers "-ldflags '-s -w'" ./dra-driver ./device-plugin
  exec 8>&-
}

# Compiled by whoever wants it: no story has it yet.
build_kueue() {
  exec 8>"$bin/.lock"
  flock 8
  CGO_ENABLED=0 GOFLAGS=-buildvcs=false compile kube "-ldflags '-s -w'" sigs.k8s.io/kueue/cmd/kueue
  exec 8>&-
}

# Everything that the rig runs, before it runs: programs, packages, rights.
check_ready() {
  [ "$(id -u)" = 0 ] || die "needs root: it makes namespaces, mounts and cgroups"
  packages runc containernetworking-plugins iproute2 iptables conntrack ethtool openssl curl gcc libc6-dev libfaketime ca-certificates
  build
}

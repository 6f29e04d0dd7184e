#!/usr/bin/env bash
# The installation without a cluster: the chart's templates are current, kustomize builds, and with its default values the
# chart renders the very objects of the kustomize base.
#
#   tests/rig/deploy_check.sh
#
# Needs kubectl and helm, on PATH or in $SLIPWAY_KUBE_CACHE/bin (the rig builds both: tests/rig/kubernetes).
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=${SLIPWAY_KUBE_CACHE:-$HOME/.cache/slipway-kube}/bin:$PATH
for tool in kubectl helm python3; do
  command -v "$tool" >/dev/null || { echo "deploy_check: $tool is missing; the rig builds it (tests/rig/kubernetes)" >&2; exit 2; }
done
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
chart=deploy/helm/slipway
failed=0

# Helm would look at the user's repositories and plugins otherwise.
export HELM_CACHE_HOME=$scratch/helm HELM_CONFIG_HOME=$scratch/helm HELM_DATA_HOME=$scratch/helm
render() { helm template slipway "$chart" --namespace slipway-system --kube-version 1.36.0 "$@"; }

fail() { echo "deploy_check: $*" >&2; failed=1; }

# normal FILE: the same objects in one order and one way of writing: kustomize's own.
normal() {
  local folder
  folder=$(mktemp -d -p "$scratch")
  # The one difference that is meant: Helm is told to leave the definition of TrainingJob when a release goes.
  sed -E '/^  annotations:$/{N;N;/helm.sh\/resource-policy: keep$/d}' "$1" >"$folder/objects.yaml"
  printf 'resources: [objects.yaml]\nsortOptions: {order: legacy}\n' >"$folder/kustomization.yaml"
  kubectl kustomize "$folder"
}

# same WHAT EXPECTED FOUND
same() {
  if ! diff <(normal "$2") <(normal "$3") >"$scratch/diff"; then
    fail "$1: not the same objects (< kustomize, > helm)"
    head -n 60 "$scratch/diff" >&2
  fi
}

python3 deploy/generate.py --check || fail "generated files are not current"
for folder in base overlays/namespaced overlays/monitoring; do
  kubectl kustomize "deploy/kustomize/$folder" >"$scratch/$(basename "$folder").yaml" || fail "kustomize build $folder"
done
helm lint --quiet --kube-version 1.36.0 "$chart" || fail "helm lint"

render --set namespace.create=true >"$scratch/chart.yaml"
same "default values and base" "$scratch/base.yaml" "$scratch/chart.yaml"
render --set namespace.create=true --set watchNamespace=training >"$scratch/chart.yaml"
same "watchNamespace and overlay namespaced" "$scratch/namespaced.yaml" "$scratch/chart.yaml"
render --set namespace.create=true --set monitoring.enabled=true >"$scratch/chart.yaml"
same "monitoring.enabled and overlay monitoring" "$scratch/monitoring.yaml" "$scratch/chart.yaml"

# A comparison that never fails compares nothing.
render --set namespace.create=true --set replicas=3 >"$scratch/chart.yaml"
if diff <(normal "$scratch/base.yaml") <(normal "$scratch/chart.yaml") >/dev/null; then fail "the comparison sees no difference"; fi

# Every value reaches an object, and another namespace leaves nothing of the usual one.
helm template slipway "$chart" --namespace elsewhere --kube-version 1.36.0 --set image.digest=sha256:0123 --set sidecarImage.tag=v9 \
  --set levels.rack=example.dev/rack --set advertise=192.0.2.1:7443 --set flow.shares=44 --set nodeSelector.pool=system \
  --set 'tolerations[0].operator=Exists' --set priorityClassName=system-cluster-critical --set 'imagePullSecrets[0].name=pull' \
  --set podAnnotations.note=x --set 'extraArgs[0]=--flag' --set monitoring.enabled=true --set monitoring.namespace=watching \
  --set monitoring.interval=7s --set affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution=null >"$scratch/other.yaml"
for text in 'slipway/launcher@sha256:0123' 'slipway/worker:v9' '--level=rack=example.dev/rack' '--advertise=192.0.2.1:7443' \
  'nominalConcurrencyShares: 44' 'pool: system' 'operator: Exists' 'priorityClassName: system-cluster-critical' 'name: pull' \
  'note: x' '"--flag"' 'kubernetes.io/metadata.name: watching' 'interval: 7s' 'system:serviceaccount:elsewhere:slipway-controller' \
  '--leader-election-namespace=elsewhere' 'namespaces: [elsewhere]'; do
  grep -qF -- "$text" "$scratch/other.yaml" || fail "no object has $text"
done
if grep -n 'slipway-system' "$scratch/other.yaml" >&2; then fail "a release in another namespace names slipway-system"; fi
render --set crds.install=false --set rbac.aggregate=false --set networkPolicy.enabled=false >"$scratch/less.yaml"
if grep -nE 'CustomResourceDefinition|aggregate-to|kind: NetworkPolicy' "$scratch/less.yaml" >&2; then fail "switched off and still there"; fi
# A value that nobody reads is a mistake.
if render --set replica=3 >/dev/null 2>&1; then fail "an unknown value is accepted"; fi

[ "$failed" -eq 0 ] && echo "deploy_check: ok"
exit "$failed"

# Controllers of others that run on the rig, as processes on the host, and DRA drivers on its nodes.
# shellcheck shell=bash

module() { (cd "$here/kube" && go list -m -f '{{.Dir}}' "$1"); }

# Webhooks are called at a URL on the host: no service leads there. webhooks MANIFESTS PORT PREFIX
webhooks() { python3 "$here/webhooks.py" "$1" "$2" "$rig/pki/ca.crt" "$3"; }

webhook_certificate() {
  mkdir -p "$rig/webhook"
  [ -e "$rig/webhook/tls.crt" ] || certificate "$rig/webhook/tls" /CN=localhost subjectAltName=IP:127.0.0.1
}

# definitions FOLDER: applies custom resources and waits until they are served; a controller ends when its kind is not.
definitions() {
  admin apply --server-side -f "$1" >/dev/null
  # Again, as kubectl ends with an error where there are no conditions yet.
  until_ok admin wait --for=condition=Established --timeout=20s -f "$1"
}

# ready NAME URL: until the process says so, or has ended.
ready() {
  until_ok ready_or_ended "$1" "$2"
  is_running "$1" || die "$1 has ended: $(tail -n 3 "$rig/log/$1.log")"
}
ready_or_ended() { ! is_running "$1" || curl -sf "$2"; }

jobset() {
  local source webhook health
  source=$(module sigs.k8s.io/jobset) webhook=$(free_port) health=$(free_port)
  webhook_certificate
  definitions "$source/config/components/crd/bases/"
  cat >"$rig/jobset.yaml" <<YAML
apiVersion: config.jobset.x-k8s.io/v1alpha1
kind: Configuration
leaderElection: {leaderElect: false}
internalCertManagement: {enable: false}
webhook: {port: $webhook, host: 127.0.0.1, certDir: $rig/webhook}
metrics: {bindAddress: "127.0.0.1:$(free_port)"}
health: {healthProbeBindAddress: "127.0.0.1:$health"}
clientConnection: {qps: 500, burst: 500}
YAML
  KUBECONFIG=$rig/admin.kubeconfig start jobset jobset --config "$rig/jobset.yaml"
  webhooks "$source/config/components/webhook/manifests.yaml" "$webhook" jobset >"$rig/jobset-webhooks.yaml"
  ready jobset "http://127.0.0.1:$health/readyz"
  admin apply -f "$rig/jobset-webhooks.yaml" >/dev/null
}

# With the integrations Job and JobSet; API kueue.x-k8s.io/v1beta2, as the older ones want a conversion webhook.
kueue() {
  build_kueue
  local source webhook health
  source=$(module sigs.k8s.io/kueue) webhook=$(free_port) health=$(free_port)
  webhook_certificate
  definitions "$source/config/components/crd/bases/"
  admin create namespace kueue-system >/dev/null 2>&1 || true
  cat >"$rig/kueue.yaml" <<YAML
apiVersion: config.kueue.x-k8s.io/v1beta2
kind: Configuration
namespace: kueue-system
leaderElection: {leaderElect: false}
internalCertManagement: {enable: false}
webhook: {port: $webhook, host: 127.0.0.1, certDir: $rig/webhook}
metrics: {bindAddress: "127.0.0.1:$(free_port)"}
health: {healthProbeBindAddress: "127.0.0.1:$health"}
clientConnection: {qps: 500, burst: 500}
integrations: {frameworks: [batch/job, jobset.x-k8s.io/jobset]}
YAML
  # Without its own certificates it insists on these, at a path that is fixed in its code.
  touch "$rig/kueue.certificates"
  mkdir -p /etc/kueue/metrics/certs
  cp "$rig"/webhook/tls.{crt,key} /etc/kueue/metrics/certs/
  KUBECONFIG=$rig/admin.kubeconfig start kueue kueue --config "$rig/kueue.yaml" --feature-gates VisibilityOnDemand=false
  webhooks "$source/config/components/webhook/manifests.yaml" "$webhook" kueue >"$rig/kueue-webhooks.yaml"
  ready kueue "http://127.0.0.1:$health/readyz"
  admin apply -f "$rig/kueue-webhooks.yaml" >/dev/null
}

# kwok [SECONDS]: plays the nodes that carry the annotation kwok.x-k8s.io/node=fake; give them a taint, so that real pods
# stay away. Their leases last so long; without, each is called lost for a moment every half a minute, and there are no
# writes. Pods of a Job go on until they are deleted, as they do where a program runs.
kwok() {
  admin kustomize "$(module sigs.k8s.io/kwok)/kustomize/stage/fast" \
    | awk 'BEGIN { RS = ORS = "---\n" } !/\n  name: pod-complete\n/' >"$rig/kwok-stages.yaml"
  start kwok kwok --kubeconfig "$rig/admin.kubeconfig" --manage-all-nodes=false \
    --manage-nodes-with-annotation-selector kwok.x-k8s.io/node=fake --config "$rig/kwok-stages.yaml" \
    --node-lease-duration-seconds "${1:-0}"
}

# dra N DRIVER DEVICES: publishes a JSON list of resource.k8s.io/v1 devices for node N, and prepares claims on it.
dra() {
  local folder=$rig/node$1
  [ -d "$folder" ] || die "no node $1"
  in_node "$1" "dra-$2" dra-driver --kubeconfig "$rig/admin.kubeconfig" --driver "$2" --node "node$1" \
    --cdi "$folder/cdi" --devices "$(realpath "$3")"
}

# plugin N RESOURCE VARIABLE ID@NUMA,…: a device plugin on node N that offers these devices.
plugin() {
  [ -d "$rig/node$1" ] || die "no node $1"
  in_node "$1" "plugin-$(tr / - <<<"$2")" device-plugin --resource "$2" --env "$3" --devices "$4"
}

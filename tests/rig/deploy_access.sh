#!/usr/bin/env bash
# The installation in a real API server: who may do what. Each line is one request by somebody, and whether it must pass.
#
#   KUBECONFIG=… tests/rig/deploy_access.sh
#
# Needs an administrator of a cluster that may be changed, with RBAC on and its controller-manager running (it makes the
# service accounts and gathers the aggregated roles). No node is needed. Everything that it makes is removed again.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=${SLIPWAY_KUBE_CACHE:-$HOME/.cache/slipway-kube}/bin:$PATH
command -v kubectl >/dev/null || { echo "deploy_access: kubectl is missing; the rig builds it (tests/rig/kubernetes)" >&2; exit 2; }
scratch=$(mktemp -d)
failed=0 passed=0
space=slipway-access other=slipway-access-other
controller=system:serviceaccount:slipway-system:slipway-controller

clean() {
  for name in $space $other; do
    # A gated pod has no kubelet that would confirm its end, and the namespace would wait for it.
    kubectl -n "$name" delete pods --all --force --grace-period=0 --ignore-not-found >/dev/null 2>&1 || true
    kubectl delete namespace "$name" --ignore-not-found --wait=false >/dev/null 2>&1 || true
  done
  kubectl delete -k deploy/kustomize/base --ignore-not-found --wait=false >/dev/null 2>&1 || true
  rm -rf "$scratch"
}
trap clean EXIT

# may|may_not WHAT [REASON] -- COMMAND…: the request passes; or it is refused, and the refusal says REASON.
may() {
  local what=$1
  shift 2
  if "$@" >"$scratch/out" 2>&1; then passed=$((passed + 1)); else failed=$((failed + 1)) && echo "FAILED: may $what" >&2 && cat "$scratch/out" >&2; fi
}
may_not() {
  local what=$1 reason=$2
  shift 3
  if "$@" >"$scratch/out" 2>&1; then
    failed=$((failed + 1)) && echo "FAILED: may not $what, and did" >&2
  elif grep -qE -- "$reason" "$scratch/out"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1)) && echo "FAILED: may not $what, but the refusal does not say: $reason" >&2 && cat "$scratch/out" >&2
  fi
}
as() { local who=$1; shift; kubectl --as "$who" -n "$space" "$@"; }
# The service account's own request: impersonation would not say for which pod the token was issued.
with_token() {
  local token=$1
  shift
  kubectl --kubeconfig "$scratch/kubeconfig" --token "$token" -n "$space" "$@"
}

apply() {
  kubectl apply --server-side --force-conflicts -f - >/dev/null
}

pod() { # NAME LABELS: a gated pod as a job's controller makes it
  apply <<X
apiVersion: v1
kind: Pod
metadata: {name: $1, namespace: $space, labels: {$2}, annotations: {slipway.dev/placed: here, note: "1"}}
spec:
  restartPolicy: Never
  serviceAccountName: runner
  automountServiceAccountToken: false
  schedulingGates: [{name: slipway.dev/placement}]
  containers: [{name: ranks, image: "slipway.test/none:1"}]
X
}

kubectl apply --server-side --force-conflicts -k deploy/kustomize/base >/dev/null
# More than once, as kubectl ends with an error where there are no conditions yet.
for _ in 1 2 3; do
  if kubectl wait --for condition=Established crd/trainingjobs.slipway.dev --timeout 30s >/dev/null; then break; fi
  sleep 1
done
for name in $space $other; do kubectl create namespace "$name" >/dev/null; done
for account in runner researcher; do kubectl -n $space create serviceaccount $account >/dev/null; done
kubectl -n $space create rolebinding researcher --clusterrole slipway-submitter --serviceaccount $space:researcher >/dev/null
kubectl -n $space create rolebinding editor --clusterrole edit --user editor >/dev/null
kubectl -n $space create rolebinding viewer --clusterrole view --user viewer >/dev/null
# The worst case that the policies guard against: somebody lets the workers' account change pods.
kubectl -n $space create role pods --verb get,patch,update --resource pods >/dev/null
kubectl -n $space create rolebinding pods --role pods --serviceaccount $space:runner >/dev/null
kubectl create -n $other secret generic theirs --from-literal a=b >/dev/null
apply <<X
apiVersion: v1
kind: Secret
metadata: {name: digits-authority, namespace: $space, labels: {slipway.dev/job: digits}}
X
pod digits-0 'slipway.dev/job: digits'
pod digits-1 'slipway.dev/job: digits'
pod stranger 'app: other'
job() { cat <<X
apiVersion: slipway.dev/v1alpha1
kind: TrainingJob
metadata: {name: digits, namespace: $space}
spec:
  workers: {count: 1}
  run: {command: [python3, train.py]}
  pod: {image: "slipway.test/none:1", volumes: [{name: keys, mountPath: /keys, secret: "$1"}]}
X
}
job mine >"$scratch/job.yaml"
job other-authority >"$scratch/thief.yaml"
job other-identities-0 >"$scratch/thief2.yaml"
kubectl config view --raw --minify | sed -E '/client-(certificate|key)/d; /^ *token:/d' >"$scratch/kubeconfig"
until as editor auth can-i create trainingjobs >/dev/null 2>&1; do sleep 0.2; done

# Policies begin to hold a moment after they are made; a later line than this one would be refused for no other reason.
for _ in $(seq 100); do
  as editor patch pod digits-0 --type json --patch '[{"op":"remove","path":"/spec/schedulingGates"}]' --dry-run=server >/dev/null 2>&1 || break
  sleep 0.2
done

# What the level `restricted` forbids would leave the Deployment without pods.
pods() { for _ in $(seq 100); do [ "$(kubectl -n slipway-system get pods --output name | wc -l)" -eq 2 ] && return; sleep 0.2; done; return 1; }
may "run where pods are restricted" -- pods
kubectl kustomize deploy/kustomize/overlays/namespaced | sed "s/namespace: training$/namespace: $space/" >"$scratch/namespaced.yaml"
may "be installed for one namespace" -- kubectl apply --server-side --force-conflicts --dry-run=server -f "$scratch/namespaced.yaml"
if command -v helm >/dev/null; then
  helm template slipway deploy/helm/slipway --namespace slipway-system --kube-version 1.36.0 >"$scratch/chart.yaml"
  may "be installed by Helm" -- kubectl apply --server-side --force-conflicts --dry-run=server -f "$scratch/chart.yaml"
fi

researcher=system:serviceaccount:$space:researcher
for example in deploy/examples/*.yaml; do
  may "submit $example" -- as "$researcher" create -f "$example" --dry-run=server
done
may "submit" -- as "$researcher" create -f "$scratch/job.yaml"
may "list jobs" -- as "$researcher" get trainingjobs
may "cancel" -- as "$researcher" annotate trainingjob digits slipway.dev/cancel=grace
may "look at pods" -- as "$researcher" get pods
may "read logs" -- as "$researcher" auth can-i get pods/log
may_not "mount a neighbour's authority" "certificates of a job" -- as "$researcher" create -f "$scratch/thief.yaml" --dry-run=server
may_not "mount a neighbour's identities" "certificates of a job" -- as "$researcher" create -f "$scratch/thief2.yaml" --dry-run=server
may_not "write the status" "cannot (get|patch) resource \"trainingjobs/status\"" -- as "$researcher" patch trainingjob digits --subresource status --type merge --patch '{"status":{"phase":"Succeeded"}}'
may_not "read Secrets" "cannot get resource \"secrets\"" -- as "$researcher" get secret digits-authority
may_not "make pods" "cannot create resource \"pods\"" -- as "$researcher" run x --image x
may_not "delete pods" "cannot delete resource \"pods\"" -- as "$researcher" delete pod digits-0
may_not "run commands in pods" no -- as "$researcher" auth can-i create pods/exec
may_not "make Jobs" no -- as "$researcher" auth can-i create jobs
may_not "submit elsewhere" no -- kubectl --as "$researcher" -n $other auth can-i create trainingjobs

may "submit with edit" -- as editor auth can-i create trainingjobs
may "look with view" -- as viewer get trainingjobs
may_not "submit with view" no -- as viewer auth can-i create trainingjobs
may_not "write a status with edit" no -- as editor auth can-i update trainingjobs/status

impostor() { printf 'apiVersion: v1\nkind: Pod\nmetadata: {name: impostor, labels: {slipway.dev/job-uid: x}}\nspec: {containers: [{name: x, image: x}]}\n' | as "$1" create --dry-run=server -f -; }
may_not "make a pod that passes for a worker" "for pods that the Job controller makes" -- impostor editor
may_not "let a pod of another make pass for a worker" "for pods that the Job controller makes" -- as editor label pod stranger slipway.dev/job-uid=x
may "make a worker, as the Job controller" -- impostor system:serviceaccount:kube-system:job-controller

gate='[{"op":"remove","path":"/spec/schedulingGates"}]'
selector='{"spec":{"nodeSelector":{"kubernetes.io/hostname":"n1"}}}'
may_not "lift the gate with edit" "only Slipway's controller lifts" -- as editor patch pod digits-0 --type json --patch "$gate"
may_not "lift the gate as an administrator" "only Slipway's controller lifts" -- kubectl -n $space patch pod digits-0 --type json --patch "$gate"
may_not "lift it where the label is gone" "only Slipway's controller lifts" -- as editor patch pod stranger --type json --patch "$gate"
may_not "choose the node with edit" "only Slipway's controller chooses" -- as editor patch pod digits-0 --type merge --patch "$selector"
may "label a gated pod with edit" -- as editor label pod digits-0 note=x
may_not "write a status as an administrator" "only Slipway's controller writes the status" -- kubectl -n $space patch trainingjob digits --subresource status --type merge --patch '{"status":{"phase":"Succeeded"}}'

may "place, as the controller" -- as $controller patch pod digits-0 --type json --patch '[{"op":"add","path":"/spec/nodeSelector","value":{"kubernetes.io/hostname":"n1"}},{"op":"remove","path":"/spec/schedulingGates"}]'
may "write a status, as the controller" -- as $controller patch trainingjob digits --subresource status --type merge --patch '{"status":{"phase":"Running"}}'
may "keep a job's Secret, as the controller" -- as $controller patch secret digits-authority --type merge --patch '{"data":{"seed":"AAAA"}}'
may "end a pod, as the controller" -- as $controller delete pod digits-1 --force --grace-period=0
may_not "list Secrets, as the controller" no -- as $controller auth can-i list secrets
may_not "make pods, as the controller" no -- as $controller auth can-i create pods
may_not "make an unlabelled Secret, as the controller" "with the label slipway.dev/job" -- as $controller create secret generic x
may_not "change a stranger's Secret, as the controller" "with the label slipway.dev/job" -- kubectl --as $controller -n $other patch secret theirs --type merge --patch '{"metadata":{"labels":{"slipway.dev/job":"x"}}}'
may_not "read a stranger's Secret by an empty patch, as the controller" "with the label slipway.dev/job" -- kubectl --as $controller -n $other patch secret theirs --type merge --patch '{}' --output json
may_not "delete a stranger's pod, as the controller" "with the label slipway.dev/job" -- as $controller delete pod stranger --wait=false
may "make its lease" -- kubectl --as $controller -n slipway-system auth can-i create leases
may "renew its lease" -- kubectl --as $controller -n slipway-system auth can-i patch leases/slipway-controller
may_not "renew another lease" no -- kubectl --as $controller -n slipway-system auth can-i patch leases/other
may_not "make a lease elsewhere" no -- as $controller auth can-i create leases
as_controller() { as "$controller" create --dry-run=server -f -; }
secret() { printf 'apiVersion: v1\nkind: Secret\nmetadata: {name: x, labels: {slipway.dev/job: x}, annotations: {kubernetes.io/service-account.name: default}, ownerReferences: [%s]}\ntype: %s\n' "$1" "$2" | as_controller; }
owner='{apiVersion: slipway.dev/v1alpha1, kind: TrainingJob, name: digits, uid: 6a37e7a4-1b7c-4b8e-9d3f-2f2c1a1f0001}'
may "make a job's Secret, as the controller" -- secret "$owner" Opaque
may_not "make a Secret that no job owns, as the controller" "that a TrainingJob owns" -- secret "" Opaque
may_not "have an account's token filled in, as the controller" "only Secrets of type Opaque" -- secret "$owner" kubernetes.io/service-account-token
child() { printf 'apiVersion: batch/v1\nkind: Job\nmetadata: {name: x, labels: {slipway.dev/job: x}, ownerReferences: [%s]}\nspec: {template: {spec: {%s restartPolicy: Never, containers: [{name: x, image: x}]}}}\n' "$owner" "$1" | as_controller; }
may "make a job's child, as the controller" -- child "automountServiceAccountToken: false,"
may_not "make a child whose pods have a token, as the controller" "whose pods have no token" -- child "serviceAccountName: default,"
may_not "call a stranger's pod failed, as the controller" "with the label slipway.dev/job" -- as $controller patch pod stranger --subresource status --type merge --patch '{"status":{"phase":"Failed"}}'
may_not "cancel somebody's job, as the controller" "cannot patch resource" -- as $controller annotate --overwrite trainingjob digits slipway.dev/cancel=now
may_not "change nodes" no -- as $controller auth can-i patch nodes
may_not "give itself rights" no -- as $controller auth can-i create rolebindings

uid=$(kubectl -n $space get pod digits-0 --output 'jsonpath={.metadata.uid}')
own=$(kubectl -n $space create token runner --bound-object-kind Pod --bound-object-name digits-0 --bound-object-uid "$uid")
loose=$(kubectl -n $space create token runner)
pod digits-2 'slipway.dev/job: digits'
may "annotate its own pod, as a worker" -- with_token "$own" patch pod digits-0 --type merge --patch '{"metadata":{"annotations":{"slipway.dev/step":"7"}}}'
may_not "annotate another worker's pod" "only the pod that its token was issued for" -- with_token "$own" patch pod digits-2 --type merge --patch '{"metadata":{"annotations":{"slipway.dev/step":"7"}}}'
may_not "annotate without a pod's token" "only the pod that its token was issued for" -- with_token "$loose" patch pod digits-0 --type merge --patch '{"metadata":{"annotations":{"slipway.dev/step":"7"}}}'
may_not "set another annotation, as a worker" "only annotations slipway.dev" -- with_token "$own" patch pod digits-0 --type merge --patch '{"metadata":{"annotations":{"note":"2"}}}'
may_not "remove another annotation, as a worker" "only annotations slipway.dev" -- with_token "$own" patch pod digits-0 --type merge --patch '{"metadata":{"annotations":{"note":null}}}'
may_not "say what it holds, as a worker" "only annotations slipway.dev" -- with_token "$own" patch pod digits-0 --type merge --patch '{"metadata":{"annotations":{"slipway.dev/placed":"there"}}}'
may_not "label its pod, as a worker" "nothing of a worker's pod but annotations" -- with_token "$own" patch pod digits-0 --type merge --patch '{"metadata":{"labels":{"slipway.dev/job":"x"}}}'
may_not "change its image, as a worker" "nothing of a worker's pod but annotations" -- with_token "$own" patch pod digits-0 --type strategic --patch '{"spec":{"containers":[{"name":"ranks","image":"evil:1"}]}}'
may_not "read a Secret, as a worker" "cannot get resource \"secrets\"" -- with_token "$own" get secret digits-authority
may_not "look at jobs, as a worker" "cannot list resource" -- with_token "$own" get trainingjobs

# The controller's requests go where flow.yaml sends them; the API server says so in a header.
level=$(kubectl get prioritylevelconfiguration slipway-controller --output 'jsonpath={.metadata.uid}')
may "have its own share of the API server" -- bash -c "kubectl --as $controller get nodes -v=8 2>&1 | grep -qi 'X-Kubernetes-Pf-Prioritylevel-Uid.*$level'"

echo "deploy_access: $passed as they must be, $failed not"
[ "$failed" -eq 0 ]

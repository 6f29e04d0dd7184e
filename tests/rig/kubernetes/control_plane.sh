# The control plane: etcd, API server, controller manager, scheduler, on the host, at the bridge's address.
# shellcheck shell=bash

up() {
  check_ready
  [ ! -e "$rig/number" ] || die "a rig is in $rig already: kube-rig down first"
  # node1/containerd.sock.ttrpc is a unix socket, whose path ends at 107 bytes (unix(7)).
  [ ${#rig} -le 80 ] || die "KUBE_DIR is ${#rig} bytes long; sockets below it need it to have 80 at the most: $rig"
  mkdir -p "$rig"/{pki,log,process,images}
  claim_number
  save_kernel_settings
  ip addr add "$(host_address)/24" dev "$(bridge)"
  ip link set "$(bridge)" mtu 9000 up
  write_certificates
  start_etcd
  start_apiserver
  start_controller_manager
  start_scheduler
  echo "export KUBECONFIG=$rig/admin.kubeconfig"
}

# What kubelets set for the whole kernel; the last rig to go puts it back.
kernel_settings=(vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes)

save_kernel_settings() {
  local name
  for name in "${kernel_settings[@]}"; do echo "$name $(cat "/proc/sys/$name")"; done >"$rig/kernel.before"
}

write_certificates() {
  authority
  openssl genrsa -out "$rig/pki/sa.key" 2048 2>/dev/null
  openssl rsa -in "$rig/pki/sa.key" -pubout -out "$rig/pki/sa.pub" 2>/dev/null
  certificate "$rig/pki/apiserver" /CN=kube-apiserver \
    "subjectAltName=DNS:localhost,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:10.0.0.1,IP:$(host_address)"
  certificate "$rig/pki/admin" /O=system:masters/CN=admin extendedKeyUsage=clientAuth
  free_port >"$rig/api.port"
  kubeconfig "$rig/admin.kubeconfig" "$(certificate_user "$rig/pki/admin")"
}

start_etcd() {
  local peer=http://127.0.0.1:$(free_port)
  echo "http://127.0.0.1:$(free_port)" >"$rig/etcd.url"
  start etcd etcd --data-dir "$rig/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls "$(cat "$rig/etcd.url")" --advertise-client-urls "$(cat "$rig/etcd.url")" \
    --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "default=$peer"
}

start_apiserver() {
  local pki=$rig/pki port
  port=$(cat "$rig/api.port")
  local flags=(
    --etcd-servers "$(cat "$rig/etcd.url")"
    --bind-address "$(host_address)" --advertise-address "$(host_address)" --secure-port "$port"
    --tls-cert-file "$pki/apiserver.crt" --tls-private-key-file "$pki/apiserver.key" --client-ca-file "$pki/ca.crt"
    # Without these, kubectl logs and exec fail.
    --kubelet-client-certificate "$pki/admin.crt" --kubelet-client-key "$pki/admin.key"
    --kubelet-certificate-authority "$pki/ca.crt" --kubelet-preferred-address-types InternalIP
    --service-account-issuer https://kubernetes.default.svc
    --service-account-key-file "$pki/sa.pub" --service-account-signing-key-file "$pki/sa.key"
    --authorization-mode "Node,RBAC" --service-cluster-ip-range 10.0.0.0/24 --allow-privileged
    # Nothing forwards services here, so there is no endpoint of the API server to publish.
    --endpoint-reconciler-type none --profiling=false
    # A dead node's pods are evicted in seconds, not after five minutes: stories wait for it.
    --default-not-ready-toleration-seconds 5 --default-unreachable-toleration-seconds 5
  )
  start apiserver kube-apiserver "${flags[@]}"
  until_ok curl -sf --cacert "$pki/ca.crt" --cert "$pki/admin.crt" --key "$pki/admin.key" "https://$(host_address):$port/readyz"
}

start_controller_manager() {
  # Its default of 20 requests/s would take minutes over a thousand pods. A node is called lost after
  # 30 s instead of 50: less would lose an emulated one that a compiler holds up.
  start controller-manager kube-controller-manager --kubeconfig "$rig/admin.kubeconfig" --bind-address 127.0.0.1 \
    --secure-port "$(free_port)" --cert-dir "$rig/pki/controller-manager" --leader-elect=false \
    --service-account-private-key-file "$rig/pki/sa.key" --root-ca-file "$rig/pki/ca.crt" --use-service-account-credentials \
    --kube-api-qps 1000 --kube-api-burst 2000 --node-monitor-period 1s --node-monitor-grace-period "${KUBE_NODE_GRACE:-30s}"
}

start_scheduler() {
  cat >"$rig/scheduler.yaml" <<YAML
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
leaderElection: {leaderElect: false}
clientConnection: {kubeconfig: $rig/admin.kubeconfig, qps: 2000, burst: 4000}
YAML
  start scheduler kube-scheduler --config "$rig/scheduler.yaml" --bind-address 127.0.0.1 --secure-port "$(free_port)" \
    --cert-dir "$rig/pki/scheduler"
}

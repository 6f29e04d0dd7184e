//! Who a job's pods are, and who may talk to them: Secrets and the NetworkPolicy (pure).

use k8s_openapi::ByteString;
use serde_json::{Map, Value, json};
use worker::pod::identity::encode;
use worker::units::WorkerId;

use super::{Render, RenderError};
use crate::backend::kubernetes::names::{
    self, IDENTITIES_PER_SECRET, SIDECAR_PORT, authority_secret as authority_secret_name, identities_secret,
};
use crate::rendezvous::authority::{Authority, Seed};

/// The key of the seed in its Secret.
pub const SEED_KEY: &str = "seed";

/// The Secret with the seed of all certificates of the job: for the controller, which reads it when it starts again.
#[must_use]
pub fn authority_secret(render: &Render<'_>, seed: &Seed) -> Value {
    let data = Map::from_iter([(SEED_KEY.to_owned(), json!(ByteString(seed.0.to_vec())))]);
    secret(render, &authority_secret_name(&render.job.name), &data)
}

/// The Secrets with the identities of workers `0..workers`: in each, the authority's certificate as `ca`, and under a
/// worker's number the file of [`worker::pod::identity`]. A number's identity never changes. Data servers have one more Secret,
/// in which they are numbered by themselves: a pod mounts the file that its index names.
///
/// # Errors
/// When a certificate cannot be made.
pub fn identity_secrets(
    render: &Render<'_>,
    authority: &mut Authority,
    workers: u32,
) -> Result<Vec<Value>, RenderError> {
    let mut secrets = Vec::new();
    for part in 0..workers.div_ceil(IDENTITIES_PER_SECRET) {
        let first = part * IDENTITIES_PER_SECRET;
        let end = first.saturating_add(IDENTITIES_PER_SECRET).min(workers);
        let mut data = Map::new();
        data.insert("ca".to_owned(), json!(ByteString(authority.certificate().to_vec())));
        for worker in first..end {
            let (seed, identity) = authority.seeded_worker(WorkerId(worker))?;
            let file = encode(&seed, &identity.cert_der);
            data.insert(worker.to_string(), json!(ByteString(file)));
        }
        secrets.push(secret(render, &identities_secret(&render.job.name, part), &data));
    }
    let servers = render.job.servers();
    if servers > 0 {
        let mut data = Map::new();
        data.insert("ca".to_owned(), json!(ByteString(authority.certificate().to_vec())));
        for server in 0..servers {
            let (seed, identity) = authority.seeded_worker(WorkerId(workers.saturating_add(server)))?;
            data.insert(server.to_string(), json!(ByteString(encode(&seed, &identity.cert_der))));
        }
        let part = workers.div_ceil(IDENTITIES_PER_SECRET);
        secrets.push(secret(render, &identities_secret(&render.job.name, part), &data));
    }
    Ok(secrets)
}

fn secret(render: &Render<'_>, name: &str, data: &Map<String, Value>) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": render.metadata(name),
        "type": "Opaque",
        "data": data,
    })
}

/// Who may open connections to the job's pods: each other, on any port, since collectives choose theirs; and whoever
/// reads metrics, on the sidecar's port alone. (The kubelet's probes are let in by every network plugin.) What pods call
/// themselves is not limited: stores, trackers and package servers are the user's own.
#[must_use]
pub fn network_policy(render: &Render<'_>) -> Value {
    let ours = json!({ "matchLabels": render.selector() });
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": render.metadata(&names::child(&render.job.name)),
        "spec": {
            "podSelector": ours,
            "policyTypes": ["Ingress"],
            "ingress": [
                { "from": [{ "podSelector": ours }] },
                {
                    "from": [{ "namespaceSelector": {} }],
                    "ports": [{ "protocol": "TCP", "port": SIDECAR_PORT }],
                },
            ],
        },
    })
}

//! What a schema cannot say, as rules in the API server's language, CEL (pure): those of `job::validate` that it can
//! state, and what may change once a job exists.
//!
//! After creation only `suspend`, `pod.ttl` and `pod.nodeLost` may change at any time; while the job is suspended also
//! `workers`, `restarts` and `hang`, so that it goes on smaller or larger. Everything else makes another job: its
//! samples, its ranks and its pods would no longer be those that were begun with.

use serde_json::{Value, json};

use crate::job::validate::cluster::{CLAIM_REQUESTS_MAX, NAME_CHARS_MAX};
use crate::job::validate::{OWN_VARIABLES, RANKS_MAX};

/// Fields of `spec` that never change.
const FIXED: [&str; 5] = ["data", "resources", "placement", "queue", "run"];
/// Fields of `spec` that change only while the job is suspended.
const FIXED_WHILE_RUNNING: [&str; 3] = ["workers", "restarts", "hang"];
/// Fields of `spec.pod` that never change: all but `ttl` and `nodeLost`; a test compares it with the schema.
pub(super) const FIXED_IN_POD: [&str; 14] = [
    "image",
    "imagePullPolicy",
    "imagePullSecrets",
    "folder",
    "checkpoints",
    "volumes",
    "serviceAccount",
    "runAsUser",
    "nodeSelector",
    "tolerations",
    "priorityClass",
    "annotations",
    "devices",
    "sidecar",
];

/// The rules that hold at a path: `""` is the object, `spec.pod.volumes[]` an item of a list.
pub(super) fn at(path: &str) -> Vec<Value> {
    match path {
        "" => vec![rule(
            &format!(
                "self.metadata.name.size() <= {NAME_CHARS_MAX} && \
                 self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')"
            ),
            &format!(
                "a job's name has at most {NAME_CHARS_MAX} lower-case letters, digits and -, and begins with a letter"
            ),
        )],
        "spec" => spec(),
        "spec.workers" => vec![rule("!has(self.min) || self.min <= self.count", "min is more than count")],
        "spec.run.command" => {
            vec![rule(
                "self.size() == 0 || self[0] != ''",
                "the first part is empty, and it names the program",
            )]
        }
        "spec.run.env" => vec![rule(
            &format!(
                "!self.exists(name, name in {OWN_VARIABLES:?} || name.startsWith('SLIPWAY_') || \
                 name.startsWith('TORCHELASTIC_'))"
            ),
            "a variable is one of those that Slipway sets for every rank",
        )],
        "spec.resources" => resources(),
        "spec.data.shuffle" => vec![rule(
            "!has(self.chunks) || !has(self.mode) || self.mode != 'none'",
            "chunks has no meaning while mode is none",
        )],
        "spec.data.servers" => vec![rule(
            "self.count > 0 || !has(self.cpus) && !has(self.memory) && !has(self.nodeSelector)",
            "cpus, memory and nodeSelector have no meaning while count is 0",
        )],
        "spec.pod" => pod(),
        "spec.pod.volumes[]" => volume(),
        "spec.pod.tolerations[]" => vec![
            rule(
                "has(self.key) || (has(self.operator) && self.operator == 'Exists')",
                "without a key it is for every taint: give it a key, or operator: Exists",
            ),
            rule(
                "!has(self.operator) || self.operator != 'Exists' || !has(self.value) || self.value == ''",
                "value has no meaning beside operator: Exists",
            ),
        ],
        _ => Vec::new(),
    }
}

fn rule(rule: &str, message: &str) -> Value {
    json!({ "rule": rule, "message": message })
}

/// The value of a field some levels below `self`, or a default where one of the levels is missing.
fn or(path: &str, default: &str) -> String {
    let mut at = "self".to_owned();
    let mut present = Vec::new();
    for key in path.split('.') {
        at = format!("{at}.{key}");
        present.push(format!("has({at})"));
    }
    format!("({} ? {at} : {default})", present.join(" && "))
}

fn spec() -> Vec<Value> {
    let ranks_per_worker = or("run.ranksPerWorker", "1");
    let (gpus, nics) = (or("resources.gpus", "0"), or("resources.nics", "0"));
    let [of_a_store, of_no_job] = data_secret();
    let mut rules = vec![
        rule(
            "has(self.pod) && has(self.pod.image)",
            "pod.image is missing: on a cluster the image that the ranks run in is needed",
        ),
        rule(
            &format!("{} == 0 || {} > 0", or("workers.spares", "0"), or("restarts.max", "3")),
            "spares are never used while restarts.max is 0",
        ),
        rule(
            &format!("self.workers.count * {ranks_per_worker} <= {RANKS_MAX}"),
            &format!("the job has more than {RANKS_MAX} ranks"),
        ),
        rule(
            &format!("{} == 'shared' || {gpus} % {ranks_per_worker} == 0", or("resources.gpuMode", "''")),
            "the GPUs cannot be shared out evenly over the ranks: make gpus a multiple of run.ranksPerWorker",
        ),
        rule(
            &format!("{} >= {ranks_per_worker}", or("resources.cpus", &ranks_per_worker)),
            "a worker has fewer CPUs than ranks",
        ),
        rule(
            &format!("!has(self.data) || self.data.globalBatch >= self.workers.count * {ranks_per_worker}"),
            "data.globalBatch is less than the job's ranks, and every rank needs a sample of each step",
        ),
        rule(
            &format!("!({} in ['gpu', 'pinned']) || {gpus} > 0", or("data.memory", "'auto'")),
            "data.memory is gpu or pinned, and the workers have no GPUs",
        ),
        rule(
            "!has(self.hang) || !has(self.hang.timeout) || has(self.data)",
            "hang.timeout has no meaning without data: steps are seen only where they are fed",
        ),
        rule(
            &format!(
                "!has(self.data) || {} != '' || self.data.source.startsWith('/') || self.data.source.contains('://')",
                or("pod.folder", "''")
            ),
            "data.source is relative: write an absolute path, or say in pod.folder where relative ones begin",
        ),
        of_a_store,
        of_no_job,
        rule(
            &format!("{} != '' || {}.startsWith('/')", or("pod.folder", "''"), or("run.workdir", "'/'")),
            "run.workdir is relative: write an absolute path, or say in pod.folder where relative ones begin",
        ),
        rule(
            &format!(
                "{} != 'dra' || {gpus} + {nics} <= {CLAIM_REQUESTS_MAX}",
                or("pod.devices.by", "'auto'")
            ),
            &format!("with pod.devices.by: dra a worker has at most {CLAIM_REQUESTS_MAX} GPUs and NICs"),
        ),
        rule(
            &format!("{} == '' || {gpus} > 0", or("pod.devices.gpu", "''")),
            "pod.devices.gpu names a device that the workers do not ask for: set resources.gpus",
        ),
        rule(
            &format!("{} == '' || {nics} > 0", or("pod.devices.nic", "''")),
            "pod.devices.nic names a device that the workers do not ask for: set resources.nics",
        ),
        rule(
            &format!("{}.size() == 0 || {nics} > 0", or("pod.devices.networks", "[]")),
            "pod.devices.networks are for NICs, and the workers have none: set resources.nics",
        ),
        rule(
            &format!("{} == 0 || {nics} > 0", or("pod.sidecar.nics", "0")),
            "pod.sidecar.nics is given, and the job asks for no NICs: set resources.nics",
        ),
    ];
    rules
        .extend(FIXED.map(|field| rule(&unchanged(field), &format!("{field} is fixed once the job exists"))));
    rules.extend(FIXED_WHILE_RUNNING.map(|field| {
        let condition = format!("(has(oldSelf.suspend) && oldSelf.suspend) || ({})", unchanged(field));
        rule(&condition, &format!("{field} may change only while the job is suspended"))
    }));
    rules
}

fn data_secret() -> [Value; 2] {
    [
        rule(
            "!has(self.data) || !has(self.data.secret) || ((self.data.source.startsWith('rados://') || \
             self.data.source.startsWith('s3://')) && !self.data.source.contains('credentials='))",
            "data.secret is for rados:// and s3://, and no address that names credentials itself",
        ),
        rule(
            &format!("!has(self.data) || {}", no_identities("self.data")),
            "data.secret is a name for Secrets with certificates of a job",
        ),
    ]
}

/// The same as it was, or as absent as it was.
fn unchanged(field: &str) -> String {
    format!(
        "has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"
    )
}

fn resources() -> Vec<Value> {
    let positive = |field: &str| format!("has(self.{field}) && self.{field} > 0");
    let is = |locality: &str| format!("has(self.locality) && self.locality == '{locality}'");
    vec![
        rule(
            &format!("!has(self.gpuMode) || ({})", positive("gpus")),
            "gpuMode is given, and the workers have no GPUs: set gpus",
        ),
        rule(
            &format!("!({}) || ({} && {})", is("pcie"), positive("gpus"), positive("nics")),
            "locality pcie is about a GPU and a NIC: set gpus and nics, or use numa",
        ),
        rule(
            &format!(
                "!({}) || ({}) || ({}) || has(self.cpus)",
                is("numa"),
                positive("gpus"),
                positive("nics")
            ),
            "locality numa needs something to keep together: set cpus, gpus or nics",
        ),
        rule(
            "!has(self.cpus) || has(self.memory)",
            "cpus are only a worker's own on a cluster when its memory is, too: set memory",
        ),
    ]
}

fn pod() -> Vec<Value> {
    let unchanged: Vec<String> = FIXED_IN_POD.iter().map(|field| format!("({})", unchanged(field))).collect();
    vec![
        rule("!has(self.folder) || self.folder.startsWith('/')", "folder is no absolute path"),
        rule(
            "!has(self.checkpoints) || (has(self.volumes) && self.volumes.exists(v, \
             self.checkpoints == v.mountPath || self.checkpoints.startsWith(v.mountPath + '/')))",
            "checkpoints is in none of the volumes",
        ),
        rule(
            "!has(self.devices) || !has(self.devices.by) || self.devices.by != 'dra' || !has(self.sidecar) || \
             !has(self.sidecar.nics) || self.sidecar.nics == 0",
            "sidecar.nics has no meaning with devices.by: dra, where containers share their NICs",
        ),
        rule(&unchanged.join(" && "), "of pod only ttl and nodeLost may change once the job exists"),
    ]
}

/// That `secret` of this object is none by whose certificates workers know each other.
fn no_identities(object: &str) -> String {
    format!("!has({object}.secret) || !{object}.secret.matches('-(authority|identities-[0-9]+)$')")
}

fn volume() -> Vec<Value> {
    let sources = ["claim", "hostPath", "configMap", "secret", "image", "nfs"];
    let given: Vec<String> = sources.iter().map(|source| format!("has(self.{source})")).collect();
    vec![
        rule(
            &format!("[{}].filter(given, given).size() == 1", given.join(", ")),
            "a volume has exactly one of claim, hostPath, configMap, secret, image and nfs",
        ),
        rule(
            "self.mountPath.startsWith('/') && self.mountPath != '/' && !self.mountPath.contains(':')",
            "mountPath is no absolute path below /, without a colon",
        ),
        rule(
            "!self.mountPath.contains('//') && !(self.mountPath + '/').contains('/./') && \
             !(self.mountPath + '/').contains('/../')",
            "mountPath has a part that is empty or made of dots",
        ),
        rule(
            "!['/slipway', '/slipway-config', '/slipway-data', '/slipway-identity', '/dev/shm'].exists(own, \
             self.mountPath == own || self.mountPath.startsWith(own + '/')) && \
             !['/usr/bin/worker/', '/usr/bin/worker-memlock/', '/usr/bin/worker-exec/'].exists(own, \
             own.startsWith(self.mountPath + '/'))",
            "mountPath would hide what Slipway keeps there",
        ),
        rule(&no_identities("self"), "secret is a name for Secrets with certificates of a job"),
        rule(
            "!self.name.startsWith('slipway')",
            "names that begin with slipway are of Slipway's own volumes",
        ),
        rule("!has(self.hostPath) || self.hostPath.startsWith('/')", "hostPath is no absolute path"),
    ]
}

//! What a cluster asks of a job beyond what every job must be: an image, absolute places, names that fit (pure).
//!
//! The custom resource states the same where its language can; whoever reads an object checks all of it.

use std::path::PathBuf;

use super::Rules;
use crate::job::faults::Fault;
use crate::job::schema::Shape;
use crate::job::source::{Entry, Node, Value};

/// Characters of a job's name on a cluster: a pod of a JobSet is called `<name>-workers-0-<index>-<5 characters>`, its
/// index has up to 6 digits, and all of it is a DNS label of 63.
pub const NAME_CHARS_MAX: usize = 40;
/// Characters of one argument on a cluster: bounds let the API server know beforehand what its rules cost.
pub const ARGUMENT_CHARS_MAX: usize = 16_384;
/// Variables of a job on a cluster.
pub const VARIABLES_MAX: usize = 1024;
/// Characters of one variable's value on a cluster.
pub const VARIABLE_CHARS_MAX: usize = 8192;
/// The largest whole number that the Kubernetes API keeps exactly.
const INTEGER_MAX: u64 = i64::MAX as u64;
/// GPUs and NICs of one pod that dynamic allocation can ask for: a claim has at most this many requests
/// (`DeviceRequestsMaxSize` in resource.k8s.io/v1).
pub const CLAIM_REQUESTS_MAX: u64 = 32;

/// Everything that only a cluster misses in a job, or cannot do with it.
#[must_use]
pub fn for_cluster(root: &Node, shape: &Shape) -> Vec<Fault> {
    let mut rules = Rules::new(root, shape);
    rules.cluster_names();
    rules.cluster_places();
    rules.cluster_program();
    rules.cluster_resources();
    rules.faults
}

/// Where relative paths of a job begin in its pods; empty where there can be none.
#[must_use]
pub fn pod_folder(root: &Node) -> PathBuf {
    let entry = |node: Option<&'_ Entry>, key: &str| node.and_then(|entry| entry.node.entry(key)).cloned();
    let folder = entry(entry(root.entry("spec"), "pod").as_ref(), "folder");
    match folder.map(|entry| entry.node.value) {
        Some(Value::Text(folder)) => PathBuf::from(folder),
        _ => PathBuf::new(),
    }
}

impl Rules<'_> {
    fn cluster_names(&mut self) {
        let Some((node, name)) = self.text("metadata.name") else { return };
        if name.len() > NAME_CHARS_MAX {
            let message =
                format!("has {} characters, and {NAME_CHARS_MAX} are the limit on a cluster", name.len());
            self.fault(&node.place, "metadata.name", message, "its pods' names are made of it, and have 63");
        }
        if name.starts_with(|c: char| c.is_ascii_digit()) {
            let hint = format!("for example j-{name}");
            self.fault(&node.place, "metadata.name", "must begin with a letter on a cluster", hint);
        }
    }

    fn cluster_places(&mut self) {
        if self.is_known_absent("spec.pod.image") {
            let place = self.place("spec.pod.image");
            let hint = "the image that the ranks run in, with the program in it";
            self.fault(&place, "spec.pod.image", "is missing, and on a cluster it is needed", hint);
        }
        if !self.is_known_absent("spec.pod.folder") {
            return;
        }
        let hint = "write an absolute path, or say in spec.pod.folder where relative ones begin";
        for path in ["spec.run.workdir", "spec.data.source"] {
            if let Some((node, text)) = self.text(path)
                && !text.starts_with('/')
                && !text.contains("://")
                && !text.is_empty()
            {
                let message = format!("{text} is relative, and a pod has no job file's folder");
                self.fault(&node.place, path, message, hint);
            }
        }
    }

    fn cluster_program(&mut self) {
        let over = |text: &str, limit: usize| text.chars().count() > limit;
        for (index, node) in super::pod::items(self.find("spec.run.command")).iter().enumerate() {
            if let Value::Text(text) = &node.value
                && over(text, ARGUMENT_CHARS_MAX)
            {
                let message =
                    format!("has more than {ARGUMENT_CHARS_MAX} characters, the limit on a cluster");
                let hint = "put it into a file of the image or of a volume";
                self.fault(&node.place, &format!("spec.run.command[{index}]"), message, hint);
            }
        }
        let variables = super::entries(self.find("spec.run.env"));
        if variables.len() > VARIABLES_MAX {
            let place = self.place("spec.run.env");
            let message =
                format!("has {} variables, and {VARIABLES_MAX} are the limit on a cluster", variables.len());
            self.fault(&place, "spec.run.env", message, "");
        }
        for variable in variables {
            if let Value::Text(text) = &variable.node.value
                && over(text, VARIABLE_CHARS_MAX)
            {
                let path = super::join("spec.run.env", &variable.key);
                let message =
                    format!("has more than {VARIABLE_CHARS_MAX} characters, the limit on a cluster");
                let hint = "put it into a file of the image or of a volume";
                self.fault(&variable.node.place, &path, message, hint);
            }
        }
        if let Some((node, seed)) = self.number("spec.data.seed")
            && seed > INTEGER_MAX
        {
            let message = format!("must be at most {INTEGER_MAX} on a cluster, whose numbers are signed");
            self.fault(&node.place, "spec.data.seed", message, "");
        }
    }

    fn cluster_resources(&mut self) {
        if self.number("spec.resources.cpus").is_some() && self.is_known_absent("spec.resources.memory") {
            let place = self.place("spec.resources.cpus");
            let message = "are only a worker's own on a cluster when its memory is, too";
            self.fault(&place, "spec.resources.cpus", message, "set spec.resources.memory");
        }
        let gpus = self.integer("spec.resources.gpus", Some(0));
        let nics = self.integer("spec.resources.nics", Some(0));
        if let (Some((node, "dra")), Some(gpus), Some(nics)) = (self.text("spec.pod.devices.by"), gpus, nics)
            && gpus.saturating_add(nics) > CLAIM_REQUESTS_MAX
        {
            let message = format!(
                "a claim asks for at most {CLAIM_REQUESTS_MAX} devices, and these are {gpus} GPUs and {nics} NICs"
            );
            self.fault(
                &node.place,
                "spec.pod.devices.by",
                message,
                "use more workers with fewer devices each",
            );
        }
    }
}

//! What must hold of `spec.pod` wherever the job runs: names, paths, volumes, tolerations and devices (pure).

use std::collections::BTreeMap;

use super::{Rules, dns_label, entries, is_label_key, is_label_value, join};
use crate::job::faults::Place;
use crate::job::source::{Node, Value};

/// The fields of a volume that say what it is; exactly one of them is given.
const VOLUME_SOURCES: [&str; 6] = ["claim", "hostPath", "configMap", "secret", "image", "nfs"];
/// Folders of a pod that are Slipway's own, with all below them.
const OWN_FOLDERS: [&str; 6] =
    ["/slipway", "/slipway-config", "/slipway-data", "/slipway-identity", "/slipway-tier", "/dev/shm"];
/// What a volume above one would hide from the sidecar, which sees the same volumes.
const OWN_PROGRAMS: [&str; 3] = ["/usr/bin/worker", "/usr/bin/worker-memlock", "/usr/bin/worker-exec"];
/// What names of Slipway's own volumes begin with.
const OWN_VOLUMES: &str = "slipway";
/// The largest user number that Kubernetes accepts.
const USER_MAX: u64 = i32::MAX as u64;
/// The annotation by which Multus is told of networks; `spec.pod.devices.networks` makes it.
const NETWORKS_ANNOTATION: &str = "k8s.v1.cni.cncf.io/networks";
/// Where Slipway's own annotations are.
const OWN_DOMAIN: &str = "slipway.dev/";

impl<'a> Rules<'a> {
    /// Every fault in `spec.pod`.
    pub(super) fn pod(&mut self) {
        if self.find("spec.pod").is_none() {
            return;
        }
        for path in ["spec.pod.serviceAccount", "spec.pod.priorityClass"] {
            if let Some((node, name)) = self.text(path) {
                self.object_name(&node.place, path, name);
            }
        }
        for (index, item) in items(self.find("spec.pod.imagePullSecrets")).iter().enumerate() {
            if let Value::Text(name) = &item.value {
                self.object_name(&item.place, &format!("spec.pod.imagePullSecrets[{index}]"), name);
            }
        }
        if let Some((node, image)) = self.text("spec.pod.image")
            && image.contains(char::is_whitespace)
        {
            self.fault(&node.place, "spec.pod.image", format!("{image:?} is no name of an image"), "");
        }
        if let Some((node, user)) = self.number("spec.pod.runAsUser")
            && user > USER_MAX
        {
            let message = format!("must be at most {USER_MAX}, not {user}");
            self.fault(&node.place, "spec.pod.runAsUser", message, "");
        }
        self.labels_and_annotations();
        self.volumes();
        self.folders();
        self.tolerations();
        self.devices();
    }

    fn labels_and_annotations(&mut self) {
        self.node_selector("spec.pod.nodeSelector");
        for entry in entries(self.find("spec.pod.annotations")) {
            let path = join("spec.pod.annotations", &entry.key);
            if entry.key == NETWORKS_ANNOTATION {
                let hint = "list them in spec.pod.devices.networks";
                self.fault(&entry.place, &path, "is made by Slipway, with one network for each NIC", hint);
            } else if entry.key.starts_with(OWN_DOMAIN) {
                self.fault(&entry.place, &path, "is an annotation of Slipway's own", "remove it");
            } else if !is_label_key(&entry.key) {
                let hint = "letters, digits, - _ . and one prefix/";
                self.fault(&entry.place, &path, "is no key of an annotation", hint);
            }
        }
    }

    /// Labels that nodes must have.
    pub(super) fn node_selector(&mut self, selector: &str) {
        for entry in entries(self.find(selector)) {
            let path = join(selector, &entry.key);
            if !is_label_key(&entry.key) {
                let hint = "letters, digits, - _ . and one prefix/";
                self.fault(&entry.place, &path, "is no key of a label", hint);
            }
            if let Value::Text(text) = &entry.node.value
                && !is_label_value(text)
            {
                let hint = "at most 63 letters, digits, - _ . with a letter or digit at both ends";
                self.fault(&entry.node.place, &path, "is no value of a label", hint);
            }
        }
    }

    fn volumes(&mut self) {
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        for (index, volume) in items(self.find("spec.pod.volumes")).iter().enumerate() {
            let path = format!("spec.pod.volumes[{index}]");
            if self.is_faulty(&path) {
                continue;
            }
            self.volume_source(volume, &path);
            if let Some((node, name)) = self.text_of(volume, &path, "name") {
                let path = format!("{path}.name");
                if let Err(hint) = dns_label(name, 63) {
                    self.fault(&node.place, &path, format!("{name:?} is no name for a volume"), hint);
                } else if name.starts_with(OWN_VOLUMES) {
                    let message = format!("{name} is a name for volumes of Slipway's own");
                    self.fault(&node.place, &path, message, "begin it otherwise");
                }
                if let Some(first) = names.insert(name, index) {
                    let message = format!("{name} is also the name of spec.pod.volumes[{first}]");
                    self.fault(&node.place, &path, message, "");
                }
            }
            if let Some((node, folder)) = self.text_of(volume, &path, "mountPath") {
                let path = format!("{path}.mountPath");
                self.folder(&node.place, &path, folder);
                let own = OWN_FOLDERS.iter().any(|own| is_below(folder, own));
                if own || OWN_PROGRAMS.iter().any(|program| is_below(program, folder)) {
                    let message = "would hide what Slipway keeps there";
                    self.fault(&node.place, &path, message, "mount it elsewhere, for example at /data");
                }
                if folder.contains(':') {
                    self.fault(&node.place, &path, "contains a colon, which Kubernetes refuses", "");
                }
                if let Some(first) = places.insert(folder.trim_end_matches('/'), index) {
                    let message = format!("spec.pod.volumes[{first}] is mounted there, too");
                    self.fault(&node.place, &path, message, "");
                }
            }
        }
    }

    /// Exactly one source, and that one sound.
    fn volume_source(&mut self, volume: &'a Node, path: &str) {
        let given: Vec<&str> = VOLUME_SOURCES.into_iter().filter(|key| volume.entry(key).is_some()).collect();
        match given[..] {
            [_] => {}
            [] => {
                let hint = format!("give one of {}", VOLUME_SOURCES.join(", "));
                self.fault(&volume.place, path, "does not say what it is", hint);
            }
            _ => {
                let message = format!("is several things at once: {}", given.join(", "));
                self.fault(&volume.place, path, message, "make a volume of each");
            }
        }
        for key in ["claim", "configMap", "secret"] {
            if let Some((node, name)) = self.text_of(volume, path, key) {
                self.object_name(&node.place, &format!("{path}.{key}"), name);
                if key == "secret" {
                    self.no_identities(&node.place, &format!("{path}.{key}"), name);
                }
            }
        }
        if let Some((node, folder)) = self.text_of(volume, path, "hostPath") {
            self.folder(&node.place, &format!("{path}.hostPath"), folder);
        }
        if let Some(nfs) = volume.entry("nfs")
            && let Some((node, folder)) = self.text_of(&nfs.node, &format!("{path}.nfs"), "path")
        {
            self.folder(&node.place, &format!("{path}.nfs.path"), folder);
        }
    }

    fn folders(&mut self) {
        if let Some((node, folder)) = self.text("spec.pod.folder") {
            self.folder(&node.place, "spec.pod.folder", folder);
        }
        let Some((node, folder)) = self.text("spec.pod.checkpoints") else { return };
        self.folder(&node.place, "spec.pod.checkpoints", folder);
        let path = "spec.pod.checkpoints";
        if self.is_faulty("spec.pod.volumes") {
            return;
        }
        // The volume that the folder is in is the one that is mounted closest above it.
        let volumes = items(self.find("spec.pod.volumes")).iter().filter_map(|volume| {
            let Value::Text(mount) = &volume.entry("mountPath")?.node.value else { return None };
            is_below(folder, mount).then_some((mount.len(), volume))
        });
        match volumes.max_by_key(|(length, _)| *length) {
            None => {
                let hint = "mount a volume there, or leave it out: then checkpoints are lost with their pod";
                self.fault(&node.place, path, format!("{folder} is in none of the volumes"), hint);
            }
            Some((_, volume)) => {
                let is_true = |entry: &crate::job::source::Entry| entry.node.value == Value::Bool(true);
                let fixed = ["configMap", "secret", "image"].iter().any(|key| volume.entry(key).is_some());
                if fixed || volume.entry("readOnly").is_some_and(is_true) {
                    let message = format!("{folder} is in a volume that nobody may write to");
                    self.fault(&node.place, path, message, "use a claim, without readOnly");
                }
            }
        }
    }

    fn tolerations(&mut self) {
        for (index, toleration) in items(self.find("spec.pod.tolerations")).iter().enumerate() {
            let path = format!("spec.pod.tolerations[{index}]");
            if self.is_faulty(&path) {
                continue;
            }
            let operator = self.text_of(toleration, &path, "operator").map(|(_, operator)| operator);
            let key = self.text_of(toleration, &path, "key");
            let value = self.text_of(toleration, &path, "value");
            if key.is_none() && operator != Some("Exists") {
                let message = "has no key, so it must be for every taint";
                self.fault(&toleration.place, &path, message, "give it a key, or operator: Exists");
            }
            if let (Some("Exists"), Some((node, text))) = (operator, value)
                && !text.is_empty()
            {
                let message = "has no meaning beside operator: Exists";
                self.fault(&node.place, &format!("{path}.value"), message, "remove it or use Equal");
            }
            if let Some((node, key)) = key
                && !is_label_key(key)
            {
                let hint = "letters, digits, - _ . and one prefix/";
                self.fault(&node.place, &format!("{path}.key"), "is no key of a taint", hint);
            }
            if let Some((node, text)) = value
                && !is_label_value(text)
            {
                let hint = "at most 63 letters, digits, - _ . with a letter or digit at both ends";
                self.fault(&node.place, &format!("{path}.value"), "is no value of a taint", hint);
            }
        }
    }

    fn devices(&mut self) {
        let gpus = self.integer("spec.resources.gpus", Some(0));
        let nics = self.integer("spec.resources.nics", Some(0));
        let own_nics = self.integer("spec.pod.sidecar.nics", Some(0));
        let by_dra = self.text("spec.pod.devices.by").is_some_and(|(_, by)| by == "dra");
        for (path, count) in [("spec.pod.devices.gpu", gpus), ("spec.pod.devices.nic", nics)] {
            let Some((node, name)) = self.text(path) else { continue };
            if count == Some(0) {
                let message = "names a device that the workers do not ask for";
                let hint = "set spec.resources.gpus or nics, or remove it";
                self.fault(&node.place, path, message, hint);
            }
            if by_dra {
                if !name.split('.').all(|part| dns_label(part, 63).is_ok()) {
                    let message = format!("{name:?} is no name of a device class");
                    self.fault(&node.place, path, message, "it reads like gpu.nvidia.com");
                }
            } else if !name.contains('/') || !is_label_key(name) {
                let message = format!("{name:?} is no name of a resource");
                self.fault(&node.place, path, message, "it reads <domain>/<name>, such as nvidia.com/gpu");
            }
        }
        if let (Some((node, _)), Some(0)) = (self.text("spec.pod.devices.gpuModel"), gpus) {
            let message = "is about GPUs, and the workers have none";
            self.fault(&node.place, "spec.pod.devices.gpuModel", message, "set spec.resources.gpus");
        }
        let networks = items(self.find("spec.pod.devices.networks"));
        if let (Some(first), Some(0)) = (networks.first(), nics) {
            let message = "are for NICs, and the workers have none";
            self.fault(&first.place, "spec.pod.devices.networks", message, "set spec.resources.nics");
        }
        for (index, network) in networks.iter().enumerate() {
            let Value::Text(name) = &network.value else { continue };
            let parts: Vec<&str> = name.split('/').collect();
            let sound = parts.len() <= 2
                && parts.iter().all(|part| part.split('.').all(|label| dns_label(label, 63).is_ok()));
            if !sound {
                let path = format!("spec.pod.devices.networks[{index}]");
                let message = format!("{name:?} is no name of a network");
                self.fault(&network.place, &path, message, "write NAMESPACE/NAME or NAME");
            }
        }
        if let (Some(own @ 1..), Some(0)) = (own_nics, nics) {
            let place = self.place("spec.pod.sidecar.nics");
            let message = format!("is {own}, but the job asks for no NICs");
            self.fault(&place, "spec.pod.sidecar.nics", message, "set spec.resources.nics");
        }
        if let (Some(1..), true) = (own_nics, by_dra) {
            let place = self.place("spec.pod.sidecar.nics");
            let message = "has no meaning with spec.pod.devices.by: dra, where containers share their NICs";
            self.fault(&place, "spec.pod.sidecar.nics", message, "remove it");
        }
    }

    /// A field of a node that is an item of a list.
    fn text_of(&self, node: &'a Node, path: &str, key: &str) -> Option<(&'a Node, &'a str)> {
        match &node.entry(key)?.node {
            node @ Node { value: Value::Text(text), .. } if !self.is_faulty(&format!("{path}.{key}")) => {
                Some((node, text))
            }
            _ => None,
        }
    }

    /// RFC 1123 subdomains: what most objects are called.
    pub(super) fn object_name(&mut self, place: &Place, path: &str, name: &str) {
        if let Err(hint) = name.split('.').try_for_each(|part| dns_label(part, 63)) {
            self.fault(place, path, format!("{name:?} is no name of a Kubernetes object"), hint);
        }
    }

    /// Certificates by which workers know each other are in Secrets of such names; the cluster's policies say the same.
    pub(super) fn no_identities(&mut self, place: &Place, path: &str, name: &str) {
        let is_numbered = |name: &str| {
            let (rest, number) = name.rsplit_once('-').unwrap_or_default();
            rest.ends_with("-identities")
                && !number.is_empty()
                && number.bytes().all(|byte| byte.is_ascii_digit())
        };
        if name.ends_with("-authority") || is_numbered(name) {
            let message = format!("{name} is a name for Secrets with certificates of a job");
            self.fault(place, path, message, "name the Secret otherwise");
        }
    }

    fn folder(&mut self, place: &Place, path: &str, folder: &str) {
        if !folder.starts_with('/') {
            self.fault(place, path, format!("{folder} is no absolute path"), "begin it with /");
        } else if folder.split('/').any(|part| part == "..") {
            self.fault(place, path, format!("{folder} goes up (..)"), "write the path that is meant");
        } else if folder.contains("//") || folder.split('/').any(|part| part == ".") {
            let message = format!("{folder} has a part that is empty or a dot");
            self.fault(place, path, message, "write the path without it");
        }
    }
}

/// The items of a list.
pub(super) fn items(node: Option<&Node>) -> &[Node] {
    match node {
        Some(Node { value: Value::List(items), .. }) => items,
        _ => &[],
    }
}

/// Whether a path is a folder or lies below it.
fn is_below(path: &str, folder: &str) -> bool {
    let folder = folder.trim_end_matches('/');
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

//! What a resource or a driver's device is, by its name and by what stands beside it (pure).

use std::collections::BTreeMap;

use super::unknown::Unknown;
use crate::topology::DeviceClass;

/// Patterns of resource names, `*` for anything, that are looked at before the built-in ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Naming {
    /// Resources that are whole GPUs.
    pub gpus: Vec<String>,
    /// Resources that are NICs.
    pub nics: Vec<String>,
}

/// Names of whole GPUs: the device plugins of NVIDIA, AMD and Intel.
const GPUS: [&str; 4] = ["nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915", "gpu.intel.com/xe"];
/// NVIDIA's partitions of GPUs, in the mixed strategy: `nvidia.com/mig-1g.10gb`.
const MIG: &str = "nvidia.com/mig-";
/// What NVIDIA's device plugin appends to a resource that several pods share (`renameByDefault`).
const SHARED: &str = ".shared";
/// Resource prefixes of VF pools and of shared RDMA devices: the SR-IOV operator's default, the device plugin's default,
/// and the RDMA shared device plugin's.
const NICS: [&str; 5] =
    ["openshift.io/*", "intel.com/*sriov*", "intel.com/*rdma*", "mellanox.com/*", "rdma/*"];
/// NVIDIA's network operator has the prefix of the GPUs.
const NVIDIA: &str = "nvidia.com/";
/// Names below [`NVIDIA`] that are GPUs or parts of them, never NICs.
const NVIDIA_GPUS: [&str; 5] = ["gpu", "mig-", "pgpu", "vgpu", "cc."];

/// What the extended resource `name` is; none where nobody knows.
#[must_use]
pub fn class(name: &str, naming: &Naming) -> Option<DeviceClass> {
    let any = |patterns: &[String]| patterns.iter().any(|pattern| glob(pattern, name));
    if any(&naming.gpus) {
        return Some(DeviceClass::Gpu);
    }
    if any(&naming.nics) {
        return Some(DeviceClass::Nic);
    }
    if let Some(profile) = name.strip_prefix(MIG) {
        // A part of a GPU that is shared as well is neither of the two things that a job can ask for.
        return (!profile.ends_with(SHARED)).then(|| DeviceClass::Mig(profile.to_owned()));
    }
    if GPUS.contains(&name) {
        return Some(DeviceClass::Gpu);
    }
    if name.strip_suffix(SHARED).is_some_and(|gpu| GPUS.contains(&gpu)) {
        return Some(DeviceClass::SharedGpu);
    }
    if NICS.iter().any(|pattern| glob(pattern, name)) {
        return Some(DeviceClass::Nic);
    }
    let rest = name.strip_prefix(NVIDIA)?;
    // GPUs that are passed to virtual machines are named by their model, which begins with a capital.
    let is_of_a_gpu = NVIDIA_GPUS.iter().any(|gpu| rest.starts_with(gpu))
        || rest.starts_with(|char: char| char.is_ascii_uppercase());
    (!is_of_a_gpu).then_some(DeviceClass::Nic)
}

/// What `class` becomes on a node with these labels (of GPU feature discovery): the same resource name stands for
/// partitions where the MIG strategy is `single`, and for shares where GPUs are shared without being renamed.
#[must_use]
pub fn class_on_node(name: &str, class: DeviceClass, labels: &BTreeMap<String, String>) -> DeviceClass {
    if class != DeviceClass::Gpu || !name.starts_with(NVIDIA) {
        return class;
    }
    let label = |key: &str| labels.get(key).map(String::as_str).unwrap_or_default();
    if label("nvidia.com/mig.strategy") == "single"
        && let Some((_, profile)) = label("nvidia.com/gpu.product").split_once("-MIG-")
    {
        return DeviceClass::Mig(profile.trim_end_matches("-SHARED").to_owned());
    }
    let replicas: u32 = label("nvidia.com/gpu.replicas").parse().unwrap_or(1);
    let is_renamed = labels.contains_key("nvidia.com/gpu.shared");
    if replicas > 1 && !is_renamed && label("nvidia.com/gpu.product").ends_with("-SHARED") {
        return DeviceClass::SharedGpu;
    }
    class
}

/// Who offers what under one name.
pub type Offers = BTreeMap<String, BTreeMap<DeviceClass, Vec<String>>>;

/// One meaning for each name in the whole cluster. Where hosts disagree, whole GPUs win, then the meaning of most hosts;
/// the hosts that mean something else are returned, and offer nothing under that name.
#[must_use]
pub fn settle(offers: Offers, unknown: &mut Unknown) -> BTreeMap<String, (DeviceClass, Vec<String>)> {
    let mut settled = BTreeMap::new();
    for (name, meanings) in offers {
        let winner = meanings
            .iter()
            .max_by_key(|(class, hosts)| (**class == DeviceClass::Gpu, hosts.len()))
            .map(|(class, _)| class.clone());
        let Some(winner) = winner else { continue };
        let mut left_out = Vec::new();
        for (class, hosts) in meanings {
            if class == winner {
                continue;
            }
            for host in hosts {
                let text = format!(
                    "{name} is {} on most hosts and {} on some, which are not used for it: give it another name there",
                    words(&winner),
                    words(&class)
                );
                unknown.of_host(text, &host);
                left_out.push(host);
            }
        }
        settled.insert(name, (winner, left_out));
    }
    settled
}

fn words(class: &DeviceClass) -> String {
    match class {
        DeviceClass::Gpu => "a whole GPU".to_owned(),
        DeviceClass::SharedGpu => "a share of a GPU".to_owned(),
        DeviceClass::Mig(profile) => format!("a {profile} partition"),
        DeviceClass::Nic => "a NIC".to_owned(),
    }
}

/// The model of a node's GPUs, as its labels name it.
#[must_use]
pub fn model(labels: &BTreeMap<String, String>) -> Option<String> {
    // NVIDIA's GPU feature discovery; AMD's node labeller, and before 1.0; Intel's rules for node feature discovery.
    let keys = [
        "nvidia.com/gpu.product",
        "amd.com/gpu.product-name",
        "beta.amd.com/gpu.product-name",
        "gpu.intel.com/product",
    ];
    let model = keys.into_iter().find_map(|key| labels.get(key))?;
    let model = model.trim_end_matches("-SHARED");
    Some(model.split_once("-MIG-").map_or(model, |(model, _)| model).to_owned())
}

/// Whether `text` is what `pattern` says, where a `*` stands for anything.
#[must_use]
pub fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_known_by_their_names() {
        let mig = |profile: &str| Some(DeviceClass::Mig(profile.to_owned()));
        for (name, expected) in [
            ("nvidia.com/gpu", Some(DeviceClass::Gpu)),
            ("amd.com/gpu", Some(DeviceClass::Gpu)),
            ("gpu.intel.com/xe", Some(DeviceClass::Gpu)),
            ("gpu.intel.com/xe_monitoring", None),
            ("nvidia.com/gpu.shared", Some(DeviceClass::SharedGpu)),
            ("nvidia.com/mig-1g.10gb", mig("1g.10gb")),
            ("nvidia.com/mig-1g.10gb.me", mig("1g.10gb.me")),
            ("nvidia.com/mig-1g.10gb.shared", None),
            ("openshift.io/rdma_a", Some(DeviceClass::Nic)),
            ("intel.com/intel_sriov_netdevice", Some(DeviceClass::Nic)),
            ("intel.com/qat_generic", None),
            ("nvidia.com/resibs4", Some(DeviceClass::Nic)),
            ("nvidia.com/TU104GL_Tesla_T4", None),
            ("nvidia.com/pgpu", None),
            ("rdma/rdma_shared_device_a", Some(DeviceClass::Nic)),
            ("example.com/fast", None),
        ] {
            assert_eq!(class(name, &Naming::default()), expected, "{name}");
        }
        let naming = Naming { gpus: vec!["*.test/gpu".to_owned()], nics: vec!["example.com/f*".to_owned()] };
        assert_eq!(class("slipway.test/gpu", &naming), Some(DeviceClass::Gpu));
        assert_eq!(class("example.com/fast", &naming), Some(DeviceClass::Nic));
    }

    #[test]
    fn labels_say_what_a_name_means_on_a_node() {
        let on = |labels: &[(&str, &str)]| {
            let labels: BTreeMap<String, String> =
                labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            (class_on_node("nvidia.com/gpu", DeviceClass::Gpu, &labels), model(&labels))
        };
        let single = [("nvidia.com/mig.strategy", "single"), ("nvidia.com/gpu.product", "A100-MIG-1g.5gb")];
        assert_eq!(on(&single), (DeviceClass::Mig("1g.5gb".to_owned()), Some("A100".to_owned())));
        let mixed = [("nvidia.com/mig.strategy", "mixed"), ("nvidia.com/gpu.product", "A100")];
        assert_eq!(on(&mixed), (DeviceClass::Gpu, Some("A100".to_owned())));
        let shared = [("nvidia.com/gpu.replicas", "4"), ("nvidia.com/gpu.product", "L4-SHARED")];
        assert_eq!(on(&shared), (DeviceClass::SharedGpu, Some("L4".to_owned())));
        // Renamed shares leave the old name to whole GPUs, and the product as it is.
        let renamed = [("nvidia.com/gpu.replicas", "4"), ("nvidia.com/gpu.product", "L4")];
        assert_eq!(on(&renamed), (DeviceClass::Gpu, Some("L4".to_owned())));
        assert_eq!(on(&[]), (DeviceClass::Gpu, None));
    }

    #[test]
    fn a_name_has_one_meaning() {
        let mig = DeviceClass::Mig("1g.5gb".to_owned());
        let hosts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let offers = Offers::from([(
            "nvidia.com/gpu".to_owned(),
            BTreeMap::from([(DeviceClass::Gpu, hosts(&["a"])), (mig.clone(), hosts(&["b", "c"]))]),
        )]);
        let mut unknown = Unknown::default();
        let settled = settle(offers, &mut unknown);
        assert_eq!(settled["nvidia.com/gpu"], (DeviceClass::Gpu, hosts(&["b", "c"])));
        assert_eq!(
            unknown.lines(),
            [
                "nvidia.com/gpu is a whole GPU on most hosts and a 1g.5gb partition on some, which are not used for it: \
              give it another name there: 2 hosts (b, c)"
            ]
        );
        let alone =
            Offers::from([("nvidia.com/gpu".to_owned(), BTreeMap::from([(mig.clone(), hosts(&["b"]))]))]);
        assert_eq!(settle(alone, &mut unknown)["nvidia.com/gpu"], (mig, Vec::new()));
    }

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, text, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*b", "ab", true),
            ("*", "", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c", false),
            ("ab*bc", "abc", false),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }
}

//! Which labels of nodes say where a host lies in the fabric (pure): presets, and what a user says instead.
//!
//! A pair of labels (block, rack) is taken from the first source whose labels occur on any node: Kueue's `Topology`
//! objects, then [`PRESETS`]. The domain of GPUs that reach each other's memory is looked for by itself. A zone or a
//! region is neither a block nor a rack: "all in one block" would be kept by hosts that are kilometres apart. Zones only
//! order the hosts; who wants one as a block says so (`--level block=topology.kubernetes.io/zone`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// The label of a zone.
pub const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
/// Labels in Kueue's levels that are narrower than a rack, or wider than a block.
const NOT_A_LEVEL: [&str; 4] = [
    "kubernetes.io/hostname",
    "cloud.google.com/gce-topology-host",
    LABEL_ZONE,
    "topology.kubernetes.io/region",
];

/// A level of the fabric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A block of racks (a spine).
    Block,
    /// A rack (a leaf switch).
    Rack,
    /// GPUs that reach each other's memory (NVLink).
    Domain,
}

impl Role {
    /// Every level, from wide to narrow.
    pub const ALL: [Self; 3] = [Self::Block, Self::Rack, Self::Domain];

    /// Its name.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Rack => "rack",
            Self::Domain => "domain",
        }
    }
}

/// What a user says: a level's label. What is not said is found.
pub type Levels = BTreeMap<Role, String>;

/// Parses `ROLE=LABEL`, such as `rack=example.com/rack`.
///
/// # Errors
/// When there is no `=`, the level is not known, or the label is no label.
pub fn parse_level(text: &str) -> Result<(Role, String), String> {
    let (role, label) =
        text.split_once('=').ok_or("write it as LEVEL=LABEL, for example rack=example.com/rack")?;
    let role = Role::ALL.into_iter().find(|known| known.word() == role);
    let role = role.ok_or("a level is block, rack or domain")?;
    let is_of_a_label = |char: char| char.is_ascii_alphanumeric() || "-_./".contains(char);
    if label.is_empty() || !label.chars().all(is_of_a_label) {
        return Err("a label reads like example.com/rack".to_owned());
    }
    Ok((role, label.to_owned()))
}

/// Labels of blocks and racks that somebody is known to write.
struct Preset {
    name: &'static str,
    block: &'static str,
    rack: &'static str,
}

/// In the order in which they are tried. Sources: topograph 1.0 (tier 0 is the leaf) and before (`leaf`, at first
/// `block`); AWS counts its layers from the top, so that the highest number is the nearest to the host.
const PRESETS: [Preset; 7] = [
    Preset { name: "topograph", block: "fabric.topograph.run/tier-1", rack: "fabric.topograph.run/tier-0" },
    Preset {
        name: "topograph before 1.0",
        block: "network.topology.nvidia.com/spine",
        rack: "network.topology.nvidia.com/leaf",
    },
    Preset {
        name: "topograph before 1.0",
        block: "network.topology.nvidia.com/spine",
        rack: "network.topology.nvidia.com/block",
    },
    Preset {
        name: "AWS",
        block: "topology.k8s.aws/network-node-layer-3",
        rack: "topology.k8s.aws/network-node-layer-4",
    },
    Preset {
        name: "AWS",
        block: "topology.k8s.aws/network-node-layer-2",
        rack: "topology.k8s.aws/network-node-layer-3",
    },
    Preset {
        name: "Google Cloud",
        block: "cloud.google.com/gce-topology-block",
        rack: "cloud.google.com/gce-topology-subblock",
    },
    Preset {
        name: "cloud provider",
        block: "cloud.provider.com/topology-block",
        rack: "cloud.provider.com/topology-rack",
    },
];

/// Labels of NVLink domains, in the order in which they are tried.
const DOMAINS: [(&str, &str); 3] = [
    ("topograph", "accelerator.topograph.run/domain"),
    ("topograph before 1.0", "network.topology.nvidia.com/accelerator"),
    ("GPU feature discovery", "nvidia.com/gpu.clique"),
];

/// A level's label, and who says that it is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Level {
    /// The label.
    pub label: String,
    /// The source: `--level`, `Kueue Topology default`, a preset's name.
    pub from: String,
}

/// The labels that are used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Chosen {
    /// By level; a level that no label stands for is not there.
    pub levels: BTreeMap<Role, Level>,
}

impl Chosen {
    /// The label of a level.
    #[must_use]
    pub fn label(&self, role: Role) -> Option<&str> {
        self.levels.get(&role).map(|level| level.label.as_str())
    }
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, role) in Role::ALL.into_iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            match self.levels.get(&role) {
                Some(level) => write!(f, "{separator}{} by {} ({})", role.word(), level.label, level.from)?,
                None => write!(f, "{separator}{} unknown", role.word())?,
            }
        }
        Ok(())
    }
}

/// Chooses the label of each level: what the user says, else the first source with labels that occur (`present`: every
/// key of every node's labels).
#[must_use]
pub fn choose(levels: &Levels, present: &BTreeSet<&str>, kueue: &[&Value]) -> Chosen {
    let mut chosen = BTreeMap::new();
    let kueue = kueue.iter().map(|topology| kueue_levels(topology));
    let presets = PRESETS.iter().map(|preset| Candidate {
        from: preset.name.to_owned(),
        block: Some(preset.block.to_owned()),
        rack: Some(preset.rack.to_owned()),
    });
    let mut candidates: Vec<Candidate> = kueue.collect();
    candidates.sort_by(|a, b| a.from.cmp(&b.from));
    candidates.extend(presets);
    let occurs = |label: &Option<String>| label.as_deref().is_some_and(|label| present.contains(label));
    // Several generations of a source share their block label, so that the rack's tells them apart.
    let first = candidates.iter().find(|one| occurs(&one.rack));
    let first = first.or_else(|| candidates.iter().find(|one| occurs(&one.block)));
    if let Some(Candidate { from, block, rack }) = first {
        for (role, label) in [(Role::Block, block), (Role::Rack, rack)] {
            if let Some(label) = label.clone().filter(|label| present.contains(label.as_str())) {
                chosen.insert(role, Level { label, from: from.clone() });
            }
        }
    }
    if let Some((from, label)) = DOMAINS.iter().find(|(_, label)| present.contains(label)) {
        chosen.insert(Role::Domain, Level { label: (*label).to_owned(), from: (*from).to_owned() });
    }
    for (role, label) in levels {
        chosen.insert(*role, Level { label: label.clone(), from: "--level".to_owned() });
    }
    Chosen { levels: chosen }
}

struct Candidate {
    from: String,
    block: Option<String>,
    rack: Option<String>,
}

/// Kueue lists levels from wide to narrow (`spec.levels[].nodeLabel`): the last one above the host is the rack, the one
/// before it the block.
fn kueue_levels(topology: &Value) -> Candidate {
    let name = topology.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let levels = topology.pointer("/spec/levels").and_then(Value::as_array);
    let labels = levels.into_iter().flatten().filter_map(|level| level.get("nodeLabel")?.as_str());
    let labels: Vec<&str> = labels.filter(|label| !NOT_A_LEVEL.contains(label)).collect();
    let mut narrow_first = labels.iter().rev().map(|label| (*label).to_owned());
    let rack = narrow_first.next();
    Candidate { from: format!("Kueue Topology {name}"), block: narrow_first.next(), rack }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_level_is_parsed_or_refused() {
        assert_eq!(parse_level("rack=example.com/r"), Ok((Role::Rack, "example.com/r".to_owned())));
        for text in ["rack", "row=x", "rack=", "rack=a b", "=x"] {
            assert!(parse_level(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_first_source_whose_labels_occur_wins() {
        let kueue = json!({"metadata": {"name": "default"}, "spec": {"levels": [
            {"nodeLabel": "example.com/spine"}, {"nodeLabel": "example.com/leaf"}, {"nodeLabel": "kubernetes.io/hostname"}
        ]}});
        let zones = json!({"metadata": {"name": "a"}, "spec": {"levels": [
            {"nodeLabel": LABEL_ZONE}, {"nodeLabel": "kubernetes.io/hostname"}
        ]}});
        let rack = |label: &str| Levels::from([(Role::Rack, label.to_owned())]);
        let none = Levels::new();
        let topograph = [
            "fabric.topograph.run/tier-0",
            "fabric.topograph.run/tier-1",
            "accelerator.topograph.run/domain",
        ];
        let table: [(&Levels, &[&str], &[&Value], &str); 9] = [
            (
                &none,
                &["kubernetes.io/hostname", LABEL_ZONE],
                &[],
                "block unknown, rack unknown, domain unknown",
            ),
            (
                &none,
                &topograph,
                &[],
                "block by fabric.topograph.run/tier-1 (topograph), rack by fabric.topograph.run/tier-0 (topograph), \
                 domain by accelerator.topograph.run/domain (topograph)",
            ),
            (
                &none,
                &["example.com/leaf", "example.com/spine", "fabric.topograph.run/tier-0"],
                &[&kueue],
                "block by example.com/spine (Kueue Topology default), rack by example.com/leaf (Kueue Topology default), \
                 domain unknown",
            ),
            // A topology that no node has labels of, or of zones only, says nothing.
            (
                &none,
                &["fabric.topograph.run/tier-0", LABEL_ZONE],
                &[&kueue, &zones],
                "block unknown, rack by fabric.topograph.run/tier-0 (topograph), domain unknown",
            ),
            (
                &none,
                &["network.topology.nvidia.com/block", "network.topology.nvidia.com/spine"],
                &[],
                "block by network.topology.nvidia.com/spine (topograph before 1.0), \
                 rack by network.topology.nvidia.com/block (topograph before 1.0), domain unknown",
            ),
            (
                &none,
                &[
                    "topology.k8s.aws/network-node-layer-1",
                    "topology.k8s.aws/network-node-layer-2",
                    "topology.k8s.aws/network-node-layer-3",
                ],
                &[],
                "block by topology.k8s.aws/network-node-layer-2 (AWS), rack by topology.k8s.aws/network-node-layer-3 (AWS), \
                 domain unknown",
            ),
            (
                &none,
                &["cloud.provider.com/topology-rack", "nvidia.com/gpu.clique"],
                &[],
                "block unknown, rack by cloud.provider.com/topology-rack (cloud provider), \
                 domain by nvidia.com/gpu.clique (GPU feature discovery)",
            ),
            (
                &rack("example.com/r"),
                &topograph[..2],
                &[],
                "block by fabric.topograph.run/tier-1 (topograph), rack by example.com/r (--level), domain unknown",
            ),
            (&rack("x"), &[], &[], "block unknown, rack by x (--level), domain unknown"),
        ];
        for (levels, present, kueue, expected) in table {
            let present = present.iter().copied().collect();
            assert_eq!(choose(levels, &present, kueue).to_string(), expected);
        }
    }
}

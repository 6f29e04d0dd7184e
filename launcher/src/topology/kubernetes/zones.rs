//! What a NodeResourceTopology says (pure): NUMA nodes with what each has, and what the kubelet does about them.
//!
//! `topology.node.k8s.io/v1alpha2`: an object of the node's name with `zones[]{name, type, resources[]{name, capacity,
//! allocatable, available}}` and `attributes[]{name, value}`. Its writer is told of changes by the kubelet or looks every
//! 60 s or so, and counts only pods with whole CPUs and devices of their own.

use serde_json::Value;

use super::{host, quantity};
use crate::topology::{Alignment, Amounts, TopologyPolicy};

/// One object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zones {
    /// What the kubelet does about NUMA.
    pub policy: Option<TopologyPolicy>,
    /// NUMA nodes, by number.
    pub nodes: Vec<Zone>,
    /// Names of zones of type `Node` whose number cannot be read.
    pub unreadable: Vec<String>,
}

/// One NUMA node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    /// Its number.
    pub id: u32,
    /// What was free when the object was written.
    pub available: Amounts,
    /// What pods may use.
    pub allocatable: Amounts,
    /// All there is.
    pub capacity: Amounts,
}

/// Reads one object.
#[must_use]
pub fn read(object: &Value) -> Zones {
    let mut zones = Zones { policy: policy(object), ..Zones::default() };
    for zone in array(object, "zones").filter(|zone| zone["type"] == "Node") {
        let name = zone["name"].as_str().unwrap_or_default();
        let digits = name.trim_start_matches(|char: char| !char.is_ascii_digit());
        match digits.parse() {
            Ok(id) => zones.nodes.push(Zone {
                id,
                available: resources(zone, &["available", "allocatable", "capacity"]),
                allocatable: resources(zone, &["allocatable", "capacity"]),
                capacity: resources(zone, &["capacity", "allocatable"]),
            }),
            Err(_) => zones.unreadable.push(name.to_owned()),
        }
    }
    zones.nodes.sort_by_key(|zone| zone.id);
    zones.nodes.dedup_by_key(|zone| zone.id);
    zones
}

fn array<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// Resources by the first of these fields that each has.
fn resources(zone: &Value, fields: &[&str]) -> Amounts {
    let pairs = array(zone, "resources").filter_map(|resource| {
        let amount = fields.iter().find_map(|field| quantity::text(resource.get(*field)?))?;
        Some((resource["name"].as_str()?.to_owned(), amount))
    });
    host::amounts(&pairs.collect::<Vec<_>>())
}

/// From `attributes`, else from the older `topologyPolicies`, which say policy and scope in one word.
fn policy(object: &Value) -> Option<TopologyPolicy> {
    let attribute =
        |name: &str| array(object, "attributes").find(|one| one["name"] == name)?["value"].as_str();
    if let Some(policy) = attribute("topologyManagerPolicy").and_then(alignment) {
        return Some(TopologyPolicy { policy, whole_pod: attribute("topologyManagerScope") == Some("pod") });
    }
    let word = array(object, "topologyPolicies").next()?.as_str()?;
    let whole_pod = word.ends_with("PodLevel");
    let policy = match word.trim_end_matches("PodLevel").trim_end_matches("ContainerLevel") {
        "SingleNUMANode" => Alignment::SingleNumaNode,
        "Restricted" => Alignment::Restricted,
        "BestEffort" => Alignment::BestEffort,
        "None" => Alignment::None,
        _ => return None,
    };
    Some(TopologyPolicy { policy, whole_pod })
}

/// The kubelet's word for a policy.
#[must_use]
pub fn alignment(word: &str) -> Option<Alignment> {
    match word {
        "none" => Some(Alignment::None),
        "best-effort" => Some(Alignment::BestEffort),
        "restricted" => Some(Alignment::Restricted),
        "single-numa-node" => Some(Alignment::SingleNumaNode),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn policies_of_both_generations_are_understood() {
        let attributes = |policy: &str, scope: &str| {
            json!({"attributes": [
                {"name": "topologyManagerPolicy", "value": policy}, {"name": "topologyManagerScope", "value": scope}
            ], "topologyPolicies": ["BestEffort"]})
        };
        let words = |word: &str| json!({"topologyPolicies": [word]});
        let is = |policy, whole_pod| Some(TopologyPolicy { policy, whole_pod });
        for (object, expected) in [
            (attributes("single-numa-node", "pod"), is(Alignment::SingleNumaNode, true)),
            (attributes("restricted", "container"), is(Alignment::Restricted, false)),
            (words("SingleNUMANodePodLevel"), is(Alignment::SingleNumaNode, true)),
            (words("SingleNUMANodeContainerLevel"), is(Alignment::SingleNumaNode, false)),
            (words("Restricted"), is(Alignment::Restricted, false)),
            (words("BestEffortPodLevel"), is(Alignment::BestEffort, true)),
            (words("None"), is(Alignment::None, false)),
            (words("SomethingElse"), None),
            (json!({}), None),
        ] {
            assert_eq!(policy(&object), expected, "{object}");
        }
    }

    #[test]
    fn zones_that_are_no_numa_nodes_are_passed_over() {
        let zones = read(&json!({"zones": [
            {"name": "node-1", "type": "Node", "resources": [{"name": "cpu", "capacity": "16", "allocatable": 15}]},
            {"name": "socket-0", "type": "Socket", "resources": []},
            {"name": "numa", "type": "Node"},
            {"name": "node-0", "type": "Node", "resources": [
                {"name": "cpu", "capacity": "16", "allocatable": "15", "available": "3"}
            ]}
        ]}));
        let cpus: Vec<_> = zones.nodes.iter().map(|zone| (zone.id, zone.available.cpu_millis)).collect();
        assert_eq!(cpus, [(0, 3000), (1, 15_000)]);
        assert_eq!(zones.unreadable, ["numa"]);
    }
}

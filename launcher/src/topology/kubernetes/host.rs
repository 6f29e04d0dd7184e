//! What a Node says of its host (pure).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;

use super::{devices, quantity};
use crate::backend::kubernetes::names::ANNOTATION_QUARANTINE;
use crate::job::spec::pod::TaintEffect;
use crate::topology::levels::{Chosen, Role};
use crate::topology::{Amounts, Fabric, Host, Taint};

/// The host without what other sources know: `free` is all that the kubelet offers to pods.
#[must_use]
pub fn host(node: &Node, chosen: &Chosen) -> Host {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let at = |role| chosen.label(role).and_then(|label| labels.get(label)).cloned();
    let fabric = Fabric { block: at(Role::Block), rack: at(Role::Rack), domain: at(Role::Domain) };
    let status = node.status.as_ref();
    let pairs = |of: Option<&BTreeMap<_, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>| {
        of.into_iter()
            .flatten()
            .map(|(name, amount): (&String, _)| (name.clone(), amount.0.clone()))
            .collect()
    };
    let whole: Vec<(String, String)> = pairs(status.and_then(|status| status.capacity.as_ref()));
    let allocatable: Vec<(String, String)> = pairs(status.and_then(|status| status.allocatable.as_ref()));
    let free = amounts(&allocatable);
    // A device whose plugin is away for a moment is not allocatable, and comes back: waiting can change it. What the
    // kubelet keeps for the system never comes.
    let devices = amounts(&whole).devices;
    let capacity = Amounts { devices: merged_max(&free.devices, &devices), ..free.clone() };
    Host {
        name: node.metadata.name.clone().unwrap_or_default(),
        fabric,
        taints: taints(node),
        closed: closed(node),
        gpu_model: devices::model(&labels),
        labels,
        free,
        capacity,
        ..Host::default()
    }
}

fn merged_max(a: &BTreeMap<String, u32>, b: &BTreeMap<String, u32>) -> BTreeMap<String, u32> {
    let mut merged = a.clone();
    for (name, count) in b {
        let entry = merged.entry(name.clone()).or_insert(0);
        *entry = (*entry).max(*count);
    }
    merged
}

/// Named quantities as amounts. Whatever has a domain of its own is a device; a quantity that cannot be read is none.
#[must_use]
pub fn amounts(pairs: &[(String, String)]) -> Amounts {
    let mut amounts = Amounts::default();
    for (name, text) in pairs {
        let units = quantity::units(text).unwrap_or(0);
        match name.as_str() {
            "cpu" => amounts.cpu_millis = quantity::millis(text).unwrap_or(0),
            "memory" => amounts.memory_bytes = units,
            "hugepages-2Mi" => amounts.hugepage_bytes = units,
            "pods" => amounts.pods = u32::try_from(units).unwrap_or(u32::MAX),
            _ if name.split_once('/').is_some_and(|(domain, _)| !domain.ends_with("kubernetes.io")) => {
                amounts.devices.insert(name.clone(), u32::try_from(units).unwrap_or(u32::MAX));
            }
            _ => {}
        }
    }
    amounts
}

fn taints(node: &Node) -> Vec<Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let taints = taints.into_iter().flatten().filter_map(|taint| {
        let effect = match taint.effect.as_str() {
            "NoSchedule" => TaintEffect::NoSchedule,
            "PreferNoSchedule" => TaintEffect::PreferNoSchedule,
            "NoExecute" => TaintEffect::NoExecute,
            // An effect of the future keeps nobody away that does not know it.
            _ => return None,
        };
        Some(Taint { key: taint.key.clone(), value: taint.value.clone().unwrap_or_default(), effect })
    });
    taints.collect()
}

/// Every reason why no job may use the node now.
fn closed(node: &Node) -> Option<String> {
    let mut reasons = Vec::new();
    if node.metadata.deletion_timestamp.is_some() {
        reasons.push("it is being deleted".to_owned());
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        reasons.push("cordoned".to_owned());
    }
    let quarantine = node.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION_QUARANTINE));
    if let Some(reason) = quarantine {
        let reason = reason.trim();
        reasons.push(if reason.is_empty() {
            "quarantined".to_owned()
        } else {
            format!("quarantined: {reason}")
        });
    }
    reasons.extend(not_ready(node));
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

fn not_ready(node: &Node) -> Option<String> {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
    let Some(ready) = ready else { return Some("NotReady: its kubelet has not reported yet".to_owned()) };
    if ready.status == "True" {
        return None;
    }
    let mut text = "NotReady".to_owned();
    if let Some(since) = &ready.last_transition_time {
        text.push_str(&format!(" since {}", since.0));
    }
    for part in [&ready.reason, &ready.message].into_iter().flatten().filter(|part| !part.is_empty()) {
        text.push_str(&format!(": {part}"));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_reason_that_closes_a_host_is_said() {
        let closed =
            |node: serde_json::Value| host(&serde_json::from_value(node).unwrap(), &Chosen::default()).closed;
        let ready = json!([{"type": "Ready", "status": "True"}]);
        assert_eq!(closed(json!({"status": {"conditions": ready}})), None);
        assert_eq!(closed(json!({})).as_deref(), Some("NotReady: its kubelet has not reported yet"));
        let gone = json!([{"type": "MemoryPressure", "status": "False"}, {
            "type": "Ready", "status": "Unknown", "lastTransitionTime": "2026-08-01T10:00:00Z",
            "reason": "NodeStatusUnknown", "message": "Kubelet stopped posting node status."
        }]);
        let all = json!({
            "metadata": {"annotations": {"slipway.dev/quarantine": " ECC errors "}},
            "spec": {"unschedulable": true}, "status": {"conditions": gone}
        });
        assert_eq!(
            closed(all).as_deref(),
            Some(
                "cordoned; quarantined: ECC errors; NotReady since 2026-08-01T10:00:00Z: NodeStatusUnknown: \
                 Kubelet stopped posting node status."
            )
        );
    }

    #[test]
    fn what_the_kubelet_keeps_is_not_capacity_and_a_device_that_is_away_is() {
        let node = json!({"metadata": {"name": "a"}, "status": {
            "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110", "nvidia.com/gpu": "8", "hugepages-2Mi": "1Gi"},
            "allocatable": {"cpu": "3920m", "memory": "7Gi", "pods": "110", "nvidia.com/gpu": "7", "hugepages-2Mi": "1Gi",
                "ephemeral-storage": "1Gi", "attachable-volumes-csi-x": "25", "scheduling.kubernetes.io/foo": "1"}
        }});
        let host = host(&serde_json::from_value(node).unwrap(), &Chosen::default());
        let amounts = |gpus| Amounts {
            cpu_millis: 3920,
            memory_bytes: 7 << 30,
            hugepage_bytes: 1 << 30,
            pods: 110,
            devices: BTreeMap::from([("nvidia.com/gpu".to_owned(), gpus)]),
        };
        assert_eq!((host.free, host.capacity), (amounts(7), amounts(8)));
    }
}

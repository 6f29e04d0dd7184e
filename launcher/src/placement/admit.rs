//! Whether a host may be used at all, before its amounts are looked at (pure).

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::order::same_rack_order;
use super::{Request, Unplaceable};
use crate::job::spec::Rack;
use crate::job::spec::pod::{TaintEffect, TolerationOperator, TolerationSpec};
use crate::topology::{Cluster, Fabric, Host, Taint};

/// Taints below this name tell a node's condition; they go by themselves, like a closed host.
const CONDITION_TAINTS: &str = "node.kubernetes.io/";

/// The cluster as it is, or as it would be if nothing ran and nothing were closed for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// What is free.
    Now,
    /// What there is.
    Empty,
}

/// Where the workers that have their places already force the others to be.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fence<'a> {
    rack: Option<&'a Fabric>,
    block: Option<&'a Fabric>,
}

/// Where a job's other workers force the new ones to be.
///
/// # Errors
/// When they lie so that no place is near all of them.
pub(super) fn fence<'a>(cluster: &'a Cluster, request: &Request) -> Result<Fence<'a>, Unplaceable> {
    let mut fence = Fence::default();
    if request.placed.is_empty() || (request.rack != Rack::Required && request.block != Rack::Required) {
        return Ok(fence);
    }
    let refuse = |reason: String, never| {
        let wanted = u32::try_from(request.workers.len()).unwrap_or(u32::MAX);
        Err(Unplaceable { wanted, placed: 0, reasons: vec![reason], never })
    };
    let hosts: BTreeMap<&str, &Host> = cluster.hosts.iter().map(|host| (host.name.as_str(), host)).collect();
    for (worker, name) in &request.placed {
        let Some(host) = hosts.get(name.as_str()) else {
            return refuse(format!("worker {worker} is on {name}, which is not in the cluster now"), false);
        };
        let at = &host.fabric;
        if request.rack == Rack::Required {
            if at.rack.is_none() {
                return refuse(format!("worker {worker} is on {name}, whose rack is unknown"), true);
            }
            let first = *fence.rack.get_or_insert(at);
            if same_rack_order(first, at) != Ordering::Equal {
                return refuse("the job's other workers lie in several racks already".to_owned(), true);
            }
        }
        if request.block == Rack::Required {
            if at.block.is_none() {
                return refuse(format!("worker {worker} is on {name}, whose block is unknown"), true);
            }
            if fence.block.get_or_insert(at).block != at.block {
                return refuse("the job's other workers lie in several blocks already".to_owned(), true);
            }
        }
    }
    Ok(fence)
}

/// Whether a host may be used; `true`: only where no other host will do.
///
/// # Errors
/// Why not.
pub(super) fn admit(host: &Host, request: &Request, fence: Fence<'_>, view: View) -> Result<bool, String> {
    if let Some(why) = request.exclude.get(&host.name) {
        return Err(why.clone());
    }
    if let (Some(why), View::Now) = (request.shunned.get(&host.name), view) {
        return Err(why.clone());
    }
    if let (Some(why), View::Now) = (&host.closed, view) {
        return Err(why.clone());
    }
    for (key, value) in &request.node_selector {
        match host.labels.get(key) {
            Some(found) if found == value => {}
            Some(found) => {
                return Err(format!(
                    "its label {key} is {found:?}, and spec.pod.nodeSelector wants {value:?}"
                ));
            }
            None => return Err(format!("it has no label {key}, and spec.pod.nodeSelector wants {value:?}")),
        }
    }
    near(host, request, fence)?;
    let mut is_late = false;
    for taint in &host.taints {
        let is_passing = view == View::Empty && taint.key.starts_with(CONDITION_TAINTS);
        if is_passing || request.tolerations.iter().any(|toleration| bears(toleration, taint)) {
            continue;
        }
        match taint.effect {
            TaintEffect::PreferNoSchedule => is_late = true,
            TaintEffect::NoSchedule | TaintEffect::NoExecute => {
                let (key, effect) = (&taint.key, taint.effect);
                let value = if taint.value.is_empty() { String::new() } else { format!("={}", taint.value) };
                return Err(format!("its taint {key}{value}:{effect:?} is not borne (spec.pod.tolerations)"));
            }
        }
    }
    Ok(is_late)
}

fn near(host: &Host, request: &Request, fence: Fence<'_>) -> Result<(), String> {
    let at = &host.fabric;
    if request.block == Rack::Required && at.block.is_none() {
        return Err("its block is unknown, and spec.placement.block is required".to_owned());
    }
    if request.rack == Rack::Required && at.rack.is_none() {
        return Err("its rack is unknown, and spec.placement.rack is required".to_owned());
    }
    if fence.block.is_some_and(|with| with.block != at.block) {
        return Err("it is not in the block of the job's other workers".to_owned());
    }
    if fence.rack.is_some_and(|with| same_rack_order(with, at) != Ordering::Equal) {
        return Err("it is not in the rack of the job's other workers".to_owned());
    }
    Ok(())
}

/// Whether a toleration is about a taint.
fn bears(toleration: &TolerationSpec, taint: &Taint) -> bool {
    let is_key = toleration.key.as_ref().is_none_or(|key| *key == taint.key);
    let is_effect = toleration.effect.is_none_or(|effect| effect == taint.effect);
    let is_value = match toleration.operator {
        TolerationOperator::Exists => true,
        TolerationOperator::Equal => toleration.value.as_deref().unwrap_or_default() == taint.value,
    };
    is_key && is_effect && is_value
}

/// Whether a text is what a pattern describes, in which each `*` stands for anything.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut rest) = text.strip_prefix(head) else { return false };
    let mut parts: Vec<&str> = tail.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    // The first place where a part fits leaves the most for the others.
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = rest.get(at + part.len()..).unwrap_or_default();
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, text, expected) in [
            ("H100", "H100", true),
            ("H100", "H100-80GB", false),
            ("*H100*", "NVIDIA-H100-80GB", true),
            ("NVIDIA-*-80GB", "NVIDIA-H100-80GB", true),
            ("NVIDIA-*-80GB", "NVIDIA-80GB", false),
            ("*", "", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*bc*c", "abc", false),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn tolerations_are_those_of_kubernetes() {
        let taint = Taint { key: "gpu".into(), value: "yes".into(), effect: TaintEffect::NoSchedule };
        let toleration = |key: Option<&str>, operator, value: Option<&str>, effect| TolerationSpec {
            key: key.map(str::to_owned),
            operator,
            value: value.map(str::to_owned),
            effect,
        };
        use TolerationOperator::{Equal, Exists};
        for (given, expected) in [
            (toleration(None, Exists, None, None), true),
            (toleration(Some("gpu"), Exists, None, Some(TaintEffect::NoSchedule)), true),
            (toleration(Some("gpu"), Exists, None, Some(TaintEffect::NoExecute)), false),
            (toleration(Some("gpu"), Equal, Some("yes"), None), true),
            (toleration(Some("gpu"), Equal, None, None), false),
            (toleration(Some("cpu"), Exists, None, None), false),
        ] {
            assert_eq!(bears(&given, &taint), expected, "{given:?}");
        }
    }
}

//! What a plan says about itself: what was decided, and what could not be had (pure).

use std::collections::BTreeSet;

use super::Request;
use super::choose::Take;
use super::explain::names as in_words;
use super::room::Ask;
use crate::job::spec::{Locality, Rack};
use crate::job::units::GpuMode;
use crate::topology::{Cluster, DeviceClass, Fabric, Host};

/// One line each.
pub(super) fn notes(cluster: &Cluster, request: &Request, ask: &Ask<'_>, takes: &[Take]) -> Vec<String> {
    let used: Vec<&Host> = takes.iter().filter_map(|take| cluster.hosts.get(take.slot.host)).collect();
    let mut notes = Vec::new();
    let cpus: usize = cluster.hosts.iter().map(|host| host.cpus.len()).sum();
    let wanted = request.workers.len();
    if request.need.cpus.is_none() && cpus > 0 && wanted > cpus {
        notes.push(format!("{wanted} workers share {cpus} CPUs"));
    }
    notes.extend(devices(cluster, request, ask));
    let names: BTreeSet<&str> = request.placed.values().map(String::as_str).collect();
    let placed = cluster.hosts.iter().filter(|host| names.contains(host.name.as_str()));
    let all: Vec<&Host> = used.iter().copied().chain(placed).collect();
    notes.extend(spans("block", request.block, &all, |fabric| {
        fabric.block.as_deref().map(|block| (None, block))
    }));
    notes.extend(spans("rack", request.rack, &all, |fabric| {
        fabric.rack.as_deref().map(|rack| (fabric.block.as_deref(), rack))
    }));
    let late: Vec<&str> = takes
        .iter()
        .filter(|take| take.slot.is_late)
        .filter_map(|take| cluster.hosts.get(take.slot.host).map(|host| host.name.as_str()))
        .collect();
    if !late.is_empty() {
        notes.push(format!("{}: used although a taint asks to avoid it (PreferNoSchedule)", in_words(&late)));
    }
    let beside: u32 = takes
        .iter()
        .filter(|take| take.number.gang + take.slot.used > 0)
        .map(|take| take.number.spares)
        .sum();
    if beside > 0 && cluster.hosts.len() > 1 {
        notes.push(format!(
            "spares on hosts of other workers of the job: {beside} (a host that is lost takes both)"
        ));
    }
    notes.extend(kubelets(ask, &used));
    notes
}

fn devices(cluster: &Cluster, request: &Request, ask: &Ask<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    let need = &request.need;
    for (what, chosen, named) in
        [("GPUs", ask.names.gpu, &need.gpu_name), ("RDMA NICs", ask.names.nic, &need.nic_name)]
    {
        let Some(chosen) = chosen else { continue };
        let kind = cluster.devices.get(chosen);
        let alike =
            cluster.devices.iter().filter(|(_, other)| Some(&other.class) == kind.map(|kind| &kind.class));
        let others: Vec<&str> = alike.map(|(name, _)| name.as_str()).filter(|name| *name != chosen).collect();
        if named.is_none() && !others.is_empty() {
            notes.push(format!(
                "{what} are asked for as {chosen} (the cluster also offers {})",
                others.join(", ")
            ));
        }
        if need.gpu_mode == GpuMode::Shared && kind.is_some_and(|kind| kind.class == DeviceClass::Gpu) {
            notes.push(format!("no shared GPUs are offered: each {chosen} is a whole one"));
        }
    }
    notes
}

/// What is said when workers were to be close and are not, or nobody knows.
fn spans<'a>(
    level: &str,
    rule: Rack,
    hosts: &[&'a Host],
    of: impl Fn(&'a Fabric) -> Option<(Option<&'a str>, &'a str)>,
) -> Option<String> {
    if rule != Rack::Preferred {
        return None;
    }
    let mut names: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let unknown = hosts.iter().filter(|host| of(&host.fabric).is_none()).map(|host| host.name.as_str());
    let unknown: BTreeSet<&str> = unknown.collect();
    if names.len() > 1 && !unknown.is_empty() {
        let unknown: Vec<&str> = unknown.into_iter().collect();
        return Some(format!(
            "the {level} is unknown of {}: whether the workers are close is too",
            in_words(&unknown)
        ));
    }
    let known: BTreeSet<_> = hosts.iter().filter_map(|host| of(&host.fabric)).collect();
    if known.len() < 2 {
        return None;
    }
    let known: Vec<&str> = known.into_iter().map(|(_, name)| name).collect();
    let names = in_words(&known).replacen("hosts", &format!("{level}s"), 1);
    Some(format!("the workers lie in {names}: none has room for all of them"))
}

/// What the hosts' kubelets may do differently.
fn kubelets(ask: &Ask<'_>, hosts: &[&Host]) -> Vec<String> {
    if ask.locality == Locality::None {
        return Vec::new();
    }
    let mut notes = Vec::new();
    let those = |is: &dyn Fn(&Host) -> bool| {
        let those = hosts.iter().filter(|host| host.cpus.is_empty() && is(host));
        those.map(|host| host.name.as_str()).collect::<Vec<_>>()
    };
    let apart = those(&|host| host.policy.is_some_and(|policy| !policy.whole_pod));
    if !apart.is_empty() {
        notes.push(format!(
            "{}: the kubelet aligns each container by itself (topologyManagerScope container): a sidecar may lie on \
             another NUMA node than its ranks",
            in_words(&apart)
        ));
    }
    let by_kubelet = ask.cpus > 0 || ask.names.gpu_by_kubelet || ask.names.nic_by_kubelet;
    let unknown = those(&|host| host.policy.is_none());
    if by_kubelet && !unknown.is_empty() {
        notes.push(format!(
            "{}: whether the kubelet aligns is unknown (topologyManagerPolicy)",
            in_words(&unknown)
        ));
    }
    notes
}

//! Checks of hosts and of the fabric (pure): who is open, who has lost devices, what no label says.

use std::collections::{BTreeMap, BTreeSet};

use super::{EVERY, Finding, Severity, Source, View};
use crate::topology::levels::{Chosen, Role};
use crate::topology::{DeviceClass, Host, Mechanism};

/// Labels by which hosts of one kind are known: GPU feature discovery's, and the cloud providers'.
const MACHINE: [&str; 2] = ["nvidia.com/gpu.machine", "node.kubernetes.io/instance-type"];

pub(super) fn examine(view: &View<'_>, chosen: &Chosen, findings: &mut Vec<Finding>) {
    match &view.report.nodes {
        Source::Known(_) => {}
        Source::Absent | Source::Refused(_) => {
            findings.push(Finding::new(
                "nodes-unreadable",
                Severity::Note,
                EVERY,
                "you may not list nodes",
                "nothing is said here about hosts, devices and the fabric",
                "ask somebody who may: kubectl auth can-i list nodes",
            ));
            return;
        }
    }
    closed(view, findings);
    lost_gpus(view, findings);
    models(view, findings);
    hugepages(view, findings);
    fabric(view, chosen, findings);
}

fn closed(view: &View<'_>, findings: &mut Vec<Finding>) {
    let hosts = view.cluster.hosts.iter();
    if view.cluster.hosts.is_empty() {
        findings.push(Finding::new(
            "no-hosts",
            Severity::Error,
            EVERY,
            "the cluster has no nodes",
            "there is nowhere to run",
            "join nodes, or wait for the autoscaler",
        ));
    }
    let Some((severity, closed)) = View::some_or_all(hosts.clone(), |host| host.closed.is_some()) else {
        return;
    };
    let reasons: BTreeSet<&str> = hosts.filter_map(|host| host.closed.as_deref()).collect();
    let what = match reasons.first() {
        Some(reason) if reasons.len() == 1 => format!("closed: {reason}"),
        Some(reason) => format!("closed, for {} reasons; one is: {reason}", reasons.len()),
        None => return,
    };
    findings.push(
        Finding::new(
            "host-closed",
            severity,
            EVERY,
            what,
            "no worker is placed there",
            "kubectl describe node NAME; open it by kubectl uncordon NAME, or by taking the annotation \
             slipway.dev/quarantine away",
        )
        .on(closed),
    );
}

/// Hosts with fewer GPUs than they had, or than most hosts of their kind: a job that wants all of them waits for ever,
/// and nothing says why.
fn lost_gpus(view: &View<'_>, findings: &mut Vec<Finding>) {
    let mut peers: BTreeMap<Vec<&str>, Vec<(&Host, u32)>> = BTreeMap::new();
    for host in &view.cluster.hosts {
        let machine = MACHINE.iter().filter_map(|label| host.labels.get(*label)).map(String::as_str);
        let Some(model) = host.gpu_model.as_deref() else { continue };
        let names = view.names(host, |class, _| *class == DeviceClass::Gpu);
        let count: u32 = names.map(|name| offered(view, host, name)).sum();
        peers.entry([model].into_iter().chain(machine).collect()).or_default().push((host, count));
    }
    let mut lost = BTreeSet::new();
    let mut shown = None;
    for hosts in peers.values() {
        let mut counts: Vec<u32> = hosts.iter().map(|(_, count)| *count).collect();
        counts.sort_unstable();
        let usual = counts[counts.len() / 2];
        for (host, count) in hosts {
            let whole: u32 = view
                .names(host, |class, by| *class == DeviceClass::Gpu && by == Mechanism::Plugin)
                .map(|name| host.capacity.device(name))
                .sum();
            let expected = usual.max(whole);
            if *count < expected {
                lost.insert(host.name.clone());
                shown.get_or_insert((*count, expected));
            }
        }
    }
    let Some((count, expected)) = shown else { return };
    findings.push(
        Finding::new(
            "gpus-lost",
            Severity::Warning,
            EVERY,
            format!("{count} of {expected} GPUs work there (hosts of their kind have {expected})"),
            "a worker that asks for all of them waits for ever",
            "look for XID errors (dmesg) and at the device plugin's or driver's log; reset or replace the GPU",
        )
        .on(lost),
    );
}

/// What pods could have of it: with a device plugin what is healthy, with a driver what it publishes.
fn offered(view: &View<'_>, host: &Host, name: &str) -> u32 {
    match view.cluster.devices.get(name).map(|kind| kind.by) {
        // Nothing is held in a doctor's facts, so that what is free of the whole host is what is allocatable, unless a
        // NUMA node says less: look at the Node itself.
        Some(Mechanism::Plugin) => view.allocatable(host, name),
        _ => host.capacity.device(name),
    }
}

fn models(view: &View<'_>, findings: &mut Vec<Finding>) {
    let is_gpu = |class: &DeviceClass, _| *class != DeviceClass::Nic;
    let nameless =
        view.cluster.hosts.iter().filter(|host| view.offers(host, is_gpu) && host.gpu_model.is_none());
    let nameless: BTreeSet<String> = nameless.map(|host| host.name.clone()).collect();
    if nameless.is_empty() {
        return;
    }
    findings.push(
        Finding::new(
            "gpu-model-unknown",
            Severity::Note,
            EVERY,
            "no label and no attribute names the model of the GPUs",
            "a job that asks for a model (spec.pod.devices.gpuModel) is not placed there",
            "install GPU feature discovery, or AMD's or Intel's labels for nodes",
        )
        .on(nameless),
    );
}

fn hugepages(view: &View<'_>, findings: &mut Vec<Finding>) {
    let is_nic = |class: &DeviceClass, _| *class == DeviceClass::Nic;
    let without = view
        .cluster
        .hosts
        .iter()
        .filter(|host| view.offers(host, is_nic) && host.capacity.hugepage_bytes == 0);
    let without: BTreeSet<String> = without.map(|host| host.name.clone()).collect();
    if without.is_empty() {
        return;
    }
    findings.push(
        Finding::new(
            "hugepages-missing",
            Severity::Note,
            EVERY,
            "no huge pages of 2 MiB",
            "a job that asks for huge pages is not placed there; rings and caches take small pages otherwise",
            "set vm.nr_hugepages (or hugepages= at boot) and restart the kubelet",
        )
        .on(without),
    );
}

fn fabric(view: &View<'_>, chosen: &Chosen, findings: &mut Vec<Finding>) {
    if chosen.label(Role::Rack).is_none() && view.cluster.hosts.len() > 1 {
        findings.push(Finding::new(
            "racks-unknown",
            Severity::Note,
            EVERY,
            "no node has a label that is known to name its rack",
            "ranks cannot follow the fabric, and spec.placement.rack: required is refused",
            "install topograph, or name your own label: --level rack=LABEL",
        ));
    }
    let rack = chosen.label(Role::Rack);
    let outside = view.cluster.hosts.iter().filter(|host| rack.is_some() && host.fabric.rack.is_none());
    let outside: BTreeSet<String> = outside.map(|host| host.name.clone()).collect();
    if let Some(rack) = rack.filter(|_| !outside.is_empty()) {
        findings.push(
            Finding::new(
                "rack-missing",
                Severity::Note,
                EVERY,
                format!("no label {rack}, which other hosts have"),
                "which rack they are in is unknown: they are used last, and never where a rack is required",
                format!("kubectl label node NAME {rack}=RACK, or ask whoever labels the others"),
            )
            .on(outside),
        );
    }
    let topologies = view.report.kueue_topologies.known();
    let from_kueue = chosen.levels.values().any(|level| level.from.starts_with("Kueue"));
    if topologies.is_some_and(|list| !list.is_empty()) && !from_kueue && view.report.levels.is_empty() {
        findings.push(Finding::new(
            "kueue-levels-unused",
            Severity::Warning,
            EVERY,
            "no label of Kueue's Topology objects that could be a rack or a block is on any node",
            "Kueue and Slipway would go by different racks",
            "label the nodes as the Topology says, or correct its spec.levels",
        ));
    }
}

//! Checks of what aligns devices, CPUs and memory (pure): the kubelet's managers, and what names NUMA nodes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{CLOSE, Finding, NUMA, Severity, Source, View};
use crate::topology::kubernetes::zones::{self, alignment};
use crate::topology::{Alignment, Host, Mechanism, TopologyPolicy};

pub(super) fn examine(view: &View<'_>, findings: &mut Vec<Finding>) {
    unknown(view, findings);
    policy(view, findings);
    managers(view, findings);
    stale(view, findings);
}

fn unknown(view: &View<'_>, findings: &mut Vec<Finding>) {
    let found = View::some_or_all(view.with_devices(), |host| host.numa.is_empty());
    let Some((severity, hosts)) = found else { return };
    let source = match &view.report.node_topologies {
        Source::Absent => "NodeResourceTopology is not installed".to_owned(),
        Source::Refused(why) => format!("NodeResourceTopology may not be read ({why})"),
        Source::Known(_) => "there is no NodeResourceTopology of them".to_owned(),
    };
    findings.push(
        Finding::new(
            "numa-unknown",
            severity,
            CLOSE,
            format!("nothing says which NUMA nodes there are: {source}, and no driver publishes any"),
            "what is not known to lie together is not placed together",
            "install NFD's topology updater (nfd-topology-updater), or a DRA driver that publishes numaNode",
        )
        .on(hosts),
    );
}

/// What a kubelet does, by its NodeResourceTopology, else by its own configuration.
fn policy_of(view: &View<'_>, host: &Host) -> Option<TopologyPolicy> {
    host.policy.or_else(|| {
        let config = view.report.kubelets.get(&host.name)?;
        // Both are left out of the configuration where they are the default.
        let word = config.get("topologyManagerPolicy").and_then(Value::as_str).unwrap_or("none");
        let whole_pod = config.get("topologyManagerScope").and_then(Value::as_str) == Some("pod");
        Some(TopologyPolicy { policy: alignment(word)?, whole_pod })
    })
}

/// Only device plugins are aligned by the kubelet: claims are, by their constraints, when they are allocated.
fn by_kubelet<'v>(view: &'v View<'_>) -> impl Iterator<Item = &'v Host> {
    view.cluster.hosts.iter().filter(|host| view.offers(host, |_, by| by == Mechanism::Plugin))
}

fn policy(view: &View<'_>, findings: &mut Vec<Finding>) {
    let is_lax = |host: &Host| {
        let policy = policy_of(view, host).map(|policy| policy.policy);
        matches!(policy, Some(Alignment::None | Alignment::BestEffort))
    };
    if let Some((severity, hosts)) = View::some_or_all(by_kubelet(view), is_lax) {
        findings.push(
            Finding::new(
                "kubelet-policy",
                severity,
                NUMA,
                "the kubelet's topologyManagerPolicy is none or best-effort",
                "it hands out devices of any NUMA node, whatever was planned",
                "set topologyManagerPolicy: single-numa-node in the kubelet's configuration, drain the node, and \
                 restart the kubelet",
            )
            .on(hosts),
        );
    }
    let by_container = by_kubelet(view)
        .filter(|host| !is_lax(host) && policy_of(view, host).is_some_and(|policy| !policy.whole_pod));
    let by_container: BTreeSet<String> = by_container.map(|host| host.name.clone()).collect();
    if !by_container.is_empty() {
        findings.push(
            Finding::new(
                "kubelet-scope",
                Severity::Warning,
                NUMA,
                "the kubelet's topologyManagerScope is container",
                "the sidecar may get another NUMA node than the ranks that it feeds",
                "set topologyManagerScope: pod in the kubelet's configuration, and restart it",
            )
            .on(by_container),
        );
    }
}

/// What only the kubelet's own configuration says.
fn managers(view: &View<'_>, findings: &mut Vec<Finding>) {
    let table = [
        (
            "cpu-manager",
            "cpuManagerPolicy",
            "static",
            Severity::Warning,
            "whole CPUs are not bound: they may lie on any NUMA node, and others use them too",
        ),
        (
            "memory-manager",
            "memoryManagerPolicy",
            "Static",
            Severity::Note,
            "memory is taken from the CPUs' NUMA node where there is some, and from another one where not",
        ),
    ];
    for (code, field, wanted, severity, why) in table {
        let other = view.with_devices().filter(|host| {
            view.report.kubelets.get(&host.name).is_some_and(|config| {
                !config.get(field).and_then(Value::as_str).unwrap_or("none").eq_ignore_ascii_case(wanted)
            })
        });
        let hosts: BTreeSet<String> = other.map(|host| host.name.clone()).collect();
        if hosts.is_empty() {
            continue;
        }
        findings.push(
            Finding::new(
                code,
                severity,
                NUMA,
                format!("the kubelet's {field} is not {wanted}"),
                why,
                format!("set {field}: {wanted} in the kubelet's configuration, drain the node, and restart the kubelet"),
            )
            .on(hosts),
        );
    }
}

/// A NodeResourceTopology that knows of more devices than its Node has was written before something changed.
fn stale(view: &View<'_>, findings: &mut Vec<Finding>) {
    let by_name: BTreeMap<&str, &Host> =
        view.cluster.hosts.iter().map(|host| (host.name.as_str(), host)).collect();
    let mut hosts = BTreeSet::new();
    for object in view.report.node_topologies.known().into_iter().flatten() {
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let Some(host) = by_name.get(name) else { continue };
        let zones = zones::read(object);
        let sum = |device: &str| zones.nodes.iter().map(|zone| zone.capacity.device(device)).sum::<u32>();
        let known = zones.nodes.iter().flat_map(|zone| zone.capacity.devices.keys());
        if known.into_iter().any(|device| sum(device) > host.capacity.device(device)) {
            hosts.insert(name.to_owned());
        }
    }
    if hosts.is_empty() {
        return;
    }
    findings.push(
        Finding::new(
            "topology-stale",
            Severity::Warning,
            CLOSE,
            "NodeResourceTopology has more devices than the Node",
            "workers are placed on what is not there, and refused by the kubelet (TopologyAffinityError)",
            "restart its nfd-topology-updater, and look at that one's log",
        )
        .on(hosts),
    );
}

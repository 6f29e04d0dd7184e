//! What a cluster lacks, for which locality, and how to fix it (pure): `Report → findings → verdicts`.
//!
//! [`collect`] fills the report, reading only. A source that may not be read makes nothing a finding but itself: what is
//! not known is not missing.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node;
use serde::Serialize;
use serde_json::Value;

use crate::job::spec::Locality;
use crate::topology::kubernetes::{self, Facts};
use crate::topology::levels::{Chosen, Levels};
use crate::topology::{Cluster, DeviceClass, Host, Mechanism};

pub mod collect;
mod control;
mod crd;
mod devices;
mod hosts;
mod numa;
pub mod text;

#[cfg(test)]
mod tests;

/// Where the controller is installed.
pub const NAMESPACE: &str = "slipway-system";
/// The controller's Deployment, its Lease, its FlowSchema and its priority level.
pub const CONTROLLER: &str = "slipway-controller";
/// The Service that sidecars dial.
pub const RENDEZVOUS: &str = "slipway-rendezvous";
/// The policy that keeps others from lifting our gate.
pub const ADMISSION_POLICY: &str = "slipway-placement-gate";

/// Something that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Source<T> {
    /// It is not there: the kind is not installed, or there is no object of that name.
    #[default]
    Absent,
    /// It may not be read, or the answer failed: why.
    Refused(String),
    /// It was read.
    Known(T),
}

impl<T> Source<T> {
    /// What was read.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(known) => Some(known),
            Self::Absent | Self::Refused(_) => None,
        }
    }
}

/// What was collected.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The namespace that jobs would be submitted to.
    pub namespace: String,
    /// The API server's version: major, minor.
    pub version: (u32, u32),
    /// What the API server serves, as `GROUP/VERSION`.
    pub served: BTreeSet<String>,
    /// The `CustomResourceDefinition` of our kind.
    pub crd: Source<Value>,
    /// What we may do: each permission that a submitter needs.
    pub access: Vec<Access>,
    /// The labels of `namespace`.
    pub namespace_labels: Source<BTreeMap<String, String>>,
    /// The controller and what belongs to it.
    pub controller: Controller,
    /// The fabric's labels that the user names.
    pub levels: Levels,
    /// `Node`.
    pub nodes: Source<Vec<Node>>,
    /// `kubeletconfig` of each node's `configz`, as far as it may be read.
    pub kubelets: BTreeMap<String, Value>,
    /// `NodeResourceTopology`.
    pub node_topologies: Source<Vec<Value>>,
    /// `SriovNetworkNodeState`.
    pub sriov_states: Source<Vec<Value>>,
    /// `SriovNetworkNodePolicy`.
    pub sriov_policies: Source<Vec<Value>>,
    /// `ResourceSlice`.
    pub slices: Source<Vec<Value>>,
    /// `ResourceClaim`.
    pub claims: Source<Vec<Value>>,
    /// `DeviceTaintRule`.
    pub device_taint_rules: Source<Vec<Value>>,
    /// `DeviceClass`.
    pub device_classes: Source<Vec<Value>>,
    /// Kueue's `Topology`.
    pub kueue_topologies: Source<Vec<Value>>,
    /// `NetworkAttachmentDefinition`.
    pub networks: Source<Vec<Value>>,
}

/// Whether we may do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The verb.
    pub verb: String,
    /// `trainingjobs`, `pods`, `pods/log`.
    pub resource: String,
    /// The API server's answer.
    pub allowed: bool,
}

/// The controller and what belongs to it.
#[derive(Clone, Debug, Default)]
pub struct Controller {
    /// Its Deployment.
    pub deployment: Source<Value>,
    /// Its Lease.
    pub lease: Source<Lease>,
    /// The Service of the rendezvous.
    pub service: Source<Value>,
    /// Its FlowSchema.
    pub flow_schema: Source<Value>,
    /// The `ValidatingAdmissionPolicy` of the gate.
    pub admission_policy: Source<Value>,
}

/// A lease as it was seen for a while. Clocks are not compared: a holder that lives renews it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// Who holds it.
    pub holder: String,
    /// How long it was watched, in seconds: at most as long as it lasts.
    pub watched_seconds: u64,
    /// It was renewed meanwhile.
    pub renewed: bool,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// A locality that it names does not work, on no host.
    Error,
    /// It works worse, or not on some hosts.
    Warning,
    /// It could work better.
    Note,
}

/// One thing that is missing or wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// A stable word for it.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// The localities that it concerns; what concerns `none` concerns every job.
    pub localities: Vec<Locality>,
    /// The hosts that it concerns; empty: the cluster.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub hosts: BTreeSet<String>,
    /// What is missing or wrong.
    pub what: String,
    /// What that does to jobs.
    pub why: &'static str,
    /// What to do.
    pub fix: String,
}

/// Every locality, from the one that asks least to the one that asks most.
pub const LOCALITIES: [Locality; 3] = [Locality::None, Locality::Numa, Locality::Pcie];
/// What concerns every job.
const EVERY: &[Locality] = &LOCALITIES;
/// What concerns jobs that ask for one NUMA node.
const NUMA: &[Locality] = &[Locality::Numa];
/// What concerns jobs that ask for one NUMA node or one PCIe root.
const CLOSE: &[Locality] = &[Locality::Numa, Locality::Pcie];
/// What concerns jobs that ask for one PCIe root.
const PCIE: &[Locality] = &[Locality::Pcie];

impl Finding {
    fn new(
        code: &'static str,
        severity: Severity,
        localities: &[Locality],
        what: impl Into<String>,
        why: &'static str,
        fix: impl Into<String>,
    ) -> Self {
        let (what, fix) = (what.into(), fix.into());
        Self { code, severity, localities: localities.to_vec(), hosts: BTreeSet::new(), what, why, fix }
    }

    fn on(mut self, hosts: BTreeSet<String>) -> Self {
        self.hosts = hosts;
        self
    }
}

impl Report {
    /// The facts that placement goes by.
    #[must_use]
    pub fn facts(&self) -> Facts<'_> {
        fn list(source: &Source<Vec<Value>>) -> Option<Vec<&Value>> {
            source.known().map(|list| list.iter().collect())
        }
        Facts {
            nodes: self.nodes.known().into_iter().flatten().collect(),
            node_topologies: list(&self.node_topologies),
            sriov_states: list(&self.sriov_states),
            slices: list(&self.slices),
            claims: list(&self.claims),
            device_taint_rules: list(&self.device_taint_rules),
            kueue_topologies: list(&self.kueue_topologies),
            ..Facts::default()
        }
    }

    /// The cluster as placement sees it, and the labels of its fabric.
    #[must_use]
    pub fn cluster(&self) -> (Cluster, Chosen) {
        let facts = self.facts();
        (kubernetes::cluster(&facts, &self.levels), kubernetes::choose(&facts, &self.levels))
    }

    fn serves(&self, group: &str) -> bool {
        self.served.iter().any(|served| served.split('/').next() == Some(group))
    }
}

/// Everything that is missing or wrong, the worst first.
#[must_use]
pub fn examine(report: &Report) -> Vec<Finding> {
    let (cluster, chosen) = report.cluster();
    let nodes = report.nodes.known().into_iter().flatten();
    let nodes = nodes.filter_map(|node| Some((node.metadata.name.as_deref()?, node))).collect();
    let view = View { report, cluster: &cluster, nodes };
    let mut findings = Vec::new();
    control::examine(report, &mut findings);
    hosts::examine(&view, &chosen, &mut findings);
    numa::examine(&view, &mut findings);
    devices::examine(&view, &mut findings);
    findings.sort_by_key(|finding| (finding.severity, finding.localities.first().copied().map(rank)));
    findings
}

fn rank(locality: Locality) -> usize {
    LOCALITIES.iter().position(|one| *one == locality).unwrap_or(LOCALITIES.len())
}

/// Whether jobs of a locality can run, and what stands against it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// The locality.
    pub locality: Locality,
    /// They can.
    pub works: bool,
    /// Codes of the findings because of which they cannot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub because: Vec<&'static str>,
}

/// One verdict for each locality.
#[must_use]
pub fn verdicts(findings: &[Finding]) -> Vec<Verdict> {
    let verdict = |locality: Locality| {
        let against = findings
            .iter()
            .filter(|finding| finding.severity == Severity::Error && finding.localities.contains(&locality));
        let because: Vec<_> = against.map(|finding| finding.code).collect();
        Verdict { locality, works: because.is_empty(), because }
    };
    LOCALITIES.into_iter().map(verdict).collect()
}

/// What the checks of hosts look at.
struct View<'a> {
    report: &'a Report,
    cluster: &'a Cluster,
    nodes: BTreeMap<&'a str, &'a Node>,
}

impl View<'_> {
    /// Hosts with devices of the class, by the mechanism.
    fn offers(&self, host: &Host, is: impl Fn(&DeviceClass, Mechanism) -> bool) -> bool {
        self.names(host, is).next().is_some()
    }

    /// The names of devices that a host has, of the class and the mechanism.
    fn names<'h>(
        &self,
        host: &'h Host,
        is: impl Fn(&DeviceClass, Mechanism) -> bool,
    ) -> impl Iterator<Item = &'h str> {
        host.capacity.devices.iter().filter_map(move |(name, count)| {
            let kind = self.cluster.devices.get(name).filter(|_| *count > 0)?;
            is(&kind.class, kind.by).then_some(name.as_str())
        })
    }

    /// What the kubelet hands out of a device plugin's devices: those that are healthy.
    fn allocatable(&self, host: &Host, name: &str) -> u32 {
        let node = self.nodes.get(host.name.as_str());
        let amounts = node.and_then(|node| node.status.as_ref()?.allocatable.as_ref());
        let amount = amounts.and_then(|amounts| kubernetes::quantity::units(&amounts.get(name)?.0));
        amount.and_then(|amount| u32::try_from(amount).ok()).unwrap_or(0)
    }

    /// Hosts with any device that a job can ask for.
    fn with_devices(&self) -> impl Iterator<Item = &Host> {
        self.cluster.hosts.iter().filter(|host| self.offers(host, |_, _| true))
    }

    /// Hosts for which `is` holds among `of`; an error when those are all, since then no host is left.
    fn some_or_all<'h>(
        of: impl Iterator<Item = &'h Host>,
        is: impl Fn(&Host) -> bool,
    ) -> Option<(Severity, BTreeSet<String>)> {
        let (mut yes, mut all) = (BTreeSet::new(), 0_usize);
        for host in of {
            all += 1;
            if is(host) {
                yes.insert(host.name.clone());
            }
        }
        let severity = if yes.len() == all { Severity::Error } else { Severity::Warning };
        (!yes.is_empty()).then_some((severity, yes))
    }
}

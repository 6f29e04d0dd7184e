//! What there is to place workers on: hosts with their CPUs, memory, devices and distances (pure).
//!
//! A cluster is gathered from several sources, each of which may be absent. What no source says is `None`, or an empty
//! list, and never a guess: the solver treats it as unknown and says so in its notes.

use std::collections::BTreeMap;

use crate::job::spec::pod::TaintEffect;

pub mod kubernetes;
pub mod levels;
pub mod local;

/// Hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// In the order of the fabric: neighbours are close.
    pub hosts: Vec<Host>,
    /// What the names in [`Amounts::devices`] stand for.
    pub devices: BTreeMap<String, DeviceKind>,
    /// What could not be found out, and why; one line each.
    pub unknown: Vec<String>,
}

/// What a device is, and how it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceKind {
    /// What it is.
    pub class: DeviceClass,
    /// Which mechanism of the cluster hands it out.
    pub by: Mechanism,
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceClass {
    /// A whole GPU.
    Gpu,
    /// A GPU that several pods share (time-slicing, MPS).
    SharedGpu,
    /// A partition of one: its profile (`1g.10gb`).
    Mig(String),
    /// An SR-IOV virtual function, or a NIC that is had like one.
    Nic,
}

/// Which mechanism of a cluster hands a device out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mechanism {
    /// A device plugin: an extended resource of the node.
    Plugin,
    /// Dynamic resource allocation: a driver's ResourceSlices; the name is the driver's.
    Dra,
}

/// One host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Where it lies in the fabric.
    pub fabric: Fabric,
    /// Labels, for node selectors.
    pub labels: BTreeMap<String, String>,
    /// Taints, for tolerations.
    pub taints: Vec<Taint>,
    /// Why no job may use it now (`NotReady`, cordoned, quarantined); none when it is open.
    pub closed: Option<String>,
    /// The model of its GPUs, as the cluster names it.
    pub gpu_model: Option<String>,
    /// CPUs that jobs may use, by number, where that is known (this host); empty where only amounts are.
    pub cpus: Vec<u32>,
    /// What is free on the host as a whole.
    pub free: Amounts,
    /// What the host offers when nothing runs there: what no wait can change.
    pub capacity: Amounts,
    /// NUMA nodes; empty when no source says.
    pub numa: Vec<NumaNode>,
    /// What the kubelet does about NUMA; none when no source says.
    pub policy: Option<TopologyPolicy>,
}

/// Where a host lies. Equal values are close; `None` is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fabric {
    /// A block of racks (a spine).
    pub block: Option<String>,
    /// A rack (a leaf switch).
    pub rack: Option<String>,
    /// A domain of GPUs that reach each other's memory (NVLink).
    pub domain: Option<String>,
}

/// A mark that keeps pods away.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value; may be empty.
    pub value: String,
    /// What it does.
    pub effect: TaintEffect,
}

/// Amounts of everything that a worker may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Memory, in bytes, without huge pages.
    pub memory_bytes: u64,
    /// Huge pages of 2 MiB, in bytes.
    pub hugepage_bytes: u64,
    /// Pods; only on the host as a whole.
    pub pods: u32,
    /// Devices by the name that they are asked for by (`nvidia.com/gpu`, `openshift.io/rdma_a`, a DRA driver).
    pub devices: BTreeMap<String, u32>,
}

/// One NUMA node of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumaNode {
    /// Its number.
    pub id: u32,
    /// Its CPUs by number, where that is known.
    pub cpus: Vec<u32>,
    /// What is free on it. `memory_bytes` of 0 beside a host's is unknown, and not none.
    pub free: Amounts,
    /// What it offers when nothing runs there. Where no NUMA node of a host has CPUs, their CPUs are unknown, and not
    /// none: devices alone were read from a driver.
    pub capacity: Amounts,
    /// Its PCIe roots with devices; empty when no source says.
    pub roots: Vec<PcieRoot>,
}

/// Devices behind one PCIe root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PcieRoot {
    /// Its name: `pci0000:00`.
    pub name: String,
    /// Free devices by name.
    pub free: BTreeMap<String, u32>,
    /// All devices by name.
    pub capacity: BTreeMap<String, u32>,
}

/// The kubelet's Topology Manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TopologyPolicy {
    /// How strict it is.
    pub policy: Alignment,
    /// Whether it looks at pods as a whole (`pod`) or at each container by itself (`container`).
    pub whole_pod: bool,
}

/// `topologyManagerPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alignment {
    /// It does nothing.
    None,
    /// It tries.
    BestEffort,
    /// It refuses pods whose devices it cannot align as well as possible.
    Restricted,
    /// It refuses pods that do not fit one NUMA node.
    SingleNumaNode,
}

impl Cluster {
    /// The names of devices of a class, in order.
    pub fn names(&self, class: &DeviceClass) -> impl Iterator<Item = &str> {
        self.devices.iter().filter(move |(_, kind)| kind.class == *class).map(|(name, _)| name.as_str())
    }
}

impl Amounts {
    /// Devices of that name.
    #[must_use]
    pub fn device(&self, name: &str) -> u32 {
        self.devices.get(name).copied().unwrap_or(0)
    }
}

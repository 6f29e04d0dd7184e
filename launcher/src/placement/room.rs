//! How many workers a host has room for (pure).
//!
//! All workers of a job need the same, so a host comes down to one number, and to one for each of its NUMA nodes. What
//! a worker takes from one NUMA node leaves the others as they are, and any GPU and NIC behind one PCIe root are as good
//! as any others: numbers are all that matters, and filling up by numbers misses no solution.

use super::Request;
use super::admit::{View, matches};
use super::names::Names;
use crate::job::spec::Locality;
use crate::topology::{Alignment, Amounts, Host, NumaNode};

/// What one worker needs, asked for by chosen names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    pub(super) names: Names<'a>,
    /// Whole CPUs.
    pub(super) cpus: u64,
    /// Thousandths of shared CPUs; 0 beside whole ones.
    pub(super) cpu_millis: u64,
    pub(super) memory: u64,
    pub(super) hugepages: u64,
    pub(super) gpus: u64,
    pub(super) nics: u64,
    pub(super) model: Option<&'a str>,
    pub(super) locality: Locality,
}

impl<'a> Ask<'a> {
    pub(super) fn new(request: &'a Request, names: Names<'a>) -> Self {
        let need = &request.need;
        Self {
            names,
            cpus: need.cpus.unwrap_or(0).into(),
            cpu_millis: if need.cpus.is_some() { 0 } else { need.cpu_millis },
            memory: need.memory_bytes,
            hugepages: need.hugepage_bytes,
            gpus: need.gpus.into(),
            nics: need.nics.into(),
            model: need.gpu_model.as_deref().filter(|_| need.gpus > 0),
            locality: request.locality,
        }
    }

    /// Pairs of a GPU and a NIC that share a PCIe root; the devices that are left over only share the NUMA node.
    pub(super) fn pairs(&self) -> u64 {
        self.gpus.min(self.nics)
    }
}

/// A thing that a worker takes from a host or a NUMA node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thing {
    Pods,
    Cpus,
    CpuMillis,
    Memory,
    HugePages,
    Gpus,
    Nics,
    Pairs,
}

/// Everything that a host as a whole is looked at for, in the order in which a refusal tells it.
pub(super) const OF_HOST: [Thing; 7] =
    [Thing::Gpus, Thing::Nics, Thing::Cpus, Thing::CpuMillis, Thing::HugePages, Thing::Memory, Thing::Pods];

/// Everything that a NUMA node is looked at for.
pub(super) const OF_NODE: [Thing; 6] =
    [Thing::Gpus, Thing::Nics, Thing::Pairs, Thing::Cpus, Thing::HugePages, Thing::Memory];

impl Thing {
    /// How much of it each worker takes.
    pub(super) fn each(self, ask: &Ask<'_>) -> u64 {
        match self {
            Self::Pods => 1,
            Self::Cpus => ask.cpus,
            Self::CpuMillis => ask.cpu_millis,
            Self::Memory => ask.memory,
            Self::HugePages => ask.hugepages,
            Self::Gpus => ask.gpus,
            Self::Nics => ask.nics,
            Self::Pairs => ask.pairs(),
        }
    }

    fn of_amounts(self, amounts: &Amounts, ask: &Ask<'_>) -> u64 {
        let devices = |name: Option<&str>| name.map_or(0, |name| u64::from(amounts.device(name)));
        match self {
            Self::Pods => amounts.pods.into(),
            Self::Cpus => amounts.cpu_millis / 1000,
            Self::CpuMillis => amounts.cpu_millis,
            Self::Memory => amounts.memory_bytes,
            Self::HugePages => amounts.hugepage_bytes,
            Self::Gpus => devices(ask.names.gpu),
            Self::Nics => devices(ask.names.nic),
            Self::Pairs => 0,
        }
    }

    /// How much of it a host has.
    pub(super) fn of_host(self, host: &Host, ask: &Ask<'_>, view: View) -> u64 {
        let amount = self.of_amounts(amounts(&host.free, &host.capacity, view), ask);
        // Where CPUs are known by number, a worker gets numbers.
        if self == Self::Cpus && view == View::Now && !host.cpus.is_empty() {
            return amount.min(count(&host.cpus));
        }
        amount
    }

    /// How much of it a NUMA node of that host has.
    pub(super) fn of_node(self, host: &Host, node: &NumaNode, ask: &Ask<'_>, view: View) -> u64 {
        if self == Self::Pairs {
            return pairs(node, ask, view);
        }
        let amount = self.of_amounts(amounts(&node.free, &node.capacity, view), ask);
        if self == Self::Cpus && view == View::Now && !host.cpus.is_empty() {
            return amount.min(count(&node.cpus));
        }
        amount
    }

    /// Whether the sources say how much of it lies on which NUMA node of a host.
    fn is_told_by_node(self, host: &Host, ask: &Ask<'_>) -> bool {
        if self == Self::Pairs {
            let has = |name: Option<&str>| {
                let mut roots = host.numa.iter().flat_map(|node| &node.roots);
                name.is_none_or(|name| roots.any(|root| root.capacity.contains_key(name)))
            };
            return has(ask.names.gpu) && has(ask.names.nic);
        }
        let on_nodes = host.numa.iter().any(|node| self.of_node(host, node, ask, View::Empty) > 0);
        // What the whole host lacks is not unknown.
        on_nodes || self.of_host(host, ask, View::Empty) == 0
    }
}

/// Pairs of a GPU and a NIC that share a root.
fn pairs(node: &NumaNode, ask: &Ask<'_>, view: View) -> u64 {
    let (Some(gpu), Some(nic)) = (ask.names.gpu, ask.names.nic) else { return 0 };
    let of_root = node.roots.iter().map(|root| {
        let devices = if view == View::Now { &root.free } else { &root.capacity };
        let has = |name| u64::from(devices.get(name).copied().unwrap_or(0));
        has(gpu).min(has(nic))
    });
    of_root.sum()
}

fn amounts<'a>(free: &'a Amounts, capacity: &'a Amounts, view: View) -> &'a Amounts {
    match view {
        View::Now => free,
        View::Empty => capacity,
    }
}

fn count<T>(list: &[T]) -> u64 {
    u64::try_from(list.len()).unwrap_or(u64::MAX)
}

/// What must come from one NUMA node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Together {
    cpus: bool,
    gpus: bool,
    nics: bool,
    hugepages: bool,
    memory: bool,
    pairs: bool,
    /// Not the job asks for it: the host's kubelet refuses anything else.
    pub(super) by_kubelet: bool,
}

impl Together {
    /// Anything at all.
    pub(super) fn any(self) -> bool {
        self.cpus || self.gpus || self.nics || self.hugepages || self.memory || self.pairs
    }

    pub(super) fn holds(self, thing: Thing) -> bool {
        match thing {
            Thing::Cpus => self.cpus,
            Thing::Gpus => self.gpus,
            Thing::Nics => self.nics,
            Thing::HugePages => self.hugepages,
            Thing::Memory => self.memory,
            Thing::Pairs => self.pairs,
            Thing::Pods | Thing::CpuMillis => false,
        }
    }
}

/// Why a host cannot be said to hold a worker together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Untold {
    #[error("NUMA nodes unknown: no NodeResourceTopology or ResourceSlice")]
    Nodes,
    #[error("its kubelet aligns nothing (topologyManagerPolicy none), and the job asks for locality")]
    KubeletAlignsNothing,
    #[error("the NUMA nodes of its CPUs are unknown: no NodeResourceTopology tells them")]
    Cpus,
    #[error("the NUMA nodes of its GPUs are unknown")]
    Gpus,
    #[error("the NUMA nodes of its RDMA NICs are unknown")]
    Nics,
    #[error("the NUMA nodes of its huge pages are unknown")]
    HugePages,
    #[error("the PCIe roots of its GPUs and NICs are unknown: no ResourceSlice tells them")]
    Roots,
}

/// What of a worker must come from one NUMA node of this host: what the job asks for, and what its kubelet insists on.
///
/// # Errors
/// When what the job asks for cannot be told there.
pub(super) fn together(host: &Host, ask: &Ask<'_>) -> Result<Together, Untold> {
    if ask.locality == Locality::None {
        return Ok(insisted(host, ask));
    }
    if host.numa.is_empty() {
        return Err(Untold::Nodes);
    }
    let kubelet_aligns_some =
        ask.cpus > 0 || ask.gpus > 0 && ask.names.gpu_by_kubelet || ask.nics > 0 && ask.names.nic_by_kubelet;
    // Where CPUs are known by number, they are bound by us.
    if host.policy.is_some_and(|policy| policy.policy == Alignment::None)
        && kubelet_aligns_some
        && host.cpus.is_empty()
    {
        return Err(Untold::KubeletAlignsNothing);
    }
    let told = |thing: Thing, untold| {
        let wanted = thing.each(ask) > 0;
        if wanted && !thing.is_told_by_node(host, ask) { Err(untold) } else { Ok(wanted) }
    };
    Ok(Together {
        cpus: told(Thing::Cpus, Untold::Cpus)?,
        gpus: told(Thing::Gpus, Untold::Gpus)?,
        nics: told(Thing::Nics, Untold::Nics)?,
        hugepages: told(Thing::HugePages, Untold::HugePages)?,
        memory: ask.memory > 0 && host.numa.iter().any(knows_memory),
        pairs: ask.locality == Locality::Pcie && told(Thing::Pairs, Untold::Roots)?,
        by_kubelet: false,
    })
}

/// What the kubelet insists on, although the job does not: else it would refuse the pod with `TopologyAffinityError`.
///
/// With scope `container` it aligns each container by itself, and only the ranks' container has GPUs: of the rest, the
/// sum over the containers does not tell, and the kubelet has the last word.
fn insisted(host: &Host, ask: &Ask<'_>) -> Together {
    let Some(policy) = host.policy else { return Together::default() };
    let aligned = |thing: Thing, by_kubelet: bool| {
        by_kubelet
            && thing.each(ask) > 0
            && host.numa.iter().any(|node| thing.of_node(host, node, ask, View::Empty) > 0)
    };
    let together = Together {
        cpus: policy.whole_pod && aligned(Thing::Cpus, true),
        gpus: aligned(Thing::Gpus, ask.names.gpu_by_kubelet),
        nics: policy.whole_pod && aligned(Thing::Nics, ask.names.nic_by_kubelet),
        by_kubelet: true,
        ..Together::default()
    };
    let strict = match policy.policy {
        Alignment::None | Alignment::BestEffort => false,
        Alignment::SingleNumaNode => true,
        // It insists on one node only where one could ever be enough.
        Alignment::Restricted => {
            host.numa.iter().any(|node| node_room(host, node, ask, together, View::Empty) > 0)
        }
    };
    if strict { together } else { Together::default() }
}

/// Whether it is known how much of the host's memory lies on a node.
pub(super) fn knows_memory(node: &NumaNode) -> bool {
    node.capacity.memory_bytes > 0
}

/// How many workers a NUMA node has room for, as far as only the node is looked at.
pub(super) fn node_room(host: &Host, node: &NumaNode, ask: &Ask<'_>, together: Together, view: View) -> u64 {
    let limits = OF_NODE.iter().filter(|thing| together.holds(**thing));
    let rooms = limits.map(|thing| {
        if *thing == Thing::Memory && !knows_memory(node) {
            return u64::MAX;
        }
        thing.of_node(host, node, ask, view).checked_div(thing.each(ask)).unwrap_or(u64::MAX)
    });
    rooms.min().unwrap_or(u64::MAX)
}

/// Whether the GPUs' model is one that the job takes.
pub(super) fn has_model(host: &Host, ask: &Ask<'_>) -> bool {
    ask.model.is_none_or(|pattern| host.gpu_model.as_deref().is_some_and(|model| matches(pattern, model)))
}

/// How many workers a host has room for, when it may be used.
pub(super) fn room(host: &Host, ask: &Ask<'_>, view: View) -> u32 {
    let asked = OF_HOST.iter().filter(|thing| thing.each(ask) > 0);
    let whole = asked.map(|thing| thing.of_host(host, ask, view) / thing.each(ask));
    let whole = whole.min().unwrap_or(u64::MAX);
    if whole == 0 || !has_model(host, ask) {
        return 0;
    }
    let rooms = match together(host, ask) {
        Err(_) => 0,
        Ok(together) if !together.any() => whole,
        Ok(together) => {
            let nodes = host.numa.iter().map(|node| node_room(host, node, ask, together, view));
            whole.min(nodes.fold(0, u64::saturating_add))
        }
    };
    u32::try_from(rooms).unwrap_or(u32::MAX)
}

/// How many NUMA nodes of a host nobody uses yet.
pub(super) fn whole_nodes(host: &Host, ask: &Ask<'_>) -> u32 {
    let untouched = host.numa.iter().filter(|node| is_whole(node, ask));
    u32::try_from(untouched.count()).unwrap_or(u32::MAX)
}

/// Whether nobody uses anything of a NUMA node that this job would use.
pub(super) fn is_whole(node: &NumaNode, ask: &Ask<'_>) -> bool {
    let same =
        |name: Option<&str>| name.is_none_or(|name| node.free.device(name) == node.capacity.device(name));
    node.free.cpu_millis == node.capacity.cpu_millis && same(ask.names.gpu) && same(ask.names.nic)
}

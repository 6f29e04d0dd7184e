//! What this container has, and whether it lies together: CPUs, memory, GPUs, network functions and RDMA devices, and the NUMA
//! node of each. `worker probe` shows it, as a table or as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::Serialize;

use super::pci::{self, Gpu, Nic};
use super::{rdma, sysfs};

/// Stand-ins for GPUs, for hosts without any: `name@node,name@node`. A device plugin sets it.
pub const STAND_IN_VARIABLE: &str = "SLIPWAY_STAND_IN_GPUS";

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// CPUs that this process may use.
    pub cpus: Vec<u32>,
    /// NUMA nodes that those CPUs are of.
    pub cpu_nodes: BTreeSet<u32>,
    /// NUMA nodes that memory may come from.
    pub memory_nodes: BTreeSet<u32>,
    /// How the kernel chooses among them (numa(7)): `default` is the node of the CPU that asks.
    pub memory_policy: String,
    /// Huge pages, by node and size.
    pub huge_pages: Vec<HugePages>,
    /// Bytes that may be locked in memory; none for no limit.
    pub memlock_bytes: Option<u64>,
    /// What device plugins gave, by variable: addresses on the bus.
    pub grants: BTreeMap<String, Vec<String>>,
    /// GPUs.
    pub gpus: Vec<Gpu>,
    /// Network functions.
    pub nics: Vec<Nic>,
    /// RDMA devices, and the lanes that follow.
    pub rdma: rdma::Rdma,
    /// What follows.
    pub verdict: Verdict,
}

/// Huge pages of one size on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HugePages {
    /// The node.
    pub node: u32,
    /// The size of one, in KiB.
    pub size_kib: u64,
    /// How many there are.
    pub total: u64,
    /// How many nobody uses.
    pub free: u64,
}

/// Whether what this container was given lies on one NUMA node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// All parts lie on this node; none when they do not, or something is not known.
    pub node: Option<u32>,
    /// In one line.
    pub text: String,
}

/// Looks below `root`; `env` is this container's environment.
#[must_use]
pub fn read(root: &Path, env: &BTreeMap<String, String>) -> Probe {
    let status = fs::read_to_string(root.join("proc/self/status")).unwrap_or_default();
    let list = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(sysfs::cpu_list).unwrap_or_default()
    };
    let cpus = list("Cpus_allowed_list:");
    let numa = sysfs::read(root).numa;
    let cpu_nodes = super::nodes_of(&cpus, &numa);
    let memory_nodes = list("Mems_allowed_list:").into_iter().collect();
    let grants = pci::grants(env);
    let granted: BTreeSet<String> = grants.values().flatten().cloned().collect();
    let mut gpus = pci::gpus(root, &granted);
    gpus.extend(stand_ins(env));
    let nics = pci::nics(root, &granted);
    let rdma = rdma::read(root, &cpu_nodes, &gpus, &nics);
    let verdict = judge(&cpu_nodes, &memory_nodes, &gpus, &nics);
    Probe {
        cpus,
        cpu_nodes,
        memory_nodes,
        memory_policy: memory_policy(root),
        huge_pages: huge_pages(root),
        memlock_bytes: memlock_bytes(root),
        grants,
        gpus,
        nics,
        rdma,
        verdict,
    }
}

fn stand_ins(env: &BTreeMap<String, String>) -> Vec<Gpu> {
    let list = env.get(STAND_IN_VARIABLE).map_or("", String::as_str);
    let gpus = list.split(',').filter_map(|entry| {
        let (name, node) = entry.trim().split_once('@')?;
        Some(Gpu { id: name.to_owned(), model: String::new(), node: node.parse().ok(), granted: true })
    });
    gpus.collect()
}

/// The policy of this process's first mapping: numa(7), `/proc/pid/numa_maps`.
fn memory_policy(root: &Path) -> String {
    let maps = fs::read_to_string(root.join("proc/self/numa_maps")).unwrap_or_default();
    maps.split_whitespace().nth(1).unwrap_or("unknown").to_owned()
}

/// The soft limit in /proc/self/limits; none for no limit, 0 when it cannot be read.
fn memlock_bytes(root: &Path) -> Option<u64> {
    let limits = fs::read_to_string(root.join("proc/self/limits")).unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory")).unwrap_or("0");
    match line.split_whitespace().next() {
        Some("unlimited") => None,
        soft => Some(soft.and_then(|soft| soft.parse().ok()).unwrap_or(0)),
    }
}

/// Documentation/ABI/stable/sysfs-devices-node: `nodeN/hugepages/hugepages-<size>kB/{nr,free}_hugepages`.
fn huge_pages(root: &Path) -> Vec<HugePages> {
    let folder = root.join("sys/devices/system/node");
    let mut found = Vec::new();
    for (name, node) in numbered(&folder, "node", "") {
        let pages = folder.join(name).join("hugepages");
        for (name, size_kib) in numbered(&pages, "hugepages-", "kB") {
            let count = |file: &str| {
                let text = fs::read_to_string(pages.join(&name).join(file)).unwrap_or_default();
                text.trim().parse::<u64>().unwrap_or(0)
            };
            let (total, free) = (count("nr_hugepages"), count("free_hugepages"));
            if let Some(node) = u32::try_from(node).ok().filter(|_| total > 0) {
                found.push(HugePages { node, size_kib, total, free });
            }
        }
    }
    found.sort_by_key(|pages| (pages.node, pages.size_kib));
    found
}

/// Entries of a folder whose names are a number between two words.
fn numbered(folder: &Path, before: &str, after: &str) -> Vec<(String, u64)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let number = |entry: std::io::Result<fs::DirEntry>| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        let number = name.strip_prefix(before)?.strip_suffix(after)?.parse().ok()?;
        Some((name, number))
    };
    entries.filter_map(number).collect()
}

/// Where nothing was given by a device plugin, all that is there counts: then this is a host, not a container.
fn judge(cpus: &BTreeSet<u32>, memory: &BTreeSet<u32>, gpus: &[Gpu], nics: &[Nic]) -> Verdict {
    let some = |nodes: &BTreeSet<u32>| nodes.iter().map(|node| Some(*node)).collect::<BTreeSet<_>>();
    let any_given = gpus.iter().any(|gpu| gpu.granted) || nics.iter().any(|nic| nic.granted);
    let gpus = gpus.iter().filter(|gpu| gpu.granted || !any_given).map(|gpu| gpu.node).collect();
    let given = nics.iter().filter(|nic| nic.granted || !any_given && nic.vf_of.is_some());
    let parts: [(&str, BTreeSet<Option<u32>>); 4] = [
        ("CPUs", some(cpus)),
        ("memory", some(memory)),
        ("GPUs", gpus),
        ("VFs", given.map(|nic| nic.node).collect()),
    ];
    let there: Vec<_> = parts.iter().filter(|(_, nodes)| !nodes.is_empty()).collect();
    let nodes: BTreeSet<Option<u32>> = there.iter().flat_map(|(_, nodes)| nodes.iter().copied()).collect();
    let names: Vec<&str> = there.iter().map(|(name, _)| *name).collect();
    let mut nodes_left = nodes.iter();
    match (nodes_left.next(), nodes_left.next()) {
        (Some(Some(node)), None) => {
            Verdict { node: Some(*node), text: format!("on one NUMA node, {node}: {}", names.join(", ")) }
        }
        (None, _) => {
            Verdict { node: None, text: "not known: this host says nothing of NUMA nodes".to_owned() }
        }
        _ => {
            let part = |(name, nodes): &&(&str, BTreeSet<Option<u32>>)| {
                let nodes =
                    nodes.iter().map(|node| node.map_or_else(|| "?".to_owned(), |node| node.to_string()));
                format!("{name} on {}", nodes.collect::<Vec<_>>().join("+"))
            };
            let parts = there.iter().map(part).collect::<Vec<_>>().join(", ");
            Verdict { node: None, text: format!("not on one NUMA node: {parts}") }
        }
    }
}

/// What people read: one line per thing, its kind in front.
#[must_use]
pub fn table(probe: &Probe) -> String {
    let mut text = String::new();
    let mut line = |kind: &str, what: String| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{kind:<11} {what}");
    };
    let on = |node: Option<u32>| node.map_or_else(|| "node ?".to_owned(), |node| format!("node {node}"));
    let list = |nodes: &BTreeSet<u32>| shown(&nodes.iter().copied().collect::<Vec<_>>());
    let granted = |granted: bool| if granted { ", granted" } else { "" };
    line("CPUs", format!("{} (node {})", shown(&probe.cpus), list(&probe.cpu_nodes)));
    line("memory", format!("node {}, policy {}", list(&probe.memory_nodes), probe.memory_policy));
    for HugePages { node, size_kib, total, free } in &probe.huge_pages {
        line("huge pages", format!("node {node}: {free} of {total} free, {size_kib} KiB each"));
    }
    line(
        "memlock",
        probe.memlock_bytes.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{bytes} bytes")),
    );
    for (variable, addresses) in &probe.grants {
        line("grant", format!("{variable}: {}", addresses.join(", ")));
    }
    for gpu in &probe.gpus {
        let model = if gpu.model.is_empty() { "stand-in" } else { &gpu.model };
        line("GPU", format!("{} ({model}), {}{}", gpu.id, on(gpu.node), granted(gpu.granted)));
    }
    for nic in &probe.nics {
        let interface = nic.interface.as_deref().unwrap_or("no interface here");
        let vf = nic.vf_of.as_ref().map(|pf| format!(", VF of {pf}")).unwrap_or_default();
        let addresses: String = nic.addresses.iter().map(|address| format!(", {address}")).collect();
        let place = format!("{} ({interface}), {}{vf}", nic.id, on(nic.node));
        line("NIC", format!("{place}{addresses}{}", granted(nic.granted)));
    }
    for (kind, what) in rdma::lines(&probe.rdma) {
        line(kind, what);
    }
    line("verdict", probe.verdict.text.clone());
    text
}

/// `?` where there are none.
fn shown(numbers: &[u32]) -> String {
    if numbers.is_empty() { "?".to_owned() } else { sysfs::ranges(numbers) }
}

#[cfg(test)]
mod tests;

//! Why hosts cannot take (all of) a job's workers, in words (pure).

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::Request;
use super::admit::{Fence, View, admit};
use super::order::natural;
use super::room::{
    Ask, OF_HOST, OF_NODE, Thing, Together, has_model, knows_memory, node_room, room, together,
};
use crate::job::spec::Locality;
use crate::job::units::Bytes;
use crate::topology::{Cluster, Host, NumaNode};

/// Lines of reasons: as many as a person reads, and as a status of the Kubernetes API holds with ease.
const REASONS_MAX: usize = 16;
/// Hosts that are named one by one when they share a line.
const NAMES_MAX: usize = 3;

/// Why each host cannot take (all of) the workers: the most frequent reason first.
pub(super) fn reasons(cluster: &Cluster, request: &Request, ask: &Ask<'_>, fence: Fence<'_>) -> Vec<String> {
    let mut groups: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for host in &cluster.hosts {
        let reason = match admit(host, request, fence, View::Now) {
            Err(reason) => reason,
            Ok(_) => of_host(host, request, ask),
        };
        groups.entry(reason).or_default().push(&host.name);
    }
    let with_first = groups.into_iter().map(|(reason, hosts)| (first(&hosts), reason, hosts));
    let mut groups: Vec<(&str, String, Vec<&str>)> = with_first.collect();
    groups.sort_by(|(a, _, of_a), (b, _, of_b)| {
        Reverse(of_a.len()).cmp(&Reverse(of_b.len())).then_with(|| natural(a, b))
    });
    let (told, untold) = groups.split_at(groups.len().min(REASONS_MAX));
    let mut lines: Vec<String> =
        told.iter().map(|(_, reason, hosts)| format!("{}: {reason}", names(hosts))).collect();
    if !untold.is_empty() {
        let hosts: usize = untold.iter().map(|(_, _, hosts)| hosts.len()).sum();
        lines.push(format!("and {} more reasons, of {hosts} hosts", untold.len()));
    }
    lines
}

/// Hosts in few words, in whatever order they are given: `a`, `2 hosts (a, b)`, `12 hosts (node-1 … node-12)`.
pub(super) fn names(hosts: &[&str]) -> String {
    match hosts {
        [] => "no hosts".to_owned(),
        [one] => (*one).to_owned(),
        few if few.len() <= NAMES_MAX => {
            let mut few = few.to_vec();
            few.sort_by(|a, b| natural(a, b));
            format!("{} hosts ({})", few.len(), few.join(", "))
        }
        // A refusal may speak of all hosts of a cluster: only the ends are looked for.
        many => {
            let last = many.iter().copied().max_by(|a, b| natural(a, b)).unwrap_or_default();
            format!("{} hosts ({} … {last})", many.len(), first(many))
        }
    }
}

fn first<'a>(hosts: &[&'a str]) -> &'a str {
    hosts.iter().copied().min_by(|a, b| natural(a, b)).unwrap_or_default()
}

/// Why a host that may be used cannot take all.
fn of_host(host: &Host, request: &Request, ask: &Ask<'_>) -> String {
    let room = room(host, ask, View::Now);
    if room == 0 {
        return no_room(host, ask);
    }
    let wanted = request.workers.len();
    let used_up = OF_HOST.into_iter().find(|thing| {
        let each = thing.each(ask);
        each > 0 && thing.of_host(host, ask, View::Now) / each == u64::from(room)
    });
    let limit = match used_up {
        Some(thing) => of_thing(host, ask, thing),
        None => {
            let together = together(host, ask).unwrap_or_default();
            let rooms =
                host.numa.iter().map(|node| node_room(host, node, ask, together, View::Now).to_string());
            format!("{} on its NUMA nodes", rooms.collect::<Vec<_>>().join(" + "))
        }
    };
    format!("room for {room} of {wanted} workers: {limit}")
}

/// Why a host that may be used cannot take a single worker.
fn no_room(host: &Host, ask: &Ask<'_>) -> String {
    for (thing, name) in [(Thing::Gpus, ask.names.gpu), (Thing::Nics, ask.names.nic)] {
        if let Some(name) = name.filter(|_| thing.of_host(host, ask, View::Empty) == 0) {
            return format!("it has no {name}");
        }
    }
    if !has_model(host, ask) {
        let wanted = ask.model.unwrap_or_default();
        return match &host.gpu_model {
            Some(model) => format!("its GPUs are {model}, and {wanted} is wanted"),
            None => format!("the model of its GPUs is unknown, and {wanted} is wanted"),
        };
    }
    let missing: Vec<String> = OF_HOST
        .into_iter()
        .filter(|thing| thing.of_host(host, ask, View::Now) < thing.each(ask))
        .map(|thing| of_thing(host, ask, thing))
        .collect();
    if !missing.is_empty() {
        return missing.join("; ");
    }
    match together(host, ask) {
        Err(untold) => untold.to_string(),
        Ok(together) => {
            let reason = on_nodes(host, ask, together);
            if together.by_kubelet {
                format!("{reason} (its kubelet's topologyManagerPolicy insists)")
            } else {
                reason
            }
        }
    }
}

fn amount(thing: Thing, amount: u64) -> String {
    match thing {
        Thing::Memory | Thing::HugePages if amount < 1024 || !amount.is_multiple_of(1024) => {
            format!("{amount} bytes")
        }
        Thing::Memory | Thing::HugePages => Bytes(amount).to_string(),
        _ => amount.to_string(),
    }
}

fn word(thing: Thing) -> &'static str {
    match thing {
        Thing::Pods => "pods",
        Thing::Cpus => "CPUs",
        Thing::CpuMillis => "thousandths of a CPU",
        Thing::Memory => "of memory",
        Thing::HugePages => "of huge pages",
        Thing::Gpus => "GPUs",
        Thing::Nics => "RDMA NICs",
        Thing::Pairs => "pairs of a GPU and an RDMA NIC behind one PCIe root",
    }
}

fn of_thing(host: &Host, ask: &Ask<'_>, thing: Thing) -> String {
    let free = amount(thing, thing.of_host(host, ask, View::Now));
    let all = amount(thing, thing.of_host(host, ask, View::Empty));
    format!("{free} of {all} {} free, {} for each worker", word(thing), amount(thing, thing.each(ask)))
}

/// Why no NUMA node of a host takes a worker.
fn on_nodes(host: &Host, ask: &Ask<'_>, together: Together) -> String {
    let nodes = host.numa.len();
    let asked: Vec<Thing> = OF_NODE.into_iter().filter(|thing| together.holds(*thing)).collect();
    let of_node = |node: &NumaNode, thing: Thing| match thing {
        Thing::Memory if !knows_memory(node) => u64::MAX,
        _ => thing.of_node(host, node, ask, View::Now),
    };
    for thing in &asked {
        let each = thing.each(ask);
        if host.numa.iter().all(|node| of_node(node, *thing) < each) {
            let sum = host.numa.iter().map(|node| thing.of_node(host, node, ask, View::Now));
            let sum = sum.fold(0, u64::saturating_add);
            let (sum, each) = (amount(*thing, sum), amount(*thing, each));
            let free = if *thing == Thing::Pairs {
                format!("{sum} {} free", word(*thing))
            } else {
                let (free, all) =
                    (thing.of_host(host, ask, View::Now), thing.of_host(host, ask, View::Empty));
                format!("{} of {} {} free", amount(*thing, free), amount(*thing, all), word(*thing))
            };
            let is = if nodes == 1 {
                "its NUMA node has not".to_owned()
            } else {
                format!("none of its {nodes} NUMA nodes has")
            };
            return format!("{free}, {is} {each} together");
        }
    }
    let needs = asked.iter().map(|thing| format!("{} {}", amount(*thing, thing.each(ask)), word(*thing)));
    let needs = needs.collect::<Vec<_>>().join(", ");
    let has = host.numa.iter().map(|node| {
        let parts = asked.iter().filter(|thing| of_node(node, **thing) < thing.each(ask));
        let parts = parts.map(|thing| format!("{} {}", amount(*thing, of_node(node, *thing)), word(*thing)));
        format!("node {} has only {}", node.id, parts.collect::<Vec<_>>().join(" and "))
    });
    let has = has.collect::<Vec<_>>().join(", ");
    let what = if ask.locality == Locality::None { "what the kubelet aligns" } else { "all of it" };
    format!("none of its {nodes} NUMA nodes has {what} together ({needs}): {has}")
}

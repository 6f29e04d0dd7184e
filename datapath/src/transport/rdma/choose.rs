//! Which of this host's RDMA devices a worker uses, in which order, and why not the others (pure).
//!
//! A device is near when it lies on a NUMA node of the worker's CPUs, where its memory is, too. Bytes of a far one cross the link
//! between the nodes twice, which may halve their rate; so a far one is used only where no near one can be, and then it is said.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::gid::{self, Chosen, LinkLayer};
use super::reason::Reason;
use super::sysfs::Device;
use crate::select::LaneKind;

/// What a worker wants of its host's devices. By default any of them, wherever it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DevicesWanted {
    /// The names of those that are the worker's; none where nobody said which, so that all are.
    pub names: Option<BTreeSet<String>>,
    /// The NUMA nodes that its CPUs lie on; empty where that is not known, and then nothing is far.
    pub nodes: BTreeSet<u32>,
    /// What becomes of devices on other nodes.
    pub far: FarDevices,
}

/// What becomes of devices that are on another NUMA node than the worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FarDevices {
    /// One is used where there is no near one.
    #[default]
    Used,
    /// They are as good as missing.
    Refused,
}

/// A device of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Its NUMA node; none where the host does not say.
    pub node: Option<u32>,
    /// The port and the address that lanes have on it, or why there is none.
    pub way: Result<Way, (Reason, String)>,
}

/// The way from a device into the fabric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The port's number.
    pub port: u8,
    /// What carries its packets.
    pub layer: LinkLayer,
    /// Its address.
    pub gid: Chosen,
}

impl Found {
    /// What the kernel's facts say of a device; `netdevs` are the interfaces of this network namespace.
    #[must_use]
    pub fn of(device: &Device, netdevs: &[String]) -> Self {
        Self { name: device.name.clone(), node: device.numa_node, way: way(device, netdevs) }
    }
}

/// Its first port that is up and has an address that can be routed.
///
/// # Errors
/// Why the first of its ports cannot be used.
pub fn way(device: &Device, netdevs: &[String]) -> Result<Way, (Reason, String)> {
    let ways = device.ports.iter().map(|port| {
        if port.is_up {
            let chosen = gid::choose(port.layer, &port.gids, netdevs);
            chosen.map(|gid| Way { port: port.number, layer: port.layer, gid })
        } else {
            Err((Reason::PortDown, format!("port {} is down", port.number)))
        }
    });
    let mut first = Err((Reason::NoDevice, "it has no port below /sys/class/infiniband".to_owned()));
    for (at, way) in ways.enumerate() {
        if way.is_ok() {
            return way;
        }
        if at == 0 {
            first = way;
        }
    }
    first
}

/// What was chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The devices to use, the best one first.
    pub names: Vec<String>,
    /// Why the others are not used; and of a far one that is used, that it is far.
    pub notes: Vec<Note>,
}

/// What is to be said of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Which.
    pub device: String,
    /// In a word.
    pub reason: Reason,
    /// In more of them.
    pub words: String,
}

impl Choice {
    /// Of the devices that are used, those that it would be better not to.
    pub fn regrets(&self) -> impl Iterator<Item = &Note> {
        self.notes.iter().filter(|note| self.names.contains(&note.device))
    }

    /// Why no device is used; none where one is. What is wrong with a near device comes before a far one that is well, and that
    /// before devices of others.
    #[must_use]
    pub fn absence(&self) -> Option<Note> {
        if !self.names.is_empty() {
            return None;
        }
        let rank = |note: &&Note| match note.reason {
            Reason::NotWanted => 2,
            Reason::WrongNuma => 1,
            _ => 0,
        };
        let best = self.notes.iter().min_by_key(rank).cloned();
        Some(match best {
            Some(Note { reason: Reason::NotWanted, words, device }) => {
                Note { device, reason: Reason::NoDevice, words }
            }
            Some(note) => note,
            None => Note {
                device: "any device".to_owned(),
                reason: Reason::NoDevice,
                words: "there is none below /sys/class/infiniband".to_owned(),
            },
        })
    }
}

/// The devices to use: all near ones that can be, in the order of their names, those of no known node last; without any, the far
/// ones, where that is allowed.
#[must_use]
pub fn choose(found: &[Found], wanted: &DevicesWanted) -> Choice {
    let is_far = |device: &&Found| {
        !wanted.nodes.is_empty() && device.node.is_some_and(|node| !wanted.nodes.contains(&node))
    };
    let mut choice = Choice::default();
    let mut usable = Vec::new();
    for device in found {
        let is_own = wanted.names.as_ref().is_none_or(|names| names.contains(&device.name));
        let fault = match &device.way {
            _ if !is_own => {
                Some((Reason::NotWanted, "it is none of those that this worker was given".to_owned()))
            }
            Err(fault) => Some(fault.clone()),
            Ok(_) => None,
        };
        match fault {
            Some((reason, words)) => choice.notes.push(Note { device: device.name.clone(), reason, words }),
            None => usable.push(device),
        }
    }
    let (far, mut near): (Vec<&Found>, Vec<&Found>) = usable.into_iter().partition(is_far);
    near.sort_by_key(|device| device.node.is_none());
    let end = match (near.is_empty(), wanted.far) {
        (false, _) => ", and there are nearer ones",
        (true, FarDevices::Used) => "; it is used, as there is no nearer one",
        (true, FarDevices::Refused) => ", and the job wants them together",
    };
    choice.notes.extend(far.iter().map(|device| Note {
        device: device.name.clone(),
        reason: Reason::WrongNuma,
        words: format!("{}{end}", apart(device, &wanted.nodes)),
    }));
    let is_far_used = near.is_empty() && wanted.far == FarDevices::Used;
    let used = if is_far_used { far } else { near };
    choice.names = used.into_iter().map(|device| device.name.clone()).collect();
    choice
}

fn apart(device: &Found, nodes: &BTreeSet<u32>) -> String {
    let mut text = format!("it is on NUMA node {}, not on ", device.node.unwrap_or_default());
    for (at, node) in nodes.iter().enumerate() {
        // Writing to a string does not fail.
        let _ = write!(text, "{}{node}", if at == 0 { "" } else { " or " });
    }
    text
}

/// What is to be fed from here, or into: a worker's CPUs, or a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Its name, for people.
    pub name: String,
    /// Its NUMA nodes; empty where they are not known.
    pub nodes: BTreeSet<u32>,
}

/// The lane that one end would use with one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// The end.
    pub from: String,
    /// The device; none where the host has none to speak of.
    pub device: Option<String>,
    /// The lane.
    pub lane: LaneKind,
    /// Why it is QUIC, or what is to be regretted of RDMA.
    pub reason: Option<Reason>,
    /// In more words.
    pub words: String,
}

/// What each end would use with each device, of those in `names` if there are any. `absence` is what rules all of them out.
#[must_use]
pub fn pairs(
    ends: &[End],
    found: &[Found],
    names: Option<&BTreeSet<String>>,
    absence: Option<&(Reason, String)>,
) -> Vec<Pair> {
    let quic = |end: &End, device, (reason, words): &(Reason, String)| Pair {
        from: end.name.clone(),
        device,
        lane: LaneKind::Quic,
        reason: Some(*reason),
        words: words.clone(),
    };
    let of_end = |end: &End| -> Vec<Pair> {
        if let (Some(fault), true) = (absence, found.is_empty()) {
            return vec![quic(end, None, fault)];
        }
        let wanted = DevicesWanted { names: names.cloned(), nodes: end.nodes.clone(), far: FarDevices::Used };
        let choice = choose(found, &wanted);
        if found.is_empty() {
            return choice
                .absence()
                .map(|note| quic(end, None, &(note.reason, note.words)))
                .into_iter()
                .collect();
        }
        let pair = |device: &Found| {
            let note = choice.notes.iter().find(|note| note.device == device.name);
            let fault = note.map(|note| (note.reason, note.words.clone()));
            match (absence, &device.way, choice.names.contains(&device.name)) {
                (None, Ok(way), true) => Pair {
                    from: end.name.clone(),
                    device: Some(device.name.clone()),
                    lane: LaneKind::Rdma,
                    reason: fault.as_ref().map(|(reason, _)| *reason),
                    words: match fault {
                        Some((_, words)) => format!("{words}; with locality numa or pcie it is QUIC"),
                        None => format!("from {} at port {}", way.gid.gid, way.port),
                    },
                },
                (absence, _, _) => {
                    let unknown = (Reason::Refused, String::new());
                    quic(end, Some(device.name.clone()), absence.or(fault.as_ref()).unwrap_or(&unknown))
                }
            }
        };
        found.iter().map(pair).collect()
    };
    ends.iter().flat_map(of_end).collect()
}

#[cfg(test)]
mod tests;

//! The RDMA devices of this host as `worker probe` shows them: where each lies, what its ports carry, which address its lanes
//! would have, whether it could be let at a GPU's memory, and what lane follows from all that.
//!
//! What is decided here is decided by `datapath`, by the same functions as when a data plane starts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use datapath::transport::rdma::ask::{self, Answer};
use datapath::transport::rdma::choose::{End, Found, Pair, pairs, way};
use datapath::transport::rdma::gid::LinkLayer;
use datapath::transport::rdma::reason::Reason;
use datapath::transport::rdma::sysfs;
use serde::Serialize;

use super::pci::{Gpu, Nic};

/// The kernel's modules by which a device reaches a GPU's memory without a dma-buf, by the file that says their version (NCCL looks
/// for the same ones).
const PEER_MODULES: [(&str, &str); 3] = [
    ("nv_peer_mem", "sys/kernel/mm/memory_peers/nv_mem/version"),
    ("nv_peer_mem (nc)", "sys/kernel/mm/memory_peers/nv_mem_nc/version"),
    ("nvidia_peermem", "sys/module/nvidia_peermem/version"),
];

/// An RDMA device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// The address on the bus of the network function that it is of; none where it is of none, or of one elsewhere.
    pub nic: Option<String>,
    /// The physical function, if that is a virtual one.
    pub vf_of: Option<String>,
    /// The interface whose addresses are its.
    pub interface: Option<String>,
    /// Its NUMA node; none when the host does not say.
    pub node: Option<u32>,
    /// Whether a device plugin gave its function to this container.
    pub granted: bool,
    /// Its ports, in their order.
    pub ports: Vec<Port>,
    /// Bytes of its interface's packets at the most.
    pub mtu: Option<u32>,
    /// What it says itself, or why it cannot be asked.
    pub says: Says,
}

/// A port of an RDMA device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Port {
    /// Counted from 1.
    pub number: u8,
    /// `ACTIVE`, `DOWN`, …
    pub state: String,
    /// `Ethernet` or `InfiniBand`.
    pub link_layer: &'static str,
    /// Its addresses, the empty places left out.
    pub gids: Vec<Address>,
}

/// An address of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Address {
    /// Its place in the port's table.
    pub index: u8,
    /// The address.
    pub gid: String,
    /// Whether it is of the second RoCE.
    pub is_roce_v2: bool,
    /// The interface that has it.
    pub interface: Option<String>,
    /// Lanes would have it.
    pub is_chosen: bool,
}

/// What a device says itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Says {
    /// It was asked.
    Answer {
        /// Bytes of data in a packet at the most; none while no port of it can be used.
        packet_bytes: Option<u16>,
        /// Its driver registers memory of other devices by their dma-buf.
        dma_buf: bool,
    },
    /// It was not.
    Unknown {
        /// Why not.
        unknown: String,
    },
}

/// All that is to be said of RDMA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rdma {
    /// The devices, by name.
    pub devices: Vec<Device>,
    /// The kernel's modules by which they reach a GPU's memory, with their versions.
    pub peer_memory: BTreeMap<String, String>,
    /// The lane that the CPUs, and each GPU, would use with each device.
    pub lanes: Vec<Pair>,
}

/// Reads the devices below `root`, and asks them where that is this machine's.
pub(super) fn read(root: &Path, cpus: &BTreeSet<u32>, gpus: &[Gpu], nics: &[Nic]) -> Rdma {
    let sys = root.join("sys");
    let found = if root == Path::new("/") { ask::devices() } else { Ok(sysfs::found(&sys)) };
    let (found, absence) = match found {
        Ok(found) => (found, None),
        Err(absence) => (sysfs::found(&sys), Some(absence)),
    };
    let devices: Vec<Device> = sysfs::devices(&sys)
        .into_iter()
        .map(|device| {
            let says = match root == Path::new("/") {
                true => ask::ask(&device.name),
                false => Err((Reason::NotWanted, "this is not the machine itself".to_owned())),
            };
            shown(root, device, nics, says)
        })
        .collect();
    let own: BTreeSet<String> =
        devices.iter().filter(|device| device.granted).map(|device| device.name.clone()).collect();
    let own = nics.iter().any(|nic| nic.granted).then_some(own);
    Rdma {
        devices,
        peer_memory: peer_memory(root),
        lanes: lanes(cpus, gpus, &found, own.as_ref(), absence.as_ref()),
    }
}

fn shown(root: &Path, device: sysfs::Device, nics: &[Nic], says: Result<Answer, (Reason, String)>) -> Device {
    let chosen = way(&device, &sysfs::netdevs(&root.join("sys"))).ok();
    let nic = nics.iter().find(|nic| nic.rdma.iter().any(|rdma| rdma.name == device.name));
    let of_chosen = device
        .ports
        .iter()
        .flat_map(|port| &port.gids)
        .find(|entry| chosen.is_some_and(|way| way.gid.index == entry.index));
    let interface = of_chosen
        .and_then(|entry| entry.netdev.clone())
        .or(device.netdev)
        .or_else(|| nic.and_then(|nic| nic.interface.clone()));
    let mtu = interface.as_ref().and_then(|name| {
        let text = fs::read_to_string(root.join("sys/class/net").join(name).join("mtu")).ok()?;
        text.trim().parse().ok()
    });
    let ports = device.ports.into_iter().map(|port| Port {
        number: port.number,
        state: port.state,
        link_layer: layer(port.layer),
        gids: port
            .gids
            .into_iter()
            .map(|entry| Address {
                index: entry.index,
                gid: entry.gid.to_string(),
                is_roce_v2: entry.is_roce_v2,
                interface: entry.netdev,
                is_chosen: chosen.is_some_and(|way| (way.port, way.gid.index) == (port.number, entry.index)),
            })
            .collect(),
    });
    Device {
        ports: ports.collect(),
        nic: nic.map(|nic| nic.id.clone()).or(device.pci),
        vf_of: nic.and_then(|nic| nic.vf_of.clone()),
        granted: nic.is_some_and(|nic| nic.granted),
        name: device.name,
        node: device.numa_node,
        interface,
        mtu,
        says: match says {
            Ok(Answer { packet_bytes, takes_dmabuf }) => Says::Answer { packet_bytes, dma_buf: takes_dmabuf },
            Err((_, unknown)) => Says::Unknown { unknown },
        },
    }
}

pub(super) const fn layer(layer: LinkLayer) -> &'static str {
    match layer {
        LinkLayer::Ethernet => "Ethernet",
        LinkLayer::InfiniBand => "InfiniBand",
    }
}

/// Of the CPUs, and of each GPU, with each device: by the way by which a data plane chooses.
fn lanes(
    cpus: &BTreeSet<u32>,
    gpus: &[Gpu],
    found: &[Found],
    own: Option<&BTreeSet<String>>,
    absence: Option<&(Reason, String)>,
) -> Vec<Pair> {
    let gpu = |gpu: &Gpu| End { name: format!("GPU {}", gpu.id), nodes: gpu.node.into_iter().collect() };
    let mut ends = vec![End { name: "CPUs".to_owned(), nodes: cpus.clone() }];
    ends.extend(gpus.iter().map(gpu));
    pairs(&ends, found, own, absence)
}

fn peer_memory(root: &Path) -> BTreeMap<String, String> {
    let module = |(name, file): (&str, &str)| {
        let version = fs::read_to_string(root.join(file)).ok()?;
        Some((name.to_owned(), version.trim().to_owned()))
    };
    PEER_MODULES.into_iter().filter_map(module).collect()
}

/// The lines that people read, each with its kind.
pub(super) fn lines(rdma: &Rdma) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    for device in &rdma.devices {
        lines.push(("RDMA", place(device)));
        lines.extend(device.ports.iter().map(|port| ("port", of_port(device, port))));
        let (packets, dma_buf) = match &device.says {
            Says::Answer { packet_bytes, dma_buf } => {
                let bytes = packet_bytes.map(|bytes| format!(", {bytes} bytes of data in a packet"));
                (bytes.unwrap_or_default(), if *dma_buf { "yes" } else { "no" }.to_owned())
            }
            Says::Unknown { unknown } => (String::new(), format!("not known: {unknown}")),
        };
        let mtu = device.mtu.map_or_else(|| "?".to_owned(), |mtu| mtu.to_string());
        lines.push(("MTU", format!("{}: {mtu}{packets}", device.name)));
        lines.push(("dma-buf", format!("{}: {dma_buf}", device.name)));
    }
    if !rdma.devices.is_empty() {
        let modules: Vec<_> =
            rdma.peer_memory.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let modules = if modules.is_empty() { "no module for it".to_owned() } else { modules.join(", ") };
        lines.push(("peer memory", modules));
    }
    for Pair { from, device, lane, reason, words } in &rdma.lanes {
        let with = device.as_ref().map(|device| format!(" with {device}")).unwrap_or_default();
        let lane = match lane {
            datapath::select::LaneKind::Rdma => "rdma",
            datapath::select::LaneKind::Quic => "quic",
        };
        let reason = reason.map(|reason| format!("{reason}, ")).unwrap_or_default();
        lines.push(("lane", format!("{from}{with}: {lane} ({reason}{words})")));
    }
    lines
}

fn place(device: &Device) -> String {
    let nic = device.nic.as_ref().map(|nic| format!(" of {nic}")).unwrap_or_default();
    let interface = device.interface.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let node = device.node.map_or_else(|| "?".to_owned(), |node| node.to_string());
    let vf = device.vf_of.as_ref().map(|pf| format!(", VF of {pf}")).unwrap_or_default();
    let granted = if device.granted { ", granted" } else { "" };
    format!("{}{nic}{interface}, node {node}{vf}{granted}", device.name)
}

fn of_port(device: &Device, port: &Port) -> String {
    let chosen = port.gids.iter().find(|address| address.is_chosen);
    let address = match chosen {
        Some(Address { index, gid, .. }) => format!("{gid} at {index} of {} addresses", port.gids.len()),
        None => format!("none of {} addresses can be used", port.gids.len()),
    };
    format!("{} {}: {} {}, {address}", device.name, port.number, port.state, port.link_layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_known_by_their_versions() {
        let root = tempfile::TempDir::new().unwrap();
        assert!(peer_memory(root.path()).is_empty());
        let file = root.path().join(PEER_MODULES[2].1);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "550.54.15\n").unwrap();
        let modules = BTreeMap::from([("nvidia_peermem".to_owned(), "550.54.15".to_owned())]);
        assert_eq!(peer_memory(root.path()), modules);
    }

    #[test]
    fn what_a_device_says_is_shown_and_so_is_that_it_was_not_asked() {
        let device = |says| Device {
            name: "mlx5_0".to_owned(),
            nic: None,
            vf_of: None,
            interface: None,
            node: None,
            granted: false,
            ports: vec![],
            mtu: Some(9000),
            says,
        };
        let shown = |says| {
            let rdma = Rdma { devices: vec![device(says)], peer_memory: BTreeMap::new(), lanes: vec![] };
            lines(&rdma).into_iter().map(|(kind, text)| format!("{kind} {text}")).collect::<Vec<_>>()
        };
        assert_eq!(
            shown(Says::Answer { packet_bytes: Some(4096), dma_buf: true }),
            [
                "RDMA mlx5_0, node ?",
                "MTU mlx5_0: 9000, 4096 bytes of data in a packet",
                "dma-buf mlx5_0: yes",
                "peer memory no module for it",
            ]
        );
        let unknown = "this build has no RDMA".to_owned();
        let unasked = shown(Says::Unknown { unknown });
        assert_eq!(unasked[2], "dma-buf mlx5_0: not known: this build has no RDMA");
    }
}

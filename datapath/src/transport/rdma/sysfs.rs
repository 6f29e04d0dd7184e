//! What the kernel says of RDMA devices, read below a root so that tests can plant one.
//!
//! libibverbs gives the bytes of an address, and not whose they are; sysfs has the interface and the version beside them.

use std::fs;
use std::path::{Path, PathBuf};

use super::choose::Found;
use super::gid::{Entry, Gid, LinkLayer};
use super::reason::Emptiness;

/// Where the kernel's own are.
pub const SYSFS: &str = "/sys";
/// Where the devices' nodes are.
pub const NODES: &str = "/dev/infiniband";
/// Places of a table that are looked at: adapters have up to 256, which an index of one byte can name.
const GIDS_MAX: u16 = 256;

/// Counters of a port that grow when a packet was lost on its way: what the asking side of a read notices. Names of mlx5, irdma,
/// bnxt_re, efa and rxe (the kernel's `drivers/infiniband`, each driver's list of `rdma_stat_desc`).
const LOSSES: [&str; 10] = [
    "packet_seq_err",
    "implied_nak_seq_err",
    "local_ack_timeout_err",
    "out_of_sequence",
    "missing_resp",
    "seq_err_naks_rcvd",
    "to_retransmits",
    "retrans_pkts",
    "rcvd_seq_err",
    "completer_retry_err",
];

/// One device of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Where in the host it sits; none where it sits nowhere, or the kernel does not know.
    pub numa_node: Option<u32>,
    /// The address on the bus of the function that it is of.
    pub pci: Option<String>,
    /// The interface that it was put on, where it is made of software.
    pub netdev: Option<String>,
    /// Its ports.
    pub ports: Vec<Port>,
}

/// One port of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its number, from 1.
    pub number: u8,
    /// As the kernel says it: `ACTIVE`, `DOWN`, …
    pub state: String,
    /// It carries packets.
    pub is_up: bool,
    /// What carries them.
    pub layer: LinkLayer,
    /// Its addresses, the empty ones left out.
    pub gids: Vec<Entry>,
}

/// All devices below this root, by name. Where there is nothing to read, there is none.
#[must_use]
pub fn devices(root: &Path) -> Vec<Device> {
    names(&root.join("class/infiniband"))
        .into_iter()
        .map(|name| {
            let folder = root.join("class/infiniband").join(&name);
            // One that is made of software sits where its interface sits.
            let netdev = read(&folder.join("parent"));
            let seat = match &netdev {
                Some(netdev) => root.join("class/net").join(netdev).join("device"),
                None => folder.join("device"),
            };
            let numa_node = read(&seat.join("numa_node")).and_then(|text| text.parse().ok());
            // Without the class of a PCI device it is the host's bridge, or whatever else a driver names.
            let target = fs::read_link(&seat).ok().filter(|_| seat.join("class").exists());
            let pci = target.and_then(|target| Some(target.file_name()?.to_str()?.to_owned()));
            let numbers = names(&folder.join("ports"));
            let mut ports: Vec<_> =
                numbers.iter().filter_map(|number| port(&folder, number.parse().ok()?)).collect();
            ports.sort_by_key(|port| port.number);
            Device { name, numa_node, pci, netdev, ports }
        })
        .collect()
}

/// All devices below this root, with what keeps them from being used.
#[must_use]
pub fn found(root: &Path) -> Vec<Found> {
    let netdevs = netdevs(root);
    devices(root).iter().map(|device| Found::of(device, &netdevs)).collect()
}

/// The network interfaces of this network namespace: sysfs shows no others.
#[must_use]
pub fn netdevs(root: &Path) -> Vec<String> {
    names(&root.join("class/net"))
}

/// Packets that a port has lost, as far as its device notices; none where it counts nothing of that.
#[must_use]
pub fn lost_packets(root: &Path, device: &str, port: u8) -> Option<u64> {
    let ports = root.join("class/infiniband").join(device).join("ports");
    let folder = ports.join(port.to_string()).join("hw_counters");
    let counts = LOSSES.iter().filter_map(|name| read(&folder.join(name))?.parse::<u64>().ok());
    counts.reduce(u64::saturating_add)
}

/// What is there when libibverbs lists no device.
#[must_use]
pub fn emptiness(root: &Path, nodes: &Path) -> Emptiness {
    let has_devices = !names(&root.join("class/infiniband")).is_empty();
    let has_node = names(nodes).iter().any(|name| name.starts_with("uverbs"));
    Emptiness { has_devices, has_node }
}

fn port(device: &Path, number: u8) -> Option<Port> {
    let folder = device.join("ports").join(number.to_string());
    // "4: ACTIVE".
    let state = read(&folder.join("state"))?;
    let is_up = state.starts_with("4:");
    let state = state.split_once(':').map_or(state.as_str(), |(_, word)| word).trim().to_owned();
    let layer = match read(&folder.join("link_layer")).as_deref() {
        Some("InfiniBand") => LinkLayer::InfiniBand,
        _ => LinkLayer::Ethernet,
    };
    let gids = (0..GIDS_MAX).map_while(|index| gid(&folder, index));
    Some(Port { number, state, is_up, layer, gids: gids.filter(|entry| !entry.gid.is_zero()).collect() })
}

/// None behind the table's end.
fn gid(port: &Path, index: u16) -> Option<Entry> {
    let place = |folder: &str| -> PathBuf { port.join(folder).join(index.to_string()) };
    let index = u8::try_from(index).ok()?;
    // An empty place of an adapter's table cannot be read on some kernels, and is there nevertheless.
    let gid = read(&place("gids"))
        .map_or_else(|| place("gids").exists().then(Gid::default), |text| Gid::parse(&text))?;
    // Both cannot be read (EINVAL) where the address is of another network namespace: then it is not mine.
    let is_roce_v2 = read(&place("gid_attrs/types")).is_some_and(|text| text == "RoCE v2");
    let netdev = read(&place("gid_attrs/ndevs")).filter(|name| !name.is_empty());
    Some(Entry { index, gid, is_roce_v2, netdev })
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::rdma::gid::choose;
    use crate::transport::rdma::reason::{Reason, of_empty_list};

    /// Files below a folder, each `path: content`.
    fn plant(root: &Path, files: &[(&str, &str)]) {
        for (path, content) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    fn roce(root: &Path) {
        let port = "class/infiniband/mlx5_2/ports/1";
        let (zero, link_local) =
            ("0000:0000:0000:0000:0000:0000:0000:0000\n", "fe80:0000:0000:0000:0000:00ff:fe00:0001\n");
        let ipv4 = "0000:0000:0000:0000:0000:ffff:0a09:0001\n";
        for (index, gid, kind, netdev) in [
            (0, link_local, "IB/RoCE v1\n", "net1\n"),
            (1, link_local, "RoCE v2\n", "net1\n"),
            (2, ipv4, "IB/RoCE v1\n", "net1\n"),
            (3, ipv4, "RoCE v2\n", "net1\n"),
        ] {
            plant(
                root,
                &[
                    (&format!("{port}/gids/{index}"), gid),
                    (&format!("{port}/gid_attrs/types/{index}"), kind),
                    (&format!("{port}/gid_attrs/ndevs/{index}"), netdev),
                ],
            );
        }
        plant(
            root,
            &[
                (&format!("{port}/gids/4"), zero),
                // Of another network namespace: an address without type and interface.
                (&format!("{port}/gids/5"), ipv4),
                (&format!("{port}/state"), "4: ACTIVE\n"),
                (&format!("{port}/link_layer"), "Ethernet\n"),
                ("class/infiniband/mlx5_2/device/numa_node", "1\n"),
                ("class/net/net1/ifindex", "2\n"),
            ],
        );
    }

    #[test]
    fn a_planted_roce_device_is_read_and_its_routable_address_chosen() {
        let root = tempfile::tempdir().unwrap();
        roce(root.path());
        let devices = devices(root.path());
        let [device] = &devices[..] else { panic!("{devices:?}") };
        assert_eq!((device.name.as_str(), device.numa_node), ("mlx5_2", Some(1)));
        let [port] = &device.ports[..] else { panic!("{device:?}") };
        assert_eq!((port.number, port.is_up, port.layer), (1, true, LinkLayer::Ethernet));
        assert_eq!(port.state, "ACTIVE");
        assert_eq!(port.gids.iter().map(|entry| entry.index).collect::<Vec<_>>(), [0, 1, 2, 3, 5]);
        assert_eq!(choose(port.layer, &port.gids, &netdevs(root.path())).unwrap().index, 3);
    }

    #[test]
    fn losses_are_summed_where_they_are_counted() {
        let root = tempfile::tempdir().unwrap();
        roce(root.path());
        assert_eq!(lost_packets(root.path(), "mlx5_2", 1), None);
        let counters = "class/infiniband/mlx5_2/ports/1/hw_counters";
        for (name, count) in [("packet_seq_err", "3\n"), ("out_of_sequence", "4\n"), ("lifespan", "10\n")] {
            plant(root.path(), &[(&format!("{counters}/{name}"), count)]);
        }
        assert_eq!(lost_packets(root.path(), "mlx5_2", 1), Some(7));
        assert_eq!(lost_packets(root.path(), "mlx5_2", 2), None);
    }

    #[test]
    fn an_interface_of_another_namespace_has_no_address_here() {
        let root = tempfile::tempdir().unwrap();
        roce(root.path());
        fs::remove_dir_all(root.path().join("class/net/net1")).unwrap();
        let devices = devices(root.path());
        let port = &devices[0].ports[0];
        let (reason, _) = choose(port.layer, &port.gids, &netdevs(root.path())).unwrap_err();
        assert_eq!(reason, Reason::GidMissing);
    }

    #[test]
    fn a_port_that_is_down_and_an_infiniband_port_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let port = "class/infiniband/ib0/ports/1";
        plant(
            root.path(),
            &[
                (&format!("{port}/state"), "1: DOWN\n"),
                (&format!("{port}/link_layer"), "InfiniBand\n"),
                (&format!("{port}/gids/0"), "fe80:0000:0000:0000:0000:0000:0000:000a\n"),
                ("class/infiniband/ib0/device/numa_node", "-1\n"),
            ],
        );
        let devices = devices(root.path());
        let port = &devices[0].ports[0];
        assert_eq!((port.is_up, port.layer, devices[0].numa_node), (false, LinkLayer::InfiniBand, None));
        assert_eq!(choose(port.layer, &port.gids, &[]).unwrap().index, 0);
    }

    #[test]
    fn a_device_made_of_software_sits_where_its_interface_does() {
        let root = tempfile::tempdir().unwrap();
        let function = "devices/pci0000:40/0000:40:00.0/0000:41:10.0";
        plant(
            root.path(),
            &[
                (&format!("{function}/numa_node"), "1\n"),
                (&format!("{function}/class"), "0x020000\n"),
                (&format!("{function}/net/vb/mtu"), "4200\n"),
                ("class/infiniband/rxe_b/parent", "vb\n"),
                ("class/infiniband/rxe_b/ports/1/state", "4: ACTIVE\n"),
                ("class/infiniband/rxe_v/parent", "veth0\n"),
                ("class/infiniband/mlx5_0/node_guid", "\n"),
            ],
        );
        let link = |to: String, from: &str| {
            let from = root.path().join(from);
            fs::create_dir_all(from.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(to, from).unwrap();
        };
        link(format!("../../../{function}"), "class/net/vb/device");
        link(format!("../../../{function}"), "class/infiniband/mlx5_0/device");
        let seats: Vec<_> = devices(root.path())
            .into_iter()
            .map(|device| (device.name, device.numa_node, device.pci, device.netdev))
            .collect();
        let on_bus = Some("0000:41:10.0".to_owned());
        assert_eq!(
            seats,
            [
                ("mlx5_0".to_owned(), Some(1), on_bus.clone(), None),
                ("rxe_b".to_owned(), Some(1), on_bus, Some("vb".to_owned())),
                ("rxe_v".to_owned(), None, None, Some("veth0".to_owned())),
            ]
        );
        let found = found(root.path());
        assert_eq!(found[1].way.as_ref().unwrap_err().0, Reason::GidMissing);
    }

    #[test]
    fn a_host_without_devices_says_which_of_the_three_it_is() {
        let root = tempfile::tempdir().unwrap();
        let nodes = root.path().join("dev/infiniband");
        let why = || of_empty_list(emptiness(root.path(), &nodes));
        assert_eq!(why(), Reason::NoDevice);
        assert!(devices(root.path()).is_empty());
        roce(root.path());
        plant(&nodes, &[("rdma_cm", "")]);
        assert_eq!(why(), Reason::NoUverbsNode);
        plant(&nodes, &[("uverbs0", "")]);
        assert_eq!(why(), Reason::ProviderAbi);
    }
}

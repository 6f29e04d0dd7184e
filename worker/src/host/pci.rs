//! The PCI devices that matter here: GPUs, network functions and their RDMA devices, each with its NUMA node, read below a
//! root that tests make up.
//!
//! A device is known by its address on the bus and never by a name: names are given anew at every boot and in every
//! container. Sources: Documentation/ABI/testing/sysfs-bus-pci (`class`, `numa_node`, `physfn`), and include/linux/pci_ids.h for
//! classes and vendors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use serde::Serialize;

use super::addresses;

/// What device plugins name their grants by: `PCIDEVICE_<RESOURCE>=<address>,<address>` (sriov-network-device-plugin).
const GRANT_PREFIX: &str = "PCIDEVICE_";
/// The same plugins' `…_INFO` holds JSON and no list.
const GRANT_INFO_SUFFIX: &str = "_INFO";
/// PCI classes: 0x02 network controllers, 0x03 displays (3D controllers among them).
const CLASS_NETWORK: &str = "0x02";
const CLASS_DISPLAY: &str = "0x03";
/// Vendors whose displays show a console and compute nothing: ASPEED, Matrox, Cirrus, QEMU (three of them), VMware.
const CONSOLE_VENDORS: [&str; 7] = ["0x1a03", "0x102b", "0x1013", "0x1234", "0x1af4", "0x1b36", "0x15ad"];

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Its address on the bus, or the name of one that stands in for it.
    pub id: String,
    /// Vendor and device, as four hexadecimal digits each; empty for a stand-in.
    pub model: String,
    /// Its NUMA node; none when the host does not say.
    pub node: Option<u32>,
    /// Whether a device plugin gave it to this container.
    pub granted: bool,
}

/// A network function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Nic {
    /// Its address on the bus.
    pub id: String,
    /// Its interface in this network namespace; none when it is elsewhere or has another driver.
    pub interface: Option<String>,
    /// The physical function, if this is a virtual one.
    pub vf_of: Option<String>,
    /// Its NUMA node; none when the host does not say.
    pub node: Option<u32>,
    /// Its addresses, the link-local ones left out.
    pub addresses: Vec<IpAddr>,
    /// Its RDMA devices.
    pub rdma: Vec<Rdma>,
    /// Whether a device plugin gave it to this container.
    pub granted: bool,
}

/// An RDMA device, of which `rdma` says more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rdma {
    /// Its name.
    pub name: String,
}

/// The bus addresses that device plugins gave to this container, by the variable that says so.
#[must_use]
pub fn grants(env: &BTreeMap<String, String>) -> BTreeMap<String, Vec<String>> {
    let lists = env
        .iter()
        .filter(|(name, _)| name.starts_with(GRANT_PREFIX) && !name.ends_with(GRANT_INFO_SUFFIX))
        .map(|(name, list)| {
            let addresses = list.split(',').map(str::trim).filter(|address| !address.is_empty());
            (name.clone(), addresses.map(str::to_lowercase).collect())
        });
    lists.collect()
}

/// The RDMA devices of the network functions that this container was given; none where it was given no such function.
#[must_use]
pub fn granted_rdma(root: &Path, env: &BTreeMap<String, String>) -> Option<BTreeSet<String>> {
    let ids: BTreeSet<String> = grants(env).into_values().flatten().collect();
    let nics: Vec<Nic> = nics(root, &ids).into_iter().filter(|nic| nic.granted).collect();
    let names = nics.iter().flat_map(|nic| nic.rdma.iter().map(|rdma| rdma.name.clone()));
    (!nics.is_empty()).then(|| names.collect())
}

/// All network functions, in the order of their addresses.
#[must_use]
pub fn nics(root: &Path, granted: &BTreeSet<String>) -> Vec<Nic> {
    let devices = devices(root, CLASS_NETWORK).into_iter();
    devices.map(|id| nic(root, &id, granted.contains(&id))).collect()
}

/// All GPUs, in the order of their addresses.
#[must_use]
pub fn gpus(root: &Path, granted: &BTreeSet<String>) -> Vec<Gpu> {
    let is_gpu = |id: &String| !CONSOLE_VENDORS.contains(&attribute(root, id, "vendor").as_str());
    let gpu = |id: String| {
        let number = |name: &str| attribute(root, &id, name).trim_start_matches("0x").to_owned();
        let model = format!("{}:{}", number("vendor"), number("device"));
        // NVIDIA's container runtime shows a container only the GPUs that are its own here.
        let is_shown = root.join("proc/driver/nvidia/gpus").join(&id).is_dir();
        Gpu { model, node: node(root, &id), granted: is_shown || granted.contains(&id), id }
    };
    devices(root, CLASS_DISPLAY).into_iter().filter(is_gpu).map(gpu).collect()
}

/// The address of the network function that this container was given: the first one, in the order of the grants, that has
/// an interface here with an address.
#[must_use]
pub fn granted_address(root: &Path, env: &BTreeMap<String, String>) -> Option<IpAddr> {
    let ids = grants(env).into_values().flatten();
    ids.filter(|id| attribute(root, id, "class").starts_with(CLASS_NETWORK))
        .find_map(|id| nic(root, &id, true).addresses.first().copied())
}

/// The address of a virtual function that lies in this network namespace, for a container that was told of no grant itself:
/// what is in a pod's namespace is the pod's. None where the pod's own address is on a PCI device: then the namespace is the
/// host's, and nothing in it was given to anybody.
#[must_use]
pub fn own_address(root: &Path, pod_ip: IpAddr) -> Option<IpAddr> {
    let nics = nics(root, &BTreeSet::new());
    if nics.iter().any(|nic| nic.addresses.contains(&pod_ip)) {
        return None;
    }
    nics.into_iter().filter(|nic| nic.vf_of.is_some()).find_map(|nic| nic.addresses.first().copied())
}

fn nic(root: &Path, id: &str, granted: bool) -> Nic {
    let folder = root.join("sys/bus/pci/devices").join(id);
    let interface = names(&folder.join("net")).into_iter().next();
    let addresses = interface.as_ref().map(|name| addresses::of_interface(root, name)).unwrap_or_default();
    let vf_of = fs::read_link(folder.join("physfn"))
        .ok()
        .and_then(|target| Some(target.file_name()?.to_str()?.to_owned()));
    let own = names(&folder.join("infiniband"));
    // One that is made of software is not in the function's folder, and is of it nevertheless.
    let mut devices = datapath::transport::rdma::sysfs::devices(&root.join("sys"));
    devices.retain(|device| own.contains(&device.name) || device.pci.as_deref() == Some(id));
    let rdma = devices.into_iter().map(|device| Rdma { name: device.name }).collect();
    Nic { id: id.to_owned(), interface, vf_of, node: node(root, id), addresses, rdma, granted }
}

/// Addresses of all devices of a class.
fn devices(root: &Path, class: &str) -> Vec<String> {
    let mut devices = names(&root.join("sys/bus/pci/devices"));
    devices.retain(|id| attribute(root, id, "class").starts_with(class));
    devices
}

fn attribute(root: &Path, id: &str, name: &str) -> String {
    let path = root.join("sys/bus/pci/devices").join(id).join(name);
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// -1 is what the kernel says when the firmware did not.
fn node(root: &Path, id: &str) -> Option<u32> {
    attribute(root, id, "numa_node").parse().ok()
}

/// What is in a folder, sorted; nothing if there is none.
fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

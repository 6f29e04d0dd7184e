//! What ResourceSlices say (pure): the devices of dynamic resource allocation, where each lies, and which are free.
//!
//! Slices are read as JSON and not as the client library's type: the attributes that are lists (`ints`, `strings`) came
//! after the API version that the library is built for, and would be dropped without a word. Names and rules are those
//! of `resource.k8s.io/v1`; the older `basic` wrapper is looked through.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::quantity;
use super::unknown::Unknown;
use crate::topology::DeviceClass;

/// The driver that hands out CPUs.
const CPU_DRIVER: &str = "dra.cpu";
/// The driver that publishes every network interface of a host, so that only what says `rdma` is a NIC for us.
const EVERY_INTERFACE_DRIVER: &str = "dra.net";
/// Drivers of GPUs and of NICs whose names do not begin with `gpu.` or `nic.`.
const NIC_DRIVERS: [&str; 2] = [EVERY_INTERFACE_DRIVER, "sriovnetwork.k8snetworkplumbingwg.io"];
/// The NUMA node, under every name that drivers use, the standard one (KEP-6072) first.
const NUMA: [&str; 5] = [
    "resource.kubernetes.io/numaNode",
    "dra.net/numaNode",
    "dra.cpu/numaNodeID",
    "gpu.nvidia.com/numaNode",
    "gpu.nvidia.com/numa",
];
/// The NUMA node in a driver's own domain.
const NUMA_OWN: [&str; 3] = ["numaNode", "numaNodeID", "numa"];
/// The PCIe root and the PCI address.
const PCIE_ROOT: &str = "resource.kubernetes.io/pcieRoot";
const PCI_ADDRESS: &str = "resource.kubernetes.io/pciBusID";
/// Attributes that only GPUs have, whatever their domain.
const OF_GPUS: [&str; 3] = ["productName", "cudaComputeCapability", "cudaDriverVersion"];
/// Attributes that only network functions have.
const OF_NICS: [&str; 8] =
    ["rdma", "rdmaCapable", "isSriovVf", "PFName", "pfName", "vfID", "ifName", "rdmaDevice"];

/// One device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What it is asked for by: its driver; partitions of GPUs as `DRIVER/mig-PROFILE`, since their driver has others.
    pub name: String,
    /// What it is.
    pub what: What,
    /// Its NUMA node, where exactly one is published.
    pub numa: Option<u32>,
    /// Its PCIe root: `pci0000:00`.
    pub root: Option<String>,
    /// Its PCI address: `0000:03:00.1`.
    pub address: Option<String>,
    /// A GPU's model.
    pub model: Option<String>,
    /// No claim has it and no taint keeps it back.
    pub free: bool,
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Something that a job asks for by number.
    Device(DeviceClass),
    /// CPUs, in thousandths.
    Cpu(u64),
}

/// The devices of each node. `claims` (ResourceClaims) say which are taken, `rules` (DeviceTaintRules) which are kept
/// back.
#[must_use]
pub fn read(
    slices: &[&Value],
    claims: &[&Value],
    rules: &[&Value],
    unknown: &mut Unknown,
) -> BTreeMap<String, Vec<Device>> {
    let taken = allocated(claims);
    let mut nodes: BTreeMap<String, Vec<Device>> = BTreeMap::new();
    for ((driver, pool), slices) in pools(slices) {
        let newest = slices.iter().map(|slice| generation(slice)).max().unwrap_or(0);
        let slices: Vec<&Value> = slices.into_iter().filter(|slice| generation(slice) == newest).collect();
        let expected =
            slices[0].pointer("/spec/pool/resourceSliceCount").and_then(Value::as_u64).unwrap_or(1);
        if u64::try_from(slices.len()).ok() != Some(expected) {
            let text =
                format!("devices of {driver} are unknown ({} of {expected} slices are there)", slices.len());
            match text_at(slices[0], "/spec/nodeName") {
                Some(node) => unknown.of_host(text, node),
                None => unknown.of_all(format!("pool {pool}: {text}")),
            }
            continue;
        }
        for slice in slices {
            let devices = slice.pointer("/spec/devices").and_then(Value::as_array);
            for device in devices.into_iter().flatten() {
                let node = device["nodeName"].as_str().or_else(|| text_at(slice, "/spec/nodeName"));
                // A device that hangs off a network belongs to no host, and no locality is asked of it.
                let Some(node) = node else { continue };
                let id = [driver, pool, device["name"].as_str().unwrap_or_default()];
                let is_free = !taken.contains(&id) && !is_tainted(device, &id, rules);
                nodes.entry(node.to_owned()).or_default().extend(one(driver, device, is_free));
            }
        }
    }
    nodes
}

fn pools<'a>(slices: &[&'a Value]) -> BTreeMap<(&'a str, &'a str), Vec<&'a Value>> {
    let mut pools: BTreeMap<_, Vec<&Value>> = BTreeMap::new();
    for slice in slices {
        if let (Some(driver), Some(pool)) =
            (text_at(slice, "/spec/driver"), text_at(slice, "/spec/pool/name"))
        {
            pools.entry((driver, pool)).or_default().push(*slice);
        }
    }
    pools
}

fn generation(slice: &Value) -> i64 {
    slice.pointer("/spec/pool/generation").and_then(Value::as_i64).unwrap_or(0)
}

fn text_at<'a>(value: &'a Value, path: &str) -> Option<&'a str> {
    value.pointer(path).and_then(Value::as_str)
}

/// (driver, pool, device) of everything that a claim has. An administrator's look at a device takes it from nobody.
fn allocated<'a>(claims: &[&'a Value]) -> BTreeSet<[&'a str; 3]> {
    let mut taken = BTreeSet::new();
    for claim in claims {
        let results = claim.pointer("/status/allocation/devices/results").and_then(Value::as_array);
        for result in results.into_iter().flatten().filter(|result| result["adminAccess"] != true) {
            taken.insert(["driver", "pool", "device"].map(|key| result[key].as_str().unwrap_or_default()));
        }
    }
    taken
}

/// Whether a taint of its own or a rule keeps new pods from a device: our claims tolerate none.
fn is_tainted(device: &Value, id: &[&str; 3], rules: &[&Value]) -> bool {
    let keeps = |taint: &Value| matches!(taint["effect"].as_str(), Some("NoSchedule" | "NoExecute"));
    let own = body(device).get("taints").and_then(Value::as_array);
    let holds = |rule: &&Value| {
        let Some(selector) = rule.pointer("/spec/deviceSelector").filter(|selector| selector.is_object())
        else {
            return false;
        };
        let keys = ["driver", "pool", "device"].into_iter().zip(id);
        let mut given = keys.filter_map(|(key, id)| Some((selector.get(key)?.as_str()?, *id)));
        given.all(|(wanted, is)| wanted == is) && rule.pointer("/spec/taint").is_some_and(keeps)
    };
    own.into_iter().flatten().any(keeps) || rules.iter().any(holds)
}

fn body(device: &Value) -> &Value {
    device.get("basic").unwrap_or(device)
}

fn one(driver: &str, device: &Value, free: bool) -> Option<Device> {
    let body = body(device);
    let attributes = Attributes { driver, map: body.get("attributes") };
    let what = if driver == CPU_DRIVER {
        let capacity = [format!("{CPU_DRIVER}/cpu"), "cpu".to_owned()];
        let capacity = capacity.iter().find_map(|key| quantity::text(&body["capacity"][key]["value"]));
        // A driver that publishes each CPU as a device says no amount.
        What::Cpu(capacity.map_or(Some(1000), |text| quantity::millis(&text))?)
    } else {
        What::Device(class(driver, &attributes)?)
    };
    let name = match &what {
        What::Device(DeviceClass::Mig(profile)) => {
            // Partitions that share counters exclude each other: how many can be had at once is not their number.
            let shares = body.get("consumesCounters").and_then(Value::as_array);
            if shares.is_some_and(|counters| !counters.is_empty()) {
                return None;
            }
            format!("{driver}/mig-{profile}")
        }
        _ => driver.to_owned(),
    };
    Some(Device {
        name,
        what,
        numa: attributes.numa(),
        root: attributes.get(PCIE_ROOT).and_then(text),
        address: attributes.get(PCI_ADDRESS).and_then(text).map(|address| address.to_lowercase()),
        model: ["productName", "model"].into_iter().find_map(|name| text(attributes.any(name)?)),
        free,
    })
}

/// What a driver's device is, by what it publishes, else by the driver's name.
fn class(driver: &str, attributes: &Attributes<'_>) -> Option<DeviceClass> {
    let kind = driver.split('.').next().unwrap_or_default();
    let is_nic = NIC_DRIVERS.contains(&driver)
        || kind == "nic"
        || OF_NICS.iter().any(|name| attributes.any(name).is_some());
    if is_nic {
        let rdma = ["rdma", "rdmaCapable"].into_iter().find_map(|name| attributes.any(name));
        let can = rdma.map(|value| value["bool"] == true || value["string"] == "true");
        let can = can.unwrap_or(driver != EVERY_INTERFACE_DRIVER);
        return can.then_some(DeviceClass::Nic);
    }
    if kind != "gpu" && !OF_GPUS.iter().any(|name| attributes.any(name).is_some()) {
        return None;
    }
    match attributes.any("type").and_then(text).as_deref() {
        // AMD's driver calls a whole one `amdgpu`.
        None | Some("gpu" | "amdgpu") => Some(DeviceClass::Gpu),
        Some("mig") => Some(DeviceClass::Mig(attributes.any("profile").and_then(text)?)),
        // A GPU that is passed to a virtual machine is of no use to a container.
        Some(_) => None,
    }
}

/// A device's attributes. A name without a domain belongs to the driver's.
struct Attributes<'a> {
    driver: &'a str,
    map: Option<&'a Value>,
}

impl<'a> Attributes<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        let map = self.map?;
        map.get(name).or_else(|| {
            let (domain, own) = name.split_once('/')?;
            if domain == self.driver { map.get(own) } else { None }
        })
    }

    /// The attribute of that name in any domain.
    fn any(&self, name: &str) -> Option<&'a Value> {
        let is_it = |key: &str| key.rsplit_once('/').map_or(key, |(_, own)| own) == name;
        self.map?.as_object()?.iter().find(|(key, _)| is_it(key)).map(|(_, value)| value)
    }

    fn numa(&self) -> Option<u32> {
        let own = NUMA_OWN.into_iter().filter_map(|name| self.get(&format!("{}/{name}", self.driver)));
        NUMA.into_iter().filter_map(|name| self.get(name)).chain(own).find_map(number)
    }
}

/// A single text: a string, or a list of one.
fn text(value: &Value) -> Option<String> {
    let list = || value["strings"].as_array().filter(|list| list.len() == 1)?[0].as_str();
    value["string"].as_str().or_else(list).map(str::to_owned)
}

/// A single number that is not negative: an int, a list of one, or digits. A device near several NUMA nodes is on none.
fn number(value: &Value) -> Option<u32> {
    let list = || value["ints"].as_array().filter(|list| list.len() == 1)?[0].as_i64();
    let digits = || text(value)?.parse().ok();
    u32::try_from(value["int"].as_i64().or_else(list).or_else(digits)?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn device(driver: &str, attributes: &Value) -> Option<Device> {
        one(driver, &json!({"name": "d", "attributes": attributes}), true)
    }

    #[test]
    fn the_numa_node_is_found_under_every_name() {
        for (driver, attributes, expected) in [
            ("gpu.nvidia.com", json!({"resource.kubernetes.io/numaNode": {"int": 1}}), Some(1)),
            ("gpu.nvidia.com", json!({"resource.kubernetes.io/numaNode": {"ints": [1]}}), Some(1)),
            ("gpu.nvidia.com", json!({"resource.kubernetes.io/numaNode": {"ints": [0, 1]}}), None),
            ("gpu.nvidia.com", json!({"numa": {"int": 1}}), Some(1)),
            ("gpu.nvidia.com", json!({"gpu.nvidia.com/numa": {"int": -1}}), None),
            ("nic.example.com", json!({"dra.net/numaNode": {"int": 0}}), Some(0)),
            ("dra.cpu", json!({"dra.cpu/numaNodeID": {"int": 1}}), Some(1)),
            ("dra.cpu", json!({"numaNodeID": {"int": 1}}), Some(1)),
            ("gpu.example.com", json!({"numaNode": {"string": "2"}}), Some(2)),
            ("gpu.example.com", json!({"dra.cpu/socketID": {"int": 2}}), None),
        ] {
            assert_eq!(device(driver, &attributes).and_then(|device| device.numa), expected, "{attributes}");
        }
    }

    #[test]
    fn drivers_are_told_apart_by_what_they_publish() {
        let yes = json!({"bool": true});
        let no = json!({"bool": false});
        for (driver, attributes, expected) in [
            ("gpu.slipway.test", json!({}), Some(("gpu.slipway.test", DeviceClass::Gpu))),
            ("nic.slipway.test", json!({}), Some(("nic.slipway.test", DeviceClass::Nic))),
            ("dra.net", json!({"dra.net/rdma": yes}), Some(("dra.net", DeviceClass::Nic))),
            ("dra.net", json!({"dra.net/rdma": no}), None),
            ("dra.net", json!({"dra.net/ifName": {"string": "eth0"}}), None),
            (
                "sriovnetwork.k8snetworkplumbingwg.io",
                json!({"PFName": {"string": "ens1"}, "rdmaCapable": yes}),
                Some(("sriovnetwork.k8snetworkplumbingwg.io", DeviceClass::Nic)),
            ),
            (
                "accel.example.com",
                json!({"productName": {"string": "X"}}),
                Some(("accel.example.com", DeviceClass::Gpu)),
            ),
            ("gpu.nvidia.com", json!({"type": {"string": "vfio"}}), None),
            (
                "gpu.nvidia.com",
                json!({"type": {"string": "mig"}, "profile": {"string": "1g.10gb"}}),
                Some(("gpu.nvidia.com/mig-1g.10gb", DeviceClass::Mig("1g.10gb".to_owned()))),
            ),
            ("compute-domain.nvidia.com", json!({"type": {"string": "channel"}}), None),
        ] {
            let found = device(driver, &attributes).map(|device| (device.name, device.what));
            let expected = expected.map(|(name, class)| (name.to_owned(), What::Device(class)));
            assert_eq!(found, expected, "{driver} {attributes}");
        }
    }

    #[test]
    fn partitions_that_exclude_each_other_are_not_counted() {
        let partition = json!({"name": "d", "consumesCounters": [{"counterSet": "gpu-0"}], "attributes": {
            "type": {"string": "mig"}, "profile": {"string": "1g.10gb"}
        }});
        assert_eq!(one("gpu.nvidia.com", &partition, true), None);
    }

    #[test]
    fn only_whole_pools_of_the_newest_generation_are_trusted() {
        let slice = |generation: u64, count: u64, device: &str| {
            json!({"spec": {"driver": "gpu.x", "nodeName": "a", "devices": [{"name": device}],
                "pool": {"name": "a", "generation": generation, "resourceSliceCount": count}}})
        };
        let count = |slices: &[Value]| {
            let mut unknown = Unknown::default();
            let slices: Vec<&Value> = slices.iter().collect();
            let devices = read(&slices, &[], &[], &mut unknown);
            (devices.get("a").map_or(0, Vec::len), unknown.lines())
        };
        assert_eq!(count(&[slice(1, 1, "0"), slice(2, 2, "0"), slice(2, 2, "1")]), (2, vec![]));
        let missing = "devices of gpu.x are unknown (1 of 2 slices are there): host a";
        assert_eq!(count(&[slice(1, 1, "0"), slice(2, 2, "0")]), (0, vec![missing.to_owned()]));
    }

    #[test]
    fn claims_taints_and_rules_keep_devices_back() {
        let slice = json!({"spec": {"driver": "gpu.x", "nodeName": "a",
        "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": [
            {"name": "claimed"}, {"name": "looked-at"}, {"name": "ruled"}, {"name": "free"},
            {"name": "tainted", "taints": [{"key": "k", "effect": "NoExecute"}]},
            {"name": "noted", "basic": {"taints": [{"key": "k", "effect": "None"}]}},
        ]}});
        let claim = json!({"status": {"allocation": {"devices": {"results": [
            {"driver": "gpu.x", "pool": "p", "device": "claimed"},
            {"driver": "gpu.x", "pool": "p", "device": "looked-at", "adminAccess": true},
        ]}}}});
        let rule = json!({"spec": {"deviceSelector": {"driver": "gpu.x", "device": "ruled"}, "taint": {"effect": "NoSchedule"}}});
        let none = json!({"spec": {"taint": {"effect": "NoSchedule"}}});
        let devices = read(&[&slice], &[&claim], &[&rule, &none], &mut Unknown::default());
        let free: Vec<bool> = devices["a"].iter().map(|device| device.free).collect();
        assert_eq!(free, [false, true, false, true, false, true]);
    }
}

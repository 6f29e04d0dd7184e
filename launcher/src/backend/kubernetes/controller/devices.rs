//! From the names that placement chose to what pods ask for: extended resources, or classes and attributes of dynamic
//! resource allocation (pure).

use std::borrow::Borrow;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backend::kubernetes::objects::{DeviceSource, Devices};
use crate::job::spec::Locality;
use crate::job::spec::pod::DevicesSpec;
use crate::job::units::GpuMode;
use crate::placement::Need;

/// The attribute of a device's PCIe root; standard since Kubernetes 1.34.
const PCIE_ROOT: &str = "resource.kubernetes.io/pcieRoot";
/// Attributes of a device's NUMA node, the standard one (KEP-6072) first: drivers publish it under several names.
const NUMA_NODE: [&str; 4] =
    ["resource.kubernetes.io/numaNode", "dra.net/numaNode", "dra.cpu/numaNodeID", "gpu.nvidia.com/numa"];

/// What stands between a driver and the profile of a partition of its GPUs, in placement's names.
const PARTITION: &str = "/mig-";

/// The names by which a placement calls the devices of a job: of a resource, or of a driver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::backend::kubernetes) struct Names {
    pub(in crate::backend::kubernetes) gpu: Option<String>,
    pub(in crate::backend::kubernetes) nic: Option<String>,
}

impl Names {
    /// Takes in what somebody knows of them; what he does not know stays.
    pub(in crate::backend::kubernetes) fn learn(&mut self, told: Self) {
        self.gpu = told.gpu.or_else(|| self.gpu.take());
        self.nic = told.nic.or_else(|| self.nic.take());
    }

    /// What was written down of them with a pod's place.
    pub(in crate::backend::kubernetes) fn noted(place: &Value) -> Self {
        let name = |key: &str| place[key].as_str().map(str::to_owned);
        Self { gpu: name("gpu"), nic: name("nic") }
    }
}

/// What pods ask for, by names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::backend::kubernetes) struct Chosen {
    gpu: Option<Named>,
    nic: Option<Named>,
    near: Option<String>,
    is_dra: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    /// The resource, or the driver.
    name: String,
    /// The class; empty for a resource.
    class: String,
}

impl Named {
    fn source(&self) -> Option<DeviceSource<'_>> {
        let Self { name, class } = self;
        (!class.is_empty()).then_some(DeviceSource { class, driver: name })
    }
}

impl Chosen {
    /// The names by which `gpu` and `nic` are asked for. A name is a driver's when slices of that driver exist; partitions
    /// of its GPUs are called `DRIVER/mig-PROFILE`.
    pub(in crate::backend::kubernetes) fn of<V: Borrow<Value>>(
        gpu: Option<&str>,
        nic: Option<&str>,
        locality: Locality,
        slices: &[V],
        classes: &[V],
    ) -> Self {
        let is_driver = |name: &str| slices.iter().any(|slice| slice.borrow()["spec"]["driver"] == name);
        let partition_of = |name: &str| {
            let (driver, _) = name.split_once(PARTITION)?;
            is_driver(driver).then(|| driver.to_owned())
        };
        let partitioned = gpu.and_then(partition_of);
        let kind = if partitioned.is_some() { Kind::Partition } else { Kind::Whole };
        let gpu = partitioned.as_deref().or(gpu);
        let is_dra = [gpu, nic].into_iter().flatten().any(is_driver);
        let named = |name: Option<&str>, kind: Kind| {
            let name = name?.to_owned();
            let class =
                if is_dra { class_of(&name, kind, classes).unwrap_or_default() } else { String::new() };
            Some(Named { name, class })
        };
        let drivers: Vec<&str> = [gpu, nic].into_iter().flatten().collect();
        let near = if is_dra { near(locality, &drivers, slices) } else { None };
        Self { gpu: named(gpu, kind), nic: named(nic, Kind::Whole), near, is_dra }
    }

    /// A class that the job itself names is asked for, whichever others select devices of the same driver.
    pub(in crate::backend::kubernetes) fn with_classes_of<V: Borrow<Value>>(
        mut self,
        devices: Option<&DevicesSpec>,
        classes: &[V],
    ) -> Self {
        let Some(devices) = devices.filter(|_| self.is_dra) else { return self };
        for (chosen, class) in [(&mut self.gpu, &devices.gpu), (&mut self.nic, &devices.nic)] {
            if let (Some(chosen), Some(class)) = (chosen, class)
                && driver_of(class, classes).as_deref() == Some(chosen.name.as_str())
            {
                chosen.class.clone_from(class);
            }
        }
        self
    }

    pub(in crate::backend::kubernetes) fn as_devices<'a>(&'a self) -> Devices<'a> {
        let (gpu, nic) = (self.gpu.as_ref(), self.nic.as_ref());
        if self.is_dra {
            let source = |named: Option<&'a Named>| named.and_then(Named::source);
            return Devices::Dra { gpu: source(gpu), nic: source(nic), near: self.near.as_deref() };
        }
        Devices::Plugin {
            gpu: gpu.map(|named| named.name.as_str()),
            nic: nic.map(|named| named.name.as_str()),
        }
    }
}

/// Whether whole devices of a driver are wanted or partitions, which NVIDIA's driver tells apart by the attribute `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Whole,
    Partition,
}

/// The class of a driver's devices: names of classes are not standard, but their selectors name the driver. Of several
/// the first that asks for the wanted kind, else the first that asks for nothing else, else the first by name; never one
/// that asks for the other kind.
fn class_of<V: Borrow<Value>>(driver: &str, kind: Kind, classes: &[V]) -> Option<String> {
    let wanted = format!("device.driver=='{driver}'");
    let (own, other) = match kind {
        Kind::Whole => (".type=='gpu'", ".type=='mig'"),
        Kind::Partition => (".type=='mig'", ".type=='gpu'"),
    };
    let expressions = |class: &Value| -> Vec<String> {
        let selectors = class["spec"]["selectors"].as_array().into_iter().flatten();
        let texts = selectors.filter_map(|selector| selector["cel"]["expression"].as_str());
        texts.map(|text| text.replace('"', "'").split_whitespace().collect()).collect()
    };
    let named = classes.iter().filter_map(|class| {
        let class: &Value = class.borrow();
        let texts = expressions(class);
        let says = |words: &str| texts.iter().any(|text| text.contains(words));
        let is_whole = texts.len() == 1 && texts[0] == wanted;
        (says(&wanted) && !says(other)).then_some(())?;
        Some((!says(own), !is_whole, class["metadata"]["name"].as_str()?.to_owned()))
    });
    named.min().map(|(_, _, name)| name)
}

/// The driver of a class: what its selector says.
fn driver_of<V: Borrow<Value>>(class: &str, classes: &[V]) -> Option<String> {
    let class = classes.iter().map(Borrow::borrow).find(|one| one["metadata"]["name"] == class)?;
    let mut texts =
        class["spec"]["selectors"].as_array()?.iter().filter_map(|one| one["cel"]["expression"].as_str());
    texts.find_map(|text| {
        let text: String = text.replace('"', "'").split_whitespace().collect();
        let (_, rest) = text.split_once("device.driver=='")?;
        Some(rest.split_once('\'')?.0.to_owned())
    })
}

/// A job names classes of dynamic resource allocation, and placement goes by their drivers.
pub(in crate::backend::kubernetes) fn name_drivers<V: Borrow<Value>>(need: &mut Need, classes: &[V]) {
    let driver = |name: &Option<String>| driver_of(name.as_deref()?, classes);
    if let Some(driver) = driver(&need.nic_name) {
        need.nic_name = Some(driver);
    }
    if let Some(driver) = driver(&need.gpu_name) {
        need.gpu_name = Some(match &need.gpu_mode {
            GpuMode::Mig { profile } => format!("{driver}{PARTITION}{profile}"),
            GpuMode::Exclusive | GpuMode::Shared => driver,
        });
    }
}

/// The attribute in which devices that belong together are equal: one that devices of all drivers publish.
fn near<V: Borrow<Value>>(locality: Locality, drivers: &[&str], slices: &[V]) -> Option<String> {
    let candidates: &[&str] = match locality {
        Locality::Pcie => &[PCIE_ROOT],
        Locality::Numa => &NUMA_NODE,
        Locality::None => return None,
    };
    let published = |driver: &str| -> BTreeSet<String> {
        let slices =
            slices.iter().map(Borrow::borrow).filter(|slice: &&Value| slice["spec"]["driver"] == driver);
        let devices = slices.flat_map(|slice| slice["spec"]["devices"].as_array().into_iter().flatten());
        let names = devices.flat_map(|device| {
            let attributes =
                device["attributes"].as_object().or_else(|| device["basic"]["attributes"].as_object());
            attributes.into_iter().flat_map(|attributes| attributes.keys())
        });
        // An unqualified attribute belongs to its driver's domain.
        names.map(|name| if name.contains('/') { name.clone() } else { format!("{driver}/{name}") }).collect()
    };
    let sets: Vec<BTreeSet<String>> = drivers.iter().map(|driver| published(driver)).collect();
    let common = candidates.iter().find(|name| sets.iter().all(|set| set.contains(**name)));
    common.map(|name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(driver: &str, attributes: &Value) -> Value {
        json!({"spec": {"driver": driver, "devices": [{"name": "0", "attributes": attributes}]}})
    }

    fn class(name: &str, expression: &str) -> Value {
        json!({"metadata": {"name": name}, "spec": {"selectors": [{"cel": {"expression": expression}}]}})
    }

    #[test]
    fn drivers_become_classes_and_what_they_share() {
        let both =
            json!({"resource.kubernetes.io/pcieRoot": {"string": "a"}, "dra.net/numaNode": {"int": 0}});
        let slices = [slice("gpu.test", &both), slice("dra.net", &json!({"numaNode": {"int": 0}}))];
        let classes = [
            class("big-gpus", "device.driver == \"gpu.test\" && device.attributes['gpu.test'].big"),
            class("gpus", "device.driver == 'gpu.test'"),
            class("nics", "device.driver == 'dra.net'"),
        ];
        let chosen = Chosen::of(Some("gpu.test"), Some("dra.net"), Locality::Numa, &slices, &classes);
        assert_eq!(
            chosen.as_devices(),
            Devices::Dra {
                gpu: Some(DeviceSource { class: "gpus", driver: "gpu.test" }),
                nic: Some(DeviceSource { class: "nics", driver: "dra.net" }),
                near: Some("dra.net/numaNode"),
            }
        );
        let pcie = Chosen::of(Some("gpu.test"), Some("dra.net"), Locality::Pcie, &slices, &classes);
        assert!(matches!(pcie.as_devices(), Devices::Dra { near: None, .. }), "the NICs do not publish it");
        assert_eq!(driver_of("big-gpus", &classes).as_deref(), Some("gpu.test"));
        assert_eq!(driver_of("none", &classes), None);
    }

    #[test]
    fn partitions_are_asked_of_their_driver_by_a_class_of_partitions() {
        let slices = [slice("gpu.nvidia.com", &json!({"type": {"string": "mig"}}))];
        let of_type = |name: &str, kind: &str| {
            let attribute = "device.attributes['gpu.nvidia.com'].type";
            class(name, &format!("device.driver == 'gpu.nvidia.com' && {attribute} == '{kind}'"))
        };
        let classes = [of_type("gpu.nvidia.com", "gpu"), of_type("mig.nvidia.com", "mig")];
        for (name, class) in
            [("gpu.nvidia.com/mig-1g.10gb", "mig.nvidia.com"), ("gpu.nvidia.com", "gpu.nvidia.com")]
        {
            let chosen = Chosen::of(Some(name), None, Locality::None, &slices, &classes);
            let gpu = Some(DeviceSource { class, driver: "gpu.nvidia.com" });
            assert_eq!(chosen.as_devices(), Devices::Dra { gpu, nic: None, near: None });
        }
        let chosen = Chosen::of(Some("nvidia.com/mig-1g.10gb"), None, Locality::None, &slices, &classes);
        assert!(matches!(chosen.as_devices(), Devices::Plugin { .. }), "a plugin's name has a domain, too");
    }

    #[test]
    fn a_class_that_the_job_names_is_asked_for() {
        let slices = [slice("gpu.test", &json!({}))];
        let classes = [
            class("big-gpus", "device.driver == 'gpu.test' && device.attributes['gpu.test'].big"),
            class("gpus", "device.driver == 'gpu.test'"),
        ];
        let devices = DevicesSpec { gpu: Some("big-gpus".to_owned()), ..DevicesSpec::default() };
        let mut need = Need { gpu_name: devices.gpu.clone(), ..Need::default() };
        name_drivers(&mut need, &classes);
        assert_eq!(need.gpu_name.as_deref(), Some("gpu.test"));
        let chosen = Chosen::of(Some("gpu.test"), None, Locality::None, &slices, &classes);
        let chosen = chosen.with_classes_of(Some(&devices), &classes);
        let gpu = Some(DeviceSource { class: "big-gpus", driver: "gpu.test" });
        assert_eq!(chosen.as_devices(), Devices::Dra { gpu, nic: None, near: None });
        need = Need { gpu_name: devices.gpu, gpu_mode: GpuMode::Mig { profile: "1g".to_owned() }, ..need };
        name_drivers(&mut need, &classes);
        assert_eq!(need.gpu_name.as_deref(), Some("gpu.test/mig-1g"));
    }

    #[test]
    fn other_names_are_resources() {
        let chosen = Chosen::of::<Value>(Some("nvidia.com/gpu"), None, Locality::Numa, &[], &[]);
        assert_eq!(chosen.as_devices(), Devices::Plugin { gpu: Some("nvidia.com/gpu"), nic: None });
    }
}

//! The names under which a job can ask for its devices: all of its workers use the same (pure).

use super::Request;
use crate::job::spec::Locality;
use crate::job::spec::pod::DevicesBy;
use crate::job::units::GpuMode;
use crate::topology::{Cluster, DeviceClass, Mechanism};

/// Pairs of a GPU's and a NIC's name that are tried: clusters have a handful of pools, and each pair costs a solution.
const PAIRS_MAX: usize = 64;

/// One way to ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Names<'a> {
    /// For GPUs; none where none are wanted.
    pub(super) gpu: Option<&'a str>,
    /// For NICs.
    pub(super) nic: Option<&'a str>,
    /// The kubelet hands the GPUs out, and so aligns them.
    pub(super) gpu_by_kubelet: bool,
    /// The kubelet hands the NICs out.
    pub(super) nic_by_kubelet: bool,
}

/// Every way to ask that the cluster knows, in the order of the names; never empty.
///
/// # Errors
/// What the cluster does not offer.
pub(super) fn candidates<'a>(
    cluster: &'a Cluster,
    request: &'a Request,
) -> Result<Vec<Names<'a>>, Vec<String>> {
    let need = &request.need;
    let gpus =
        pool(cluster, request, need.gpus, need.gpu_name.as_deref(), &gpu_classes(&need.gpu_mode), "GPUs");
    let nics = pool(cluster, request, need.nics, need.nic_name.as_deref(), &[DeviceClass::Nic], "RDMA NICs");
    let (gpus, nics) = match (gpus, nics) {
        (Ok(gpus), Ok(nics)) => (gpus, nics),
        (gpus, nics) => return Err(gpus.err().into_iter().chain(nics.err()).collect()),
    };
    let pairs = gpus.iter().flat_map(|gpu| nics.iter().map(move |nic| (*gpu, *nic)));
    let by_kubelet = |name: Option<&str>| {
        name.is_some_and(|name| cluster.devices.get(name).is_none_or(|kind| kind.by == Mechanism::Plugin))
    };
    let names: Vec<Names<'a>> = pairs
        .map(|(gpu, nic)| Names {
            gpu,
            nic,
            gpu_by_kubelet: by_kubelet(gpu),
            nic_by_kubelet: by_kubelet(nic),
        })
        // Neither the kubelet nor the scheduler's allocator aligns devices that the other one hands out.
        .filter(|names| {
            let is_mixed =
                names.gpu.is_some() && names.nic.is_some() && names.gpu_by_kubelet != names.nic_by_kubelet;
            request.locality == Locality::None || !is_mixed
        })
        .take(PAIRS_MAX)
        .collect();
    if names.is_empty() {
        return Err(vec![
            "GPUs and NICs are handed out by different mechanisms (device plugins, DRA), and nothing aligns one's \
             with the other's: use locality none, or name two of one mechanism in spec.pod.devices"
                .to_owned(),
        ]);
    }
    Ok(names)
}

/// The classes that serve a mode, the better first: a later one only where no earlier one is offered.
fn gpu_classes(mode: &GpuMode) -> Vec<DeviceClass> {
    match mode {
        GpuMode::Exclusive => vec![DeviceClass::Gpu],
        GpuMode::Shared => vec![DeviceClass::SharedGpu, DeviceClass::Gpu],
        GpuMode::Mig { profile } => vec![DeviceClass::Mig(profile.clone())],
    }
}

fn pool<'a>(
    cluster: &'a Cluster,
    request: &'a Request,
    count: u32,
    named: Option<&'a str>,
    classes: &[DeviceClass],
    what: &str,
) -> Result<Vec<Option<&'a str>>, String> {
    if count == 0 {
        return Ok(vec![None]);
    }
    if let Some(name) = named {
        return check_named(cluster, name, classes, what).map(|()| vec![Some(name)]);
    }
    let is_wanted = |by: Mechanism| match request.need.devices_by {
        DevicesBy::Auto => true,
        DevicesBy::Plugin => by == Mechanism::Plugin,
        DevicesBy::Dra => by == Mechanism::Dra,
    };
    for class in classes {
        let offered = cluster.devices.iter().filter(|(_, kind)| kind.class == *class && is_wanted(kind.by));
        let found: Vec<Option<&str>> = offered.map(|(name, _)| Some(name.as_str())).collect();
        if !found.is_empty() {
            return Ok(found);
        }
    }
    let wanted = classes.first().map_or_else(|| what.to_owned(), of_class);
    let by = match request.need.devices_by {
        DevicesBy::Auto => "",
        DevicesBy::Plugin => " by a device plugin",
        DevicesBy::Dra => " by DRA",
    };
    Err(format!("no host offers {wanted}{by}; {}", offers(cluster)))
}

/// Whether a name that the job gives can be what it is meant to be. Devices of a kind that we do not know are believed.
fn check_named(cluster: &Cluster, name: &str, classes: &[DeviceClass], what: &str) -> Result<(), String> {
    match cluster.devices.get(name) {
        Some(kind) if !classes.contains(&kind.class) => {
            Err(format!("{name} is asked for as {what} and stands for {}", of_class(&kind.class)))
        }
        Some(_) => Ok(()),
        None if cluster.hosts.iter().any(|host| host.capacity.devices.contains_key(name)) => Ok(()),
        None => Err(format!("no host offers {name}; {}", offers(cluster))),
    }
}

fn of_class(class: &DeviceClass) -> String {
    match class {
        DeviceClass::Gpu => "whole GPUs".to_owned(),
        DeviceClass::SharedGpu => "shared GPUs".to_owned(),
        DeviceClass::Mig(profile) => format!("GPU partitions {profile}"),
        DeviceClass::Nic => "RDMA NICs".to_owned(),
    }
}

fn offers(cluster: &Cluster) -> String {
    if cluster.devices.is_empty() {
        return "no devices are offered".to_owned();
    }
    let names: Vec<&str> = cluster.devices.keys().map(String::as_str).collect();
    format!("there is {}", names.join(", "))
}

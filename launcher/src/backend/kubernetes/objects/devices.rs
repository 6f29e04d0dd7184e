//! How a worker's GPUs and NICs are asked for: as extended resources of device plugins with networks by Multus, or as a
//! claim of dynamic resource allocation (pure).
//!
//! A device plugin never shares a device between containers, so a sidecar that is to use a NIC asks for one of its own. A
//! claim is the pod's, and both containers see all of it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Render, RenderError};
use crate::backend::kubernetes::names;
use crate::job::spec::Locality;
use crate::job::units::GpuMode;
use crate::job::validate::cluster::CLAIM_REQUESTS_MAX;

/// The pod's name for its claim.
pub(super) const CLAIM: &str = "devices";
/// The annotation that Multus reads.
const NETWORKS_ANNOTATION: &str = "k8s.v1.cni.cncf.io/networks";

/// Under which names a cluster hands devices out, as placement chose them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices<'a> {
    /// Extended resources of the nodes.
    Plugin {
        /// The resource of a GPU: `nvidia.com/gpu`.
        gpu: Option<&'a str>,
        /// The resource of a NIC: `openshift.io/rdma_a`.
        nic: Option<&'a str>,
    },
    /// Dynamic resource allocation.
    Dra {
        /// Where GPUs come from.
        gpu: Option<DeviceSource<'a>>,
        /// Where NICs come from.
        nic: Option<DeviceSource<'a>>,
        /// The attribute, qualified by its domain, in which devices that belong together must be equal
        /// (`resource.kubernetes.io/pcieRoot`): of each GPU and its NIC with locality pcie, of all of them with numa.
        /// None: they may lie anywhere.
        near: Option<&'a str>,
    },
}

/// Where devices come from, with dynamic resource allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSource<'a> {
    /// The DeviceClass; found by its driver, since names of classes are not standard.
    pub class: &'a str,
    /// The driver, which is also the domain of its attributes.
    pub driver: &'a str,
}

/// What the containers ask for.
#[derive(Debug, Default)]
pub(super) struct Asked<'a> {
    /// Extended resources of the ranks' container.
    pub(super) of_ranks: Vec<(&'a str, u32)>,
    /// Those of the sidecar.
    pub(super) of_sidecar: Vec<(&'a str, u32)>,
    /// Whether the pod has a claim, all of whose devices both containers see.
    pub(super) claim: bool,
    /// Whether the sidecar has a NIC that it registers memory with.
    pub(super) sidecar_rdma: bool,
}

/// What the containers ask for.
pub(super) fn asked<'a>(render: &Render<'a>) -> Result<Asked<'a>, RenderError> {
    let resources = &render.job.resources;
    let own_nics = render.job.pod.sidecar.as_ref().map_or(0, |sidecar| sidecar.nics);
    match render.devices {
        Devices::Plugin { gpu, nic } => {
            let named = |count: u32, name: Option<&'a str>, what| match name {
                Some(name) if count > 0 => Ok(vec![(name, count)]),
                None if count > 0 => Err(RenderError::NoName { what }),
                _ => Ok(Vec::new()),
            };
            let mut of_ranks = named(resources.gpus, gpu, "GPUs")?;
            of_ranks.extend(named(resources.nics, nic, "NICs")?);
            let of_sidecar = named(own_nics, nic, "NICs")?;
            Ok(Asked { of_ranks, of_sidecar, claim: false, sidecar_rdma: own_nics > 0 })
        }
        Devices::Dra { .. } => Ok(Asked {
            claim: resources.gpus > 0 || resources.nics > 0,
            sidecar_rdma: resources.nics > 0,
            ..Asked::default()
        }),
    }
}

fn numbered(what: &'static str, count: u32) -> impl Iterator<Item = String> {
    (0..count).map(move |index| format!("{what}{index}"))
}

/// The annotation for Multus: one network for each NIC of the pod, in turn. Multus gives the pod's devices of a pool to
/// the networks in order; which container has which is told by the devices' addresses, never by interface names.
pub(super) fn networks(render: &Render<'_>, asked: &Asked<'_>) -> BTreeMap<String, String> {
    let networks = render.job.pod.devices.as_ref().map_or(&[][..], |devices| &devices.networks);
    let Devices::Plugin { nic: Some(nic), .. } = render.devices else { return BTreeMap::new() };
    let of = |list: &[(&str, u32)]| -> u32 {
        list.iter().filter(|(name, _)| *name == nic).map(|(_, count)| *count).sum()
    };
    let count = of(&asked.of_ranks).saturating_add(of(&asked.of_sidecar));
    if networks.is_empty() || count == 0 {
        return BTreeMap::new();
    }
    let in_turn = networks.iter().cycle().take(usize::try_from(count).unwrap_or(usize::MAX));
    let list: Value = in_turn
        .map(|network| match network.split_once('/') {
            Some((namespace, name)) => json!({ "name": name, "namespace": namespace }),
            None => json!({ "name": network }),
        })
        .collect();
    BTreeMap::from([(NETWORKS_ANNOTATION.to_owned(), list.to_string())])
}

/// The template of the workers' claims; none where devices come from plugins, or there are none.
///
/// # Errors
/// When nobody said which class devices are of, or there are more than a claim can ask for.
pub fn claim_template(render: &Render<'_>) -> Result<Option<Value>, RenderError> {
    let Devices::Dra { gpu, nic, near } = render.devices else { return Ok(None) };
    let resources = &render.job.resources;
    let devices = resources.gpus.saturating_add(resources.nics);
    if devices == 0 {
        return Ok(None);
    }
    if u64::from(devices) > CLAIM_REQUESTS_MAX {
        return Err(RenderError::TooManyDevices { devices, limit: CLAIM_REQUESTS_MAX });
    }
    let mut requests = Vec::new();
    for (what, people, count, source) in
        [("gpu", "GPUs", resources.gpus, gpu), ("nic", "NICs", resources.nics, nic)]
    {
        let source = match source {
            Some(source) => source,
            None if count == 0 => continue,
            None => return Err(RenderError::NoName { what: people }),
        };
        let selectors = if what == "gpu" { gpu_selectors(render, &source) } else { nic_selectors(&source) };
        requests.extend(numbered(what, count).map(|name| request(&name, &source, &selectors)));
    }
    let mut claim = json!({ "requests": requests });
    let constraints: Vec<Value> = match near {
        Some(attribute) => groups(render)
            .into_iter()
            .filter(|group| group.len() > 1)
            .map(|group| json!({ "requests": group, "matchAttribute": attribute }))
            .collect(),
        None => Vec::new(),
    };
    if !constraints.is_empty() {
        claim["constraints"] = constraints.into();
    }
    Ok(Some(json!({
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": render.metadata(&names::claim_template(&render.job.name)),
        "spec": {
            "metadata": { "labels": render.labels() },
            "spec": { "devices": claim },
        },
    })))
}

/// One device: a request for two would put both behind one root wherever a constraint names it.
fn request(name: &str, source: &DeviceSource<'_>, selectors: &[String]) -> Value {
    let mut exactly = json!({ "deviceClassName": source.class, "allocationMode": "ExactCount", "count": 1 });
    if !selectors.is_empty() {
        exactly["selectors"] =
            selectors.iter().map(|expression| json!({ "cel": { "expression": expression } })).collect();
    }
    json!({ "name": name, "exactly": exactly })
}

/// Requests whose devices lie together: with pcie each GPU and its NIC, as placement counts them (what is left over of one kind
/// has no such bond: where no root has two of it, none could be kept), else all of them.
fn groups(render: &Render<'_>) -> Vec<Vec<String>> {
    let (gpus, nics) = (render.job.resources.gpus, render.job.resources.nics);
    match render.job.resources.locality {
        Locality::None => Vec::new(),
        Locality::Numa => vec![numbered("gpu", gpus).chain(numbered("nic", nics)).collect()],
        Locality::Pcie => {
            (0..gpus.min(nics)).map(|pair| vec![format!("gpu{pair}"), format!("nic{pair}")]).collect()
        }
    }
}

/// What a GPU must be. A rule that reads an attribute that a device lacks ends the whole allocation with an error, so
/// each asks first whether it is there (`resource.k8s.io/v1`, CELDeviceSelector).
fn gpu_selectors(render: &Render<'_>, source: &DeviceSource<'_>) -> Vec<String> {
    let attributes = attributes(source);
    let mut selectors = Vec::new();
    if let GpuMode::Mig { profile } = &render.job.resources.gpu_mode {
        selectors.push(format!("has({attributes}.profile) && {attributes}.profile == {profile:?}"));
    }
    let model = render.job.pod.devices.as_ref().and_then(|devices| devices.gpu_model.as_ref());
    if let Some(model) = model {
        let pattern = pattern(model);
        // Drivers have two names for it.
        let named = ["productName", "model"]
            .map(|name| format!("has({attributes}.{name}) && {attributes}.{name}.matches({pattern:?})"));
        selectors.push(named.join(" || "));
    }
    selectors
}

/// What a NIC must be: able to do RDMA, by the words of the drivers that say so.
fn nic_selectors(source: &DeviceSource<'_>) -> Vec<String> {
    let word = match source.driver {
        "dra.net" => "rdma",
        "sriovnetwork.k8snetworkplumbingwg.io" => "rdmaCapable",
        _ => return Vec::new(),
    };
    let attributes = attributes(source);
    vec![format!("has({attributes}.{word}) && {attributes}.{word}")]
}

fn attributes(source: &DeviceSource<'_>) -> String {
    format!("device.attributes[{:?}]", source.driver)
}

/// A model with `*` for anything as a regular expression, without a backslash, which two layers of quoting would each
/// take for their own. Labels have `-` where drivers have spaces, so either stands for both.
fn pattern(model: &str) -> String {
    let mut pattern = String::from("^");
    for c in model.chars() {
        match c {
            '*' => pattern.push_str(".*"),
            '-' | ' ' => pattern.push_str("[- ]"),
            _ if c.is_alphanumeric() || c == '_' => pattern.push(c),
            '^' | ']' | '[' | '\\' | '"' => pattern.push('.'),
            _ => pattern.extend(['[', c, ']']),
        }
    }
    pattern.push('$');
    pattern
}

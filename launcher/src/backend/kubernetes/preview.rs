//! What a cluster would make of a job: the plan with its reasons, and every object, with nothing created.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use serde_json::Value;
use worker::units::Rank;

use super::client;
use super::controller::devices::{self, Chosen};
use super::jobs::Jobs;
use super::objects::{self, ChildKind, Render};
use super::sources::{Gathered, Source};
use crate::backend::{Plan, PlannedWorker};
use crate::error::{ExitCode, Failure};
use crate::job::Job;
use crate::output;
use crate::placement::{self, Placement, Unplaceable};
use crate::topology::kubernetes;

/// What stands in the objects for what only a controller knows.
const SHOWN_IMAGE: &str = "slipway/worker";
const SHOWN_UID: &str = "00000000-0000-0000-0000-000000000000";
const SHOWN_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7443);

/// What would become of a job.
#[derive(Debug)]
pub struct Preview {
    /// Where it would go; without workers when it would not start now.
    pub plan: Plan,
    /// Why it would not start now.
    pub refusal: Option<Unplaceable>,
    /// Everything that would be made.
    pub objects: Vec<Value>,
}

impl Preview {
    /// Why it would wait, one line each; empty when it would start.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        self.refusal.iter().flat_map(Unplaceable::lines).collect()
    }

    /// The plan for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = output::job::plan(&self.plan);
        for reason in self.reasons() {
            text.push_str(&format!("  waits: {reason}\n"));
        }
        text
    }

    /// The objects as YAML documents.
    ///
    /// # Errors
    /// When they cannot be written as YAML, which would be a fault of ours.
    pub fn yaml(&self) -> Result<String, Failure> {
        output::yaml::documents(&self.objects)
            .map_err(|error| Failure::new(ExitCode::Internal, "failed to print YAML").because(&error))
    }
}

/// Looks at the cluster, plans and renders; asks the API server whether it would take the job.
///
/// # Errors
/// When the cluster cannot be read, or would refuse the job.
pub async fn preview(jobs: &Jobs, job: &Job, document: &Value) -> Result<Preview, Failure> {
    jobs.try_create(document).await?;
    let (placed, gathered, mut notes) = match Gathered::read(jobs.client()).await {
        Ok(gathered) => {
            let cluster = kubernetes::cluster(&gathered.facts(), &BTreeMap::new());
            let notes = cluster.unknown.clone();
            let mut request = objects::request(job);
            devices::name_drivers(&mut request.need, &gathered.of(Source::DeviceClasses));
            (Some(placement::place(&cluster, &request)), Some(gathered), notes)
        }
        // A submitter need not be allowed to look at nodes: the controller plans.
        Err(kube::Error::Api(status)) if status.code == 403 => {
            let note = "where its workers would go is not known: you may not list nodes".to_owned();
            (None, None, vec![note])
        }
        Err(error) => return Err(client::refused("look at the cluster", &error)),
    };
    let (placement, refusal) = match placed {
        Some(Ok(placement)) => (placement, None),
        Some(Err(refusal)) => (Placement::default(), Some(refusal)),
        None => (Placement::default(), None),
    };
    notes.splice(0..0, placement.notes.iter().cloned());
    if job.servers() > 0 {
        let servers = job.servers();
        notes.push(format!(
            "{servers} data servers go where the scheduler puts them, when the workers have their places"
        ));
    }
    let objects = match render(jobs, job, &placement, gathered.as_ref()) {
        Ok(objects) => objects,
        // What cannot be placed need not have a name either; the reasons say why.
        Err(_) if refusal.is_some() => Vec::new(),
        Err(failure) => return Err(failure),
    };
    Ok(Preview { plan: plan(job, &placement, notes), refusal, objects })
}

/// What a user sees when the job would not fit if nothing else ran.
#[must_use]
pub fn never_fits(refusal: &Unplaceable) -> Failure {
    let mut failure = Failure::from_error(ExitCode::Unavailable, refusal);
    failure.causes.clone_from(&refusal.reasons);
    failure
        .hint("it would not fit if nothing else ran: ask for fewer workers, or for less of what each needs")
}

fn plan(job: &Job, placement: &Placement, notes: Vec<String>) -> Plan {
    let each = job.run.ranks_per_worker.get();
    let count = job.workers.count.get();
    let workers = placement.workers.iter().map(|place| {
        let index = place.worker.0;
        let ranks = if index < count { index * each..(index + 1) * each } else { 0..0 };
        PlannedWorker {
            worker: place.worker,
            host: place.host.clone(),
            ranks: ranks.map(Rank).collect(),
            serves: false,
            cpus: Vec::new(),
            numa_node: place.numa_node,
            gpus: Vec::new(),
            chunks_owned: 0,
            bytes_owned: 0,
        }
    });
    Plan {
        name: job.name.clone(),
        backend: "kubernetes".to_owned(),
        ranks: job.ranks().get(),
        command: job.run.command.clone(),
        workdir: job.run.workdir.clone(),
        workers: workers.collect(),
        data: None,
        notes,
    }
}

fn render(
    jobs: &Jobs,
    job: &Job,
    placement: &Placement,
    gathered: Option<&Gathered>,
) -> Result<Vec<Value>, Failure> {
    let of = |source| gathered.map(|gathered| gathered.of(source)).unwrap_or_default();
    let (slices, classes) = (of(Source::Slices), of(Source::DeviceClasses));
    let named = job.pod.devices.clone().unwrap_or_default();
    let gpu = placement.gpu_name.as_deref().or(named.gpu.as_deref());
    let nic = placement.nic_name.as_deref().or(named.nic.as_deref());
    let chosen = Chosen::of(gpu, nic, job.resources.locality, &slices, &classes)
        .with_classes_of(job.pod.devices.as_ref(), &classes);
    let has_job_sets = gathered.is_some_and(|gathered| gathered.has_job_sets);
    let render = Render {
        job,
        namespace: jobs.namespace(),
        uid: SHOWN_UID,
        child: if has_job_sets { ChildKind::JobSet } else { ChildKind::Job },
        sidecar_image: SHOWN_IMAGE,
        launcher: SHOWN_ADDRESS,
        devices: chosen.as_devices(),
    };
    let failed = |error: objects::RenderError| Failure::from_error(ExitCode::Unavailable, &error);
    let mut all = objects::needed(&render).map_err(failed)?;
    all.push(objects::child(&render).map_err(failed)?);
    all.extend(objects::servers(&render));
    Ok(all)
}

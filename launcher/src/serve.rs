//! `launcher serve`: the control plane of a cluster in one process. Several may run; one of them leads.

use std::sync::Arc;

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::backend::kubernetes::client::{connect, refused};
use crate::backend::kubernetes::controller::{Controller, Options};
use crate::backend::kubernetes::names;
use crate::backend::kubernetes::objects::ChildKind;
use crate::backend::kubernetes::sources::JOBSET_GROUP;
use crate::cli::cluster::{ChildFlag, Serve};
use crate::error::{ExitCode, Failure};
use crate::rendezvous::server::Server;
use http::Readiness;
use metrics::Metrics;

pub mod http;
pub mod leader;
pub mod metrics;

/// Serves until SIGTERM or SIGINT, or until the leader's lease is lost.
///
/// # Errors
/// When it cannot begin, or must not go on.
pub async fn run(options: Serve) -> Result<ExitCode, Failure> {
    let (client, _) = connect(&options.cluster).await?;
    let metrics = Arc::new(Metrics::default());
    let (readiness, ready) = watch::channel(Readiness::Standby);
    let bound = http::start(options.http, Arc::clone(&metrics), ready).await.map_err(|error| {
        Failure::new(ExitCode::Unavailable, format!("failed to listen on {}", options.http))
            .because(&error)
            .hint("choose another address with --http")
    })?;
    tracing::info!(%bound, "metrics and health are answered");
    let me = identity(&options)?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), &options.leader_election_namespace);
    let (leading, mut leads) = watch::channel(false);
    let election = tokio::spawn(leader::elect(leases.clone(), me.clone(), leading));
    let mut asked_to_end = std::pin::pin!(end_is_asked_for()?);
    tokio::select! {
        led = leads.wait_for(|leads| *leads) => if led.is_err() { return Err(lost()) },
        () = &mut asked_to_end => return Ok(ExitCode::Ok),
    }
    readiness.send_replace(Readiness::Filling);
    let work = async {
        let controller = begin(&client, &options, Arc::clone(&metrics)).await?;
        controller.filled().await;
        readiness.send_replace(Readiness::Ready);
        tracing::info!("the controller works");
        Box::pin(controller.run()).await;
        Ok::<(), Failure>(())
    };
    tokio::select! {
        worked = work => worked?,
        _ = leads.wait_for(|leads| !*leads) => return Err(lost()),
        () = &mut asked_to_end => {}
    }
    election.abort();
    readiness.send_replace(Readiness::Standby);
    leader::resign(&leases, &me).await;
    Ok(ExitCode::Ok)
}

fn lost() -> Failure {
    Failure::new(ExitCode::Temporary, "failed to keep the leader's lease")
        .hint("another process leads, or the API server cannot be reached; this one is to be started again")
}

async fn begin(client: &Client, options: &Serve, metrics: Arc<Metrics>) -> Result<Controller, Failure> {
    let groups =
        client.list_api_groups().await.map_err(|error| refused("ask what the cluster offers", &error))?;
    let has = |group: &str| groups.groups.iter().any(|found| found.name == group);
    if !has(names::GROUP) {
        return Err(Failure::new(ExitCode::Unavailable, "failed to find the custom resource TrainingJob")
            .hint("install it: launcher crd | kubectl apply --server-side -f -"));
    }
    let child = match options.child {
        ChildFlag::Auto if has(JOBSET_GROUP) => ChildKind::JobSet,
        ChildFlag::Jobset => ChildKind::JobSet,
        ChildFlag::Auto | ChildFlag::Job => ChildKind::Job,
    };
    let server = Server::start(options.rendezvous).map_err(|error| {
        Failure::from_error(ExitCode::Unavailable, &error).hint("choose another address with --rendezvous")
    })?;
    tracing::info!(address = %server.address(), child = child.kind(), "the rendezvous listens");
    let options = Options {
        sidecar_image: options.sidecar_image.clone(),
        advertise: options.advertise,
        namespace: options.watch_namespace.clone(),
        levels: options.levels.levels(),
        naming: Default::default(),
        child,
    };
    Ok(Controller::start(client, server, options, metrics))
}

/// Two processes of one name would both think that they lead, so a random number is part of it.
fn identity(options: &Serve) -> Result<String, Failure> {
    if let Some(name) = &options.identity {
        return Ok(name.clone());
    }
    let random = getrandom::u32().map_err(|error| {
        Failure::new(ExitCode::Internal, format!("failed to draw a random number: {error}"))
    })?;
    Ok(format!("{}-{random:08x}", worker::host::facts(&[]).name))
}

fn end_is_asked_for() -> Result<impl Future<Output = ()>, Failure> {
    let listen = |kind| {
        signal(kind)
            .map_err(|error| Failure::new(ExitCode::Internal, "failed to listen for signals").because(&error))
    };
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

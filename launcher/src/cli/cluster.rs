//! The words of the command line that speak of a cluster: which one, what the fabric's labels are, and how its controller
//! is set up. Types only.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::topology::levels::{Levels, Role, parse_level};

/// Which cluster, and which namespace of it.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterFlags {
    /// The file that says how the cluster is reached [default: KUBECONFIG, else ~/.kube/config, else the pod's account]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context in that file [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// The namespace [default: the context's]
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Option<String>,
}

/// Which labels of nodes are the fabric's levels.
#[derive(Args, Clone, Debug, Default)]
pub struct LevelFlags {
    /// The node label of a level: block, rack or domain; may be given again [default: found on the nodes]
    #[arg(long = "level", value_name = "LEVEL=LABEL", value_parser = parse_level)]
    pub level: Vec<(Role, String)>,
}

impl LevelFlags {
    /// By level; the last one of a level counts.
    #[must_use]
    pub fn levels(&self) -> Levels {
        self.level.iter().cloned().collect()
    }
}

/// `launcher doctor`
#[derive(Args, Clone, Debug, Default)]
pub struct Doctor {
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterFlags,
    /// The fabric.
    #[command(flatten)]
    pub levels: LevelFlags,
}

/// What makes the pods of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ChildFlag {
    /// A JobSet where its controller is installed, else a Job.
    #[default]
    Auto,
    /// A JobSet.
    Jobset,
    /// An indexed Job.
    Job,
}

/// `launcher serve`
#[derive(Args, Clone, Debug)]
pub struct Serve {
    /// Where metrics and health are answered over HTTP
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    pub http: SocketAddr,
    /// Where the rendezvous of all jobs listens (UDP)
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:7443")]
    pub rendezvous: SocketAddr,
    /// Where sidecars reach the rendezvous: an address and a port, since nothing depends on DNS
    #[arg(long, value_name = "ADDRESS")]
    pub advertise: SocketAddr,
    /// The image of the sidecars
    #[arg(long, value_name = "IMAGE")]
    pub sidecar_image: String,
    /// Look after this namespace only [default: all]
    #[arg(long, value_name = "NAME")]
    pub watch_namespace: Option<String>,
    /// Where the leader's Lease is
    #[arg(long, value_name = "NAME", default_value = "slipway-system")]
    pub leader_election_namespace: String,
    /// This process's name in the leader's Lease [default: the host's name and a random number]
    #[arg(long, value_name = "NAME")]
    pub identity: Option<String>,
    /// The fabric.
    #[command(flatten)]
    pub levels: LevelFlags,
    /// What makes the pods of a job
    #[arg(long, value_enum, default_value_t = ChildFlag::Auto, value_name = "KIND")]
    pub child: ChildFlag,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterFlags,
}

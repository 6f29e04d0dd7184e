//! Jobs on a Kubernetes cluster: the words that everything there shares, the custom resource, and the objects that a
//! job is made of.

pub mod client;
pub mod controller;
pub mod crd;
pub mod jobs;
pub mod logs;
pub mod names;
pub mod objects;
pub mod preview;
pub mod resource;
pub(crate) mod sources;

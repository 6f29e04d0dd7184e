//! Stories on a real Kubernetes: API server, controllers and kubelets, all on this machine.
//!
//! `tests/run kubernetes`, or `SLIPWAY_KUBE=1 cargo test --workspace --test kubernetes [NAME]` as root. Not a part of
//! `cargo test --workspace`, since it needs root and compiles Kubernetes the first time.

#![expect(clippy::unwrap_used, reason = "a story fails by panicking")]

mod cluster;
mod diagnosis;
mod faults;
mod gangs;
mod installation;
mod jobs;
mod locality;
mod objects;
mod outages;
mod planted;
mod servers;
mod start_up;
mod stores;

use libtest_mimic::Arguments;
use tests::kube::TearDown;
use tests::program::cannot_run;
use tests::story::{Story, trials};

fn main() -> std::process::ExitCode {
    #[expect(clippy::disallowed_methods, reason = "the switch of a suite that needs root")]
    let is_wanted = std::env::var("SLIPWAY_KUBE").as_deref() == Ok("1");
    if !is_wanted {
        cannot_run(
            "these stories start a Kubernetes as root; say so with SLIPWAY_KUBE=1, or use tests/run kubernetes",
        );
        return std::process::ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    // The cluster is one for all, and two cores carry the control plane, its nodes and two stories.
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(2));
    let stories: &[&[Story]] = &[
        cluster::STORIES,
        diagnosis::STORIES,
        faults::STORIES,
        gangs::STORIES,
        installation::STORIES,
        jobs::STORIES,
        locality::STORIES,
        objects::STORIES,
        outages::STORIES,
        servers::STORIES,
        start_up::STORIES,
        stores::STORIES,
    ];
    let _tear_down = TearDown;
    libtest_mimic::run(&arguments, trials(stories)).exit_code()
}

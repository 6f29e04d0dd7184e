//! What is installed into a cluster, seen from the API server: which jobs it takes, and who may do what. No node and no
//! controller is needed.

use std::process::Command;

use tests::kube::{PYTHON_IMAGE, Rig};
use tests::program::{cannot_run, root};

use crate::Story;

pub(crate) const STORIES: &[Story] = &[
    ("installation_takes_a_job_that_names_its_image", takes_a_job_that_names_its_image),
    ("installation_refuses_a_job_and_names_each_fault", refuses_a_job_and_names_each_fault),
    ("installation_gives_each_account_its_rights_and_no_more", gives_each_account_its_rights_and_no_more),
];

const DEFINITION: &str = "deploy/trainingjob.crd.yaml";
const DRY_RUN: &[&str] = &["--dry-run=server", "--validate=strict", "--namespace", "default"];

/// Installs our kind, once; whether there is one in this tree.
fn with_definition() -> Option<&'static Rig> {
    let path = root().join(DEFINITION);
    let Ok(text) = std::fs::read_to_string(path) else {
        cannot_run(&format!("{DEFINITION} is not in this tree"));
        return None;
    };
    let rig = Rig::shared();
    rig.apply(&text);
    rig.established(&["trainingjobs.slipway.dev"]);
    Some(rig)
}

/// What a job file for this machine lacks on a cluster is said all at once; with it, the same file is taken.
fn takes_a_job_that_names_its_image() {
    let Some(rig) = with_definition() else { return };
    let text = std::fs::read_to_string(root().join("examples/digits/job.yaml")).unwrap();
    rig.try_apply(DRY_RUN, &text).code(1).says("pod.image").says("data.source");
    let pod = format!("spec:\n  pod: {{image: {PYTHON_IMAGE}, folder: /job}}\n");
    rig.try_apply(DRY_RUN, &text.replacen("spec:\n", &pod, 1)).code(0);
}

fn refuses_a_job_and_names_each_fault() {
    let Some(rig) = with_definition() else { return };
    let text = "apiVersion: slipway.dev/v1alpha1\nkind: TrainingJob\nmetadata: {name: wrong}\n\
                spec: {workers: {count: 0}, run: {command: []}}\n";
    rig.try_apply(DRY_RUN, text).code(1).says("spec.workers.count").says("spec.run.command");
    let text = "apiVersion: slipway.dev/v1alpha1\nkind: TrainingJob\nmetadata: {name: wrong}\n\
                spec: {workers: {count: 1, cuont: 2}, run: {command: [x]}}\n";
    rig.try_apply(DRY_RUN, text).code(1).says("spec.workers.cuont");
}

/// The list of who may do what is the installation's own test (`tests/rig/deploy_access.sh`). It installs everything and
/// removes it again, our kind with all of its objects too, so it has a cluster of its own.
fn gives_each_account_its_rights_and_no_more() {
    let script = root().join("tests/rig/deploy_access.sh");
    if !script.exists() {
        return cannot_run("tests/rig/deploy_access.sh is not in this tree");
    }
    let rig = Rig::start(root().join("tests/.cache/kubernetes/access"));
    let path = rig.script(["path"]).stdout;
    let output =
        Command::new(script).env("KUBECONFIG", rig.kubeconfig()).env("PATH", path.trim()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}", String::from_utf8_lossy(&output.stdout));
}

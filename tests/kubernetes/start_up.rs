//! How long a job takes from `launcher job submit` to its first step, beside a bare Job of the same pods: each in turn, all on
//! a warm cluster whose images are there.

use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tests::kube::{PYTHON_IMAGE, Rig};
use tests::leftovers::{now, pause};

use crate::Story;
use crate::jobs::{file, with_checkpoints, writable};

pub(crate) const STORIES: &[Story] = &[("start_up_first_step_comes_soon_after_submit", first_step)];

const ROUNDS: u32 = 5;
/// A round that takes longer tells why.
const SLOW_SECONDS: f64 = 10.0;
const WORKERS: u32 = 4;
/// Many times what it takes on idle cores, beside compilers.
const FIRST_STEP_MAX: Duration = Duration::from_secs(120);

/// Writes down when the first step is done: the batch is there, and all ranks have met.
const RANKS: &str = "
import slipway, time
with slipway.loader() as loader:
    for batch in loader:
        slipway.average('nothing', [0.0], weight=1)
        if loader.step == 1:
            open(f'/checkpoints/step-{slipway.job.rank}', 'w').write(str(time.time()))
";
/// Writes down when it runs.
const BARE: &str = "
import os, time
open('/checkpoints/bare-' + os.environ['JOB_COMPLETION_INDEX'], 'w').write(str(time.time()))
";

#[expect(clippy::print_stderr, reason = "the measured times are the result of the story")]
fn first_step() {
    let rig = Rig::shared().nodes(WORKERS);
    let training = rig.training("startup", "job");
    let folder = writable();
    training.claim("checkpoints", folder.path(), false);
    let job = training.digits("digits", |spec| {
        spec["run"]["command"] = json!(["python3", "-c", RANKS]);
        spec["data"]["epochs"] = json!(1);
        with_checkpoints(spec);
    });
    let file = file(&job);
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    // The first round warms up, and does not count.
    for round in 0..=ROUNDS {
        let began = clock();
        training.launcher(&["submit", file.path().to_str().unwrap(), "--detach"]).code(0);
        let ready = stamp(folder.path(), "step");
        if ready - began > SLOW_SECONDS {
            let told = training.space.kubectl(&["get", "events", "--field-selector=type=Warning"]).stdout;
            eprintln!("{:.1} s, of which Kubernetes says:\n{told}", ready - began);
        }
        let _ = training.end("digits");
        training.delete_and_look("digits");
        let bare_began = clock();
        training.space.apply(&bare_job().to_string());
        let bare_ready = stamp(folder.path(), "bare");
        training.space.kubectl(&["delete", "job", "bare"]).code(0);
        training.space.assert_empty();
        if round > 0 {
            ours.push(ready - began);
            bare.push(bare_ready - bare_began);
        }
    }
    eprintln!(
        "submit to first step of {WORKERS} workers: median {:.2} s of {ours:.2?}; kubectl apply to running, a bare Job of \
         as many: median {:.2} s of {bare:.2?}",
        median(&ours),
        median(&bare),
    );
}

/// Seconds since 1970, by the clock that containers have, too.
#[expect(clippy::disallowed_methods, reason = "a moment that other processes write down is compared")]
fn clock() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

/// When the last of the workers wrote its moment; takes the files away.
fn stamp(folder: &Path, name: &str) -> f64 {
    let deadline = now() + FIRST_STEP_MAX;
    let files: Vec<_> = (0..WORKERS).map(|worker| folder.join(format!("{name}-{worker}"))).collect();
    loop {
        let read = |path: &std::path::PathBuf| std::fs::read_to_string(path).ok()?.parse::<f64>().ok();
        let moments: Vec<f64> = files.iter().filter_map(read).collect();
        if moments.len() == files.len() {
            files.iter().for_each(|file| std::fs::remove_file(file).unwrap());
            return moments.into_iter().fold(0.0, f64::max);
        }
        assert!(now() < deadline, "{} of {WORKERS} wrote {name}", moments.len());
        pause();
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn bare_job() -> Value {
    let pod = json!({
        "restartPolicy": "Never",
        "automountServiceAccountToken": false,
        "securityContext": {"runAsUser": 65532, "runAsNonRoot": true},
        "volumes": [{"name": "checkpoints", "persistentVolumeClaim": {"claimName": "checkpoints"}}],
        "containers": [{
            "name": "main", "image": PYTHON_IMAGE, "command": ["python3", "-c", BARE],
            "volumeMounts": [{"name": "checkpoints", "mountPath": "/checkpoints"}],
        }],
    });
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "bare"},
        "spec": {
            "completions": WORKERS, "parallelism": WORKERS, "completionMode": "Indexed", "template": {"spec": pod},
        },
    })
}

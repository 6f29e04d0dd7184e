//! What `deploy/` holds is what the launcher reads: the examples are jobs, and the chart is the kustomize base.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

use launcher::job::spec::Locality;
use launcher::job::{Job, Origin, parse};

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn examples() -> Vec<(String, Job)> {
    let mut files: Vec<_> =
        std::fs::read_dir(deploy().join("examples")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.is_file());
    files.sort();
    files
        .into_iter()
        .map(|path| {
            assert_eq!(path.extension().unwrap(), "yaml", "{} is no job file", path.display());
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let origin = Origin { name: path.display().to_string(), folder: PathBuf::from("/") };
            match parse(&std::fs::read_to_string(&path).unwrap(), &origin) {
                Ok(job) => (name, job),
                Err(faults) => panic!("{faults}"),
            }
        })
        .collect()
}

#[test]
fn every_example_is_a_job_for_a_cluster() {
    let examples = examples();
    assert!(examples.len() >= 4, "the examples are gone: {examples:?}");
    for (name, job) in &examples {
        assert!(job.pod.image.is_some(), "{name} has no image, and a cluster needs one");
        let data = job.data.as_ref().unwrap();
        let source = &data.source;
        let mounted = job.pod.volumes.iter().any(|volume| Path::new(source).starts_with(&volume.mount_path));
        assert!(
            mounted || data.secret.is_some(),
            "{name}: the data at {source} lies in no volume and no store"
        );
        let checkpoints = job.pod.checkpoints.as_ref().unwrap();
        let writable = job
            .pod
            .volumes
            .iter()
            .any(|volume| !volume.read_only && Path::new(checkpoints).starts_with(&volume.mount_path));
        assert!(writable, "{name}: the checkpoints at {checkpoints} lie in no volume that can be written");
    }
}

#[test]
fn the_examples_show_what_their_names_say() {
    let examples = examples();
    let job = |wanted: &str| &examples.iter().find(|(name, _)| name == wanted).unwrap().1;
    assert_eq!(job("digits").resources.locality, Locality::None);
    assert_eq!(job("numa").resources.locality, Locality::Numa);
    assert_eq!(job("pcie").resources.locality, Locality::Pcie);
    assert_eq!(job("bucket").data.as_ref().unwrap().secret.as_deref(), Some("digits-reader"));
    let spares = job("spares");
    assert!(spares.workers.spares > 0 && spares.workers.min < spares.workers.count);
}

#[test]
fn the_chart_is_made_from_the_kustomize_base() {
    let output = Command::new("python3").arg(deploy().join("generate.py")).arg("--check").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

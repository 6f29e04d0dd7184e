//! What command lines become, and what is said of bad ones.

use std::fmt::Write as _;

use clap::Parser;

use super::*;
use crate::cli::{Cli, Command, JobCommand};

fn parse(args: &[&str]) -> Result<Job, Failure> {
    let args = ["launcher", "job", "submit"].iter().chain(args);
    match Cli::try_parse_from(args).unwrap().command {
        Command::Job(JobCommand::Submit(flags)) => job(&flags),
        _ => unreachable!("it begins with job submit"),
    }
}

fn file(text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.yaml");
    std::fs::write(&path, text).unwrap();
    (folder, path.to_str().unwrap().to_owned())
}

const BASE: &str = include_str!("../../job/testdata/base.yaml");

#[test]
fn flags_alone_make_a_job() {
    let args = "--workers 4 --ranks-per-worker 2 --data shards --global-batch 64 --epochs 3 --seed 5 --shuffle window:8 \
                --remainder pad --record u16:32 --env A=b=c --max-restarts 1 --hang-timeout 10m --memory 2Gi \
                --set spec.placement.rack=required --set metadata.labels.team=a -- python3 -u src/Train_it.py --lr 0.1";
    let job = parse(&args.split_whitespace().collect::<Vec<_>>()).unwrap();
    assert_eq!(job.name, "train-it");
    assert_eq!(job.ranks().get(), 8);
    assert_eq!(job.run.command, ["python3", "-u", "src/Train_it.py", "--lr", "0.1"]);
    assert_eq!(job.run.env["A"], "b=c");
    assert_eq!(job.labels["team"], "a");
    let data = job.data.unwrap();
    assert_eq!(data.source, std::path::absolute("shards").unwrap().to_str().unwrap());
    assert_eq!(data.order.seed, 5);
    assert_eq!(data.record.unwrap().items.get(), 32);
    assert_eq!(job.hang_timeout.unwrap().as_secs(), 600);
}

#[test]
fn flags_override_a_file_and_set_wins() {
    let (folder, path) = file(BASE);
    let job = parse(&[&path, "--workers", "2", "--name", "other", "--set", "spec.workers.count=3"]).unwrap();
    assert_eq!((job.name.as_str(), job.workers.count.get()), ("other", 3));
    // The file's own paths stay relative to it; a flag's are relative to the current folder.
    assert_eq!(job.data.unwrap().source, folder.path().join("shards").to_str().unwrap());
    let job = parse(&[&path, "--data", "shards"]).unwrap();
    assert_eq!(job.data.unwrap().source, std::path::absolute("shards").unwrap().to_str().unwrap());
}

#[test]
fn a_fault_names_the_flag_or_the_line() {
    let (_folder, path) = file(&BASE.replace("epochs: 3", "epochs: 0"));
    let failure = parse(&[&path, "--global-batch", "3", "--set", "spec.run.comand=x"]).unwrap_err();
    assert_eq!(failure.code, ExitCode::JobFile);
    insta::assert_snapshot!(
        "a_fault_names_the_flag_or_the_line",
        failure.to_string().replace(&path, "job.yaml")
    );
}

#[test]
fn what_this_build_lacks_is_told_at_once() {
    let args = ["--workers", "1", "--data", "d", "--global-batch", "2", "--transport", "require-rdma"];
    let job = parse(&[&args[..], &["--set", "spec.run.framework=mpi", "--", "true"]].concat()).unwrap();
    let failure = refuse_what_this_build_lacks(&job).unwrap_err();
    assert!(!failure.to_string().contains("rdma"), "on a cluster the sidecars' build decides: {failure}");
    let failure = refuse_what_this_host_lacks(&job).unwrap_err();
    assert_eq!(failure.code, ExitCode::Unavailable);
    insta::assert_snapshot!("what_this_build_lacks_is_told_at_once", failure);
}

#[test]
fn contradicting_flags_are_told_with_a_hint() {
    let (folder, path) = file(BASE);
    let folder = folder.path().to_str().unwrap();
    let mut said = String::new();
    for args in [
        "",
        "FILE -- true",
        "-- true",
        "--workers 1 --global-batch 2 -- true",
        "--workers 1 --record u16:4 -- true",
        "--workers 1 --transport quic -- true",
        "--workers 1 --data d -- true",
        "--workers 0 -- true",
        "--workers 4 --min-workers 5 -- true",
        "--workers 4 --data d --global-batch 2 --transport tcp -- true",
        "--workers 4 --data d --global-batch 0 --epochs 0 -- true",
        "--workers 1 --name Über -- true",
        "--workers 1 --memory lots --hang-timeout 5 -- true",
        "--workers 1 --env RANK=1 -- true",
        "--workers 1 --cpus 1 --ranks-per-worker 2 -- true",
        "--workers 1 --set nonsense -- true",
        "--workers 1 --set spec..x=1 -- true",
        "--workers 1 --set spec.workers={ -- true",
        "--workers 1 --set spec.workers.count.x=1 -- true",
        "--workers 1 --set spec.run.command=ls",
        "FILE --set spec.data.globalBatch=three",
        "absent.yaml",
        "FOLDER",
    ] {
        let filled: Vec<String> = args
            .split_whitespace()
            .map(|word| word.replace("FILE", &path).replace("FOLDER", folder))
            .collect();
        let failure = parse(&filled.iter().map(String::as_str).collect::<Vec<_>>()).expect_err(args);
        let text = failure.to_string().replace(&path, "job.yaml").replace(folder, "/folder");
        writeln!(said, "$ launcher job submit {args}\n{text}\n[exit code {}]\n", failure.code.number())
            .unwrap();
    }
    insta::assert_snapshot!("contradicting_flags", said);
}

#[test]
fn names_come_from_commands() {
    let name = |command: &[&str]| name_of(&command.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
    assert_eq!(name(&["python3", "a/Train It.py"]), "train-it");
    assert_eq!(name(&["/usr/bin/env", "-"]), "env");
    assert_eq!(name(&["***"]), "job");
    assert_eq!(name(&[&"x".repeat(100)]).len(), 52);
}

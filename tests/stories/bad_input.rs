//! Bad input: every fault is named with its place and a hint, the exit code is the documented one, and nothing is
//! left half-created.

mod commands;
mod data;
mod job_files;

use std::path::Path;

use tests::leftovers;
use tests::program::User;

use crate::Story;

pub(crate) const STORIES: &[Story] = &[
    ("bad_input::job_files", || check(job_files::JOB_FILES)),
    ("bad_input::flags", || check(commands::FLAGS)),
    ("bad_input::data", || check(data::DATA)),
    ("bad_input::programs", || check(commands::PROGRAMS)),
    ("bad_input::jobs", || check(commands::JOBS)),
    ("bad_input::every_fault_of_a_file_at_once", all_at_once),
];

/// Exit codes of `launcher exit-codes`.
const JOB_FAILED: i32 = 1;
const USAGE: i32 = 2;
const INVALID_JOB: i32 = 64;
const BAD_DATA: i32 = 65;
const NOT_FOUND: i32 = 66;
const UNAVAILABLE: i32 = 69;
const CANNOT_CREATE: i32 = 73;

/// One bad input: a name, what to prepare and run, the exit code, and what standard error must contain.
struct Case {
    name: &'static str,
    prepare: fn(&User) -> Vec<String>,
    code: i32,
    says: &'static [&'static str],
}

fn check(cases: &[Case]) {
    let mut wrong = Vec::new();
    for case in cases {
        let user = User::new();
        let args = (case.prepare)(&user);
        let run = user.run(&args);
        let missing: Vec<_> = case.says.iter().filter(|text| !run.stderr.contains(**text)).collect();
        let jobs = user.jobs();
        // A job that was accepted and then failed keeps its folder; a refused one never had any.
        let is_half_created = case.code != JOB_FAILED && !jobs.is_empty();
        if run.code != case.code || !missing.is_empty() || is_half_created || run.stderr.contains("panicked")
        {
            wrong.push(format!(
                "{}: exit code {} (expected {}), does not say {missing:?}, jobs {jobs:?}\n{args:?}\n{}",
                case.name, run.code, case.code, run.stderr
            ));
        }
        let left = leftovers::find(&user);
        if !left.is_empty() {
            leftovers::assert_none(&user);
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// `launcher job submit` of a job file with this `spec`.
fn file(user: &User, spec: &str) -> Vec<String> {
    let head = "apiVersion: slipway.dev/v1alpha1\nkind: TrainingJob\nmetadata: {name: bad}\nspec:\n";
    let indented: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    submit(user, &format!("{head}{indented}"))
}

fn submit(user: &User, text: &str) -> Vec<String> {
    let path = user.write("job.yaml", text);
    strings(&["job", "submit", path.to_str().unwrap()])
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

/// Six faults in one file: six lines with six places.
fn all_at_once() {
    let user = User::new();
    let spec = "workers: {count: 2, min: 5}\nrun: {command: [], evn: {A: b}}\nresources: {memory: lots}\n\
                data: {source: d, globalBatch: -1, transport: tcp}\nhang: {timeout: soon}";
    let run = user.run(file(&user, spec)).code(INVALID_JOB);
    for place in [
        "spec.run.evn",
        "spec.resources.memory",
        "spec.data.globalBatch",
        "spec.data.transport",
        "spec.hang.timeout",
    ] {
        assert!(run.stderr.contains(place), "{place} is not named\n{}", run.stderr);
    }
    let json = user.run([file(&user, spec), strings(&["--output", "json"])].concat()).code(INVALID_JOB);
    assert!(json.stdout.is_empty() || json.json().is_object(), "{}", json.stdout);
    assert_eq!(user.jobs(), Vec::<String>::new());
}

/// A folder `d` with one small shard and its manifest.
fn indexed(user: &User) {
    user.write("d/s.tar", tar(&[("1.img", b"abc"), ("2.img", b"def"), ("3.img", b"ghi"), ("4.img", b"jkl")]));
    user.run(["data", "index", "d"]).code(0);
}

fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

//! Bad input: every fault is named with its place and a hint, the exit code is the documented one, and nothing is
//! left half-created.

use std::path::Path;

use tests::program::User;
use tests::{dataset, leftovers};

use crate::Story;

pub(crate) const STORIES: &[Story] = &[
    ("bad_input::job_files", || check(JOB_FILES)),
    ("bad_input::flags", || check(FLAGS)),
    ("bad_input::data", || check(DATA)),
    ("bad_input::programs", || check(PROGRAMS)),
    ("bad_input::jobs", || check(JOBS)),
    ("bad_input::every_fault_of_a_file_at_once", all_at_once),
];

/// Exit codes of `launcher exit-codes`.
const JOB_FAILED: i32 = 1;
const USAGE: i32 = 2;
const INVALID_JOB: i32 = 64;
const BAD_DATA: i32 = 65;
const NOT_FOUND: i32 = 66;
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

const JOB_FILES: &[Case] = &[
    Case {
        name: "no such file",
        prepare: |_| strings(&["job", "submit", "absent.yaml"]),
        code: NOT_FOUND,
        says: &["absent.yaml"],
    },
    Case {
        name: "a folder",
        prepare: |user| strings(&["job", "submit", user.work().to_str().unwrap()]),
        code: NOT_FOUND,
        says: &["folder"],
    },
    Case { name: "empty", prepare: |user| submit(user, ""), code: INVALID_JOB, says: &["job.yaml:1"] },
    Case {
        name: "no YAML",
        prepare: |user| submit(user, "a: [1, 2\nb: }"),
        code: INVALID_JOB,
        says: &["job.yaml:2"],
    },
    Case {
        name: "a list",
        prepare: |user| submit(user, "- 1\n- 2\n"),
        code: INVALID_JOB,
        says: &["job.yaml:1"],
    },
    Case {
        name: "binary",
        prepare: |user| {
            let path = user.work().join("job.yaml");
            std::fs::write(&path, [0u8, 255, 254, 1]).unwrap();
            strings(&["job", "submit", path.to_str().unwrap()])
        },
        code: INVALID_JOB,
        says: &["UTF-8"],
    },
    Case {
        name: "another kind",
        prepare: |user| submit(user, "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {}\n"),
        code: INVALID_JOB,
        says: &["apiVersion", "kind", "TrainingJob"],
    },
    Case {
        name: "unknown key",
        prepare: |user| file(user, "workers: {count: 2}\nrun: {comand: [true]}"),
        code: INVALID_JOB,
        says: &["spec.run.comand", "command", "job.yaml:6"],
    },
    Case {
        name: "missing command",
        prepare: |user| file(user, "workers: {count: 2}\nrun: {}"),
        code: INVALID_JOB,
        says: &["spec.run", "command"],
    },
    Case {
        name: "empty command",
        prepare: |user| file(user, "workers: {count: 2}\nrun: {command: []}"),
        code: INVALID_JOB,
        says: &["spec.run.command"],
    },
    Case {
        name: "a word for a number",
        prepare: |user| file(user, "workers: {count: two}\nrun: {command: [\"true\"]}"),
        code: INVALID_JOB,
        says: &["spec.workers.count", "two"],
    },
    Case {
        name: "no worker",
        prepare: |user| file(user, "workers: {count: 0}\nrun: {command: [\"true\"]}"),
        code: INVALID_JOB,
        says: &["spec.workers.count"],
    },
    Case {
        name: "min above count",
        prepare: |user| file(user, "workers: {count: 2, min: 3}\nrun: {command: [\"true\"]}"),
        code: INVALID_JOB,
        says: &["spec.workers.min"],
    },
    Case {
        name: "a bad unit",
        prepare: |user| {
            file(user, "workers: {count: 1}\nrun: {command: [\"true\"]}\nresources: {memory: 8Gx}")
        },
        code: INVALID_JOB,
        says: &["spec.resources.memory", "8Gx"],
    },
    Case {
        name: "a bad duration",
        prepare: |user| file(user, "workers: {count: 1}\nrun: {command: [\"true\"]}\nhang: {timeout: fast}"),
        code: INVALID_JOB,
        says: &["spec.hang.timeout", "fast"],
    },
    Case {
        name: "a duplicate key",
        prepare: |user| file(user, "workers: {count: 1}\nworkers: {count: 2}\nrun: {command: [\"true\"]}"),
        code: INVALID_JOB,
        says: &["workers"],
    },
    Case {
        name: "a batch smaller than the world",
        prepare: |user| {
            dataset::tokens(user, "d", 1, 10, 4);
            file(
                user,
                "workers: {count: 8}\nrun: {command: [\"true\"]}\ndata: {source: d, globalBatch: 4, record: {dtype: u16, items: 4}}",
            )
        },
        code: INVALID_JOB,
        says: &["spec.data.globalBatch", "8"],
    },
    Case {
        name: "no epoch",
        prepare: |user| {
            dataset::tokens(user, "d", 1, 10, 4);
            file(
                user,
                "workers: {count: 1}\nrun: {command: [\"true\"]}\ndata: {source: d, globalBatch: 4, epochs: 0}",
            )
        },
        code: INVALID_JOB,
        says: &["spec.data.epochs"],
    },
    Case {
        name: "an unknown transport",
        prepare: |user| {
            file(
                user,
                "workers: {count: 1}\nrun: {command: [\"true\"]}\ndata: {source: d, globalBatch: 4, transport: tcp}",
            )
        },
        code: INVALID_JOB,
        says: &["spec.data.transport", "quic"],
    },
    Case {
        name: "a bad name",
        prepare: |user| {
            submit(
                user,
                "apiVersion: slipway.dev/v1alpha1\nkind: TrainingJob\nmetadata: {name: Über Job}\nspec: {workers: {count: 1}, run: {command: [\"true\"]}}\n",
            )
        },
        code: INVALID_JOB,
        says: &["metadata.name"],
    },
    Case {
        name: "a variable that is ours",
        prepare: |user| {
            file(user, "workers: {count: 1}\nrun: {command: [\"true\"], env: {MASTER_PORT: \"1234\"}}")
        },
        code: INVALID_JOB,
        says: &["MASTER_PORT"],
    },
    Case {
        name: "two documents",
        prepare: |user| submit(user, "a: 1\n---\nb: 2\n"),
        code: INVALID_JOB,
        says: &["document"],
    },
    Case {
        name: "GPU memory without GPUs",
        prepare: |user| {
            dataset::tokens(user, "d", 1, 10, 4);
            file(
                user,
                "workers: {count: 1}\nrun: {command: [\"true\"]}\ndata: {source: d, globalBatch: 4, memory: gpu}",
            )
        },
        code: INVALID_JOB,
        says: &["spec.data.memory"],
    },
];

const FLAGS: &[Case] = &[
    Case {
        name: "an unknown verb",
        prepare: |_| strings(&["job", "sumbit"]),
        code: USAGE,
        says: &["submit"],
    },
    Case {
        name: "an unknown flag",
        prepare: |_| strings(&["job", "submit", "--wrokers", "2", "--", "true"]),
        code: USAGE,
        says: &["--workers"],
    },
    Case {
        name: "neither file nor command",
        prepare: |_| strings(&["job", "submit"]),
        code: USAGE,
        says: &["FILE"],
    },
    Case {
        name: "file and command",
        prepare: |user| {
            let mut args = file(user, "workers: {count: 1}\nrun: {command: [\"true\"]}");
            args.extend(strings(&["--", "false"]));
            args
        },
        code: USAGE,
        says: &["FILE"],
    },
    Case {
        name: "workers is a word",
        prepare: |_| strings(&["job", "submit", "--workers", "many", "--", "true"]),
        code: USAGE,
        says: &["many"],
    },
    Case {
        name: "an unknown backend",
        prepare: |_| strings(&["job", "submit", "--on", "mars", "--workers", "1", "--", "true"]),
        code: USAGE,
        says: &["local"],
    },
    Case {
        name: "a bad output format",
        prepare: |_| strings(&["job", "list", "--output", "xml"]),
        code: USAGE,
        says: &["json"],
    },
    Case {
        name: "a bad shuffle",
        prepare: |user| {
            let data = dataset::tokens(user, "d", 1, 10, 4);
            strings(&[
                "data",
                "order",
                data.to_str().unwrap(),
                "--record",
                "u16:4",
                "--workers",
                "1",
                "--global-batch",
                "2",
                "--shuffle",
                "window:zero",
            ])
        },
        code: USAGE,
        says: &["window"],
    },
    Case {
        name: "a bad record",
        prepare: |user| {
            let data = dataset::tokens(user, "d", 1, 10, 4);
            strings(&["data", "index", data.to_str().unwrap(), "--record", "u17:4"])
        },
        code: USAGE,
        says: &["u17"],
    },
    Case {
        name: "no batch size",
        prepare: |user| {
            let data = dataset::tokens(user, "d", 1, 10, 4);
            strings(&["data", "order", data.to_str().unwrap(), "--workers", "1"])
        },
        code: USAGE,
        says: &["--global-batch"],
    },
    Case {
        name: "a state folder that is a file",
        prepare: |user| {
            std::fs::remove_dir(user.state()).unwrap();
            std::fs::write(user.state(), "").unwrap();
            strings(&["job", "submit", "--workers", "1", "--", "true"])
        },
        code: CANNOT_CREATE,
        says: &["state"],
    },
];

const DATA: &[Case] = &[
    Case {
        name: "no such folder",
        prepare: |_| strings(&["data", "index", "absent"]),
        code: NOT_FOUND,
        says: &["absent"],
    },
    Case {
        name: "a job without its data",
        prepare: |_| {
            strings(&[
                "job",
                "submit",
                "--workers",
                "1",
                "--data",
                "absent",
                "--global-batch",
                "4",
                "--",
                "true",
            ])
        },
        code: NOT_FOUND,
        says: &["absent"],
    },
    Case {
        name: "an unknown scheme",
        prepare: |_| strings(&["data", "ls", "gopher://x/y"]),
        code: BAD_DATA,
        says: &["gopher"],
    },
    Case {
        name: "an empty folder",
        prepare: |user| {
            std::fs::create_dir(user.work().join("d")).unwrap();
            strings(&["data", "index", "d"])
        },
        code: BAD_DATA,
        says: &[".tar"],
    },
    Case {
        name: "records without their layout",
        prepare: |user| {
            dataset::tokens(user, "d", 1, 10, 4);
            strings(&["data", "index", "d"])
        },
        code: BAD_DATA,
        says: &["--record"],
    },
    Case {
        name: "trailing bytes",
        prepare: |user| {
            user.write("d/a.bin", vec![0u8; 8 * 3 + 5]);
            strings(&["data", "index", "d", "--record", "u16:4"])
        },
        code: BAD_DATA,
        says: &["a.bin", "5"],
    },
    Case {
        name: "a truncated tar",
        prepare: |user| {
            let tar = tar(&[("1.img", b"abc"), ("1.cls", b"7")]);
            user.write("d/s.tar", &tar[..700]);
            strings(&["data", "index", "d"])
        },
        code: BAD_DATA,
        says: &["s.tar", "truncated"],
    },
    Case {
        name: "a flipped header",
        prepare: |user| {
            let mut tar = tar(&[("1.img", b"abc"), ("1.cls", b"7")]);
            tar[3] ^= 0x20;
            user.write("d/s.tar", tar);
            strings(&["data", "index", "d"])
        },
        code: BAD_DATA,
        says: &["s.tar", "checksum"],
    },
    Case {
        name: "a field twice",
        prepare: |user| {
            user.write("d/s.tar", tar(&[("1.img", b"abc"), ("1.img", b"abd")]));
            strings(&["data", "index", "d"])
        },
        code: BAD_DATA,
        says: &["s.tar", "img"],
    },
    Case {
        name: "a sample in two places",
        prepare: |user| {
            user.write("d/s.tar", tar(&[("1.img", b"a"), ("2.img", b"b"), ("1.cls", b"c")]));
            strings(&["data", "index", "d"])
        },
        code: BAD_DATA,
        says: &["s.tar"],
    },
    Case {
        name: "no NumPy file",
        prepare: |user| {
            user.write("d/a.npy", "no numpy here, just text that is long enough");
            strings(&["data", "index", "d"])
        },
        code: BAD_DATA,
        says: &["a.npy"],
    },
    Case {
        name: "tar and records mixed",
        prepare: |user| {
            dataset::tokens(user, "d", 1, 10, 4);
            user.write("d/s.tar", tar(&[("1.img", b"a")]));
            strings(&["data", "index", "d", "--record", "u16:4"])
        },
        code: BAD_DATA,
        says: &["d"],
    },
    Case {
        name: "a garbled manifest",
        prepare: |user| {
            user.write("d/s.tar", tar(&[("1.img", b"a")]));
            user.write("d/slipway.manifest", "garbage");
            strings(&["data", "verify", "d"])
        },
        code: BAD_DATA,
        says: &["slipway.manifest"],
    },
    Case {
        name: "a stale manifest",
        prepare: |user| {
            indexed(user);
            user.write("d/t.tar", tar(&[("9.img", b"zz")]));
            strings(&["data", "ls", "d"])
        },
        code: BAD_DATA,
        says: &["t.tar", "data index"],
    },
    Case {
        name: "a corrupt shard under its manifest",
        prepare: |user| {
            indexed(user);
            flip(&user.work().join("d/s.tar"), 512);
            strings(&["data", "verify", "d"])
        },
        code: BAD_DATA,
        says: &["s.tar"],
    },
    Case {
        name: "a batch larger than the data",
        prepare: |user| {
            indexed(user);
            strings(&[
                "job",
                "submit",
                "--workers",
                "1",
                "--data",
                "d",
                "--global-batch",
                "100",
                "--",
                "true",
            ])
        },
        code: BAD_DATA,
        says: &["100"],
    },
    Case {
        name: "a corrupt shard in a running job",
        prepare: |user| {
            indexed(user);
            flip(&user.work().join("d/s.tar"), 512);
            let trainer = tests::program::root().join("tests/trainers/consume.py");
            strings(&[
                "job",
                "submit",
                "--workers",
                "1",
                "--data",
                "d",
                "--global-batch",
                "2",
                "--",
                "python3",
                trainer.to_str().unwrap(),
            ])
        },
        code: JOB_FAILED,
        says: &["s.tar", "data verify"],
    },
];

const PROGRAMS: &[Case] = &[
    Case {
        name: "command not found",
        prepare: |_| strings(&["job", "submit", "--workers", "2", "--", "no-such-program"]),
        code: NOT_FOUND,
        says: &["no-such-program", "PATH"],
    },
    Case {
        name: "not executable",
        prepare: |user| {
            let path = user.write("script", "echo hi");
            strings(&["job", "submit", "--workers", "1", "--", path.to_str().unwrap()])
        },
        code: NOT_FOUND,
        says: &["script", "executable"],
    },
    Case {
        name: "no such workdir",
        prepare: |_| strings(&["job", "submit", "--workers", "1", "--workdir", "absent", "--", "true"]),
        code: NOT_FOUND,
        says: &["absent"],
    },
    Case {
        name: "a trainer without data asks for some",
        prepare: |_| {
            strings(&[
                "job",
                "submit",
                "--workers",
                "1",
                "--max-restarts",
                "0",
                "--",
                "python3",
                "-c",
                "import slipway; slipway.loader()",
            ])
        },
        code: JOB_FAILED,
        says: &["rank 0", "--data"],
    },
    Case {
        name: "more memory than the host has",
        prepare: |user| {
            file(user, "workers: {count: 2}\nrun: {command: [\"true\"]}\nresources: {memory: 500Ti}")
        },
        code: 69,
        says: &["memory"],
    },
    Case {
        name: "GPUs that are not here",
        prepare: |user| file(user, "workers: {count: 1}\nrun: {command: [\"true\"]}\nresources: {gpus: 64}"),
        code: 69,
        says: &["GPU"],
    },
    Case {
        name: "RDMA that this build has not",
        prepare: |user| {
            indexed(user);
            strings(&[
                "job",
                "submit",
                "--workers",
                "1",
                "--data",
                "d",
                "--global-batch",
                "2",
                "--transport",
                "require-rdma",
                "--",
                "true",
            ])
        },
        code: 69,
        says: &["rdma"],
    },
    Case {
        name: "Kubernetes that this build has not",
        prepare: |_| strings(&["job", "submit", "--on", "kubernetes", "--workers", "1", "--", "true"]),
        code: 69,
        says: &["kubernetes"],
    },
];

const JOBS: &[Case] = &[
    Case {
        name: "status of no job",
        prepare: |_| strings(&["job", "status", "nobody"]),
        code: NOT_FOUND,
        says: &["nobody", "job list"],
    },
    Case {
        name: "logs of no job",
        prepare: |_| strings(&["job", "logs", "nobody"]),
        code: NOT_FOUND,
        says: &["nobody"],
    },
    Case {
        name: "cancel of no job",
        prepare: |_| strings(&["job", "cancel", "nobody"]),
        code: NOT_FOUND,
        says: &["nobody"],
    },
    Case {
        name: "resume of no job",
        prepare: |_| strings(&["job", "resume", "nobody"]),
        code: NOT_FOUND,
        says: &["nobody"],
    },
    Case {
        name: "a name that climbs out",
        prepare: |_| strings(&["job", "status", "../../etc"]),
        code: NOT_FOUND,
        says: &["../../etc"],
    },
];

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

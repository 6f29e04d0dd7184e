//! The command as a user runs it: help, exit codes, what goes to which stream, and data sets from end to end.

#![expect(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::path::Path;
use std::process::{Command, Stdio};

struct Finished {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Finished {
    #[track_caller]
    fn ends(self, code: i32) -> Self {
        assert_eq!(self.code, code, "--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}

fn run(folder: &Path, args: &str) -> Finished {
    let output = Command::new(env!("CARGO_BIN_EXE_launcher"))
        .args(args.split_whitespace())
        .current_dir(folder)
        .env_clear()
        .env("SLIPWAY_HOME", folder.join("state"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Finished {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Two files of `u16` records, four items each: record n is four times n.
fn records(folder: &Path) {
    std::fs::create_dir(folder.join("d")).unwrap();
    for (name, range) in [("a.bin", 0..30_u16), ("b.bin", 30..50)] {
        let bytes: Vec<u8> = range.flat_map(|n| n.to_le_bytes().repeat(4)).collect();
        std::fs::write(folder.join("d").join(name), bytes).unwrap();
    }
}

#[test]
fn help_is_what_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let mut said = String::new();
    for command in
        ["", "job", "job submit", "job logs", "job resume", "data", "data index", "data order", "doctor"]
    {
        let help = run(folder.path(), &format!("{command} --help")).ends(0).stdout;
        said.push_str(&format!("$ launcher {command} --help\n{help}\n"));
    }
    insta::assert_snapshot!("help", said);
    assert!(!said.contains("worker-agent"), "hidden commands are hidden");
}

#[test]
fn exit_codes_are_a_table_and_json() {
    let folder = tempfile::tempdir().unwrap();
    insta::assert_snapshot!("exit_codes", run(folder.path(), "exit-codes").ends(0).stdout);
    let json = run(folder.path(), "exit-codes --output json").ends(0).json();
    assert_eq!(json[3], serde_json::json!({"code": 64, "name": "job_file", "meaning": json[3]["meaning"]}));
}

#[test]
fn completions_exist_for_every_shell() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(folder.path(), &format!("completions {shell}")).ends(0).stdout;
        assert!(script.contains("global-batch"), "{shell}");
    }
}

#[test]
fn the_schema_is_the_committed_one() {
    let folder = tempfile::tempdir().unwrap();
    let committed = std::fs::read_to_string("../deploy/trainingjob.schema.json").unwrap();
    assert_eq!(run(folder.path(), "schema").ends(0).stdout, committed);
}

#[test]
fn every_example_is_a_sound_job() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut count = 0;
    for folder in std::fs::read_dir(examples).unwrap() {
        let folder = folder.unwrap().path();
        let Ok(text) = std::fs::read_to_string(folder.join("job.yaml")) else { continue };
        let origin = launcher::job::Origin { name: folder.display().to_string(), folder };
        launcher::job::parse(&text, &origin).unwrap_or_else(|faults| panic!("{faults}"));
        count += 1;
    }
    assert!(count >= 2, "{count} examples");
}

#[test]
fn usage_is_2_and_says_nothing_on_standard_output() {
    let folder = tempfile::tempdir().unwrap();
    for args in [
        "job sumbit",
        "job submit",
        "job submit --wrokers 2 -- true",
        "job submit --workers many -- true",
        "job submit --on mars --workers 1 -- true",
        "job submit --workers 1 --dry-run --detach -- true",
        "job list --output xml",
        "data order d --workers 1",
        "data index d --record u17:4",
        "data order d --workers 1 --global-batch 2 --shuffle window:zero",
        "completions tcsh",
    ] {
        let run = run(folder.path(), args).ends(2);
        assert!(run.stdout.is_empty() && run.stderr.starts_with("error: "), "{args}: {}", run.stderr);
        let helps = run.stderr.contains("hint:") || run.stderr.contains("--help");
        assert!(helps, "{args}: {}", run.stderr);
    }
}

#[test]
fn a_bad_job_file_is_64_for_people_and_machines() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("job.yaml"), "kind: TrainingJob\nspec:\n  workers: {count: 0}\n")
        .unwrap();
    let text = run(folder.path(), "job submit job.yaml").ends(64);
    assert_eq!(text.stdout, "");
    insta::assert_snapshot!("bad_job_file", text.stderr);
    let json = run(folder.path(), "job submit job.yaml --output json").ends(64).json();
    assert_eq!(json["error"]["code"], "job_file");
    assert_eq!(json["error"]["faults"].as_array().unwrap().len(), 4);
    assert_eq!(json["error"]["faults"][3]["path"], "spec.workers.count");
    assert_eq!(json["error"]["faults"][3]["line"], 3);
    assert!(!folder.path().join("state").exists(), "nothing is half-created");
}

#[test]
fn what_is_not_here_is_66_and_what_cannot_be_is_69() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), "job submit absent.yaml").ends(66);
    run(folder.path(), "job submit .").ends(66);
    run(folder.path(), "data ls absent").ends(66);
    run(folder.path(), "data ls gopher://x/y").ends(65);
    let nowhere = run(folder.path(), "job list --on kubernetes").ends(66);
    assert!(nowhere.stderr.contains("kubeconfig") && nowhere.stderr.contains("hint:"), "{}", nowhere.stderr);
    let no_image = run(folder.path(), "job submit --on kubernetes --workers 1 -- true").ends(64);
    assert!(no_image.stderr.contains("spec.pod.image"), "{}", no_image.stderr);
    let rdma = "job submit --workers 1 --data d --global-batch 2 --transport require-rdma -- true";
    assert!(run(folder.path(), rdma).ends(69).stderr.contains("rdma"));
    assert!(!folder.path().join("state").exists(), "nothing is half-created");
}

#[test]
fn a_data_set_is_indexed_listed_and_verified() {
    let folder = tempfile::tempdir().unwrap();
    records(folder.path());
    let folder = folder.path();
    let unsaid = run(folder, "data index d").ends(65);
    assert!(unsaid.stderr.contains("--record"), "{}", unsaid.stderr);
    let indexed = run(folder, "data index d --record u16:4 --output json").ends(0).json();
    assert_eq!(indexed["samples"], 50);
    assert_eq!(
        indexed["shards"][1],
        serde_json::json!({"name": "b.bin", "bytes": 160, "chunks": 1, "samples": 20})
    );
    let listed = run(folder, "data ls d --output json").ends(0).json();
    assert_eq!(listed, indexed, "the manifest says what the shards said");
    assert_eq!((&listed["bytes"], &listed["sampleBytes"]), (&400.into(), &400.into()));
    let digest = indexed["digest"].as_str().unwrap();
    insta::assert_snapshot!("data_ls", run(folder, "data ls d").ends(0).stdout.replace(digest, "DIGEST"));
    insta::assert_snapshot!("data_verify", run(folder, "data verify d").ends(0).stdout);

    let mut bytes = std::fs::read(folder.join("d/b.bin")).unwrap();
    bytes[17] ^= 1;
    std::fs::write(folder.join("d/b.bin"), bytes).unwrap();
    let corrupt = run(folder, "data verify d").ends(65);
    assert!(corrupt.stderr.contains("b.bin") && corrupt.stdout.is_empty(), "{}", corrupt.stderr);
    let json = run(folder, "data verify d --output json").ends(65).json();
    assert_eq!(json["error"]["faults"][0]["shard"], "b.bin");
}

#[test]
fn the_order_is_listed_by_step_and_rank() {
    let folder = tempfile::tempdir().unwrap();
    records(folder.path());
    let order = "data order d --record u16:4 --global-batch 16 --remainder pad";
    let listed = run(folder.path(), &format!("{order} --workers 3 --shuffle none")).ends(0).stdout;
    insta::assert_snapshot!("order", listed);
    let json =
        run(folder.path(), &format!("{order} --workers 3 --shuffle none --output json")).ends(0).stdout;
    let steps: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(steps.len(), 4);
    assert_eq!(steps[3]["ranks"][0][1], serde_json::json!({"sample": 49}));
    assert_eq!(steps[3]["ranks"][0][2], serde_json::json!({"sample": 0, "padding": true}));
    // A part of the list is a part of the list; and every sample is there once.
    let part =
        run(folder.path(), &format!("{order} --workers 3 --shuffle none --from 1 --steps 2")).ends(0).stdout;
    assert!(listed.contains(&part) && part.lines().count() == 6, "{part}");
    let shuffled = run(folder.path(), &format!("{order} --workers 2 --seed 5")).ends(0).stdout;
    let mut ids: Vec<u32> = shuffled
        .lines()
        .flat_map(|line| line.rsplit('\t').next().unwrap().split(' '))
        .filter(|id| !id.ends_with('+'))
        .map(|id| id.parse().unwrap())
        .collect();
    assert_ne!(ids, (0..50).collect::<Vec<_>>());
    ids.sort_unstable();
    assert_eq!(ids, (0..50).collect::<Vec<_>>());
}

#[test]
fn one_hash_for_any_number_of_consumers() {
    let folder = tempfile::tempdir().unwrap();
    records(folder.path());
    let digest = |args: &str| {
        let args = format!("data order d --record u16:4 --global-batch 12 --digest {args}");
        let text = run(folder.path(), &args).ends(0).stdout;
        assert_eq!(
            run(folder.path(), &format!("{args} --output json")).ends(0).json()["digest"],
            text.trim_end()
        );
        u128::from_str_radix(text.trim_end(), 16).unwrap()
    };
    let whole = digest("--workers 1 --epochs 2");
    for workers in [2, 3, 5, 12] {
        assert_eq!(digest(&format!("--workers {workers} --epochs 2")), whole);
    }
    // The whole is the sum of its epochs, and an epoch of its parts.
    let (first, second) = (digest("--workers 4"), digest("--workers 4 --epoch 1"));
    assert_eq!(first.wrapping_add(second), whole);
    assert_eq!(digest("--workers 4 --steps 3").wrapping_add(digest("--workers 2 --from 3")), first);
    assert_ne!(digest("--workers 4 --seed 1"), first);
    for bad in ["--workers 13", "--workers 1 --from 4", "--workers 1 --epochs 1 --from 4"] {
        run(folder.path(), &format!("data order d --record u16:4 --global-batch 12 {bad}")).ends(2);
    }
    let large = run(folder.path(), "data order d --record u16:4 --global-batch 100 --workers 1").ends(65);
    assert!(large.stderr.contains("100"), "{}", large.stderr);
}

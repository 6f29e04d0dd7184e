//! The program among others: pipes that close, terminals that go away, files that it inherits, disks that are full,
//! and who can see what.

use std::process::{Command, Stdio};

use rustix::process::Signal;
use tests::job::{Running, signal};
use tests::program::{User, launcher, wait};
use tests::{dataset, leftovers};

use crate::Story;

pub(crate) const STORIES: &[Story] = &[
    ("shell::a_reader_that_goes_away_is_no_error", closed_pipe),
    ("shell::a_failed_job_fails_also_when_nobody_reads", closed_pipe_of_a_failure),
    ("shell::a_closed_terminal_cancels_and_nohup_does_not", hangup),
    ("shell::interrupting_twice_does_not_wait_for_the_ranks", twice),
    ("shell::a_detached_controller_has_nothing_of_its_parent", detached),
    ("shell::a_job_is_never_seen_without_its_controller", no_gap),
    ("shell::a_full_disk_ends_the_job_and_leaves_no_process", full_disk),
    ("shell::usage_errors_are_json_too", usage),
    ("shell::no_key_is_in_a_file_an_argument_or_the_environment", secrets),
];

/// Runs a line of shell with `$L` as the program; what it wrote and its exit code.
fn shell(user: &User, script: &str) -> tests::program::Finished {
    let mut command = user.command::<&str>([]);
    let mut sh = Command::new("bash");
    sh.args(["-c", script]).env("L", launcher()).current_dir(user.work()).stdin(Stdio::null());
    sh.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command = sh;
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    tests::program::Finished::new(script.to_owned(), &wait(child))
}

fn closed_pipe() {
    let user = User::new();
    let lines = "for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.1; done";
    user.run(["job", "submit", "--detach", "--name", "talk", "--workers", "1", "--", "sh", "-c", lines])
        .code(0);
    let run = shell(&user, "set -o pipefail; $L job logs -f talk | head -n 2").code(0);
    assert_eq!((run.stdout.lines().count(), run.stderr.as_str()), (2, ""));
    for quiet in ["job list", "schema", "job list --output json", "completions bash"] {
        let run = shell(&user, &format!("$L {quiet} | true; exit ${{PIPESTATUS[0]}}")).code(0);
        assert_eq!(run.stderr, "", "{quiet}");
    }
    // Nobody hears the progress either.
    shell(&user, "$L job submit --workers 1 -- true 2>&1 | true; exit ${PIPESTATUS[0]}").code(0);
    user.run(["job", "cancel", "talk"]).code(0);
    leftovers::assert_none(&user);
}

fn closed_pipe_of_a_failure() {
    let user = User::new();
    let script = "$L job submit --workers 1 --max-restarts 0 -- false | true; exit ${PIPESTATUS[0]}";
    shell(&user, script).code(1).says("rank 0");
}

fn hangup() {
    let user = User::new();
    let mut running = Running::start(&user, &["job", "submit", "--workers", "2", "--", "sleep", "60"]);
    running.wait_for("it runs", |journal| journal.contains("\"running\""));
    signal(running.pid(), Signal::HUP);
    running.finish().code(130);
    leftovers::assert_none(&user);
    let script = "trap '' HUP; $L job submit --workers 1 -- sleep 1 & sleep 0.7; kill -HUP $!; wait $!";
    shell(&user, script).code(0);
}

fn twice() {
    let user = User::new();
    let args = [
        "job",
        "submit",
        "--workers",
        "2",
        "--",
        "sh",
        "-c",
        "trap '' TERM; echo up; while :; do sleep 1; done",
    ];
    let mut running = Running::start(&user, &args);
    running.wait_for("it runs", |journal| journal.contains("\"running\""));
    let begun = leftovers::now();
    signal(running.pid(), Signal::INT);
    running.wait_for("the first is heard", |journal| journal.contains("\"fencing\""));
    signal(running.pid(), Signal::INT);
    running.finish().code(130);
    let took = leftovers::now() - begun;
    assert!(took.as_secs() < 8, "{took:?}; the ranks' grace is 10 s");
    leftovers::assert_none(&user);
}

fn detached() {
    let user = User::new();
    // The reader of descriptor 9 sees its end only when nobody holds it: `cat` returns although the job runs on.
    let script = "exec 9> >(cat > seen); $L job submit --detach --name apart --workers 1 -- sleep 30; exec 9>&-; wait $!";
    shell(&user, script).code(0);
    let status = user.run(["job", "status", "apart", "--output", "json"]).code(0).json();
    let controller = &status["controllerPid"];
    let of = |what: &str| std::path::PathBuf::from(format!("/proc/{controller}/{what}"));
    assert_eq!(std::fs::read_link(of("cwd")).unwrap(), std::path::Path::new("/"));
    let stat = std::fs::read_to_string(of("stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    // State, parent, group, session, terminal: proc_pid_stat(5).
    assert_eq!((fields[2], fields[3], fields[4]), (&*controller.to_string(), &*controller.to_string(), "0"));
    user.run(["job", "cancel", "apart", "--now"]).code(0);
    leftovers::assert_none(&user);
}

/// From its first moment on: its state is never that of a job whose launcher died.
fn no_gap() {
    let user = User::new();
    let args = ["job", "submit", "--detach", "--name", "gap", "--workers", "1", "--", "sleep", "30"];
    let mut submitting = user.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut looks = 0;
    while submitting.try_wait().unwrap().is_none() || looks == 0 {
        for job in user.run(["job", "list", "--output", "json"]).code(0).json().as_array().unwrap() {
            assert_ne!(job["phase"], "failed", "{job:#}");
            looks += 1;
        }
    }
    let again = user.run(["job", "resume", "gap"]).code(75);
    assert!(again.stderr.contains("it runs (process "), "{}", again.stderr);
    assert_eq!(user.run(["job", "cancel", "gap", "--output", "json"]).code(0).json()["phase"], "cancelled");
    leftovers::assert_none(&user);
}

/// On a file system of its own, where this user may make one (user namespaces); else there is nothing to try.
fn full_disk() {
    let user = User::new();
    let may = shell(&user, "unshare -rm mount -t tmpfs none \"$SLIPWAY_HOME\"");
    if may.code != 0 {
        tests::program::cannot_run("mounting a tmpfs in a user namespace is not allowed here");
        return;
    }
    let data = dataset::tokens(&user, "tokens", 4, 600, 16);
    let trainer = tests::program::root().join("tests/trainers/consume.py");
    let script = format!(
        "unshare -rm sh -c 'mount -t tmpfs -o size=512k none \"$SLIPWAY_HOME\"; \
         (sleep 1.5; dd if=/dev/zero of=\"$SLIPWAY_HOME/fill\" bs=4k) & \
         exec \"$L\" job submit --workers 2 --data {} --record u16:16 --global-batch 10 --env COMMIT_EVERY=1 \
         --env STEP_MS=30 -- sh -c \"setsid sleep 604 & exec python3 {}\"'",
        data.display(),
        trainer.display()
    );
    shell(&user, &script).code(73).says("journal").says("is the disk full?");
    leftovers::assert_none(&user);
}

fn usage() {
    let user = User::new();
    for args in [
        &["job", "list", "--bogus", "--output", "json"][..],
        &["--output=json", "job", "status"],
        &["job", "submit", "--workers", "many", "--output", "json", "--", "true"],
    ] {
        let run = user.run(args).code(2);
        let error = &run.json()["error"];
        assert_eq!(error["code"], "usage", "{}", run.stdout);
        assert!(
            !error["message"].as_str().unwrap().is_empty() && error["hint"].is_string(),
            "{}",
            run.stdout
        );
        assert!(run.stderr.starts_with("error: "), "{}", run.stderr);
    }
    // A word behind `--` is the job's own.
    let run = user.run(["job", "submit", "--workerz", "1", "--", "true", "--output", "json"]).code(2);
    assert_eq!(run.stdout, "");
}

/// Keys are P-256 in PKCS #8: how each begins (RFC 5208, RFC 5480), in the forms in which bytes are written down.
const KEY_MARKS: &[&[u8]] = &[
    b"PRIVATE KEY",
    &[0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d],
    b"MIGHAgEAMBMGByqGSM49",
    b"308187020100301306072a8648ce3d",
    b"48,129,135,2,1,0,48,19,6,7,42,134,72,206,61",
    b"48, 129, 135, 2, 1, 0, 48, 19, 6, 7, 42, 134, 72, 206, 61",
];

fn secrets() {
    let user = User::new().with_env("SLIPWAY_LOG", "trace");
    let script = "cat /proc/self/environ; sleep 30";
    let args = ["job", "submit", "--detach", "--name", "quiet", "--workers", "2", "--", "sh", "-c", script];
    user.run(args).code(0);
    while leftovers::pids(&user, "sleep 30").len() < 2 {
        leftovers::pause();
    }
    let mut looked = 0;
    for line in leftovers::processes(&user) {
        let pid = line.split(' ').nth(1).unwrap();
        for file in ["cmdline", "environ"] {
            looked += usize::from(has_no_key(std::path::Path::new(&format!("/proc/{pid}/{file}"))));
        }
    }
    user.run(["job", "cancel", "quiet", "--now"]).code(0);
    let mut folders = vec![user.state()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => looked += usize::from(has_no_key(&entry.path())),
            }
        }
    }
    assert!(looked > 20, "{looked} places: a controller, two workers, two ranks and their files");
}

/// Fails the story when there is one; false when the file is gone.
fn has_no_key(path: &std::path::Path) -> bool {
    let Ok(bytes) = std::fs::read(path) else { return false };
    for mark in KEY_MARKS {
        let found = bytes.windows(mark.len()).any(|window| window == *mark);
        assert!(!found, "a key's beginning in {}", path.display());
    }
    true
}

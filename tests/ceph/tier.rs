//! What a local tier changes and what it does not: the next job reads from it what it holds, and neither a full nor a damaged
//! nor a deleted one changes a sample.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tests::ceph::Ceph;
use tests::job::Running;
use tests::leftovers;
use tests::program::{Finished, User, wait};

use crate::Story;
use crate::faults::{assert_whole, job};
use crate::training::{committed, put, submit};

pub(crate) const STORIES: &[Story] =
    &[("tier_serves_the_next_job_whatever_happens_to_it", serves), ("tier_on_a_full_disk", full_disk)];

/// Chunks are of 4 MiB here.
const CHUNK_BYTES: u64 = 4 << 20;

/// One job after the other over the same 67 MB.
fn serves() {
    let (ceph, user) = (Ceph::start("tier", &[]), User::new());
    let (data, bytes) = put(&ceph, &user, 4, 4096);
    let folder = user.work().join("nvme");
    let args = |size: &str| {
        let tier = [
            format!("spec.data.localTier.size={size}"),
            format!("spec.data.localTier.folder={}", folder.display()),
        ];
        let mut args = job(&user, &data);
        let program = args.iter().position(|arg| arg == "--workdir").unwrap();
        let lockstep = ["--env".to_owned(), "LOCKSTEP=1".to_owned()];
        args.splice(
            program..program,
            tier.into_iter().flat_map(|set| ["--set".to_owned(), set]).chain(lockstep),
        );
        args
    };
    let read = |finished: Finished| {
        let summary = finished.json()["summary"].clone();
        assert_whole(&user, finished);
        (summary["bytesRead"].as_u64().unwrap(), summary["bytesFromTier"].as_u64().unwrap())
    };
    assert_eq!(read(user.run(args("1Gi"))), (bytes, 0));
    let kept = kept(&folder);
    // Those that found two others being written were left out.
    assert!(kept.len() >= 3, "{kept:?}");
    let part = |chunks: usize| u64::try_from(chunks).unwrap() * CHUNK_BYTES;
    assert_eq!(read(user.run(args("1Gi"))), (bytes - part(kept.len()), part(kept.len())), "the next job");

    // One that is not what it was is not believed, and replaced.
    for file in &kept[..3] {
        let mut content = std::fs::read(file).unwrap();
        content[1_000_000] ^= 1;
        std::fs::write(file, content).unwrap();
    }
    let before = self::kept(&folder).len();
    let good = part(before - 3);
    assert_eq!(read(user.run(args("1Gi"))), (bytes - good, good), "three are bad");
    assert_eq!(logs(&user).matches("tier_corrupt").count(), 3);

    // The first half of the budget stays, and no byte more is kept.
    std::fs::remove_dir_all(&folder).unwrap();
    read(user.run(args("12Mi")));
    let few = self::kept(&folder).len();
    assert!((1..=6).contains(&few), "two workers keep three chunks each at the most: {few}");
    assert!(logs(&user).contains("tier_full"), "that it takes no more is said");
    assert_eq!(read(user.run(args("12Mi"))).1, part(few), "a full one still serves");

    // It may be deleted while a job uses it.
    let mut running = Running::start(&user, &args("1Gi"));
    running.wait_for("some steps are committed", |journal| committed(journal) >= 12);
    std::fs::remove_dir_all(&folder).unwrap();
    read(running.finish());

    // A folder that cannot be had is said before anything runs.
    user.write("file", "");
    let mut args = args("1Gi");
    let at = args.iter().position(|arg| arg.starts_with("spec.data.localTier.folder")).unwrap();
    args[at] = format!("spec.data.localTier.folder={}", user.work().join("file/tier").display());
    user.run(args).code(1).says("file/tier").says("spec.data.localTier.folder");
    leftovers::assert_none(&user);
}

/// A job of three epochs, twice, with a tier on a disk that is smaller than the budget: a file system in memory, in a mount
/// namespace that ends with the second. (What the first one read is in its memory, so only the second asks the tier.)
fn full_disk() {
    let (ceph, user) = (Ceph::start("disk", &[]), User::new());
    let (data, bytes) = put(&ceph, &user, 8, 8192);
    let folder = user.work().join("nvme");
    std::fs::create_dir(&folder).unwrap();
    let tier = format!("spec.data.localTier.folder={}", folder.display());
    let more = ["--global-batch", "128", "--shuffle", "window:2", "--epochs", "3", "--env", "LOCKSTEP=1"];
    let plain = user.run(submit(&user, &data, "2", &more)).code(0).json();
    let tier = ["--set", "spec.data.localTier.size=1Gi", "--set", &tier];
    let command = user.command(submit(&user, &data, "2", &[&more[..], &tier].concat()));
    let status = mounted(&folder, "64m", &command).code(0).json();
    let (summary, digest) = (&status["summary"], "orderDigest");
    assert_eq!(summary[digest], plain["summary"][digest], "{status:#}");
    let (read, kept) = (summary["bytesRead"].as_u64().unwrap(), summary["bytesFromTier"].as_u64().unwrap());
    assert!((CHUNK_BYTES..=3 * (64 << 20)).contains(&kept), "{status:#}");
    assert!(read + kept <= 3 * bytes, "each chunk comes from one place: {status:#}");
    assert!(logs(&user).contains("tier_full") && logs(&user).contains("No space left"), "{}", logs(&user));
    leftovers::assert_none(&user);
}

/// Runs a command twice with a file system of that size at that folder, which nobody else sees; the second time is told of.
fn mounted(folder: &Path, size: &str, command: &Command) -> Finished {
    let script = "mount -t tmpfs -o size=$0 tier \"$1\" && shift && \"$@\" >/dev/null && exec \"$@\"";
    let mut inside = Command::new("unshare");
    inside.args(["--mount", "--propagation", "private", "sh", "-c", script, size]);
    inside.arg(folder).arg(command.get_program()).args(command.get_args());
    inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    inside.current_dir(command.get_current_dir().unwrap()).stdin(Stdio::null());
    let child = inside.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    Finished::new(format!("{inside:?}"), &wait(child))
}

/// The chunks in a tier.
fn kept(folder: &Path) -> Vec<PathBuf> {
    let inside = |folder: PathBuf| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let data_sets = inside(folder.to_owned()).flat_map(inside).filter(|path| path.is_dir());
    let mut chunks: Vec<_> = data_sets.flat_map(inside).filter(|path| path.extension().is_none()).collect();
    chunks.sort();
    chunks
}

/// What the workers of the latest job have logged.
fn logs(user: &User) -> String {
    let jobs = user.state().join("jobs");
    let changed = |path: &PathBuf| path.metadata().unwrap().modified().unwrap();
    let job = user.jobs().into_iter().map(|job| jobs.join(job)).max_by_key(changed).unwrap();
    let logs = std::fs::read_dir(job.join("logs")).unwrap().map(|entry| entry.unwrap().path());
    logs.filter_map(|path| std::fs::read_to_string(path).ok()).collect()
}

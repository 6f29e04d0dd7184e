//! What breaks in a cluster, and what a job makes of it: it goes on without losing or doubling a sample, or it fails and says
//! what is wrong where.

use std::time::Duration;

use serde_json::Value;
use tests::ceph::Ceph;
use tests::job::Running;
use tests::leftovers;
use tests::program::{Finished, User, root};

use crate::Story;
use crate::training::{committed, put, signal, submit};

pub(crate) const STORIES: &[Story] = &[
    ("faults_osd_killed_and_back", || {
        goes_on("back", &BLUESTORE, |ceph| {
            ceph.signal("osd.0", "KILL");
            lasts(3);
            ceph.run("osd.0");
        })
    }),
    ("faults_osd_killed_for_good_with_a_second_copy", || {
        goes_on("copy", &TWO_COPIES, |ceph| ceph.signal("osd.1", "KILL"))
    }),
    ("faults_osd_killed_for_good_without_a_copy", lost),
    ("faults_osd_stopped_for_three_seconds", || {
        goes_on("stopped", &[], |ceph| {
            ceph.signal("osd.0", "STOP");
            lasts(3);
            ceph.signal("osd.0", "CONT");
        })
    }),
    ("faults_owner_stopped_for_three_seconds", owner_stopped),
    ("faults_monitor_down_in_mid_job", || goes_on("monitor", &[], |ceph| ceph.signal("mon.a", "KILL"))),
    ("faults_monitor_down_at_the_start", monitor_down),
    ("faults_object_missing", || {
        fails("missing", &[], "tokens/tokens-002.bin.0000000000000001: it is not in the store", |ceph| {
            ceph.tool("rados", ["-p", "shards", "rm", "tokens/tokens-002.bin.0000000000000001"]).code(0);
        })
    }),
    ("faults_object_with_other_bytes", other_bytes),
    ("faults_object_damaged_on_its_only_disk", || {
        fails("damaged", &BLUESTORE, "no answer in time", |ceph| damage(ceph, "osd.0"))
    }),
    ("faults_object_damaged_on_one_of_two_disks", || {
        goes_on_after("mended", &TWO_COPIES, |ceph| damage(ceph, "osd.0"))
    }),
    ("faults_pool_full_during_a_put", pool_full),
    ("faults_gateway_restarted", gateway_restarted),
    ("faults_manifest_of_other_shards", other_manifest),
];

const BLUESTORE: [(&str, &str); 2] = [("STORE", "bluestore"), ("OSD_GB", "2")];
const TWO_COPIES: [(&str, &str); 4] = [("STORE", "bluestore"), ("OSD_GB", "2"), ("OSDS", "2"), ("SIZE", "2")];

/// Steps of the jobs below: 4 shards of 4096 records, 128 a step.
const STEPS: u64 = 128;

/// A job of 67 MB that takes a few seconds, whose caches hold little of it.
pub(crate) fn job(user: &User, data: &str) -> Vec<String> {
    let slow = ["--env", "STEP_MS=60", "--env", "COMMIT_EVERY=4", "--set", "spec.restarts.backoff=100ms"];
    let more = ["--global-batch", "128", "--shuffle", "window:2", "--max-restarts", "1"];
    submit(user, data, "2", &[&more[..], &slow].concat())
}

/// What the order of a job over this data must be.
fn expected(user: &User) -> Value {
    let source = user.work().join("tokens");
    let args =
        ["data", "order", source.to_str().unwrap(), "--record", "u16:2048", "--workers", "1", "--seed", "7"];
    let order = ["--global-batch", "128", "--shuffle", "window:2", "--digest", "--output", "json"];
    user.run([&args[..], &order].concat()).code(0).json()["digest"].clone()
}

pub(crate) fn assert_whole(user: &User, finished: Finished) {
    let status = finished.code(0).json();
    assert_eq!(status["summary"]["orderDigest"], expected(user), "nothing lost, nothing doubled: {status:#}");
    assert_eq!(status["summary"]["steps"], STEPS, "{status:#}");
    leftovers::assert_none(user);
}

/// How long a fault lasts.
#[expect(clippy::disallowed_methods, reason = "the length is what the story is about")]
fn lasts(seconds: u64) {
    std::thread::sleep(Duration::from_secs(seconds));
}

/// The fault comes while the job runs; it ends as if nothing had been.
fn goes_on(name: &str, settings: &[(&str, &str)], fault: impl Fn(&Ceph)) {
    let (ceph, user) = (Ceph::start(name, settings), User::new());
    let (data, _) = put(&ceph, &user, 4, 4096);
    let mut running = Running::start(&user, &job(&user, &data));
    running.wait_for("some steps are committed", |journal| committed(journal) >= 12);
    fault(&ceph);
    assert_whole(&user, running.finish());
}

/// A sidecar answers nobody for a while: the others read its chunks themselves, and nobody is restarted.
fn owner_stopped() {
    let (ceph, user) = (Ceph::start("owner", &[]), User::new());
    let (data, _) = put(&ceph, &user, 4, 4096);
    let mut running = Running::start(&user, &job(&user, &data));
    running.wait_for("some steps are committed", |journal| committed(journal) >= 12);
    let workers = leftovers::pids(&user, "launcher worker-agent");
    signal(workers[1], rustix::process::Signal::STOP);
    lasts(3);
    signal(workers[1], rustix::process::Signal::CONT);
    let finished = running.finish().code(0);
    assert_eq!(finished.json()["restarts"], 0, "{}", finished.stdout);
    assert_whole(&user, finished);
}

/// The fault comes before the job.
fn goes_on_after(name: &str, settings: &[(&str, &str)], fault: impl Fn(&Ceph)) {
    let (ceph, user) = (Ceph::start(name, settings), User::new());
    let (data, _) = put(&ceph, &user, 4, 4096);
    fault(&ceph);
    assert_whole(&user, user.run(job(&user, &data)));
}

/// The fault comes before the job, which fails and says so.
fn fails(name: &str, settings: &[(&str, &str)], says: &str, fault: impl Fn(&Ceph)) {
    let (ceph, user) = (Ceph::start(name, settings), User::new());
    let (data, _) = put(&ceph, &user, 4, 4096);
    fault(&ceph);
    let failed = user.run(job(&user, &data)).code(1);
    assert!(failed.stderr.contains(says), "it says {says:?}\n{}", failed.stderr);
    leftovers::assert_none(&user);
}

fn lost() {
    let (ceph, user) = (Ceph::start("lost", &[]), User::new());
    let (data, _) = put(&ceph, &user, 4, 4096);
    let mut running = Running::start(&user, &job(&user, &data));
    running.wait_for("some steps are committed", |journal| committed(journal) >= 12);
    ceph.signal("osd.0", "KILL");
    running.finish().code(1).says("no answer in time (rados_osd_op_timeout)");
    leftovers::assert_none(&user);
}

fn monitor_down() {
    let (ceph, user) = (Ceph::start("start", &[]), User::new());
    let (data, _) = put(&ceph, &user, 4, 64);
    ceph.signal("mon.a", "KILL");
    user.run(job(&user, &data)).code(69).says("no monitor of ").says("127.0.0.1");
    assert!(user.jobs().is_empty(), "nothing was made");
    ceph.run("mon.a");
    user.run(["data", "verify", &data]).code(0);
}

/// The only way to get other bytes past Ceph's own checksums: somebody wrote them.
fn other_bytes() {
    let (ceph, user) = (Ceph::start("bytes", &[]), User::new());
    let (data, _) = put(&ceph, &user, 4, 4096);
    let file = user.work().join("object");
    let (object, path) = ("tokens/tokens-002.bin.0000000000000001", file.to_str().unwrap());
    ceph.tool("rados", ["-p", "shards", "get", object, path]).code(0);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[100_000] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    ceph.tool("rados", ["-p", "shards", "put", object, path]).code(0);
    let failed = user.run(job(&user, &data)).code(1);
    assert!(
        failed.stderr.contains("tokens-002.bin") && failed.stderr.contains("crc_mismatch"),
        "{}",
        failed.stderr
    );
    user.run(["data", "verify", &data]).code(65).says("tokens-002.bin");
    leftovers::assert_none(&user);
}

/// Flips a byte of a record where it lies on an OSD's disk. The OSD is down meanwhile, so that it reads it anew.
fn damage(ceph: &Ceph, osd: &str) {
    ceph.signal(osd, "TERM");
    let script = root().join("tests/rig/ceph/damage.py");
    let disk = ceph.folder().join(osd).join("block");
    // The record 9000: in the third shard, whose records are numbered from 8192.
    ceph.tool("python3", [script.as_os_str(), disk.as_os_str(), "9000".as_ref()]).code(0);
    ceph.run(osd);
}

fn pool_full() {
    let (ceph, user) = (Ceph::start("full", &[("MGR", "1")]), User::new());
    put(&ceph, &user, 4, 4096);
    ceph.tool("ceph", ["osd", "pool", "set-quota", "shards", "max_bytes", "40000000"]).code(0);
    // The manager counts every few seconds.
    let deadline = leftovers::now() + Duration::from_secs(60);
    while !ceph.tool("ceph", ["osd", "dump"]).code(0).stdout.contains("full_quota") {
        assert!(leftovers::now() < deadline, "the pool is not found full");
        leftovers::pause();
    }
    let (source, target) = (user.work().join("tokens"), ceph.url("writer", "more"));
    let args = ["data", "put", source.to_str().unwrap(), &target, "--record", "u16:2048"];
    user.run(args).code(73).says("is full").says("tokens-000.bin");
    // What is there can still be read.
    user.run(["data", "verify", &ceph.url("reader", "tokens")]).code(0);
}

fn gateway_restarted() {
    let (ceph, user) = (Ceph::start("gateway", &[("RGW", "1")]), User::new());
    ceph.make_bucket("tokens", None);
    put(&ceph, &user, 4, 4096);
    let (source, target) = (user.work().join("tokens"), ceph.s3_url("tokens", "train"));
    user.run(["data", "put", source.to_str().unwrap(), &target, "--record", "u16:2048"]).code(0);
    let mut running = Running::start(&user, &job(&user, &target));
    running.wait_for("some steps are committed", |journal| committed(journal) >= 12);
    ceph.signal("rgw", "KILL");
    lasts(2);
    ceph.run("rgw");
    assert_whole(&user, running.finish());
}

fn other_manifest() {
    let (ceph, user) = (Ceph::start("manifest", &[]), User::new());
    let (data, _) = put(&ceph, &user, 4, 64);
    let shard = user.write("shard", vec![0; 64 * 4096 + 4096]);
    ceph.tool("rados", ["-p", "shards", "put", "tokens/tokens-001.bin", shard.to_str().unwrap()]).code(0);
    user.run(job(&user, &data)).code(65).says("tokens-001.bin").says("data index");
    assert!(user.jobs().is_empty(), "nothing was made");
}

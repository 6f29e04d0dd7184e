//! The control plane fails, ours or the cluster's: whatever is away, cut off, stopped or wrong about the time, jobs go on as
//! if nothing had been, and nothing is made twice.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::kube::{Line, Rig, Service, Training};
use tests::leftovers::{now, pause};
use tests::program::root;

use crate::Story;
use crate::faults::{long, uids};
use crate::gangs::{gang, node};
use crate::jobs::{check_digits, committed_beyond, writable};

pub(crate) const STORIES: &[Story] = &[
    ("outages_api_server_is_killed_and_comes_back_and_ranks_go_on", api_server_killed),
    ("outages_watches_are_cut_every_second", watches_cut),
    ("outages_leader_is_stopped_and_another_goes_on_with_its_gangs", leader_stopped),
    ("outages_controllers_whose_clocks_are_an_hour_off_agree", clocks_off),
    ("outages_controller_dies_after_every_single_write", killed_after_every_write),
];

/// They take about two minutes: longer than any outage here.
const EPOCHS: u64 = 240;
/// Longer than a leader keeps its lease without an answer: the controller ends too, and is started again.
const AWAY: Duration = Duration::from_secs(15);
/// Between two cuts.
const CUT_EVERY: Duration = Duration::from_secs(1);
/// More than any clock of a cluster is off, in seconds.
const CLOCK_OFF: i64 = 3600;
/// Workers of a gang whose controller dies at each of its steps.
const WORKERS: u32 = 3;
/// A line that is quiet for so long stays so: what a job's birth and its end have to write, they have written.
const QUIET: Duration = Duration::from_millis(1500);
/// A gang of three takes about twenty writes; what takes more than this has no end.
const WRITES_MAX: u32 = 100;

fn api_server_killed() {
    let rig = Rig::start(root().join("tests/.cache/kubernetes/outage"));
    rig.nodes(2);
    let training = rig.training("api", "job");
    // As deployed: what the kubelet starts again is the same pod.
    training.kill_controller();
    training.by_one_name();
    training.start();
    let checkpoints = writable();
    training.space.apply(&long(&training, checkpoints.path(), EPOCHS));
    let step = committed_beyond(&training, 0);
    let before = uids(&training);
    rig.stop_api_server();
    wait_for(AWAY);
    training.care();
    rig.start_api_server();
    committed_beyond(&training, step);
    assert_eq!(uids(&training), before, "the pods outlived the API server's absence");
    end_as_if_nothing_had_been(&training);
}

fn watches_cut() {
    let rig = Rig::shared().nodes(4);
    let training = rig.training("cut", "job");
    let line = rig.line();
    training.kill_controller();
    training.by_line(&line);
    training.start();
    let checkpoints = writable();
    training.space.apply(&long(&training, checkpoints.path(), EPOCHS));
    let last = Cell::new(now());
    let end = training.until("digits", |status| {
        if last.get().elapsed() >= CUT_EVERY {
            line.cut();
            last.set(now());
        }
        (status["phase"] == "Succeeded").then(|| status.clone())
    });
    as_if_nothing_had_been(&training, &end);
}

/// A process that is stopped learns nothing of the time that passes. When it goes on, another leads: it must not act.
fn leader_stopped() {
    let rig = Rig::shared().nodes(4);
    let training = rig.training("leader", "job");
    training.kill_controller();
    let service = Service::start(&rig.host_address(), 2);
    let [one, two] = service.backends() else { panic!("two controllers") };
    let first = training.start_behind(&service, *one);
    rig.wait_for("the first leader", || (service.ready() == Some(*one)).then_some(()));
    let second = training.start_behind(&service, *two);
    let checkpoints = writable();
    training.space.apply(&long(&training, checkpoints.path(), EPOCHS));
    let step = committed_beyond(&training, 0);
    let before = uids(&training);
    first.signal(Signal::STOP);
    rig.wait_for("another leader", || (service.ready() == Some(*two)).then_some(()));
    let step = committed_beyond(&training, step);
    first.signal(Signal::CONT);
    assert_eq!(first.end(rig), Some(75), "it has lost its lease, and says so by its end");
    committed_beyond(&training, step);
    assert_eq!(uids(&training), before, "the pods outlived their leader");
    end_as_if_nothing_had_been(&training);
    drop(second);
}

fn clocks_off() {
    let rig = Rig::shared().nodes(4);
    let training = rig.training("clocks", "job");
    training.kill_controller();
    training.by_clock(CLOCK_OFF);
    training.start();
    let checkpoints = writable();
    training.space.apply(&long(&training, checkpoints.path(), EPOCHS));
    let step = committed_beyond(&training, 0);
    let before = uids(&training);
    training.kill_controller();
    training.by_clock(-CLOCK_OFF);
    training.start();
    committed_beyond(&training, step);
    assert_eq!(uids(&training), before, "whoever is an hour behind takes over from who is an hour ahead");
    end_as_if_nothing_had_been(&training);
}

/// A job's whole life, once for each of its writes: the API server carries the write out, the controller dies before it
/// hears of that, and the next one brings the job to the same end.
fn killed_after_every_write() {
    let rig = Rig::start(root().join("tests/.cache/kubernetes/steps"));
    rig.with_kwok();
    rig.create(&(0..WORKERS).map(node).collect::<Vec<_>>());
    let training = rig.controlled("steps", "job");
    let line = rig.line();
    training.kill_controller();
    training.by_line(&line);
    training.by_one_name();
    let mut died_at = Vec::new();
    for writes in 1..WRITES_MAX {
        line.open(Some(writes));
        training.start();
        let name = format!("step-{writes}");
        let mut deaths = Deaths { training: &training, line: &line, at: None };
        training.space.apply(&gang(&name, WORKERS).to_string());
        deaths.until(|| are_placed(&training.pods(&name)));
        deaths.until_quiet();
        training.space.kubectl(&["delete", "trainingjob", &name, "--wait=false"]).code(0);
        deaths.until(|| training.space.objects().is_empty());
        deaths.until_quiet();
        let Some(at) = deaths.at else { break };
        died_at.push(at);
        training.kill_controller();
    }
    show(&died_at);
    let is_there = |words: &[&str]| died_at.iter().any(|at| words.iter().all(|word| at.contains(word)));
    for step in [&["POST", "/secrets"][..], &["/jobs"], &["PATCH", "/pods/"], &["/trainingjobs/", "/status"]]
    {
        assert!(is_there(step), "it never died at {step:?}: {died_at:?}");
    }
    assert!(died_at.len() < usize::try_from(WRITES_MAX).unwrap() - 1, "a job's life has an end: {died_at:?}");
}

/// A job's life under a controller that dies once.
struct Deaths<'a> {
    training: &'a Training<'a>,
    line: &'a Line,
    at: Option<String>,
}

impl Deaths<'_> {
    /// Waits until `is_so`; a controller whose line dies meanwhile is killed and followed by another, which lives.
    fn until(&mut self, is_so: impl Fn() -> bool) {
        let deadline = now() + tests::kube::PATIENCE;
        while !is_so() {
            assert!(now() < deadline, "it does not get there after {:?}", self.at);
            self.look(Duration::from_millis(50));
        }
    }

    fn until_quiet(&mut self) {
        if self.at.is_none() {
            self.look(QUIET);
        }
    }

    fn look(&mut self, limit: Duration) {
        if let Some(at) = self.line.died(limit) {
            self.training.kill_controller();
            self.at = Some(at);
            self.line.open(None);
            self.training.start();
        }
    }
}

/// All have places, each on a node of its own, and there is one pod for each.
fn are_placed(pods: &[Value]) -> bool {
    let placed = pods.iter().filter(|pod| !pod["spec"]["schedulingGates"].is_array());
    let nodes: Vec<&Value> =
        placed.map(|pod| &pod["spec"]["nodeSelector"]["kubernetes.io/hostname"]).collect();
    let different: BTreeSet<String> = nodes.iter().map(|node| node.to_string()).collect();
    assert_eq!(different.len(), nodes.len(), "two pods on one node: {nodes:?}");
    assert!(pods.len() <= WORKERS as usize, "{} pods of {WORKERS} workers", pods.len());
    nodes.len() == WORKERS as usize
}

/// Nobody started anew, and the samples are those of an undisturbed job.
fn end_as_if_nothing_had_been(training: &Training<'_>) {
    let end = training.end("digits");
    as_if_nothing_had_been(training, &end);
}

fn as_if_nothing_had_been(training: &Training<'_>, end: &Value) {
    check_digits(training, end, EPOCHS);
    assert_eq!((&end["generation"], &end["restarts"]), (&json!(1), &json!(0)), "{end}");
    training.delete_and_look("digits");
}

fn wait_for(time: Duration) {
    let until = now() + time;
    while now() < until {
        pause();
    }
}

#[expect(clippy::print_stderr, reason = "the steps are a result of the story")]
fn show(steps: &[String]) {
    eprintln!("the controller died after {} writes, each time another:\n{}", steps.len(), steps.join("\n"));
}

//! A launcher that is replaced while workers outlive it.

use datapath::order::OrderDigest;

use super::*;

fn found() -> GroupConfig {
    GroupConfig { finds_workers: true, min_workers: 1, ..config(3, 0) }
}

/// A second launcher of a job whose workers run generation 1; `told` is what they had told the first one.
fn replaced(told: impl Fn(&mut Rig)) -> Rig {
    let mut before = Rig::running(found());
    told(&mut before);
    let mut rig = Rig::new(found(), Memory::of(&before.records));
    rig.pids = before.pids;
    assert!(rig.launched.is_empty() && rig.swept.is_empty() && rig.told.is_empty(), "nothing is touched");
    rig
}

fn heartbeat(rank: u32, steps: std::ops::Range<u64>, committed: Option<u64>) -> ToLauncher {
    let step = |step| ConsumedStep { step: Step(step), samples: 1, bytes: 1, digest: OrderDigest(1) };
    let progress = RankProgress {
        rank: Rank(rank),
        consumed: steps.map(step).collect(),
        committed: committed.map(Step),
        reported: BTreeMap::new(),
        ended: false,
    };
    ToLauncher::Heartbeat {
        generation: Generation(1),
        progress: vec![progress],
        counters: Counters::default(),
        roster: 0,
    }
}

/// A worker that runs generation 1 finds the new launcher and says again what it had said.
fn comes_back(rig: &mut Rig, worker: u32, steps: std::ops::Range<u64>, committed: Option<u64>) {
    rig.register_with(worker, Some(Generation(1)), None);
    let generation = Generation(1);
    if worker == 0 {
        rig.says(0, ToLauncher::StoreOpen { generation, address: ([10, 0, 0, 1], 29500).into() });
    }
    rig.says(worker, ToLauncher::Started { generation, pids: [(Rank(worker), 7)].into() });
    rig.says(worker, heartbeat(worker, steps, committed));
}

#[test]
fn a_generation_runs_on_under_a_new_launcher() {
    let mut rig = replaced(|before| {
        for rank in 0..3 {
            before.says(rank, heartbeat(rank, 0..4, Some(4)));
        }
    });
    assert_eq!(rig.group.view().committed, Step(4));
    // What was said after the last commit is said again, and so is what nobody heard.
    for worker in 0..3 {
        assert_eq!(rig.group.phase(), Phase::Joining);
        comes_back(&mut rig, worker, 2..9, Some(8));
    }
    assert_eq!(rig.group.phase(), Phase::Running);
    let view = rig.group.view();
    assert_eq!((view.generation, view.step, view.committed), (Generation(1), Step(9), Step(8)));
    assert_eq!(rig.group.summary().totals.steps, 9, "each step counts once");
    assert!(rig.swept.is_empty() && rig.launched.is_empty());
    let told: Vec<_> =
        rig.told.iter().filter(|(_, message)| !matches!(message, ToWorker::Welcome { .. })).collect();
    assert!(told.is_empty(), "{told:?}");
}

#[test]
fn a_worker_that_stopped_meanwhile_restarts_the_job_at_the_latest_commit() {
    let mut rig = replaced(|before| {
        for rank in 0..3 {
            before.says(rank, heartbeat(rank, 0..4, Some(2)));
        }
    });
    for worker in 0..2 {
        comes_back(&mut rig, worker, 0..4, Some(4));
    }
    rig.register_with(2, None, None);
    rig.pass(rig.group.config.timing.suspect * 2);
    for worker in 0..2 {
        rig.says(worker, ToLauncher::Fenced { generation: Generation(1) });
    }
    rig.pass(rig.group.config.timing.last_call);
    assert_eq!(rig.group.generation(), Generation(2), "{:?}", rig.group.phase());
    assert_eq!(rig.group.view().committed, Step(2), "rank 2 had not saved more, as far as anybody knows");
}

#[test]
fn a_worker_that_does_not_come_back_is_swept_before_the_next_generation() {
    let mut rig = replaced(|_| {});
    for worker in 0..2 {
        comes_back(&mut rig, worker, 0..1, None);
    }
    rig.pids.remove(&2);
    rig.pass(rig.group.config.timing.lease);
    rig.pass(rig.group.config.timing.suspect * 2);
    for worker in 0..2 {
        rig.says(worker, ToLauncher::Fenced { generation: Generation(1) });
    }
    rig.pass(rig.group.config.timing.heartbeat);
    assert_eq!(rig.swept, [[2]]);
    assert_eq!(rig.launched, [2]);
}

/// A commit beyond steps that the new launcher never heard of would settle a wrong sum, so it is not taken.
#[test]
fn a_commit_beyond_a_gap_is_not_taken() {
    let mut rig = replaced(|_| {});
    for worker in 0..3 {
        comes_back(&mut rig, worker, 5..9, Some(8));
    }
    assert_eq!(rig.group.view().committed, Step(0));
}

/// A pod that somebody deletes still answers while its ranks stop, and must not be given the next generation.
#[test]
fn a_worker_that_is_told_to_end_is_not_gathered_again() {
    let mut rig = Rig::running(found());
    let pid = rig.pids[&1];
    rig.handle(Event::Leaving { worker: WorkerId(1), pid });
    assert_eq!(rig.group.phase(), Phase::Running, "it may go on until it ends");
    rig.says(
        1,
        ToLauncher::Exited {
            generation: Generation(1),
            rank: Rank(1),
            status: ExitStatus::Signal { signal: 15 },
            evidence: None,
        },
    );
    rig.pass(rig.group.config.timing.suspect * 2);
    for worker in 0..3 {
        rig.says(worker, ToLauncher::Fenced { generation: Generation(1) });
    }
    rig.pass(rig.group.config.timing.heartbeat);
    assert_eq!((rig.group.phase(), rig.group.generation()), (Phase::Gathering, Generation(2)));
    rig.handle(Event::Gone { worker: WorkerId(1), pid, how: "its pod was deleted".to_owned() });
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.launched.last(), Some(&1));
    rig.register(1);
    rig.reach_running();
    assert_eq!(rig.group.generation(), Generation(2));
}

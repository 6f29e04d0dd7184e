//! The machine without hands: scripts of what must happen.

mod schedules;

use std::net::SocketAddr;

use datapath::order::OrderDigest;

use super::progress::{HEARTBEAT_STEPS_MAX, WAITING_STEPS_MAX};
use super::*;
use crate::rendezvous::client::SessionId;
use crate::rendezvous::message::{CauseKind, ConsumedStep, PreflightFault};
use crate::supervisor::{Container, RankExit};
use crate::units::Step;

const OK: ExitStatus = ExitStatus::Code { code: 0 };
const BAD: ExitStatus = ExitStatus::Code { code: 1 };

/// A machine, its clock, and a short text of what it did.
struct Bench {
    machine: Machine,
    now: Now,
}

fn bench(has_data: bool) -> Bench {
    let mut bench = Bench {
        machine: Machine::new(has_data, Some(Duration::from_secs(30)), Without::Ends),
        now: Duration::ZERO,
    };
    assert_eq!(bench.on(Event::Connected(SessionId(1))), "");
    assert_eq!(bench.on(welcome()), "heartbeat 0 []");
    bench
}

/// A bench whose generation 1 runs ranks 4 and 5.
fn running(has_data: bool) -> Bench {
    let mut bench = bench(has_data);
    bench.on(gather(1));
    bench.on(checked(1));
    bench.on(Event::Message(ToWorker::Assign(assignment(1))));
    bench.on(Event::StoreOpened { generation: Generation(1), address: address() });
    bench.on(Event::Message(ToWorker::Start { generation: Generation(1), master: address() }));
    bench.on(Event::Entered { generation: Generation(1) });
    let pids = BTreeMap::from([(Rank(4), 104), (Rank(5), 105)]);
    assert_eq!(bench.on(Event::Started { generation: Generation(1), pids }), "started 1");
    bench
}

impl Bench {
    fn on(&mut self, event: Event) -> String {
        let actions = self.machine.handle(event, self.now);
        actions.iter().map(describe).collect::<Vec<_>>().join(", ")
    }

    /// Lets time pass, tick by tick as the shell would; what was done meanwhile, without empty heartbeats.
    fn pass(&mut self, time: Duration) -> String {
        let end = self.now + time;
        let mut done = Vec::new();
        while self.machine.deadline() <= end {
            assert!(
                self.machine.deadline() > self.now || self.now == end || done.len() < 1_000,
                "it does not rest"
            );
            self.now = self.now.max(self.machine.deadline());
            done.push(self.on(Event::Tick));
            assert!(self.machine.deadline() > self.now, "a deadline that was served is in the past");
        }
        self.now = end;
        let parts = done.iter().flat_map(|line| line.split(", "));
        parts.filter(|part| !part.is_empty() && !part.ends_with("[]")).collect::<Vec<_>>().join(", ")
    }

    fn feed(&mut self, rank: u32, news: FeedNews) -> String {
        self.on(Event::Feed { generation: Generation(1), rank: Rank(rank), news })
    }
}

fn describe(action: &Action) -> String {
    match action {
        Action::Send(_, message) => match message {
            ToLauncher::Ready { generation, faults } => format!("ready {generation} {}", faults.len()),
            ToLauncher::StoreOpen { generation, .. } => format!("store-open {generation}"),
            ToLauncher::Started { generation, .. } => format!("started {generation}"),
            ToLauncher::Exited { generation, rank, .. } => format!("exited {generation} {rank}"),
            ToLauncher::Trouble { generation, .. } => format!("trouble {generation}"),
            ToLauncher::Fenced { generation } => format!("fenced {generation}"),
            other => format!("{other:?}"),
        },
        Action::Heartbeat(_, generation, roster, progress) => {
            let ranks: Vec<String> = progress
                .iter()
                .map(|rank| {
                    let steps: Vec<u64> = rank.consumed.iter().map(|step| step.step.0).collect();
                    let committed = rank.committed.map(|step| format!("+{step}")).unwrap_or_default();
                    format!("{}:{steps:?}{committed}", rank.rank)
                })
                .collect();
            let roster = if *roster > 0 { format!("peers {roster} ") } else { String::new() };
            format!("heartbeat {generation} {roster}[{}]", ranks.join(" "))
        }
        Action::Running(running) => format!("running {:?}", running.map(|generation| generation.0)),
        Action::Check(generation) => format!("CHECK {generation}"),
        Action::Enter(assignment) => format!("ENTER {}", assignment.generation),
        Action::Meet { generation, roster, .. } => format!("MEET {generation} peers {roster}"),
        Action::OpenStore { generation, .. } => format!("STORE {generation}"),
        Action::Launch { assignment, .. } => format!("LAUNCH {}", assignment.generation),
        Action::Examine(exit) => format!("EXAMINE {}", exit.rank),
        Action::Hang { stuck, .. } => {
            format!(
                "HANG {} at {}",
                stuck.rank,
                stuck.step.map_or_else(|| "start".to_owned(), |step| step.to_string())
            )
        }
        Action::Stop { generation, grace } => format!("STOP {generation} {}", grace.as_millis()),
        Action::Leave(generation) => format!("LEAVE {generation}"),
        Action::Exit(outcome) => format!("EXIT {}", outcome.code()),
    }
}

fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 4_000))
}

fn welcome() -> Event {
    Event::Message(ToWorker::Welcome { lease_ms: 10_000, heartbeat_ms: 500 })
}

fn gather(generation: u64) -> Event {
    Event::Message(ToWorker::Gather { generation: Generation(generation) })
}

fn fence(generation: u64) -> Event {
    Event::Message(ToWorker::Fence { generation: Generation(generation), grace_ms: 700 })
}

fn checked(generation: u64) -> Event {
    Event::Checked { generation: Generation(generation), faults: Vec::new() }
}

fn assignment(generation: u64) -> Assignment {
    Assignment {
        generation: Generation(generation),
        world_size: 6,
        group_world_size: 3,
        group_rank: 2,
        ranks: vec![Rank(4), Rank(5)],
        restarts: 0,
        max_restarts: 3,
        serves_store: true,
        start_step: Step(0),
        peers: Vec::new(),
        roster: 0,
    }
}

fn exit_of(rank: u32, status: ExitStatus) -> Event {
    exit_in(Generation(1), rank, status)
}

fn exit_in(generation: Generation, rank: u32, status: ExitStatus) -> Event {
    let (stopped_by_us, log_start) = (false, 0);
    Event::Exited(RankExit {
        generation,
        rank: Rank(rank),
        status,
        stopped_by_us,
        log_start,
        container: Container::Ours,
    })
}

fn examined(rank: u32, evidence: Option<Evidence>) -> Event {
    Event::Examined { generation: Generation(1), rank: Rank(rank), evidence }
}

fn evidence() -> Evidence {
    Evidence {
        rank: None,
        cause: CauseKind::Data,
        seen_unix_ns: 0,
        message: String::new(),
        hint: String::new(),
        log_tail: Vec::new(),
    }
}

fn consumed(step: u64) -> FeedNews {
    FeedNews::Consumed(ConsumedStep {
        step: Step(step),
        samples: 1,
        bytes: 1,
        digest: OrderDigest::default(),
    })
}

#[test]
fn a_generation_from_gathering_to_the_end() {
    let mut bench = bench(true);
    assert_eq!(bench.on(gather(1)), "CHECK 1");
    assert_eq!(bench.on(checked(1)), "ready 1 0");
    assert_eq!(bench.on(Event::Message(ToWorker::Assign(assignment(1)))), "STORE 1, ENTER 1");
    assert_eq!(
        bench.on(Event::StoreOpened { generation: Generation(1), address: address() }),
        "store-open 1"
    );
    let start = Event::Message(ToWorker::Start { generation: Generation(1), master: address() });
    assert_eq!(bench.on(start.clone()), "", "the feeds are not open yet");
    assert_eq!(bench.on(Event::Entered { generation: Generation(1) }), "running Some(1), LAUNCH 1");
    assert_eq!(bench.on(start), "", "once");
    assert_eq!(bench.on(Event::Started { generation: Generation(1), pids: BTreeMap::new() }), "started 1");
    assert_eq!(bench.on(exit_of(4, OK)), "");
    assert_eq!(bench.pass(SETTLE), "EXAMINE 4");
    assert_eq!(bench.on(examined(4, None)), "heartbeat 1 [], exited 1 4");
    assert_eq!(bench.on(Event::Message(ToWorker::Finish)), "STOP 1 5000");
    assert_eq!(bench.on(exit_of(5, OK)), "");
    assert_eq!(bench.on(Event::Stopped { generation: Generation(1) }), "", "a rank is still examined");
    assert_eq!(bench.pass(SETTLE), "EXAMINE 5");
    assert_eq!(
        bench.on(examined(5, None)),
        "heartbeat 1 [], exited 1 5, heartbeat 1 [], LEAVE 1, running None, fenced 1, EXIT 0"
    );
}

#[test]
fn every_consumed_step_is_told_before_the_exit() {
    let mut bench = running(true);
    bench.feed(4, FeedNews::Attached);
    bench.feed(4, consumed(0));
    assert_eq!(bench.on(exit_of(4, BAD)), "");
    assert_eq!(bench.pass(DRAIN_MAX / 2), "heartbeat 1 [4:[0]]", "the regular one");
    bench.feed(4, consumed(1));
    assert_eq!(bench.feed(4, FeedNews::Detached), "EXAMINE 4");
    assert_eq!(bench.on(examined(4, Some(evidence()))), "heartbeat 1 [4:[1]], exited 1 4");
}

#[test]
fn a_child_that_holds_the_feed_does_not_hold_the_exit_for_long() {
    let mut bench = running(true);
    bench.feed(4, FeedNews::Attached);
    bench.on(exit_of(4, BAD));
    assert_eq!(bench.pass(DRAIN_MAX), "EXAMINE 4");
}

#[test]
fn commits_and_many_steps_do_not_wait_for_the_beat_but_keep_a_distance() {
    let mut bench = running(true);
    bench.pass(Duration::from_millis(100));
    bench.feed(4, consumed(0));
    assert_eq!(bench.feed(4, FeedNews::Committed(Step(1))), "heartbeat 1 [4:[0]+1]");
    bench.feed(4, consumed(1));
    assert_eq!(bench.feed(4, FeedNews::Committed(Step(2))), "", "too early");
    assert_eq!(bench.pass(EARLY_GAP), "heartbeat 1 [4:[1]+2]");
    bench.pass(EARLY_GAP);
    let steps = u64::try_from(WAITING_STEPS_MAX).unwrap();
    for step in 0..steps - 1 {
        assert_eq!(bench.feed(5, consumed(step)), "");
    }
    assert!(bench.feed(5, consumed(steps)).starts_with("heartbeat 1 [5:[0, 1,"));
}

#[test]
fn what_piled_up_without_a_launcher_is_told_in_frames_that_fit() {
    let mut bench = running(true);
    bench.on(Event::Lost { silent: Duration::ZERO });
    let steps = HEARTBEAT_STEPS_MAX + 10;
    for step in 0..u64::try_from(steps).unwrap() {
        assert_eq!(bench.feed(4, consumed(step)), "");
    }
    bench.on(Event::Connected(SessionId(2)));
    let told: Vec<usize> = bench
        .machine
        .handle(welcome(), bench.now)
        .iter()
        .filter_map(|action| match action {
            Action::Heartbeat(SessionId(2), _, _, progress) => {
                Some(progress.iter().map(|rank| rank.consumed.len()).sum())
            }
            _ => None,
        })
        .collect();
    assert_eq!(told, [HEARTBEAT_STEPS_MAX, 10]);
}

#[test]
fn a_new_session_hears_what_the_old_one_may_have_missed() {
    let mut bench = running(true);
    bench.feed(4, consumed(0));
    assert_eq!(bench.pass(Duration::from_secs(11)), "heartbeat 1 [4:[0]]");
    bench.feed(4, consumed(1));
    assert_eq!(bench.pass(Duration::from_millis(600)), "heartbeat 1 [4:[1]]");
    bench.on(Event::Trouble { generation: Generation(1), evidence: evidence() });
    bench.on(exit_of(5, BAD));
    bench.pass(SETTLE);
    bench.on(examined(5, Some(evidence())));
    bench.on(Event::Lost { silent: Duration::from_secs(4) });
    assert_eq!(bench.feed(4, consumed(2)), "", "nobody hears");
    assert_eq!(bench.on(Event::Connected(SessionId(2))), "", "not welcomed yet");
    assert_eq!(
        bench.on(welcome()),
        "ready 1 0, store-open 1, started 1, trouble 1, heartbeat 1 [4:[1]], heartbeat 1 [4:[2]], exited 1 5",
        "the first step was told a lease ago"
    );
}

#[test]
fn a_fence_stops_first_and_speaks_then() {
    let mut bench = running(false);
    assert_eq!(bench.on(fence(1)), "STOP 1 700");
    assert_eq!(bench.on(exit_of(4, BAD)), "EXAMINE 4");
    assert_eq!(bench.on(exit_of(5, BAD)), "EXAMINE 5");
    bench.on(examined(4, None));
    bench.on(examined(5, None));
    let end = "heartbeat 1 [], LEAVE 1, running None, fenced 1";
    assert_eq!(bench.on(Event::Stopped { generation: Generation(1) }), end);
    assert_eq!(bench.on(fence(1)), "fenced 1", "answered again");
    assert_eq!(bench.on(gather(1)), "", "over for good");
    assert_eq!(bench.on(gather(2)), "CHECK 2");
}

#[test]
fn a_generation_that_runs_nothing_is_fenced_at_once() {
    let mut bench = bench(true);
    bench.on(gather(1));
    assert_eq!(bench.on(fence(1)), "heartbeat 0 [], LEAVE 1, running None, fenced 1");
    assert_eq!(bench.on(checked(1)), "", "the check came too late");
    assert_eq!(bench.on(fence(7)), "fenced 7", "never seen, never will be");
    assert_eq!(bench.on(gather(7)), "");
}

#[test]
fn a_launcher_that_went_on_without_us_is_followed() {
    let mut bench = running(false);
    assert_eq!(bench.on(gather(3)), "STOP 1 0");
    assert_eq!(bench.on(gather(3)), "STOP 1 0", "harmless");
    let end = "heartbeat 1 [], LEAVE 1, running None, fenced 1, CHECK 3";
    assert_eq!(bench.on(Event::Stopped { generation: Generation(1) }), end);
    let mut bench = running(false);
    assert_eq!(bench.on(fence(4)), "STOP 1 700");
    let end = "heartbeat 1 [], LEAVE 1, running None, fenced 4";
    assert_eq!(bench.on(Event::Stopped { generation: Generation(1) }), end);
}

#[test]
fn words_of_other_generations_change_nothing() {
    let mut bench = running(true);
    let (two, zero) = (Generation(2), Generation(0));
    for stale in [
        gather(1),
        gather(0),
        checked(1),
        checked(2),
        Event::Message(ToWorker::Assign(assignment(1))),
        Event::Message(ToWorker::Assign(assignment(2))),
        Event::Message(ToWorker::Start { generation: two, master: address() }),
        Event::Message(ToWorker::Start { generation: Generation(1), master: address() }),
        Event::Entered { generation: two },
        Event::StoreOpened { generation: zero, address: address() },
        Event::Started { generation: two, pids: BTreeMap::new() },
        Event::Exited(RankExit {
            generation: two,
            rank: Rank(4),
            status: BAD,
            stopped_by_us: false,
            log_start: 0,
            container: Container::Ours,
        }),
        examined(4, None),
        Event::Trouble { generation: two, evidence: evidence() },
        Event::Stopped { generation: two },
        Event::Feed { generation: two, rank: Rank(4), news: FeedNews::Committed(Step(1)) },
    ] {
        assert_eq!(bench.on(stale.clone()), "", "{stale:?}");
    }
}

#[test]
fn a_worker_that_cannot_is_not_assigned() {
    let mut bench = bench(false);
    bench.on(gather(1));
    let fault = PreflightFault { code: "x".into(), message: String::new(), hint: String::new() };
    let checked = Event::Checked { generation: Generation(1), faults: vec![fault] };
    assert_eq!(bench.on(checked), "ready 1 1");
    assert_eq!(bench.on(Event::Message(ToWorker::Assign(assignment(1)))), "");
}

#[test]
fn a_spare_starts_nothing_and_says_so() {
    let mut bench = bench(true);
    bench.on(gather(1));
    bench.on(checked(1));
    let spare = Assignment { ranks: Vec::new(), serves_store: false, ..assignment(1) };
    assert_eq!(bench.on(Event::Message(ToWorker::Assign(spare))), "ENTER 1");
    bench.on(Event::Entered { generation: Generation(1) });
    let start = Event::Message(ToWorker::Start { generation: Generation(1), master: address() });
    assert_eq!(bench.on(start), "running Some(1), started 1");
    assert_eq!(bench.on(fence(1)), "heartbeat 1 [], LEAVE 1, running None, fenced 1");
}

#[test]
fn peers_that_come_and_go_are_met_in_their_order_once_the_data_plane_is_there() {
    let peers = |generation, roster| {
        let generation = Generation(generation);
        Event::Message(ToWorker::Peers { generation, roster, peers: Vec::new() })
    };
    let mut bench = bench(true);
    bench.on(gather(1));
    bench.on(checked(1));
    assert_eq!(bench.on(peers(1, 3)), "", "nothing is known of the generation yet");
    let server = Assignment { ranks: Vec::new(), serves_store: false, roster: 1, ..assignment(1) };
    bench.on(Event::Message(ToWorker::Assign(server)));
    assert_eq!(bench.on(peers(1, 2)), "", "the data plane has not entered");
    assert_eq!(bench.on(Event::Entered { generation: Generation(1) }), "MEET 1 peers 2");
    bench.on(Event::Message(ToWorker::Start { generation: Generation(1), master: address() }));
    assert_eq!(bench.on(peers(1, 2)), "", "again");
    assert_eq!(bench.on(peers(2, 9)), "", "another generation's");
    assert_eq!(bench.on(peers(1, 4)), "MEET 1 peers 4");
    assert_eq!(bench.on(peers(1, 3)), "", "an older list");
    assert_eq!(bench.on(fence(1)), "heartbeat 1 peers 4 [], LEAVE 1, running None, fenced 1");
}

#[test]
fn a_data_server_in_a_pod_goes_on_serving_while_it_looks_for_a_launcher() {
    let machine = Machine::new(true, None, Without::Serves);
    let mut bench = Bench { machine, now: Duration::ZERO };
    bench.on(Event::Connected(SessionId(1)));
    bench.on(welcome());
    bench.on(gather(1));
    bench.on(checked(1));
    let server = Assignment { ranks: Vec::new(), serves_store: false, ..assignment(1) };
    bench.on(Event::Message(ToWorker::Assign(server)));
    bench.on(Event::Entered { generation: Generation(1) });
    bench.on(Event::Message(ToWorker::Start { generation: Generation(1), master: address() }));
    bench.on(Event::Lost { silent: Duration::ZERO });
    assert_eq!(bench.pass(Duration::from_secs(600)), "", "nothing of it must not run on unseen");
    bench.on(Event::Connected(SessionId(2)));
    assert_eq!(bench.on(welcome()), "ready 1 0, started 1, heartbeat 1 []");
}

#[test]
fn a_rank_that_cannot_start_is_an_exit() {
    let mut bench = running(false);
    let generation = Generation(1);
    let status = ExitStatus::Code { code: 127 };
    let event = Event::NotStarted { generation, rank: Rank(4), status, evidence: evidence() };
    assert_eq!(bench.on(event), "heartbeat 1 [], exited 1 4");
}

#[test]
fn a_lost_launcher_is_given_the_lease_less_what_stopping_takes() {
    let mut bench = running(false);
    bench.pass(Duration::from_secs(3));
    bench.on(Event::Lost { silent: Duration::from_secs(1) });
    // Lease 10 s, a heartbeat of 0.5 s, a margin of a quarter; a second of it had passed when it was noticed.
    assert_eq!(bench.pass(Duration::from_millis(5_999)), "");
    bench.on(Event::Lost { silent: Duration::ZERO });
    assert_eq!(bench.pass(Duration::from_millis(1)), "STOP 1 1250", "failed attempts are no contact");
    assert_eq!(bench.on(Event::Stopped { generation: Generation(1) }), "LEAVE 1, running None, EXIT 75");
}

#[test]
fn a_worker_that_waits_stops_its_ranks_in_time_and_goes_on_when_the_launcher_is_back() {
    let mut bench = running(false);
    bench.machine.without = Without::Waits;
    bench.pass(Duration::from_secs(3));
    bench.on(Event::Lost { silent: Duration::ZERO });
    assert_eq!(bench.pass(Duration::from_secs(7)), "STOP 1 1250");
    assert_eq!(bench.on(Event::Stopped { generation: Generation(1) }), "LEAVE 1, running None");
    assert_eq!(bench.pass(Duration::from_secs(600)), "", "it rests, and looks for the launcher");
    assert_eq!(bench.on(Event::Connected(SessionId(2))), "");
    assert_eq!(bench.on(welcome()), "fenced 1, heartbeat 0 []", "what it stopped is over for ever");
    assert_eq!(bench.on(gather(2)), "CHECK 2");
    bench.on(Event::Lost { silent: Duration::ZERO });
    assert_eq!(bench.pass(Duration::from_secs(60)), "LEAVE 2, running None", "the next loss is one too");
}

#[test]
fn a_launcher_that_never_answers_is_lost_too() {
    let mut machine = Machine::new(false, None, Without::Ends);
    assert_eq!(machine.handle(Event::Tick, Duration::from_secs(20)), []);
    let late = machine.handle(Event::Tick, JOIN_MAX);
    assert_eq!(late, [Action::Exit(Outcome::LauncherLost)]);
}

#[test]
fn a_second_signal_hurries() {
    let mut bench = running(false);
    assert_eq!(bench.on(Event::Terminated), "STOP 1 5000");
    assert_eq!(bench.on(Event::Terminated), "STOP 1 0");
    assert_eq!(bench.on(gather(2)), "", "on its way out");
    assert!(bench.on(Event::Stopped { generation: Generation(1) }).ends_with("fenced 1, EXIT 143"));
}

#[test]
fn a_rank_that_never_makes_a_step_hangs_from_its_start() {
    let mut bench = running(true);
    bench.pass(Duration::from_secs(20));
    bench.feed(4, consumed(0));
    assert_eq!(bench.pass(Duration::from_secs(11)), "heartbeat 1 [4:[0]], HANG 5 at start");
    let mut bench = running(false);
    assert_eq!(bench.pass(Duration::from_secs(100)), "", "without data there is no telling");
}

#[test]
fn a_hang_is_told_once_and_names_who_is_behind() {
    let mut bench = running(true);
    bench.pass(Duration::from_secs(20));
    bench.feed(4, consumed(7));
    bench.feed(5, consumed(6));
    bench.pass(Duration::from_secs(20));
    bench.feed(4, consumed(8));
    assert_eq!(bench.pass(Duration::from_secs(11)), "heartbeat 1 [4:[8]], HANG 5 at 6");
    assert_eq!(bench.pass(Duration::from_secs(100)), "");
    let mut bench = running(true);
    bench.feed(4, consumed(7));
    bench.feed(4, FeedNews::Ended);
    bench.feed(5, consumed(7));
    bench.on(exit_of(5, OK));
    let quiet = bench.pass(Duration::from_secs(100));
    assert!(!quiet.contains("HANG"), "neither at the end of the data nor after the end: {quiet}");
}

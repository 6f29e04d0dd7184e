//! Data servers: who waits for them, who hears of them, and what does not follow from their end.

use super::*;

/// Two workers, and data servers 2 and 3.
fn served() -> GroupConfig {
    GroupConfig { servers: 2, ..config(2, 0) }
}

impl Rig {
    /// The data servers that a worker was told of last, and the number of that list.
    fn servers_of(&self, worker: u32) -> (u64, Vec<u32>) {
        let lists = self.told.iter().rev().filter(|(told, _)| *told == worker);
        let list = lists.filter_map(|(_, message)| match message {
            ToWorker::Assign(assignment) => Some((assignment.roster, &assignment.peers)),
            ToWorker::Peers { roster, peers, .. } => Some((*roster, peers)),
            _ => None,
        });
        let (roster, peers) = list.into_iter().next().expect("it was told of peers");
        let servers = peers.iter().filter(|peer| peer.role == Role::Server);
        (roster, servers.map(|peer| peer.worker.0).collect())
    }

    fn start_server(&mut self, server: u32) {
        let generation = self.group.generation();
        self.says(server, ToLauncher::Ready { generation, faults: Vec::new() });
        assert!(self.was_told(server, |message| matches!(message, ToWorker::Start { .. })));
        self.says(server, ToLauncher::Started { generation, pids: BTreeMap::new() });
    }

    fn state_of(&self, server: u32) -> (ServerState, String) {
        let view = self.group.servers().into_iter().find(|view| view.worker.0 == server).unwrap();
        (view.state, view.why)
    }

    fn beats(&mut self, worker: u32, roster: u64) {
        let generation = self.group.generation();
        let counters = Counters { store_bytes: 5, ..Counters::default() };
        self.says(worker, ToLauncher::Heartbeat { generation, progress: Vec::new(), counters, roster });
    }
}

#[test]
fn data_servers_are_peers_with_the_first_word_and_without_ranks() {
    let mut rig = Rig::running(served());
    assert_eq!(rig.launched, [0, 1, 2, 3]);
    for worker in 0..4 {
        assert_eq!(rig.servers_of(worker), (0, vec![2, 3]));
    }
    let assignments = rig.told.iter().filter_map(|(worker, message)| match message {
        ToWorker::Assign(assignment) => Some((*worker, assignment.ranks.len(), assignment.serves_store)),
        _ => None,
    });
    assert_eq!(assignments.collect::<Vec<_>>(), [(0, 1, true), (1, 1, false), (2, 0, false), (3, 0, false)]);
    assert_eq!(rig.group.ranks().len(), 2);
    rig.beats(0, 0);
    rig.beats(2, 0);
    let summary = rig.group.summary();
    assert_eq!((summary.counters.store_bytes, summary.server_counters.store_bytes), (10, 5));
    // Their last word, after the end was written, counts.
    rig.exit(0, 0, 0, None);
    rig.exit(1, 1, 0, None);
    assert!(rig.was_told(2, |message| *message == ToWorker::Finish));
    rig.beats(3, 0);
    assert_eq!(rig.group.summary().server_counters.store_bytes, 10);
    for worker in 0..4 {
        rig.gone(worker);
    }
    assert_eq!(rig.done, Some(Outcome::Succeeded));
    assert_eq!(rig.news, []);
}

#[test]
fn one_that_is_lost_ends_nothing_is_named_once_and_comes_back_into_the_same_generation() {
    let mut rig = Rig::running(served());
    rig.gone(3);
    assert_eq!((rig.group.phase(), rig.group.generation()), (Phase::Running, Generation(1)));
    let lost = "data server 1 (worker 3) was lost: killed; the other data server owns its chunks";
    assert_eq!(rig.news, [(ServerNews::Lost, lost.to_owned())]);
    for worker in 0..3 {
        assert_eq!(rig.servers_of(worker), (1, vec![2]), "all others hear of it at once");
    }
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.launched, [0, 1, 2, 3, 3], "and it is launched again");
    assert_eq!(rig.state_of(3), (ServerState::Starting, "killed".to_owned()));
    rig.register(3);
    rig.start_server(3);
    for worker in 0..4 {
        assert_eq!(rig.servers_of(worker), (2, vec![2, 3]));
    }
    assert_eq!(rig.state_of(3), (ServerState::Serving, String::new()));
    assert_eq!(rig.news.len(), 2);
    assert_eq!(rig.group.view().restarts, 0);

    rig.gone(2);
    rig.gone(3);
    rig.pass(rig.group.config.timing.heartbeat);
    assert_eq!(rig.servers_of(0), (4, vec![]));
    assert!(rig.news.last().unwrap().1.ends_with("read its chunks themselves"), "{:?}", rig.news);
    assert_eq!(rig.group.phase(), Phase::Running);
}

#[test]
fn one_that_dies_again_and_again_is_launched_ever_more_seldom() {
    let mut rig = Rig::running(served());
    for _ in 0..200 {
        if rig.state_of(3).0 == ServerState::Starting || rig.state_of(3).0 == ServerState::Serving {
            rig.gone(3);
            rig.pids.remove(&3);
        }
        rig.pass(Duration::from_secs(1));
    }
    let launches = rig.launched.iter().filter(|worker| **worker == 3).count();
    assert_eq!(launches, 5, "in ten minutes");
    assert_eq!(rig.news.len(), 1, "named once: {:?}", rig.news);
    rig.pass(Duration::from_secs(600));
    let later = rig.launched.iter().filter(|worker| **worker == 3).count();
    assert!((6..=10).contains(&later), "{later} in twenty");
    assert_eq!((rig.group.phase(), rig.group.view().restarts), (Phase::Running, 0));
}

#[test]
fn many_that_go_and_come_together_are_few_lists_of_peers() {
    let mut rig = Rig::running(GroupConfig { servers: 100, ..config(2, 0) });
    let heartbeat = rig.group.config.timing.heartbeat;
    let lists = |rig: &Rig, worker: u32| {
        let peers = |message: &ToWorker| matches!(message, ToWorker::Peers { .. });
        rig.told.iter().filter(|(told, message)| *told == worker && peers(message)).count()
    };
    for server in 2..102 {
        rig.gone(server);
    }
    assert_eq!((lists(&rig, 0), rig.servers_of(0)), (1, (1, (3..102).collect())), "the first one at once");
    rig.pass(heartbeat);
    assert_eq!((lists(&rig, 0), rig.servers_of(0)), (2, (100, vec![])));
    rig.pass(Duration::from_secs(1));
    rig.told.clear();
    for server in 2..102 {
        rig.register(server);
        rig.start_server(server);
    }
    assert_eq!(lists(&rig, 1), 1);
    rig.pass(heartbeat);
    assert_eq!((lists(&rig, 1), rig.servers_of(1)), (2, (200, (2..102).collect())));
}

#[test]
fn whoever_missed_a_list_of_peers_is_sent_it_again() {
    let mut rig = Rig::running(served());
    rig.gone(3);
    rig.told.clear();
    rig.now += rig.group.config.timing.resend;
    rig.beats(0, 1);
    assert_eq!(rig.told, [], "it has it");
    rig.beats(1, 0);
    assert_eq!(rig.servers_of(1), (1, vec![2]));
}

#[test]
fn a_job_waits_for_data_servers_but_not_for_long_and_not_twice() {
    let mut rig = Rig::new(served(), Memory::default());
    let generation = Generation(1);
    for worker in [0, 1, 2] {
        rig.register(worker);
        rig.says(worker, ToLauncher::Ready { generation, faults: Vec::new() });
    }
    assert_eq!(rig.group.phase(), Phase::Preflight);
    assert_eq!(rig.group.view().waiting_for, "data servers (workers 3)");
    rig.pids.remove(&3);
    rig.pass(rig.group.config.timing.servers);
    assert_eq!(rig.group.phase(), Phase::Assigned);
    assert_eq!(rig.servers_of(0), (0, vec![2]));
    let missing = "data server 1 (worker 3) is missing: it has not registered in time";
    assert_eq!(rig.news, [(ServerNews::Missing, missing.to_owned())]);
    rig.says(0, ToLauncher::StoreOpen { generation, address: ([127, 0, 0, 1], 9).into() });
    for worker in [0, 1, 2] {
        rig.says(worker, ToLauncher::Started { generation, pids: BTreeMap::new() });
    }
    // The next generation begins without waiting, and without saying so again.
    rig.fail(0, CauseKind::Exception, "x");
    rig.pass(Duration::from_secs(1));
    rig.fenced_all();
    rig.ready_all();
    assert_eq!((rig.group.phase(), rig.group.generation()), (Phase::Assigned, Generation(2)));
    assert_eq!(rig.news.len(), 1);
}

fn faults() -> Vec<PreflightFault> {
    let (code, message, hint) = ("source_unreadable".to_owned(), "cannot read".to_owned(), String::new());
    vec![PreflightFault { code, message, hint }]
}

#[test]
fn one_that_cannot_read_the_data_is_left_out_with_its_reason() {
    let mut rig = Rig::new(served(), Memory::default());
    rig.register_all();
    let generation = Generation(1);
    rig.says(3, ToLauncher::Ready { generation, faults: faults() });
    for worker in [0, 1, 2] {
        rig.says(worker, ToLauncher::Ready { generation, faults: Vec::new() });
    }
    assert_eq!(rig.group.phase(), Phase::Assigned);
    assert_eq!(rig.servers_of(1), (0, vec![2]));
    assert_eq!(rig.state_of(3), (ServerState::Lost, "cannot read".to_owned()));
    assert_eq!(rig.news[0].1, "data server 1 (worker 3) is missing: cannot read");
}

/// What it found when it started is what it says until it ends.
#[test]
fn one_that_fails_its_check_is_launched_again_and_takes_part_when_it_passes() {
    let mut rig = Rig::running(served());
    let generation = Generation(1);
    rig.gone(3);
    rig.pass(Duration::from_secs(1));
    rig.register(3);
    rig.says(3, ToLauncher::Ready { generation, faults: faults() });
    assert_eq!(rig.state_of(3), (ServerState::Lost, "cannot read".to_owned()));
    rig.pass(Duration::from_secs(5));
    assert_eq!((rig.swept.last(), rig.launched.last()), (Some(&vec![3]), Some(&3)));
    rig.register(3);
    rig.start_server(3);
    assert_eq!(rig.state_of(3), (ServerState::Serving, String::new()));
    assert_eq!(rig.servers_of(0).1, [2, 3]);
    assert_eq!(rig.group.generation(), generation);
}

#[test]
fn one_that_fails_its_check_again_and_again_is_named_once_and_left_alone_for_a_while() {
    let mut rig = Rig::running(served());
    rig.gone(3);
    for _ in 0..200 {
        rig.pass(Duration::from_secs(1));
        if rig.state_of(3).0 == ServerState::Starting {
            rig.register(3);
            rig.says(3, ToLauncher::Ready { generation: Generation(1), faults: faults() });
        }
    }
    assert_eq!(rig.launched.iter().filter(|worker| **worker == 3).count(), 5, "in ten minutes");
    assert_eq!(rig.state_of(3), (ServerState::Lost, "cannot read".to_owned()));
    let news: Vec<ServerNews> = rig.news.iter().map(|(news, _)| *news).collect();
    assert_eq!(news, [ServerNews::Lost, ServerNews::Missing]);
}

/// Its worker never goes back to a generation that it has left.
#[test]
fn one_that_cannot_go_on_is_another_process_when_it_comes_back() {
    let mut rig = Rig::running(served());
    rig.pass(Duration::from_secs(60));
    let evidence = Evidence {
        rank: None,
        cause: CauseKind::Data,
        seen_unix_ns: 1,
        message: "no room".to_owned(),
        hint: String::new(),
        log_tail: Vec::new(),
    };
    rig.says(3, ToLauncher::Trouble { generation: Generation(1), evidence });
    assert_eq!(rig.state_of(3), (ServerState::Lost, "no room".to_owned()));
    rig.pass(Duration::from_secs(2));
    assert_eq!((rig.swept.last(), rig.launched.last()), (Some(&vec![3]), Some(&3)));
    rig.register(3);
    rig.start_server(3);
    assert_eq!(rig.servers_of(0).1, [2, 3]);
}

#[test]
fn a_job_without_any_data_server_starts_at_once_when_all_have_died() {
    let mut rig = Rig::new(served(), Memory::default());
    rig.gone(2);
    rig.gone(3);
    rig.pids.retain(|worker, _| *worker < 2);
    rig.register_all();
    rig.reach_running();
    assert_eq!(rig.servers_of(0), (0, vec![]));
    assert_eq!(rig.news.len(), 2);
    assert!(
        rig.news.iter().all(|(news, message)| *news == ServerNews::Missing && message.ends_with("killed"))
    );
}

#[test]
fn a_restart_takes_the_data_servers_along() {
    let mut rig = Rig::running(served());
    rig.fail(1, CauseKind::Exception, "x");
    rig.pass(Duration::from_secs(1));
    assert!(rig.was_told(2, |message| matches!(message, ToWorker::Fence { .. })));
    rig.says(2, ToLauncher::Fenced { generation: Generation(1) });
    assert_eq!(rig.state_of(2), (ServerState::Serving, String::new()), "it was told to");
    // One does not answer: nobody waits for it.
    for worker in [0, 1] {
        rig.says(worker, ToLauncher::Fenced { generation: Generation(1) });
    }
    assert_eq!(rig.group.generation(), Generation(2));
    rig.reach_running();
    assert_eq!(rig.servers_of(0), (0, vec![2, 3]));
    assert_eq!(rig.news, []);
}

#[test]
fn a_new_launcher_learns_of_data_servers_before_it_tells_of_any() {
    let found = || GroupConfig { finds_workers: true, ..served() };
    let mut before = Rig::running(found());
    before.gone(3);
    assert_eq!(before.servers_of(0), (1, vec![2]));
    let mut rig = Rig::new(found(), Memory::of(&before.records));
    rig.pids = before.pids;
    let generation = Generation(1);
    for worker in [0, 1] {
        rig.register_with(worker, Some(generation), None);
        rig.says(worker, ToLauncher::Started { generation, pids: BTreeMap::new() });
        rig.beats(worker, 1);
    }
    assert_eq!(rig.group.phase(), Phase::Running);
    assert!(!rig.was_told(0, |message| matches!(message, ToWorker::Peers { .. })), "not before it knows");
    rig.register_with(2, Some(generation), None);
    // The other one never comes: after a lease that is known.
    for _ in 0..25 {
        rig.now += Duration::from_millis(500);
        for worker in 0..3 {
            rig.beats(worker, 1);
        }
        rig.handle(Event::Tick);
    }
    let (roster, servers) = rig.servers_of(1);
    assert!(roster > 1 && servers == [2], "{roster} {servers:?}");
    assert_eq!(rig.state_of(2).0, ServerState::Serving);
    assert_eq!(rig.group.generation(), generation);
}

//! Random schedules: whatever comes, late, twice or never, some things must not happen.

use proptest::prelude::*;

use super::*;

/// One thing that may happen; numbers are taken modulo what there is.
#[derive(Clone, Copy, Debug)]
enum Chance {
    Answer(usize),
    Repeat(usize),
    Launcher(u8, u64),
    Peers(u64, u64),
    Feed(u32, u8),
    Exit(u32),
    Session(u8),
    Pass(u64),
    Terminate,
}

fn chance() -> impl Strategy<Value = Chance> {
    prop_oneof![
        8 => any::<usize>().prop_map(Chance::Answer),
        1 => any::<usize>().prop_map(Chance::Repeat),
        6 => (0_u8..4, 1_u64..5).prop_map(|(kind, generation)| Chance::Launcher(kind, generation)),
        2 => (1_u64..5, 0_u64..6).prop_map(|(generation, roster)| Chance::Peers(generation, roster)),
        4 => (4_u32..6, 0_u8..5).prop_map(|(rank, kind)| Chance::Feed(rank, kind)),
        2 => (4_u32..6).prop_map(Chance::Exit),
        2 => (0_u8..3).prop_map(Chance::Session),
        3 => (0_u64..800).prop_map(Chance::Pass),
        1 => Just(Chance::Terminate),
    ]
}

/// Answers the machine's actions in any order, and checks what must hold after each event.
#[derive(Default)]
struct World {
    now: Now,
    pending: Vec<Event>,
    past: Vec<Event>,
    session: u64,
    /// Launched and not left.
    live: Option<Generation>,
    launched: Generation,
    /// The data plane is in it.
    entered: Generation,
    met: (Generation, u64),
    left: Generation,
    exited: bool,
}

impl World {
    fn event(&mut self, chance: Chance) -> Option<Event> {
        let generation = self.live.unwrap_or(self.launched);
        Some(match chance {
            Chance::Answer(index) => {
                if self.pending.is_empty() {
                    return None;
                }
                self.pending.remove(index % self.pending.len())
            }
            Chance::Repeat(index) => self.past.get(index.checked_rem(self.past.len())?)?.clone(),
            Chance::Launcher(0, generation) => gather(generation),
            Chance::Launcher(1, generation) => Event::Message(ToWorker::Assign(assignment(generation))),
            Chance::Launcher(2, generation) => {
                Event::Message(ToWorker::Start { generation: Generation(generation), master: address() })
            }
            Chance::Launcher(_, generation) => fence(generation),
            Chance::Peers(generation, roster) => {
                let generation = Generation(generation);
                Event::Message(ToWorker::Peers { generation, roster, peers: Vec::new() })
            }
            Chance::Feed(rank, kind) => {
                let news = match kind {
                    0 => FeedNews::Attached,
                    1 => FeedNews::Detached,
                    2 => FeedNews::Committed(Step(3)),
                    3 => FeedNews::Ended,
                    _ => consumed(2),
                };
                Event::Feed { generation, rank: Rank(rank), news }
            }
            Chance::Exit(rank) => {
                self.live?;
                exit_in(generation, rank, BAD)
            }
            Chance::Session(0) => Event::Lost { silent: Duration::ZERO },
            Chance::Session(1) => {
                self.session += 1;
                Event::Connected(SessionId(self.session))
            }
            Chance::Session(_) => welcome(),
            Chance::Pass(ms) => {
                self.now += Duration::from_millis(ms);
                Event::Tick
            }
            Chance::Terminate => Event::Terminated,
        })
    }

    fn judge(&mut self, action: Action) {
        assert!(!self.exited, "{action:?} after the end");
        match action {
            Action::Send(_, ToLauncher::Fenced { .. }) | Action::Running(_) => {}
            Action::Send(_, message) => {
                let generation = match message {
                    ToLauncher::Ready { generation, .. }
                    | ToLauncher::StoreOpen { generation, .. }
                    | ToLauncher::Started { generation, .. }
                    | ToLauncher::Exited { generation, .. }
                    | ToLauncher::Trouble { generation, .. } => generation,
                    other => panic!("{other:?}"),
                };
                assert!(generation > self.left, "a fenced generation speaks");
            }
            Action::Heartbeat(_, generation, _, _) => {
                assert!(generation == Generation(0) || Some(generation) == self.live);
            }
            Action::Check(generation) => {
                assert!(self.live.is_none() && generation > self.left);
                self.pending.push(Event::Checked { generation, faults: Vec::new() });
            }
            Action::Enter(Assignment { generation, .. }) => {
                self.entered = generation;
                self.pending.push(Event::Entered { generation });
            }
            Action::Meet { generation, roster, .. } => {
                assert!(generation == self.entered && generation > self.left, "nobody is there to be met");
                assert!((generation, roster) > self.met, "an older list");
                self.met = (generation, roster);
            }
            Action::OpenStore { generation, .. } => {
                self.pending.push(Event::StoreOpened { generation, address: address() });
            }
            Action::Launch { assignment: Assignment { generation, .. }, .. } => {
                assert!(self.live.is_none(), "two generations run");
                assert!(generation > self.launched && generation > self.left, "a generation runs again");
                (self.live, self.launched) = (Some(generation), generation);
                self.pending.push(Event::Started { generation, pids: BTreeMap::new() });
            }
            Action::Examine(RankExit { generation, rank, .. }) => {
                self.pending.push(Event::Examined { generation, rank, evidence: None });
            }
            Action::Hang { generation, .. } => {
                self.pending.push(Event::Trouble { generation, evidence: evidence() });
            }
            Action::Stop { generation, .. } => {
                assert_eq!(self.live, Some(generation));
                self.pending.push(Event::Stopped { generation });
            }
            Action::Leave(generation) => {
                assert!(generation > self.left, "left twice");
                self.left = generation;
                self.live = None;
            }
            Action::Exit(_) => {
                assert_eq!(self.live, None, "exit while ranks run");
                self.exited = true;
            }
        }
    }
}

proptest! {
    #[test]
    fn no_schedule_breaks_a_promise(
        chances in proptest::collection::vec(chance(), 0..200),
        waits in any::<bool>(),
    ) {
        let without = if waits { Without::Waits } else { Without::Ends };
        let mut machine = Machine::new(true, Some(Duration::from_secs(1)), without);
        let mut world = World { session: 1, ..World::default() };
        for action in machine.handle(Event::Connected(SessionId(1)), world.now) {
            world.judge(action);
        }
        for chance in chances {
            let Some(event) = world.event(chance) else { continue };
            world.past.push(event.clone());
            for action in machine.handle(event, world.now) {
                world.judge(action);
            }
            if world.exited {
                return Ok(());
            }
        }
        // Whatever the state: it ends when it is told to, once everything is answered and time passes.
        let mut event = Some(Event::Message(ToWorker::Finish));
        for _ in 0..200 {
            for action in machine.handle(event.take().unwrap_or(Event::Tick), world.now) {
                world.judge(action);
            }
            if world.exited {
                return Ok(());
            }
            world.now += Duration::from_millis(100);
            event = (!world.pending.is_empty()).then(|| world.pending.remove(0));
        }
        prop_assert!(world.exited, "it does not end: {:?}", machine);
    }
}

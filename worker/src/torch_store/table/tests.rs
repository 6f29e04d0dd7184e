//! The table against a capture of torch's server, its rules one by one, and a plain model.

use proptest::prelude::*;

use super::{Connection, Refusal, Reply, Table, Waiting};
use crate::torch_store::protocol::{Command, CommandLimits, Decoder, MAGIC, Query, Request, Step};

mod model;

const LIMIT: usize = 1 << 20;

/// A table and what its connections were sent.
struct Bench {
    table: Table,
    sent: Vec<Vec<u8>>,
}

impl Bench {
    fn new(connections: u32) -> Self {
        let mut bench = Self { table: Table::new(LIMIT), sent: Vec::new() };
        for number in 0..connections {
            bench.table.open(Connection(number));
            bench.sent.push(Vec::new());
            bench.send(number, Command::new(Query::Validate).word(MAGIC));
        }
        bench
    }

    /// Sends a command; what it is answered, its own and a wake-up's bytes alike, is in `sent`.
    fn send(&mut self, from: u32, command: Command) {
        self.try_send(from, &command.into_bytes()).unwrap();
    }

    fn try_send(&mut self, from: u32, bytes: &[u8]) -> Result<(), Refusal> {
        let Ok(Step::Request(request, used)) = Decoder::new(CommandLimits::default()).decode(bytes) else {
            panic!("not a whole command");
        };
        assert_eq!(used, bytes.len());
        let (mut reply, mut woken) = (Reply::default(), Vec::new());
        let outcome = self.table.apply(Connection(from), &request, &mut reply, &mut woken);
        let all: Vec<u8> = reply.pieces().flatten().collect();
        self.sent[index(from)].extend(all);
        self.note(&woken);
        outcome
    }

    fn close(&mut self, connection: u32) {
        let mut woken = Vec::new();
        self.table.close(Connection(connection), &mut woken);
        self.note(&woken);
    }

    fn note(&mut self, woken: &[Connection]) {
        for connection in woken {
            self.sent[index(connection.0)].push(0);
        }
    }

    fn take(&mut self, connection: u32) -> Vec<u8> {
        std::mem::take(&mut self.sent[index(connection)])
    }
}

fn index(number: u32) -> usize {
    usize::try_from(number).unwrap()
}

fn set(key: &str, value: &str) -> Command {
    Command::new(Query::Set).bytes(key.as_bytes()).bytes(value.as_bytes())
}

fn wait(keys: &[&str]) -> Command {
    Command::new(Query::Wait).keys(keys)
}

fn one(query: Query, key: &str) -> Command {
    Command::new(query).bytes(key.as_bytes())
}

fn push(key: &str) -> Command {
    one(Query::QueuePush, key).bytes(b"item")
}

fn barrier(key: &str, world: i64) -> Command {
    one(Query::Barrier, key).signed(world)
}

const CANCEL: fn() -> Command = || Command::new(Query::CancelWait);

/// Keys of an answer to LIST_KEYS, sorted: torch gives them in the order of its hash table.
fn listed(mut answer: &[u8]) -> Vec<Vec<u8>> {
    let long = |answer: &mut &[u8]| {
        let (long, rest) = answer.split_first_chunk().unwrap();
        *answer = rest;
        usize::try_from(u64::from_le_bytes(*long)).unwrap()
    };
    let mut keys: Vec<_> = (0..long(&mut answer))
        .map(|_| {
            let length = long(&mut answer);
            let (key, rest) = answer.split_at(length);
            answer = rest;
            key.to_vec()
        })
        .collect();
    keys.sort();
    keys
}

#[test]
fn every_operation_is_answered_as_torch_answers_it() {
    let capture = include_str!("../golden/torch-2.15-every-operation.txt");
    let side = |mark: &str| -> Vec<u8> {
        let lines = capture.lines().filter_map(|line| line.strip_prefix(mark));
        let hex: String = lines.map(str::trim).collect();
        (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
    };
    let (asked, answered) = (side(">"), side("<"));
    let (mut asked, mut answered) = (asked.as_slice(), answered.as_slice());
    let mut decoder = Decoder::new(CommandLimits::default());
    let mut table = Table::new(LIMIT);
    table.open(Connection(0));
    let mut seen = std::collections::BTreeSet::new();
    while let Step::Request(request, used) = decoder.decode(asked).unwrap() {
        seen.insert(asked[0]);
        asked = &asked[used..];
        let (mut reply, mut woken) = (Reply::default(), Vec::new());
        table.apply(Connection(0), &request, &mut reply, &mut woken).unwrap();
        let ours: Vec<u8> = reply.pieces().flatten().collect();
        let (torchs, rest) = answered.split_at(ours.len());
        answered = rest;
        match request {
            Request::ListKeys => assert_eq!(listed(&ours), listed(torchs)),
            request => assert_eq!(ours, torchs, "{request:?}"),
        }
    }
    assert!(asked.is_empty() && answered.is_empty());
    assert_eq!(seen.len(), Query::ALL.len(), "the capture has every command");
}

#[test]
fn nothing_is_served_before_validate() {
    let mut table = Table::new(LIMIT);
    table.open(Connection(0));
    let (mut reply, mut woken) = (Reply::default(), Vec::new());
    let mut apply = |request| table.apply(Connection(0), &request, &mut reply, &mut woken);
    assert_eq!(apply(Request::Set(b"/evil", b"1")), Err(Refusal::NotValidated));
    assert_eq!(apply(Request::Validate(1)), Err(Refusal::BadMagic(1)));
    assert_eq!(apply(Request::CancelWait), Err(Refusal::NotValidated));
    assert_eq!(apply(Request::Validate(MAGIC)), Ok(()));
    assert_eq!(apply(Request::CountKeys), Ok(()));
    assert_eq!(reply.as_slice(), Some(&[0; 8][..]));
}

#[test]
fn a_cancelled_wait_is_always_answered() {
    let mut bench = Bench::new(2);
    bench.send(0, CANCEL());
    assert_eq!(bench.take(0), [1], "without a wait");
    bench.send(0, wait(&["/k"]));
    bench.send(0, CANCEL());
    assert_eq!(bench.take(0), [1], "during a wait");
    bench.send(0, wait(&["/k"]));
    bench.send(1, set("/k", "v"));
    bench.send(0, CANCEL());
    assert_eq!(bench.take(0), [0, 1], "the wait ended while the cancel was on its way");
    bench.send(1, one(Query::Delete, "/k"));
    assert_eq!(bench.table.progress().bytes, 0, "no wait is left in the books");
}

#[test]
fn a_wait_for_many_keys_ends_with_the_last() {
    let mut bench = Bench::new(2);
    bench.send(0, wait(&["/a", "/b", "/a", "/c"]));
    for key in ["/c", "/a", "/x"] {
        bench.send(1, set(key, ""));
        assert_eq!(bench.take(0), [0; 0]);
    }
    let waiting = bench.table.progress().clients[0].waiting.clone();
    assert_eq!(waiting, Some(Waiting::Key { key: b"/b".to_vec(), left: 3 }));
    bench.send(1, one(Query::Append, "/b").bytes(b"x"));
    assert_eq!(bench.take(0), [0]);
}

#[test]
fn add_to_text_ends_one_connection_and_changes_nothing() {
    let mut bench = Bench::new(2);
    bench.send(0, set("/k", "text"));
    let add = |delta| one(Query::Add, "/k").signed(delta).into_bytes();
    assert_eq!(bench.try_send(0, &add(1)), Err(Refusal::NotANumber));
    bench.close(0);
    bench.send(1, one(Query::Get, "/k"));
    assert_eq!(bench.take(1), b"\x04\0\0\0\0\0\0\0text");
    bench.send(1, set("/k", " 41 apples"));
    bench.send(1, one(Query::Add, "/k").signed(1));
    assert_eq!(bench.take(1), 42_i64.to_le_bytes(), "read as strtoll reads it");
    assert_eq!(bench.try_send(1, &add(i64::MAX)), Err(Refusal::Overflow));
}

#[test]
fn a_pushed_value_wakes_one_and_passes_on_if_it_is_not_popped() {
    let mut bench = Bench::new(5);
    (0..4).for_each(|number| bench.send(number, wait(&["/q"])));
    bench.send(4, push("/q"));
    let awake =
        |bench: &mut Bench| (0..4).filter(|&number| !bench.take(number).is_empty()).collect::<Vec<_>>();
    assert_eq!(awake(&mut bench), [0]);
    bench.send(0, CANCEL());
    assert_eq!(bench.take(0), [1]);
    assert_eq!(awake(&mut bench), [1], "0 had given up");
    bench.close(1);
    assert_eq!(awake(&mut bench), [2], "1 closed");
    bench.send(2, one(Query::QueuePop, "/q"));
    assert_eq!(bench.take(2), b"\x01\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0item");
    assert_eq!(awake(&mut bench), [0_u32; 0], "it was popped");
    bench.send(4, push("/q"));
    assert_eq!(awake(&mut bench), [3], "no stale waiter stands in front");
}

#[test]
fn a_barrier_counts_connections_and_not_calls() {
    let mut bench = Bench::new(3);
    bench.send(0, barrier("/b", 3));
    bench.send(0, CANCEL());
    bench.send(0, barrier("/b", 3));
    bench.send(1, barrier("/b", 3));
    assert_eq!((bench.take(0), bench.take(1)), (vec![1], vec![]), "two of three, though three calls");
    let progress = bench.table.progress();
    assert_eq!(progress.barriers[0].arrived, [Connection(0), Connection(1)], "2 is missing");
    assert_eq!(progress.awaited(), [(b"/b".to_vec(), 2)]);
    bench.send(2, barrier("/b", 3));
    for number in 0..3 {
        assert_eq!(bench.take(number), [0]);
    }
}

#[test]
fn a_barrier_is_used_again_in_rounds() {
    let mut bench = Bench::new(2);
    for _ in 0..3 {
        bench.send(0, barrier("/b", 2));
        assert_eq!(bench.take(0), [0; 0]);
        bench.send(1, barrier("/b", 2));
        assert_eq!((bench.take(0), bench.take(1)), (vec![0], vec![0]));
    }
    assert_eq!(bench.table.progress().bytes, 0, "and leaves nothing");
}

#[test]
fn who_gave_up_on_a_round_that_completed_passes_at_the_next_try() {
    let mut bench = Bench::new(2);
    bench.send(0, barrier("/b", 2));
    bench.send(0, CANCEL());
    bench.send(1, barrier("/b", 2));
    bench.send(0, barrier("/b", 2));
    assert_eq!((bench.take(0), bench.take(1)), (vec![1, 0], vec![0]), "it had given up before");
    bench.send(0, barrier("/b", 2));
    bench.send(1, barrier("/b", 2));
    bench.send(0, CANCEL());
    assert_eq!((bench.take(0), bench.take(1)), (vec![0, 1], vec![0]), "it gave up as the answer was sent");
    bench.send(0, barrier("/b", 2));
    assert_eq!(bench.take(0), [0]);
    bench.close(0);
    assert_eq!(bench.table.progress().bytes, 0);
}

#[test]
fn who_closes_is_not_counted_by_a_barrier() {
    let mut bench = Bench::new(3);
    bench.send(0, barrier("/b", 2));
    bench.close(0);
    bench.send(1, barrier("/b", 2));
    assert_eq!(bench.take(1), [0; 0]);
    bench.send(2, barrier("/b", 2));
    assert_eq!(bench.take(1), [0]);
}

#[test]
fn memory_is_bounded_and_given_back() {
    let mut bench = Bench::new(1);
    let large = "x".repeat(LIMIT / 4);
    let full = Err(Refusal::Full { limit: LIMIT });
    for key in ["/a", "/b", "/c"] {
        bench.send(0, set(key, &large));
    }
    assert_eq!(bench.try_send(0, &set("/d", &large).into_bytes()), full);
    assert_eq!(bench.try_send(0, &one(Query::QueuePush, "/q").bytes(large.as_bytes()).into_bytes()), full);
    let append = one(Query::Append, "/a").bytes(large.as_bytes()).into_bytes();
    assert_eq!(bench.try_send(0, &append), full);
    bench.send(0, one(Query::Delete, "/a"));
    bench.send(0, set("/d", &large));
    for key in ["/b", "/c", "/d"] {
        bench.send(0, one(Query::Delete, key));
    }
    assert_eq!(bench.table.progress().bytes, 0);
    let many: Vec<String> = (0..LIMIT / 64).map(|key| format!("/{key:060}")).collect();
    assert_eq!(bench.try_send(0, &Command::new(Query::Wait).keys(&many).into_bytes()), full);
    assert_eq!(bench.table.progress().bytes, 0);
}

#[test]
fn a_request_during_a_wait_is_refused() {
    let mut bench = Bench::new(1);
    bench.send(0, wait(&["/k"]));
    assert_eq!(bench.try_send(0, &set("/k", "v").into_bytes()), Err(Refusal::WhileWaiting));
}

proptest! {
    /// Waits, cancels, closes, queues and barriers of several connections, against the model.
    #[test]
    fn the_table_does_what_the_model_does(steps in model::steps()) {
        model::compare(&steps)?;
    }
}

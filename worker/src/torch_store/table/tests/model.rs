//! The table's rules once more, by scanning everything at each step instead of by an index.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{Bench, CANCEL, Waiting, barrier, one, push, set, wait};
use crate::torch_store::protocol::Query;

const CONNECTIONS: u32 = 5;
const KEYS: [&str; 4] = ["/a", "/b", "/q", "/n"];
const WORLD: i64 = 3;

type Key = &'static str;

#[derive(Clone, Debug)]
pub(super) enum Step {
    Set(Key),
    Append(Key),
    Add,
    Get(Key),
    Delete(Key),
    Push(Key),
    Pop(Key),
    Check(Vec<Key>),
    Wait(Vec<Key>),
    Barrier(Key),
    Cancel,
    Close,
}

pub(super) fn steps() -> impl Strategy<Value = Vec<(u32, Step)>> {
    let key = || proptest::sample::select(KEYS.to_vec());
    // ADD needs a key without text.
    let text = || proptest::sample::select(KEYS[..3].to_vec());
    let keys = || proptest::collection::vec(key(), 0..4);
    let step = prop_oneof![
        2 => text().prop_map(Step::Set),
        1 => text().prop_map(Step::Append),
        1 => Just(Step::Add),
        1 => key().prop_map(Step::Get),
        2 => key().prop_map(Step::Delete),
        2 => key().prop_map(Step::Push),
        2 => key().prop_map(Step::Pop),
        1 => keys().prop_map(Step::Check),
        5 => keys().prop_map(Step::Wait),
        3 => key().prop_map(Step::Barrier),
        2 => Just(Step::Cancel),
        1 => Just(Step::Close),
    ];
    proptest::collection::vec((0..CONNECTIONS, step), 0..60)
}

/// Runs the steps on both. What a waiting connection may not send is left out; what closes comes back at once.
pub(super) fn compare(steps: &[(u32, Step)]) -> Result<(), TestCaseError> {
    let mut bench = Bench::new(CONNECTIONS);
    let mut model = Model::default();
    for (at, (from, step)) in steps.iter().enumerate() {
        let parked = model.waits.contains_key(from) || model.at_barrier.contains_key(from);
        if parked && !matches!(step, Step::Cancel | Step::Close) {
            continue;
        }
        let mut expected = model.step(at, *from, step);
        run(&mut bench, *from, step);
        for number in 0..CONNECTIONS {
            let expected = expected.remove(&number).unwrap_or_default();
            prop_assert_eq!(bench.take(number), expected, "connection {} at step {} {:?}", number, at, step);
        }
        let progress = bench.table.progress();
        prop_assert_eq!(progress.keys, model.values.len());
        prop_assert_eq!(progress.queues, model.queues.len());
        for client in &progress.clients {
            let wait = model.waits.get(&client.connection.0);
            let expected = wait.map(|wait| wait.keys[wait.at].as_bytes().to_vec());
            let found = match &client.waiting {
                Some(Waiting::Key { key, .. }) => Some(key.clone()),
                _ => None,
            };
            prop_assert_eq!(found, expected);
        }
    }
    for number in 0..CONNECTIONS {
        bench.close(number);
    }
    let (empty_values, empty_queues) = (model.values.is_empty(), model.queues.is_empty());
    if empty_values && empty_queues {
        prop_assert_eq!(bench.table.progress().bytes, 0, "what closed left nothing in the books");
    }
    Ok(())
}

fn run(bench: &mut Bench, from: u32, step: &Step) {
    let command = match step {
        Step::Set(key) => set(key, "s"),
        Step::Append(key) => one(Query::Append, key).bytes(b"a"),
        Step::Add => one(Query::Add, "/n").signed(1),
        Step::Get(key) => one(Query::Get, key),
        Step::Delete(key) => one(Query::Delete, key),
        Step::Push(key) => push(key),
        Step::Pop(key) => one(Query::QueuePop, key),
        Step::Check(keys) => crate::torch_store::Command::new(Query::Check).keys(keys),
        Step::Wait(keys) => wait(keys),
        Step::Barrier(key) => barrier(key, WORLD),
        Step::Cancel => CANCEL(),
        Step::Close => {
            bench.close(from);
            bench.table.open(super::Connection(from));
            return bench.send(from, super::Command::new(Query::Validate).word(super::MAGIC));
        }
    };
    bench.send(from, command);
}

#[derive(Default)]
struct Model {
    values: BTreeMap<Key, String>,
    queues: BTreeMap<Key, u64>,
    waits: BTreeMap<u32, Wait>,
    at_barrier: BTreeMap<u32, Key>,
    arrived: BTreeMap<Key, BTreeSet<u32>>,
    owed: BTreeSet<(u32, Key)>,
    /// Who was offered what was pushed to a queue, or told that a barrier is over, and has not spoken since.
    offered: BTreeMap<u32, Key>,
    told: BTreeMap<u32, Key>,
}

struct Wait {
    since: usize,
    keys: Vec<Key>,
    at: usize,
}

type Sent = BTreeMap<u32, Vec<u8>>;

impl Model {
    fn step(&mut self, now: usize, from: u32, step: &Step) -> Sent {
        let mut sent = Sent::new();
        let declined = self.offered.remove(&from);
        let told = self.told.remove(&from);
        if matches!(step, Step::Close) {
            self.waits.remove(&from);
            self.at_barrier.remove(&from);
            self.arrived.values_mut().for_each(|arrived| arrived.retain(|member| *member != from));
            self.owed.retain(|(owed, _)| *owed != from);
        }
        if let (Step::Cancel, Some(key)) = (step, told) {
            self.owed.insert((from, key));
        }
        match (declined, step) {
            (Some(key), Step::Pop(popped)) if key == *popped => {}
            (Some(key), _) => self.offer(key, &mut sent),
            (None, _) => {}
        }
        let answer = sent.entry(from).or_default();
        match step {
            Step::Set(key) => self.store(key, "s".to_owned(), &mut sent),
            Step::Append(key) => {
                let value = self.values.get(key).cloned().unwrap_or_default() + "a";
                self.store(key, value, &mut sent);
            }
            Step::Add => {
                let sum = self.values.get("/n").map_or(0, |text| text.parse().unwrap()) + 1_i64;
                answer.extend(sum.to_le_bytes());
                self.store("/n", sum.to_string(), &mut sent);
            }
            Step::Get(key) => {
                let value = self.values.get(key).map_or("", String::as_str);
                answer.extend(u64::try_from(value.len()).unwrap().to_le_bytes());
                answer.extend(value.as_bytes());
            }
            Step::Delete(key) => answer.extend(i64::from(self.values.remove(key).is_some()).to_le_bytes()),
            Step::Push(key) => {
                *self.queues.entry(key).or_default() += 1;
                self.offer(key, &mut sent);
            }
            Step::Pop(key) => {
                let length = self.queues.remove(key).unwrap_or_default();
                answer.extend(length.to_le_bytes());
                if length > 0 {
                    answer.extend(b"\x04\0\0\0\0\0\0\0item");
                }
                if length > 1 {
                    self.queues.insert(key, length - 1);
                }
            }
            Step::Check(keys) => answer.push(u8::from(!keys.iter().all(|key| self.exists(key)))),
            Step::Wait(keys) => {
                self.waits.insert(from, Wait { since: now, keys: keys.clone(), at: 0 });
                self.go_on(from, &mut sent);
            }
            Step::Barrier(key) => self.arrive(from, key, &mut sent),
            Step::Cancel => {
                self.waits.remove(&from);
                self.at_barrier.remove(&from);
                answer.push(1);
            }
            Step::Close => {}
        }
        sent
    }

    fn exists(&self, key: Key) -> bool {
        self.values.contains_key(key) || self.queues.contains_key(key)
    }

    fn store(&mut self, key: Key, value: String, sent: &mut Sent) {
        if self.values.insert(key, value).is_none() {
            for waiter in self.waiters(key) {
                self.go_on(waiter, sent);
            }
        }
    }

    /// Those whose next key is this one, the longest waiting first.
    fn waiters(&self, key: Key) -> Vec<u32> {
        let mut waiters: Vec<_> = self.waits.iter().filter(|(_, wait)| wait.keys[wait.at] == key).collect();
        waiters.sort_by_key(|(_, wait)| wait.since);
        waiters.into_iter().map(|(waiter, _)| *waiter).collect()
    }

    fn offer(&mut self, key: Key, sent: &mut Sent) {
        if !self.queues.contains_key(key) {
            return;
        }
        for waiter in self.waiters(key) {
            if self.go_on(waiter, sent) {
                self.offered.insert(waiter, key);
                return;
            }
        }
    }

    fn go_on(&mut self, waiter: u32, sent: &mut Sent) -> bool {
        let wait = &self.waits[&waiter];
        let seen = wait.keys[wait.at..].iter().take_while(|key| self.exists(key)).count();
        let wait = self.waits.get_mut(&waiter).unwrap();
        wait.at += seen;
        let over = wait.at == wait.keys.len();
        if over {
            self.waits.remove(&waiter);
            sent.entry(waiter).or_default().push(0);
        }
        over
    }

    fn arrive(&mut self, from: u32, key: Key, sent: &mut Sent) {
        if self.owed.remove(&(from, key)) {
            return sent.entry(from).or_default().push(0);
        }
        self.at_barrier.insert(from, key);
        let arrived = self.arrived.entry(key).or_default();
        arrived.insert(from);
        if i64::try_from(arrived.len()).unwrap() < WORLD {
            return;
        }
        for member in std::mem::take(arrived) {
            if self.at_barrier.get(&member) == Some(&key) {
                self.at_barrier.remove(&member);
                self.told.insert(member, key);
                sent.entry(member).or_default().push(0);
            } else {
                self.owed.insert((member, key));
            }
        }
    }
}

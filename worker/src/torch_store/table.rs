//! The store's state and its decisions: `(connection, request) → answer, and whom to wake`. Pure.
//!
//! - A waiter is indexed by the first of its keys that it still misses, so a SET touches only those who wait for just
//!   that key. Keys are awaited in the order given; one that existed when its turn came counts even if it is deleted
//!   before the others exist. A whole WAIT costs memory for its keys once, not once per key and waiter.
//! - A value pushed to a queue is offered to exactly one waiter. If that one does anything but pop it (it gave up, or
//!   closed), the offer goes to the next.
//! - A barrier counts connections. Whoever retries after a timeout is counted once; who closes is no longer counted.
//!   When all are there the round is over and the key is as good as new. Who gave up waiting in a round that then
//!   completed is owed its answer and gets it at the next try.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};
use thiserror::Error;

use super::protocol::{Keys, MAGIC, Reply, Request};

mod barrier;
mod progress;
mod waiting;

use barrier::Barrier;
pub use progress::{BarrierProgress, ClientProgress, Progress, Waiting};

/// Counts the processes that joined: `TCPStore(world_size=…)` adds 1. The only key without torch's `/` in front.
pub(super) const JOIN_KEY: &[u8] = b"init/";

/// What an entry of one of the maps costs beside its key and value, for [`Refusal::Full`]. An estimate.
const ENTRY_BYTES: usize = 96;

const READY: u8 = 0;
const NOT_READY: u8 = 1;
/// The whole answer to a WAIT or BARRIER that is over: what each woken connection is sent.
pub(super) const STOP_WAITING: u8 = 0;
const WAIT_CANCELED: u8 = 1;

/// A connection's number, small and used again after [`Table::close`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection(pub u32);

/// Why a request ends its connection. No other connection notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Something came before VALIDATE.
    #[error(
        "serve a client that has not sent VALIDATE first; is it a torch store client, of torch 2.1 or newer?"
    )]
    NotValidated,
    /// VALIDATE carried something else.
    #[error("accept the magic number {0:#010x}; is it a torch store client of the same byte order?")]
    BadMagic(u32),
    /// Something other than CANCEL_WAIT came during a WAIT or BARRIER.
    #[error("serve a request while the same connection waits")]
    WhileWaiting,
    /// ADD found a value that is no number.
    #[error("add to a value that is no number")]
    NotANumber,
    /// ADD left the range of 64 bits.
    #[error("add beyond 64 bits")]
    Overflow,
    /// The store would hold more than it may.
    #[error("store more than {limit} bytes in all; delete keys, or put large data into files")]
    Full {
        /// The limit.
        limit: usize,
    },
}

/// All keys, queues, barriers, and who waits for what.
#[derive(Debug)]
pub struct Table {
    values: BTreeMap<Box<[u8]>, Value>,
    queues: BTreeMap<Box<[u8]>, VecDeque<Bytes>>,
    /// By the first missing key, in the order in which they came.
    waiters: BTreeMap<Box<[u8]>, BTreeMap<u64, Connection>>,
    barriers: BTreeMap<Bytes, Barrier>,
    clients: Vec<Client>,
    budget: Budget,
    tickets: u64,
}

#[derive(Debug)]
enum Value {
    Raw(Bytes),
    /// What ADD made; its text is made when somebody reads it.
    Count(i64),
}

#[derive(Debug, Default)]
struct Client {
    validated: bool,
    joined: bool,
    pid: Option<u32>,
    parked: Option<Parked>,
    granted: Option<Granted>,
    /// Barriers that name this connection in `arrived` or `owed`.
    barriers: BTreeSet<Bytes>,
}

#[derive(Debug)]
enum Parked {
    Wait(Wait),
    Barrier(Bytes),
}

#[derive(Debug)]
struct Wait {
    /// The keys not yet seen, on the wire's form; the first is what it is indexed by.
    keys: Bytes,
    count: u64,
    ticket: u64,
    /// Charged to the budget.
    bytes: usize,
}

/// A wait that ended last, until the connection's next request shows whether it was noticed.
#[derive(Debug)]
enum Granted {
    Queue(Box<[u8]>),
    Barrier(Bytes),
}

#[derive(Debug)]
struct Budget {
    used: usize,
    limit: usize,
}

impl Budget {
    /// Replaces `old` bytes by `new` ones.
    fn exchange(&mut self, old: usize, new: usize) -> Result<(), Refusal> {
        let used = self.used.saturating_sub(old).saturating_add(new);
        if used > self.limit && new > old {
            return Err(Refusal::Full { limit: self.limit });
        }
        self.used = used;
        Ok(())
    }

    fn charge(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.exchange(0, bytes)
    }

    fn release(&mut self, bytes: usize) {
        self.used = self.used.saturating_sub(bytes);
    }
}

impl Value {
    fn cost(&self) -> usize {
        match self {
            Self::Raw(bytes) => bytes.len(),
            Self::Count(_) => 0,
        }
    }
}

impl Table {
    /// An empty store that refuses to hold more than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            values: BTreeMap::new(),
            queues: BTreeMap::new(),
            waiters: BTreeMap::new(),
            barriers: BTreeMap::new(),
            clients: Vec::new(),
            budget: Budget { used: 0, limit },
            tickets: 0,
        }
    }

    /// A connection came. Its number must be free.
    pub fn open(&mut self, connection: Connection) {
        let index = index(connection);
        if self.clients.len() <= index {
            self.clients.resize_with(index + 1, Client::default);
        }
        self.clients[index] = Client::default();
    }

    /// Has this connection sent VALIDATE?
    pub fn is_validated(&self, connection: Connection) -> bool {
        self.clients.get(index(connection)).is_some_and(|client| client.validated)
    }

    /// Does what an open connection asks. Its answer goes into `reply` (nothing, if it now waits); each connection
    /// in `woken` is to be sent [`STOP_WAITING`], in this order, after what it was sent before.
    ///
    /// # Errors
    /// A [`Refusal`]: nothing was changed (of MULTI_SET: the pairs up to the one refused), close the connection.
    pub fn apply(
        &mut self,
        connection: Connection,
        request: &Request<'_>,
        reply: &mut Reply,
        woken: &mut Vec<Connection>,
    ) -> Result<(), Refusal> {
        let client = &mut self.clients[index(connection)];
        if !client.validated && !matches!(request, Request::Validate(_)) {
            return Err(Refusal::NotValidated);
        }
        if client.parked.is_some() && !matches!(request, Request::CancelWait) {
            return Err(Refusal::WhileWaiting);
        }
        if let Some(granted) = client.granted.take() {
            self.settle(connection, &granted, request, woken);
        }
        match *request {
            Request::Validate(MAGIC) => self.clients[index(connection)].validated = true,
            Request::Validate(other) => return Err(Refusal::BadMagic(other)),
            Request::Set(key, value) => {
                self.put(key, Value::Raw(Bytes::copy_from_slice(value)), woken)?;
            }
            Request::CompareSet { key, expected, desired } => {
                self.compare_set(key, expected, desired, reply, woken)?;
            }
            Request::Get(key) => self.read(key, reply),
            Request::Add(key, delta) => reply.signed(self.add(connection, key, delta, woken)?),
            Request::Check(mut keys) => {
                reply.byte(if keys.all(|key| self.exists(key)) { READY } else { NOT_READY });
            }
            Request::Wait(keys) => return self.wait(connection, keys, reply),
            Request::CountKeys => reply.signed(count(self.values.len())),
            Request::Delete(key) => reply.signed(self.delete(key)),
            Request::Append(key, value) => self.append(key, value, woken)?,
            Request::MultiGet(keys) => keys.for_each(|key| self.read(key, reply)),
            Request::MultiSet(pairs) => {
                for (key, value) in pairs {
                    self.put(key, Value::Raw(Bytes::copy_from_slice(value)), woken)?;
                }
            }
            Request::CancelWait => {
                self.unpark(connection);
                reply.byte(WAIT_CANCELED);
            }
            Request::Ping(nonce) => {
                self.clients[index(connection)].pid = Some(nonce);
                reply.word(nonce);
            }
            Request::QueuePush(key, value) => self.push(key, value, woken)?,
            Request::QueuePop(key) => self.pop(key, reply),
            Request::QueueLen(key) => reply.signed(count(self.queues.get(key).map_or(0, VecDeque::len))),
            Request::ListKeys => {
                reply.signed(count(self.values.len()));
                self.values.keys().for_each(|key| reply.bytes(key));
            }
            Request::Barrier(key, world) => return self.arrive(connection, key, world, reply, woken),
        }
        Ok(())
    }

    /// A connection ended; its number is free again. What it was offered goes to the next, into `woken`.
    pub fn close(&mut self, connection: Connection, woken: &mut Vec<Connection>) {
        self.unpark(connection);
        let client = std::mem::take(&mut self.clients[index(connection)]);
        client.barriers.iter().for_each(|key| self.leave(connection, key));
        if let Some(Granted::Queue(key)) = client.granted {
            self.offer(&key, woken);
        }
    }

    fn exists(&self, key: &[u8]) -> bool {
        // An empty queue is removed.
        self.values.contains_key(key) || (!self.queues.is_empty() && self.queues.contains_key(key))
    }

    fn read(&self, key: &[u8], reply: &mut Reply) {
        match self.values.get(key) {
            Some(Value::Raw(value)) => reply.value(value),
            Some(Value::Count(number)) => reply.bytes(number.to_string().as_bytes()),
            None => reply.bytes(&[]),
        }
    }

    fn put(&mut self, key: &[u8], value: Value, woken: &mut Vec<Connection>) -> Result<(), Refusal> {
        if let Some(old) = self.values.get_mut(key) {
            self.budget.exchange(old.cost(), value.cost())?;
            *old = value;
            return Ok(());
        }
        self.budget.charge(key.len() + value.cost() + ENTRY_BYTES)?;
        self.values.insert(key.into(), value);
        self.appeared(key, woken);
        Ok(())
    }

    fn compare_set(
        &mut self,
        key: &[u8],
        expected: &[u8],
        desired: &[u8],
        reply: &mut Reply,
        woken: &mut Vec<Connection>,
    ) -> Result<(), Refusal> {
        let matches = match self.values.get(key) {
            Some(Value::Raw(value)) => value == expected,
            Some(Value::Count(number)) => number.to_string().as_bytes() == expected,
            None if expected.is_empty() => true,
            None => {
                reply.bytes(expected);
                return Ok(());
            }
        };
        if matches {
            self.put(key, Value::Raw(Bytes::copy_from_slice(desired)), woken)?;
        }
        self.read(key, reply);
        Ok(())
    }

    fn add(
        &mut self,
        connection: Connection,
        key: &[u8],
        delta: i64,
        woken: &mut Vec<Connection>,
    ) -> Result<i64, Refusal> {
        let sum = match self.values.get_mut(key) {
            Some(Value::Count(number)) => {
                *number = number.checked_add(delta).ok_or(Refusal::Overflow)?;
                *number
            }
            Some(Value::Raw(text)) => {
                let sum = leading_number(text)?.checked_add(delta).ok_or(Refusal::Overflow)?;
                self.put(key, Value::Count(sum), woken)?;
                sum
            }
            None => {
                self.put(key, Value::Count(delta), woken)?;
                delta
            }
        };
        if key == JOIN_KEY {
            self.clients[index(connection)].joined = true;
        }
        Ok(sum)
    }

    fn delete(&mut self, key: &[u8]) -> i64 {
        let Some(value) = self.values.remove(key) else { return 0 };
        self.budget.release(key.len() + value.cost() + ENTRY_BYTES);
        1
    }

    fn append(&mut self, key: &[u8], more: &[u8], woken: &mut Vec<Connection>) -> Result<(), Refusal> {
        let Some(value) = self.values.get_mut(key) else {
            return self.put(key, Value::Raw(Bytes::copy_from_slice(more)), woken);
        };
        if let Value::Count(number) = value {
            let text = Bytes::from(number.to_string());
            self.budget.charge(text.len())?;
            *value = Value::Raw(text);
        }
        self.budget.charge(more.len())?;
        if let Value::Raw(old) = value {
            *old = joined(std::mem::take(old), more);
        }
        Ok(())
    }

    fn push(&mut self, key: &[u8], value: &[u8], woken: &mut Vec<Connection>) -> Result<(), Refusal> {
        let new = if self.queues.contains_key(key) { 0 } else { key.len() + ENTRY_BYTES };
        self.budget.charge(new + value.len() + ENTRY_BYTES)?;
        let value = Bytes::copy_from_slice(value);
        match self.queues.get_mut(key) {
            Some(queue) => queue.push_back(value),
            None => drop(self.queues.insert(key.into(), VecDeque::from([value]))),
        }
        self.offer(key, woken);
        Ok(())
    }

    fn pop(&mut self, key: &[u8], reply: &mut Reply) {
        let Some(queue) = self.queues.get_mut(key) else { return reply.signed(0) };
        reply.signed(count(queue.len()));
        if let Some(value) = queue.pop_front() {
            self.budget.release(value.len() + ENTRY_BYTES);
            reply.value(&value);
        }
        if queue.is_empty() {
            self.queues.remove(key);
            self.budget.release(key.len() + ENTRY_BYTES);
        }
    }
}

fn index(connection: Connection) -> usize {
    usize::try_from(connection.0).unwrap_or(usize::MAX)
}

fn count(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// The number that a text begins with, read as C's `strtoll` does, which is what torch's server uses.
fn leading_number(text: &[u8]) -> Result<i64, Refusal> {
    let text = text.trim_ascii_start();
    let sign = usize::from(matches!(text.first(), Some(b'+' | b'-')));
    let digits = text[sign..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = std::str::from_utf8(&text[..sign + digits]).unwrap_or_default();
    if digits == 0 { Err(Refusal::NotANumber) } else { number.parse().map_err(|_| Refusal::Overflow) }
}

/// Appends in place where nobody else holds the old value.
fn joined(old: Bytes, more: &[u8]) -> Bytes {
    let mut all = old.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    all.extend_from_slice(more);
    all.freeze()
}

#[cfg(test)]
mod tests;

//! What a person asks of a store when a job does not come up: who is here, who waits, and for what.

use super::{Connection, JOIN_KEY, Keys, Parked, Table, Value, count};

/// A picture of the store at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// How many processes said that they joined (the key `init/`).
    pub joined: i64,
    /// Values.
    pub keys: usize,
    /// Queues that are not empty.
    pub queues: usize,
    /// Memory that counts towards the limit.
    pub bytes: usize,
    /// Validated connections, by number.
    pub clients: Vec<ClientProgress>,
    /// Barriers that somebody has arrived at and that are not complete.
    pub barriers: Vec<BarrierProgress>,
}

/// One connection, which is one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientProgress {
    /// Its number.
    pub connection: Connection,
    /// The process id that it said (in its own PID namespace).
    pub pid: Option<u32>,
    /// Has it counted itself in `init/`?
    pub joined: bool,
    /// What it waits for.
    pub waiting: Option<Waiting>,
}

/// What a connection waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// A key that nobody has set.
    Key {
        /// The first one missing.
        key: Vec<u8>,
        /// Keys not looked at yet, this one included.
        left: u64,
    },
    /// The others of a barrier.
    Barrier {
        /// The barrier's key.
        key: Vec<u8>,
    },
}

/// A barrier that is not complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BarrierProgress {
    /// Its key.
    pub key: Vec<u8>,
    /// How many it needs.
    pub world: i64,
    /// Who has arrived.
    pub arrived: Vec<Connection>,
}

impl Table {
    /// What there is, and who waits. Costs time in proportion to connections and barriers: not for a hot path.
    pub fn progress(&self) -> Progress {
        let clients = (0..).zip(&self.clients).filter(|(_, client)| client.validated);
        Progress {
            joined: match self.values.get(JOIN_KEY) {
                Some(Value::Count(joined)) => *joined,
                _ => 0,
            },
            keys: self.values.len(),
            queues: self.queues.len(),
            bytes: self.budget.used,
            clients: clients
                .map(|(number, client)| ClientProgress {
                    connection: Connection(number),
                    pid: client.pid,
                    joined: client.joined,
                    waiting: client.parked.as_ref().map(waiting),
                })
                .collect(),
            barriers: (self.barriers.iter())
                .filter(|(_, barrier)| !barrier.arrived.is_empty())
                .map(|(key, barrier)| BarrierProgress {
                    key: key.to_vec(),
                    world: barrier.world,
                    arrived: barrier.arrived.iter().copied().collect(),
                })
                .collect(),
        }
    }
}

impl Progress {
    /// How many of `world` processes have not joined.
    pub fn missing(&self, world: u32) -> i64 {
        i64::from(world).saturating_sub(self.joined).max(0)
    }

    /// The keys that are waited for, each with how many wait, most first: where all wait for one key, the process
    /// that sets it is the one to look at.
    pub fn awaited(&self) -> Vec<(Vec<u8>, i64)> {
        let mut keys = std::collections::BTreeMap::<&[u8], usize>::new();
        for client in &self.clients {
            if let Some(Waiting::Key { key, .. } | Waiting::Barrier { key }) = &client.waiting {
                *keys.entry(key).or_default() += 1;
            }
        }
        let mut keys: Vec<_> =
            keys.into_iter().map(|(key, waiting)| (key.to_vec(), count(waiting))).collect();
        keys.sort_by_key(|(_, waiting)| std::cmp::Reverse(*waiting));
        keys
    }
}

fn waiting(parked: &Parked) -> Waiting {
    match parked {
        Parked::Wait(wait) => Waiting::Key {
            key: Keys::from_bytes(&wait.keys, wait.count).next().unwrap_or_default().to_vec(),
            left: wait.count,
        },
        Parked::Barrier(key) => Waiting::Barrier { key: key.to_vec() },
    }
}

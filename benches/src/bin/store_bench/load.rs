//! The cases: what clients send, in which order, and what is measured.

use std::error::Error;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use worker::torch_store::{Command, MAGIC, Query};

use crate::client::{Clients, Next, since};
use crate::server::{Process, own_cpu};

/// Connections of the throughput cases.
const CONNECTIONS: usize = 64;
/// Bytes of a value.
const VALUE: [u8; 128] = [0x5a; 128];

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Case {
    /// So many processes join and pass a barrier, as torch's `_store_based_barrier` does: ADD, the last one SETs, all
    /// WAIT.
    JoinOldBarrier(usize),
    /// The same with the BARRIER command.
    JoinNewBarrier(usize),
    /// So many operations of one kind over 64 connections, each sending its next when the former is answered.
    Operations(Operation, usize),
}

impl Case {
    /// For people; `--only` looks into it.
    pub(crate) fn title(self) -> String {
        match self {
            Self::JoinOldBarrier(world) => format!("{world} join, old barrier"),
            Self::JoinNewBarrier(world) => format!("{world} join, new barrier"),
            Self::Operations(kind, _) => format!("{kind:?} x64").to_lowercase(),
        }
    }
}

/// What a throughput case repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    /// PING.
    Ping,
    /// SET and, because it has no answer, CHECK, in one segment.
    Set,
    /// WAIT, then GET: two round trips, as torch's client does it.
    Get,
    /// ADD.
    Add,
}

/// What one run of a case took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measured {
    /// Until the last client was done.
    pub(crate) wall: Duration,
    /// Of that, until all had joined. Zero in throughput cases.
    pub(crate) join: Duration,
    /// CPU time of the server.
    pub(crate) server_cpu: Duration,
    /// Of that, outside of the kernel: the server's own code. Counted by ticks, so only good for long cases.
    pub(crate) server_user: Duration,
    /// CPU time of the load client.
    pub(crate) client_cpu: Duration,
    /// Operations per second; zero in join cases.
    pub(crate) rate: f64,
    /// Of single operations; zero in join cases.
    pub(crate) p99: Duration,
}

/// All cases, in the order of a round.
pub(crate) fn cases(quick: bool) -> Vec<Case> {
    let worlds: &[usize] = if quick { &[64, 256] } else { &[64, 256, 1024, 4096] };
    let operations = if quick { 20_000 } else { 200_000 };
    let joins = worlds.iter().flat_map(|&world| [Case::JoinOldBarrier(world), Case::JoinNewBarrier(world)]);
    let kinds = [Operation::Ping, Operation::Set, Operation::Get, Operation::Add];
    joins.chain(kinds.map(|kind| Case::Operations(kind, operations))).collect()
}

/// Runs a case once against a fresh store. What counts ends with the last answer: closing is not in it.
pub(crate) fn measure(case: Case, server: &mut Process) -> Result<Measured, Box<dyn Error>> {
    let address = server.fresh()?;
    match case {
        Case::JoinOldBarrier(world) => join(server, address, world, old_barrier),
        Case::JoinNewBarrier(world) => join(server, address, world, new_barrier),
        Case::Operations(kind, count) => {
            let mut clients = Clients::connect(address, CONNECTIONS, hello, 4)?;
            clients.drive(CONNECTIONS, |_, _| Next::Done)?;
            operations(server, &mut clients, kind, count)
        }
    }
}

/// CPU times of the two processes since it was made.
struct Cpu<'a> {
    server: &'a Process,
    before: [Duration; 3],
}

impl<'a> Cpu<'a> {
    fn new(server: &'a Process) -> Result<Self, Box<dyn Error>> {
        Ok(Self { server, before: Self::now(server)? })
    }

    fn add_to(&self, measured: Measured) -> Result<Measured, Box<dyn Error>> {
        let now = Self::now(self.server)?;
        let [server_cpu, server_user, client_cpu] =
            std::array::from_fn(|at| now[at].saturating_sub(self.before[at]));
        Ok(Measured { server_cpu, server_user, client_cpu, ..measured })
    }

    fn now(server: &Process) -> Result<[Duration; 3], Box<dyn Error>> {
        Ok([server.cpu()?, server.user_cpu()?, own_cpu()?])
    }
}

type Barrier = fn(&mut Clients, usize) -> Result<(), Box<dyn Error>>;

fn join(
    server: &Process,
    address: SocketAddr,
    world: usize,
    barrier: Barrier,
) -> Result<Measured, Box<dyn Error>> {
    let cpu = Cpu::new(server)?;
    let start = Instant::now();
    let mut clients = Clients::connect(address, world, hello, 4)?;
    let mut greeted = vec![false; world];
    clients.drive(world, |number, _| {
        if std::mem::replace(&mut greeted[number], true) {
            return Next::Done;
        }
        Next::Send(Command::new(Query::Add).bytes(b"init/").signed(1).into_bytes(), 8)
    })?;
    let join = since(start);
    barrier(&mut clients, world)?;
    cpu.add_to(Measured { wall: since(start), join, ..Measured::default() })
}

fn old_barrier(clients: &mut Clients, world: usize) -> Result<(), Box<dyn Error>> {
    let add = Command::new(Query::Add).bytes(b"/store_based_barrier_key:0").signed(1).into_bytes();
    let last = b"/store_based_barrier_key:0:last";
    let set = Command::new(Query::Set).bytes(last).bytes(b"1").into_bytes();
    let wait = Command::new(Query::Wait).keys(&[last]).into_bytes();
    let everybody = i64::try_from(world)?.to_le_bytes();
    clients.start(|_| Next::Send(add.clone(), 8))?;
    clients.drive(world, |_, answer| {
        if answer.len() == 1 {
            return Next::Done;
        }
        let mut bytes = if answer == everybody { set.clone() } else { Vec::new() };
        bytes.extend_from_slice(&wait);
        Next::Send(bytes, 1)
    })
}

fn new_barrier(clients: &mut Clients, world: usize) -> Result<(), Box<dyn Error>> {
    let everybody = i64::try_from(world)?;
    let arrive = Command::new(Query::Barrier).bytes(b"/barrier").signed(everybody).into_bytes();
    clients.start(|_| Next::Send(arrive.clone(), 1))?;
    clients.drive(world, |_, _| Next::Done)
}

fn operations(
    server: &Process,
    clients: &mut Clients,
    kind: Operation,
    count: usize,
) -> Result<Measured, Box<dyn Error>> {
    let commands: Vec<_> = (0..CONNECTIONS).map(|number| Commands::new(kind, number)).collect();
    if kind == Operation::Get {
        clients.start(|number| Next::Send(commands[number].prepare.clone(), 1))?;
        clients.drive(CONNECTIONS, |_, _| Next::Done)?;
    }
    let mut taken = Vec::with_capacity(count);
    let mut started = vec![Instant::now(); CONNECTIONS];
    let mut half_way = [false; CONNECTIONS];
    let mut left = count - CONNECTIONS;
    let cpu = Cpu::new(server)?;
    let start = Instant::now();
    clients.start(|number| commands[number].first())?;
    clients.drive(CONNECTIONS, |number, _| {
        if kind == Operation::Get && !std::mem::replace(&mut half_way[number], true) {
            return commands[number].second();
        }
        half_way[number] = false;
        let now = Instant::now();
        taken.push(now.duration_since(std::mem::replace(&mut started[number], now)));
        if left == 0 {
            return Next::Done;
        }
        left -= 1;
        commands[number].first()
    })?;
    let measured = cpu.add_to(Measured { wall: since(start), ..Measured::default() })?;
    taken.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "a count of operations is far below 2^52")]
    let rate = taken.len() as f64 / measured.wall.as_secs_f64();
    let p99 = taken[taken.len() * 99 / 100];
    Ok(Measured { rate, p99, ..measured })
}

struct Commands {
    prepare: Vec<u8>,
    first: (Vec<u8>, usize),
    second: (Vec<u8>, usize),
}

impl Commands {
    fn new(kind: Operation, number: usize) -> Self {
        let key = format!("/default_pg/0//cpu//0/{number}");
        let mut prepare = Command::new(Query::Set).bytes(key.as_bytes()).bytes(&VALUE).into_bytes();
        prepare.extend(Command::new(Query::Check).keys(&[&key]).into_bytes());
        let get = Command::new(Query::Get).bytes(key.as_bytes()).into_bytes();
        let first = match kind {
            Operation::Ping => (Command::new(Query::Ping).word(7).into_bytes(), 4),
            Operation::Set => (prepare.clone(), 1),
            Operation::Get => (Command::new(Query::Wait).keys(&[&key]).into_bytes(), 1),
            Operation::Add => (Command::new(Query::Add).bytes(key.as_bytes()).signed(1).into_bytes(), 8),
        };
        Self { prepare, first, second: (get, 8 + VALUE.len()) }
    }

    fn first(&self) -> Next {
        Next::Send(self.first.0.clone(), self.first.1)
    }

    fn second(&self) -> Next {
        Next::Send(self.second.0.clone(), self.second.1)
    }
}

fn hello(number: usize) -> Vec<u8> {
    let mut bytes = Command::new(Query::Validate).word(MAGIC).into_bytes();
    bytes.extend(Command::new(Query::Ping).word(u32::try_from(number).unwrap_or_default()).into_bytes());
    bytes
}

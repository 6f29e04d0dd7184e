//! The torch store without sockets: what one command costs to decode, and to decide.

#![expect(clippy::unwrap_used, reason = "a bench may fail")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use worker::torch_store::{Command, CommandLimits, Connection, Decoder, MAGIC, Query, Reply, Step, Table};

/// Ranks of a large job.
const WORLD: u32 = 4096;

fn key(rank: u32) -> Vec<u8> {
    format!("/default_pg/0//cpu//0/{rank}").into_bytes()
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("store/decode");
    let set = Command::new(Query::Set).bytes(&key(7)).bytes(&[0; 128]).into_bytes();
    let keys: Vec<_> = (0..WORLD).map(key).collect();
    let wait = Command::new(Query::Wait).keys(&keys).into_bytes();
    for (name, bytes) in [("set 128 B", set), ("wait for 4096 keys", wait)] {
        group.throughput(Throughput::Bytes(bytes.len().try_into().unwrap()));
        let mut decoder = Decoder::new(CommandLimits::default());
        group.bench_function(name, |bencher| {
            bencher.iter(|| assert!(matches!(decoder.decode(black_box(&bytes)), Ok(Step::Request(..)))));
        });
    }
    group.finish();
}

/// A table with connections, and what it takes to talk to it.
struct Store {
    table: Table,
    decoder: Decoder,
    reply: Reply,
    woken: Vec<Connection>,
}

impl Store {
    fn new() -> Self {
        let mut store = Self {
            table: Table::new(1 << 30),
            decoder: Decoder::new(CommandLimits::default()),
            reply: Reply::default(),
            woken: Vec::new(),
        };
        for number in 0..WORLD {
            store.table.open(Connection(number));
            store.send(number, &Command::new(Query::Validate).word(MAGIC).into_bytes());
        }
        store
    }

    fn send(&mut self, from: u32, bytes: &[u8]) {
        self.reply.clear();
        self.woken.clear();
        let Ok(Step::Request(request, _)) = self.decoder.decode(bytes) else { panic!("not a command") };
        self.table.apply(Connection(from), &request, &mut self.reply, &mut self.woken).unwrap();
    }
}

fn table(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("store/table of 4096 keys");
    let mut store = Store::new();
    let set: Vec<_> = (0..WORLD)
        .map(|rank| Command::new(Query::Set).bytes(&key(rank)).bytes(&[0; 128]).into_bytes())
        .collect();
    set.iter().for_each(|set| store.send(0, set));
    let get = Command::new(Query::Get).bytes(&key(2000)).into_bytes();
    let check = Command::new(Query::Check).keys(&[key(2000)]).into_bytes();
    let add = Command::new(Query::Add).bytes(b"init/").signed(1).into_bytes();
    for (name, bytes) in [("set", &set[2000]), ("get", &get), ("check", &check), ("add", &add)] {
        group.bench_function(name, |bencher| bencher.iter(|| store.send(0, black_box(bytes))));
    }
    group.finish();

    let mut group = criterion.benchmark_group("store/4096 ranks");
    group.throughput(Throughput::Elements(WORLD.into()));
    let barrier = Command::new(Query::Barrier).bytes(b"/barrier").signed(WORLD.into()).into_bytes();
    group.bench_function("barrier", |bencher| {
        bencher.iter(|| (0..WORLD).for_each(|rank| store.send(rank, &barrier)));
    });
    let last = Command::new(Query::Wait).keys(&["/last"]).into_bytes();
    let release = Command::new(Query::Set).bytes(b"/last").bytes(b"1").into_bytes();
    let delete = Command::new(Query::Delete).bytes(b"/last").into_bytes();
    group.bench_function("wait for one key, and its set", |bencher| {
        bencher.iter(|| {
            (1..WORLD).for_each(|rank| store.send(rank, &last));
            store.send(0, &release);
            assert_eq!(store.woken.len() + 1, usize::try_from(WORLD).unwrap());
            store.send(0, &delete);
        });
    });
    group.finish();
}

criterion_group!(benches, decode, table);
criterion_main!(benches);

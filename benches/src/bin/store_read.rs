//! Reads all objects of a store once, into memory that is used again and again as a worker's cache does, and prints what it
//! cost as JSON: Slipway's side beside `rados bench` in `benches/run ceph`.
//!
//! `store_read URL DEPTH`: in pieces of 4 MiB, DEPTH at a time. The process's whole CPU counts, librados' threads among it.

use std::error::Error;
use std::time::Instant;

use datapath::memory::BlockPool;
use datapath::store::{Object, Store};
use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinSet;

type Failure = Box<dyn Error + Send + Sync>;

const PIECE_BYTES: usize = 4 << 20;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().ok_or_else(|| format!("missing argument: {what}"));
    let (url, depth) = (next("URL")?, next("DEPTH")?.parse::<usize>()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(run(&url, depth))?;
    let mut out = std::io::stdout().lock();
    Ok(std::io::Write::write_all(&mut out, format!("{result}\n").as_bytes())?)
}

async fn run(url: &str, depth: usize) -> Result<serde_json::Value, Failure> {
    let store = Store::open(url).await?;
    let objects = store.list().await?;
    #[expect(clippy::disallowed_methods, reason = "a bench measures time")]
    let begun = Instant::now();
    let bytes = read(&store, &objects, depth).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let cpu = f64::from(u32::try_from(cpu.tv_sec)?) + f64::from(u32::try_from(cpu.tv_nsec)?) / 1e9;
    let gigabytes = f64::from(u32::try_from(bytes >> 10)?) * 1024.0 / 1e9;
    Ok(serde_json::json!({
        "objects": objects.len(),
        "gb": gigabytes,
        "seconds": seconds,
        "gb_per_s": gigabytes / seconds,
        "cpu_s_per_gb": cpu / gigabytes,
    }))
}

async fn read(store: &Store, objects: &[Object], depth: usize) -> Result<u64, Failure> {
    let piece = u64::try_from(PIECE_BYTES)?;
    let pool = BlockPool::new(depth, PIECE_BYTES);
    let mut waiting = objects.iter().flat_map(|object| {
        let pieces = (0..object.bytes.div_ceil(piece)).map(move |number| number * piece);
        pieces.map(move |offset| (object, offset, (object.bytes - offset).min(piece)))
    });
    let (mut running, mut bytes) = (JoinSet::new(), 0);
    loop {
        while running.len() < depth {
            let Some((object, offset, len)) = waiting.next() else { break };
            let (store, name, block) = (store.clone(), object.name.clone(), pool.take(usize::try_from(len)?));
            running.spawn(async move { store.read(&name, offset, block).await });
        }
        let Some(done) = running.join_next().await else { return Ok(bytes) };
        let (block, result) = done?;
        result?;
        bytes += u64::try_from(block.len())?;
    }
}

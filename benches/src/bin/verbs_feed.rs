//! Feeds one trainer with samples that lie in another plane's cache, and prints what it cost as JSON: from there over a lane into
//! slots, every sample's CRC compared in its slot.
//!
//! `verbs_feed FOLDER SAMPLE_BYTES require-rdma|quic [--devices A,…] [--peers B,…] [--asker IP] [--owner IP] [--batch BYTES]
//! [--epochs N]`. Both planes are in this process, each with threads of its own: the asker on these devices, the owner on the
//! peers. The owner is a data server, so it owns every chunk. The first epoch is not counted: it fills the owner's
//! cache. `benches/run rdma` runs it beside perftest.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use benches::trainer::train;
use benches::{Failure, identities};
use datapath::Counters;
use datapath::dataset::{Dtype, Manifest, RecordLayout, index};
use datapath::order::{Consumer, Order, OrderSpec, Remainder, Shuffle};
use datapath::plane::{
    DevicesWanted, Feed, FeedConfig, FeedEvent, Membership, Peer, PeerId, Plane, PlaneConfig, Role,
};
use datapath::select::{Congestion, TransportPolicy};
use datapath::store::Store;
use datapath::transport::quic::tls::{Identity, fingerprint};
use tokio::runtime::{Builder, Runtime};

/// The abstract socket's name.
const SOCKET: &str = "slipway-bench-verbs-feed";
/// Sixteen chunks, all of which are mixed: so most of a batch's samples lie apart, and each batch asks for most chunks.
const DATASET_BYTES: usize = 64 << 20;
const CHUNK_BYTES: u64 = 4 << 20;
const WINDOW_CHUNKS: u32 = 16;
/// More than the data set has, so that nothing is read twice.
const CACHE_BYTES: u64 = 128 << 20;
/// Batches in flight, as a job has by default.
const SLOTS: u32 = 4;
/// Processors of the emulated machine.
const THREADS: usize = 2;
const ASKER: PeerId = PeerId(0);
const OWNER: PeerId = PeerId(1);
/// Ticks of /proc in a second, on every Linux.
const TICKS_PER_S: u64 = 100;

struct Run {
    folder: String,
    sample_bytes: u32,
    policy: TransportPolicy,
    batch: NonZeroU32,
    epochs: u64,
    asker: Place,
    owner: Place,
}

/// Where a plane is.
struct Place {
    address: IpAddr,
    devices: BTreeSet<String>,
}

/// What has been used until now.
struct Moment {
    at: Instant,
    guest_cpu_s: f64,
    asker: Cpu,
    owner: Cpu,
    counters: Counters,
    lent_bytes: u64,
}

/// Seconds of a side's threads.
struct Cpu {
    program_s: f64,
    kernel_s: f64,
}

impl Cpu {
    fn total(&self) -> f64 {
        self.program_s + self.kernel_s
    }
}

fn main() -> Result<(), Failure> {
    // Why a lane fails, if one does.
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(std::io::stderr)
        .init();
    let run = run_of(&std::env::args().skip(1).collect::<Vec<_>>())?;
    let (asking, owning) = (runtime("asker")?, runtime("owner")?);
    let result = asking.block_on(measure(&run, &owning))?;
    // What still runs is of no interest.
    owning.shutdown_background();
    let mut out = std::io::stdout().lock();
    Ok(std::io::Write::write_all(&mut out, format!("{result}\n").as_bytes())?)
}

fn run_of(arguments: &[String]) -> Result<Run, Failure> {
    let [folder, sample_bytes, policy, options @ ..] = arguments else {
        return Err("verbs_feed FOLDER SAMPLE_BYTES require-rdma|quic [--OPTION VALUE]…".into());
    };
    let given: BTreeMap<_, _> =
        options.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let option = |name: &str, default: &'static str| given.get(name).copied().unwrap_or(default);
    let place = |devices: &str, address: &str| {
        let devices = devices.split(',').map(str::to_owned).collect();
        Ok::<_, Failure>(Place { address: address.parse()?, devices })
    };
    let sample_bytes: u32 = sample_bytes.parse()?;
    let batch = option("--batch", "4194304").parse::<u32>()? / sample_bytes;
    Ok(Run {
        folder: format!("{folder}/{sample_bytes}"),
        sample_bytes,
        policy: serde_json::from_value(policy.as_str().into())?,
        batch: NonZeroU32::new(batch).unwrap_or(NonZeroU32::MIN),
        epochs: option("--epochs", "2").parse()?,
        asker: place(option("--devices", "rxe_a"), option("--asker", "10.9.0.1"))?,
        owner: place(option("--peers", "rxe_b"), option("--owner", "10.9.0.2"))?,
    })
}

fn runtime(name: &str) -> Result<Runtime, Failure> {
    Ok(Builder::new_multi_thread().worker_threads(THREADS).thread_name(name).enable_all().build()?)
}

async fn measure(run: &Run, owning: &Runtime) -> Result<serde_json::Value, Failure> {
    let manifest = Arc::new(dataset(run).await?);
    let shuffle = Shuffle::Window { chunks: NonZeroU32::MIN.saturating_add(WINDOW_CHUNKS - 1) };
    let spec = OrderSpec { seed: 1, global_batch: run.batch, shuffle, remainder: Remainder::Drop };
    let order = Order::new(&manifest, spec)?;
    let steps = order.steps_per_epoch();
    let [asking, serving] = identities(["asker", "owner"])?;
    let certificates = [fingerprint(&asking.cert_der), fingerprint(&serving.cert_der)];
    let config = |identity: Identity, place: &Place, store: Store| PlaneConfig {
        identity,
        bind: place.address,
        manifest: Arc::clone(&manifest),
        store,
        order: order.clone(),
        cache_bytes: CACHE_BYTES,
        tier: None,
        transport: run.policy,
        congestion: Congestion::Fixed,
        devices: DevicesWanted { names: Some(place.devices.clone()), ..DevicesWanted::default() },
    };
    let own = config(serving, &run.owner, Store::open(&run.folder).await?);
    let owner = owning.spawn(Plane::start(own)).await??;
    let own = config(asking, &run.asker, Store::open(&run.folder).await?);
    let asker = Plane::start(own).await?;
    let peer = |id, name: &str, plane: &Plane, fingerprint, role| Peer {
        id,
        addr: plane.local_addr(),
        server_name: name.to_owned(),
        fingerprint,
        role,
    };
    let peers = vec![
        peer(ASKER, "asker", &asker, certificates[0], Role::Worker),
        peer(OWNER, "owner", &owner, certificates[1], Role::Server),
    ];
    let membership = |me| Membership { fence: 1, me, peers: peers.clone(), roster: 0 };
    let (theirs, mine) = (membership(OWNER), membership(ASKER));
    let owner = owning.spawn(async move {
        owner.enter(theirs).await;
        owner
    });
    let owner = owner.await?;
    asker.enter(mine).await;
    let feed = asker.feed(FeedConfig {
        consumer: Consumer { index: 0, of: NonZeroU32::MIN },
        start_step: 0,
        end_step: (1 + run.epochs) * steps,
        slots: SLOTS,
        socket: SOCKET.to_owned(),
        fence: 1,
        hello: serde_json::Value::Null,
    });
    let mut figures = follow(steps, feed.await?, &asker, &owner).await?;
    figures["devices"] = run.asker.devices.len().into();
    Ok(figures)
}

/// Counts what comes from the second epoch on.
async fn follow(
    steps: u64,
    mut feed: Feed,
    asker: &Plane,
    owner: &Plane,
) -> Result<serde_json::Value, Failure> {
    let trainer = std::thread::Builder::new().name("trainer".to_owned()).spawn(|| train(SOCKET))?;
    let (mut start, mut samples, mut bytes) = (None, 0, 0);
    while let Some(event) = feed.events.recv().await {
        match event {
            FeedEvent::Consumed { step, .. } if step + 1 == steps => start = Some(moment(asker, owner)?),
            FeedEvent::Consumed { step, samples: more, bytes: more_bytes, .. } if step >= steps => {
                samples += more;
                bytes += more_bytes;
            }
            FeedEvent::Ended => break,
            FeedEvent::Fault(fault) => return Err(format!("{fault:?}").into()),
            _ => {}
        }
    }
    let (start, end) = (start.ok_or("there was no second epoch")?, moment(asker, owner)?);
    trainer.join().map_err(|_| "the trainer panicked")??;
    let by_verbs = end.counters.rdma_in_bytes - start.counters.rdma_in_bytes;
    let others = |counters: Counters| counters.quic_in_bytes + counters.local_bytes;
    let by_others = others(end.counters) - others(start.counters);
    let (seconds, mib) = ((end.at - start.at).as_secs_f64(), float(bytes) / f64::from(1 << 20));
    Ok(serde_json::json!({
        "mib": mib,
        "seconds": seconds,
        "mib_per_s": mib / seconds,
        "samples_per_s": float(samples) / seconds,
        "verbs_share": float(by_verbs) / float((by_verbs + by_others).max(1)),
        "chunks_lent": float(end.lent_bytes - start.lent_bytes) / float(CHUNK_BYTES),
        "guest_cpu_s": end.guest_cpu_s - start.guest_cpu_s,
        "asker_cpu_s": end.asker.total() - start.asker.total(),
        "asker_kernel_cpu_s": end.asker.kernel_s - start.asker.kernel_s,
        "owner_cpu_s": end.owner.total() - start.owner.total(),
        "owner_kernel_cpu_s": end.owner.kernel_s - start.owner.kernel_s,
        "retries": end.counters.retries - start.counters.retries,
    }))
}

/// The data set, made at the first run.
async fn dataset(run: &Run) -> Result<Manifest, Failure> {
    let file = Path::new(&run.folder).join("samples.bin");
    if !file.exists() {
        fs::create_dir_all(&run.folder)?;
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let words = (0..DATASET_BYTES / 8).flat_map(|_| {
            // Marsaglia's xorshift: nothing here is to be compressed or found equal.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        fs::write(&file, words.collect::<Vec<u8>>())?;
    }
    let store = Store::open(&run.folder).await?;
    let layout = RecordLayout { dtype: Dtype::U8, items: run.sample_bytes, header_bytes: 0 };
    let options =
        index::IndexOptions { record: Some(layout), threads: NonZeroUsize::MIN, ..Default::default() };
    let (manifest, origin) = index::open(&store, &options).await.map_err(|faults| format!("{faults:?}"))?;
    if origin == index::Origin::Indexed {
        index::save(&store, &manifest).await.map_err(|fault| format!("{fault:?}"))?;
    }
    Ok(manifest)
}

fn moment(asker: &Plane, owner: &Plane) -> Result<Moment, Failure> {
    #[expect(clippy::disallowed_methods, reason = "a bench measures time")]
    let at = Instant::now();
    Ok(Moment {
        at,
        guest_cpu_s: busy()?,
        asker: threads("asker")?,
        owner: threads("owner")?,
        counters: asker.counters(),
        lent_bytes: owner.counters().rdma_lent_bytes,
    })
}

/// Seconds that all processors have worked.
fn busy() -> Result<f64, Failure> {
    let text = fs::read_to_string("/proc/stat")?;
    let words = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>()?;
    // User, nice, system, and the two of interrupts; not idle and waiting.
    Ok(seconds([0, 1, 2, 5, 6].iter().filter_map(|&at| ticks.get(at)).sum()))
}

/// What this process's threads of that name have worked.
fn threads(name: &str) -> Result<Cpu, Failure> {
    let mut cpu = Cpu { program_s: 0.0, kernel_s: 0.0 };
    for thread in fs::read_dir("/proc/self/task")? {
        // One that has just ended has no file any more.
        let text = fs::read_to_string(thread?.path().join("stat")).unwrap_or_default();
        let Some((_, rest)) = text.split_once(&format!("({name}) ")) else { continue };
        // User and system time: proc(5), fields 14 and 15, of which the third is the first here.
        let mut ticks = rest.split(' ').skip(11).map_while(|word| word.parse::<u64>().ok());
        cpu.program_s += seconds(ticks.next().unwrap_or(0));
        cpu.kernel_s += seconds(ticks.next().unwrap_or(0));
    }
    Ok(cpu)
}

fn seconds(ticks: u64) -> f64 {
    float(ticks) / float(TICKS_PER_S)
}

/// Exact below 2^53, which no run reaches.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn float(count: u64) -> f64 {
    count as f64
}

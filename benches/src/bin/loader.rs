//! Feeds one trainer of this process from `.bin` records in a directory or another store, and prints what it cost as JSON.
//!
//! `loader SOURCE RECORD_BYTES BATCH EPOCHS [window|none] [SLOTS]`. The trainer takes and acknowledges every batch on its own thread
//! and looks at no byte, so `cpu_s_per_gb` is the loader's whole cost and `trainer_cpu_s_per_gb` the handoff's part.
//! The first run indexes the dataset and keeps the manifest beside it; that is not counted.

use std::net::{IpAddr, Ipv4Addr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Instant;

use benches::trainer::train;
use benches::{Failure, cpu, identities};
use datapath::cache::need;
use datapath::dataset::{Dtype, RecordLayout, index};
use datapath::order::{Consumer, Order, OrderSpec, Remainder, Shuffle};
use datapath::plane::{FeedConfig, FeedEvent, Membership, Peer, PeerId, Plane, PlaneConfig, Role};
use datapath::select::{Congestion, TransportPolicy};
use datapath::store::Store;
use datapath::transport::quic::tls::fingerprint;
use rustix::time::ClockId;

/// The abstract socket's name.
const SOCKET: &str = "slipway-bench-loader";

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().ok_or_else(|| format!("missing argument: {what}"));
    let (folder, record) = (next("FOLDER")?, next("RECORD_BYTES")?.parse::<u32>()?);
    let (batch, epochs) = (next("BATCH")?.parse::<NonZeroU32>()?, next("EPOCHS")?.parse::<u64>()?);
    let shuffle = match arguments.next().as_deref() {
        Some("none") => Shuffle::None,
        _ => Shuffle::Window { chunks: NonZeroU32::MIN.saturating_add(63) },
    };
    let slots = arguments.next().map_or(Ok(4), |slots| slots.parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let plan = Run { folder, record, batch, epochs, shuffle, slots };
    let result = runtime.block_on(run(plan))?;
    let mut out = std::io::stdout().lock();
    Ok(std::io::Write::write_all(&mut out, format!("{result}\n").as_bytes())?)
}

struct Run {
    folder: String,
    record: u32,
    batch: NonZeroU32,
    epochs: u64,
    shuffle: Shuffle,
    slots: u32,
}

async fn run(plan: Run) -> Result<serde_json::Value, Failure> {
    let store = Store::open(&plan.folder).await?;
    let layout = RecordLayout { dtype: Dtype::U8, items: plan.record, header_bytes: 0 };
    let options =
        index::IndexOptions { record: Some(layout), threads: NonZeroUsize::MIN, ..Default::default() };
    let (manifest, origin) = index::open(&store, &options).await.map_err(|faults| format!("{faults:?}"))?;
    if origin == index::Origin::Indexed {
        // Kept, so that the next run need not read everything to find out what is there.
        index::save(&store, &manifest).await.map_err(|fault| format!("{fault:?}"))?;
    }
    let manifest = Arc::new(manifest);
    let spec =
        OrderSpec { seed: 1, global_batch: plan.batch, shuffle: plan.shuffle, remainder: Remainder::Drop };
    let order = Order::new(&manifest, spec)?;
    let end_step = plan.epochs * order.steps_per_epoch();
    let [identity] = identities(["bench"])?;
    let fingerprint = fingerprint(&identity.cert_der);
    let plane = Plane::start(PlaneConfig {
        identity,
        bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
        manifest: Arc::clone(&manifest),
        store,
        order,
        // What a job of one worker is given.
        cache_bytes: need(&manifest, plan.shuffle, NonZeroU32::MIN).ahead,
        tier: None,
        transport: TransportPolicy::Quic,
        congestion: Congestion::Fixed,
        devices: Default::default(),
    })
    .await?;
    let me = PeerId(0);
    let peer = Peer {
        id: me,
        addr: plane.local_addr(),
        server_name: "bench".to_owned(),
        fingerprint,
        role: Role::Worker,
    };
    plane.enter(Membership { fence: 1, me, peers: vec![peer], roster: 0 }).await;
    let (cpu_before, started) = (cpu(ClockId::ProcessCPUTime), now());
    let mut feed = plane
        .feed(FeedConfig {
            consumer: Consumer { index: 0, of: NonZeroU32::MIN },
            start_step: 0,
            end_step,
            slots: plan.slots,
            socket: SOCKET.to_owned(),
            fence: 1,
            hello: serde_json::Value::Null,
        })
        .await?;
    let trainer = std::thread::spawn(|| train(SOCKET));
    let (mut samples, mut bytes) = (0, 0);
    while let Some(event) = feed.events.recv().await {
        match event {
            FeedEvent::Consumed { samples: more, bytes: more_bytes, .. } => {
                samples += more;
                bytes += more_bytes;
            }
            FeedEvent::Ended => break,
            FeedEvent::Fault(fault) => return Err(format!("{fault:?}").into()),
            _ => {}
        }
    }
    let (took, cpu) = (started.elapsed(), cpu(ClockId::ProcessCPUTime) - cpu_before);
    let trained = trainer.join().map_err(|_| "the trainer panicked")??;
    let gigabytes = float(bytes) / 1e9;
    Ok(serde_json::json!({
        "samples": samples,
        "gb": gigabytes,
        "seconds": took.as_secs_f64(),
        "samples_per_s": float(samples) / took.as_secs_f64(),
        "gb_per_s": gigabytes / took.as_secs_f64(),
        "cpu_s_per_gb": cpu.as_secs_f64() / gigabytes,
        "trainer_cpu_s_per_gb": trained.cpu.as_secs_f64() / gigabytes,
        "first_batch_ms": trained.first_batch.as_secs_f64() * 1e3,
        "counters": plane.counters(),
    }))
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
fn now() -> Instant {
    Instant::now()
}

/// Exact below 2^53, which no run reaches.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn float(count: u64) -> f64 {
    count as f64
}

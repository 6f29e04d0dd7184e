//! A worker that feeds its ranks: every step that a trainer acknowledged is told before its end.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use datapath::dataset::index::{IndexOptions, index};
use datapath::dataset::{Dtype, RecordLayout, manifest};
use datapath::order::{Consumer, Order, OrderDigest, OrderSpec, Remainder, Shuffle};
use datapath::select::{Congestion, TransportPolicy};
use datapath::store::Store;

use super::*;
use crate::config::{DataConfig, ManifestFile, RecordConfig};
use crate::rendezvous::message::{PeerAddress, RankProgress};

/// Consumes all batches, commits every fourth step, and ends at once.
const TRAINER: &str = "
import slipway
with slipway.loader() as loader:
    for batch in loader:
        if batch.step % 4 == 3:
            loader.commit()
    slipway.report(done=1.0)
";
const SAMPLES: u32 = 400;
const BATCH: NonZeroU32 = NonZeroU32::new(8).unwrap();
const EPOCHS: u64 = 2;

async fn dataset(folder: &Path) -> (DataConfig, Order) {
    let shards = folder.join("shards");
    fs::create_dir(&shards).unwrap();
    let bytes: Vec<u8> = (0..SAMPLES).flat_map(|sample| sample.to_le_bytes().repeat(4)).collect();
    fs::write(shards.join("a.bin"), bytes).unwrap();
    let layout = RecordLayout { dtype: Dtype::U32, items: 4, header_bytes: 0 };
    let source = shards.display().to_string();
    let options = IndexOptions { record: Some(layout), chunk_bytes: 1 << 10, ..IndexOptions::default() };
    let table = index(&Store::open(&source).await.unwrap(), &options).await.unwrap();
    let path = folder.join("slipway.manifest");
    fs::write(&path, manifest::encode(&table)).unwrap();
    let shuffle = Shuffle::Window { chunks: NonZeroU32::new(4).unwrap() };
    let spec = OrderSpec { seed: 7, global_batch: BATCH, shuffle, remainder: Remainder::Drop };
    let order = Order::new(&table, spec).unwrap();
    let config = DataConfig {
        source,
        manifest: Some(ManifestFile { path, digest: table.digest().to_string() }),
        order: spec,
        epochs: EPOCHS,
        transport: TransportPolicy::Quic,
        congestion: Congestion::Fixed,
        far_devices: Default::default(),
        slots: 4,
        cache_bytes: 64 << 20,
        tier: None,
        record: None,
    };
    (config, order)
}

/// What the launcher knows of the ranks' progress.
#[derive(Default)]
struct Seen {
    steps: BTreeMap<Rank, BTreeSet<Step>>,
    committed: BTreeMap<Rank, Step>,
    reported: BTreeMap<String, f64>,
    ended: BTreeSet<Rank>,
    digest: OrderDigest,
}

impl Seen {
    fn note(&mut self, progress: RankProgress) {
        let RankProgress { rank, consumed, committed, reported, ended } = progress;
        for step in consumed {
            assert!(self.steps.entry(rank).or_default().insert(step.step), "a step is counted twice");
            self.digest.merge(step.digest);
        }
        self.committed.extend(committed.map(|step| (rank, step)));
        self.reported.extend(reported);
        if ended {
            self.ended.insert(rank);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_steps_arrive_before_the_ends() {
    let folder = TempDir::new().unwrap();
    let (data, order) = dataset(folder.path()).await;
    let mut rig = rig_with("data", "", 30_000, |config| {
        config.run.command = ["python3", "-c", TRAINER].map(str::to_owned).to_vec();
        config.python_folder = concat!(env!("CARGO_MANIFEST_DIR"), "/python").into();
        config.data = Some(data);
    })
    .await;
    let me = PeerAddress {
        worker: WorkerId(0),
        data_address: rig.registration.data_address,
        fingerprint: "0".repeat(64),
        role: Role::Worker,
    };
    assert!(me.data_address.is_some());
    rig.start_with(Assignment { peers: vec![me], ..assignment(1) }).await;
    let mut seen = Seen::default();
    let mut exits = 0;
    let steps = order.steps_per_epoch() * EPOCHS;
    while exits < 2 {
        match timeout(PATIENCE, rig.peer.hear()).await.unwrap() {
            ToLauncher::Heartbeat { progress, .. } => progress.into_iter().for_each(|rank| seen.note(rank)),
            ToLauncher::Exited { rank, status, evidence, .. } => {
                assert_eq!((status, evidence), (ExitStatus::Code { code: 0 }, None));
                let known = seen.steps.get(&rank).map_or(0, BTreeSet::len);
                assert_eq!(
                    u64::try_from(known).unwrap(),
                    steps,
                    "the exit of {rank} comes after all of its steps"
                );
                exits += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen.committed, BTreeMap::from([(Rank(0), Step(steps)), (Rank(1), Step(steps))]));
    assert_eq!(seen.ended, BTreeSet::from([Rank(0), Rank(1)]));
    assert_eq!(seen.reported, BTreeMap::from([("done".to_owned(), 1.0)]));
    assert_eq!(seen.digest, whole(&order));
    rig.peer.say(&ToWorker::Finish).await;
    assert_eq!(rig.outcome().await, Outcome::Finished);
}

/// The digest of all epochs as one consumer would have it.
fn whole(order: &Order) -> OrderDigest {
    let mut digest = OrderDigest::default();
    for epoch in 0..EPOCHS {
        let order_of_epoch = order.epoch(epoch);
        for step in 0..order.steps_per_epoch() {
            for placed in order_of_epoch.slice(step, Consumer { index: 0, of: NonZeroU32::MIN }) {
                digest.add(epoch, step, placed.position, placed.sample);
            }
        }
    }
    digest
}

#[tokio::test]
async fn a_dataset_that_is_another_is_a_fault_of_the_preflight() {
    let folder = TempDir::new().unwrap();
    let (data, _) = dataset(folder.path()).await;
    let manifest = data.manifest.map(|file| ManifestFile { digest: "0".repeat(64), ..file });
    let data = DataConfig { manifest, ..data };
    let mut rig = rig_with("digest", "", 30_000, |config| config.data = Some(data)).await;
    rig.peer.say(&ToWorker::Gather { generation: Generation(1) }).await;
    match rig.hear().await {
        ToLauncher::Ready { faults, .. } => {
            assert_eq!(
                faults.iter().map(|fault| fault.code.as_str()).collect::<Vec<_>>(),
                ["manifest_differs"]
            );
        }
        other => panic!("{other:?}"),
    }
    rig.peer.say(&ToWorker::Finish).await;
    assert_eq!(rig.outcome().await, Outcome::Finished);
}

#[tokio::test]
async fn a_store_that_cannot_be_read_is_a_fault_of_the_preflight() {
    let folder = TempDir::new().unwrap();
    let (data, _) = dataset(folder.path()).await;
    fs::remove_file(folder.path().join("shards/a.bin")).unwrap();
    let config = WorkerConfig {
        data: Some(data),
        ..config(folder.path(), "store", "127.0.0.1:1".parse().unwrap(), "")
    };
    assert_eq!(DataSide::start(&config, config.bind).await.unwrap_err()[0].code, "source_unreadable");
}

#[tokio::test]
async fn a_worker_that_is_given_no_manifest_looks_for_itself_and_tells_what_it_found() {
    let folder = TempDir::new().unwrap();
    let (data, order) = dataset(folder.path()).await;
    let record = Some(RecordConfig { dtype: Dtype::U32, items: 4 });
    let facts_of = async |data: DataConfig| {
        let rig = rig_with("look", "", 30_000, |config| config.data = Some(data)).await;
        rig.registration.data
    };
    let stored = data.manifest.clone().unwrap();
    assert_eq!(facts_of(data.clone()).await, None, "who gave the manifest knows what is in it");
    let data = DataConfig { manifest: None, record, ..data };
    let found = facts_of(data.clone()).await.unwrap();
    assert_eq!((found.samples, found.bytes), (SAMPLES.into(), u64::from(SAMPLES) * 16));
    assert_eq!(found.steps_per_epoch, order.steps_per_epoch());
    // One that lies beside the data is taken as it is: its chunks are smaller than those of an index made here.
    fs::copy(&stored.path, folder.path().join("shards/slipway.manifest")).unwrap();
    let found = facts_of(data.clone()).await.unwrap();
    assert_eq!(found.digest, stored.digest);
    let config = WorkerConfig {
        data: Some(DataConfig { record: None, ..data }),
        ..config(folder.path(), "look", "127.0.0.1:1".parse().unwrap(), "")
    };
    fs::remove_file(folder.path().join("shards/slipway.manifest")).unwrap();
    let faults = DataSide::start(&config, config.bind).await.unwrap_err();
    assert_eq!(faults.iter().map(|fault| fault.code.as_str()).collect::<Vec<_>>(), ["dataset_unusable"]);
    assert!(faults[0].message.contains("a.bin"), "{faults:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_server_runs_nothing_and_reads_what_others_will_need() {
    let folder = TempDir::new().unwrap();
    let (data, _) = dataset(folder.path()).await;
    let mut rig = rig_with("serves", "", 10_000, |config| {
        config.role = Role::Server;
        // Nobody looks for a program here.
        config.run.command = vec!["/nonexistent".into()];
        config.run.workdir = "/nonexistent".into();
        config.data = Some(data);
    })
    .await;
    let generation = Generation(1);
    let me = PeerAddress {
        worker: WorkerId(0),
        data_address: rig.registration.data_address,
        fingerprint: "0".repeat(64),
        role: Role::Server,
    };
    rig.peer.say(&ToWorker::Gather { generation }).await;
    assert_eq!(rig.hear().await, ToLauncher::Ready { generation, faults: Vec::new() });
    let peers = vec![me];
    let server = Assignment { ranks: Vec::new(), serves_store: false, peers: peers.clone(), ..assignment(1) };
    rig.peer.say(&ToWorker::Assign(server)).await;
    rig.peer.say(&ToWorker::Start { generation, master: rig.launcher.local_addr().unwrap() }).await;
    assert_eq!(rig.hear().await, ToLauncher::Started { generation, pids: BTreeMap::new() });
    rig.peer.say(&ToWorker::Peers { generation, roster: 2, peers }).await;
    let all_is_read = async {
        loop {
            // The whole of the data set fits, and all of its chunks are this server's.
            if let ToLauncher::Heartbeat { counters, roster: 2, .. } = rig.peer.hear().await
                && counters.store_bytes == u64::from(SAMPLES) * 16
            {
                break;
            }
        }
    };
    timeout(PATIENCE, all_is_read).await.expect("a server reads ahead what is its own");
    rig.peer.say(&ToWorker::Finish).await;
    assert_eq!(rig.outcome().await, Outcome::Finished);
}

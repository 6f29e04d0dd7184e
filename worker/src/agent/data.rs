//! The worker's side of the data plane: one plane for its life, one feed per rank and generation.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use datapath::Counters;
use datapath::dataset::index::{self, IndexOptions};
use datapath::dataset::{Manifest, RecordLayout, manifest};
use datapath::fault::DataFault;
use datapath::fault::in_full;
use datapath::memory::Block;
use datapath::order::{Consumer, Order};
use datapath::plane::{
    Feed, FeedConfig, FeedEvent, Membership, Peer, PeerId, Plane, PlaneConfig, PlaneError, Role,
};
use datapath::store::{Store, StoreError};
use datapath::tier::TierConfig;
use tokio::task::AbortHandle;

use super::machine::{Event, FeedNews};
use super::preflight::fault;
use super::shell::{Note, Notes, unix_ns};
use crate::config::{DataConfig, ManifestFile, WorkerConfig};
use crate::host;
use crate::rendezvous::certificate_name;
use crate::rendezvous::message::{
    Assignment, CauseKind, ConsumedStep, DataFacts, Evidence, PeerAddress, PreflightFault,
};
use crate::units::{Generation, Rank, Step, WorkerId};

/// Bytes of a manifest at the most: about a hundred million samples; more would not fit beside the ranks.
const MANIFEST_BYTES_MAX: u64 = 4 << 30;
/// Faults of a data set that a worker tells at once: the first ones say where to look, and every worker sends them.
const DATASET_FAULTS_MAX: usize = 20;

/// The open data plane.
#[derive(Debug)]
pub(super) struct DataSide {
    plane: Plane,
    me: WorkerId,
    role: Role,
    /// The step after the job's last.
    end_step: u64,
    slots: u32,
    /// What this worker found, where nobody told it what is there.
    found: Option<DataFacts>,
}

/// One rank's feed; dropping it ends the feed.
#[derive(Debug)]
pub(super) struct RankFeed {
    /// The abstract unix socket, without the leading NUL.
    pub(super) socket: String,
    task: AbortHandle,
}

impl Drop for RankFeed {
    fn drop(&mut self) {
        // The task holds the feed.
        self.task.abort();
    }
}

impl DataSide {
    /// Opens what the configuration names, and answers peers at `bind`; none for a job without data.
    pub(super) async fn start(
        config: &WorkerConfig,
        bind: IpAddr,
    ) -> Result<Option<Self>, Vec<PreflightFault>> {
        let Some(data) = &config.data else { return Ok(None) };
        let manifest = match &data.manifest {
            Some(file) => load_manifest(file).await.map_err(|fault| vec![fault])?,
            None => look_for_manifest(data).await?,
        };
        Self::open(config, data, bind, Arc::new(manifest)).await.map(Some).map_err(|fault| vec![fault])
    }

    async fn open(
        config: &WorkerConfig,
        data: &DataConfig,
        bind: IpAddr,
        manifest: Arc<Manifest>,
    ) -> Result<Self, PreflightFault> {
        let order = Order::new(&manifest, data.order).map_err(|error| {
            fault("order_invalid", format!("cannot {}", in_full(&error)), "check the job's data section")
        })?;
        let store = open_store(data, &manifest).await?;
        let found = data.manifest.is_none().then(|| DataFacts {
            digest: manifest.digest().to_string(),
            steps_per_epoch: order.steps_per_epoch(),
            samples: manifest.sample_count(),
            bytes: manifest.bytes(),
        });
        let end_step = order.steps_per_epoch().saturating_mul(data.epochs);
        let plane = Plane::start(PlaneConfig {
            identity: config.identity.clone(),
            bind,
            manifest,
            store,
            order,
            cache_bytes: data.cache_bytes,
            tier: data.tier.as_ref().map(|tier| TierConfig {
                folder: tier.folder.clone(),
                worker: config.worker.0,
                bytes: tier.bytes,
                free_percent: tier.free_percent,
            }),
            transport: data.transport,
            congestion: data.congestion,
            devices: host::devices_wanted(&config.cpus, data.far_devices),
        });
        let plane = plane.await.map_err(|error| {
            let (code, hint) = match &error {
                PlaneError::Tier(_) => {
                    ("tier_unusable", "name a folder that this user may write in spec.data.localTier.folder")
                }
                PlaneError::NoRdma { .. } => {
                    ("data_plane_failed", "`worker probe` there says what each of the host's devices lacks")
                }
                _ => ("data_plane_failed", "check the interface and its address"),
            };
            fault(code, format!("cannot {}", in_full(&error)), hint)
        })?;
        Ok(Self { plane, me: config.worker, role: config.role, end_step, slots: data.slots, found })
    }

    /// The data set, where the launcher could not look at it.
    pub(super) fn found(&self) -> Option<DataFacts> {
        self.found.clone()
    }

    /// Where other workers reach the plane.
    pub(super) fn address(&self) -> SocketAddr {
        self.plane.local_addr()
    }

    /// What the plane has done since its start.
    pub(super) fn counters(&self) -> Counters {
        self.plane.counters()
    }

    /// Joins the others and opens the ranks' feeds, whose news go to `notes`.
    pub(super) async fn enter(
        &self,
        assignment: &Assignment,
        notes: &Notes,
    ) -> Result<BTreeMap<Rank, RankFeed>, PreflightFault> {
        let (fence, roster) = (assignment.generation.0, assignment.roster);
        let peers = plane_peers(&assignment.peers)?;
        self.plane.enter(Membership { fence, me: PeerId(self.me.0), peers, roster }).await;
        if self.role == Role::Server {
            // One that is fenced meanwhile has nothing to read.
            drop(self.plane.read_ahead(fence, assignment.start_step.0, self.end_step).await);
        }
        let mut feeds = BTreeMap::new();
        for rank in &assignment.ranks {
            feeds.insert(*rank, self.feed(assignment, *rank, notes).await?);
        }
        Ok(feeds)
    }

    /// Goes on among other peers.
    pub(super) async fn meet(
        &self,
        generation: Generation,
        roster: u64,
        peers: &[PeerAddress],
    ) -> Result<(), PreflightFault> {
        self.plane.meet(generation.0, roster, plane_peers(peers)?).await;
        Ok(())
    }

    /// Ends everything and tells the peers.
    pub(super) async fn close(self) {
        self.plane.close().await;
    }

    async fn feed(
        &self,
        assignment: &Assignment,
        rank: Rank,
        notes: &Notes,
    ) -> Result<RankFeed, PreflightFault> {
        let failed = |what: String| fault("feed_failed", format!("cannot feed rank {rank}: {what}"), "");
        let of = NonZeroU32::new(assignment.world_size).ok_or_else(|| failed("an empty world".into()))?;
        let random = getrandom::u64().map_err(|error| failed(error.to_string()))?;
        let socket = format!("slipway-{random:016x}");
        let feed = self.plane.feed(FeedConfig {
            consumer: Consumer { index: rank.0, of },
            start_step: assignment.start_step.0.min(self.end_step),
            end_step: self.end_step,
            slots: self.slots,
            socket: socket.clone(),
            fence: assignment.generation.0,
            hello: serde_json::Value::Null,
        });
        let feed = feed.await.map_err(|error| failed(in_full(&error)))?;
        let task = tokio::spawn(forward(feed, assignment.generation, rank, notes.clone()));
        Ok(RankFeed { socket, task: task.abort_handle() })
    }
}

/// Carries a feed's events to the agent, in their order, until either ends.
async fn forward(mut feed: Feed, generation: Generation, rank: Rank, notes: Notes) {
    while let Some(event) = feed.events.recv().await {
        let event = match news(event) {
            Ok(news) => Event::Feed { generation, rank, news },
            Err(fault) => Event::Trouble { generation, evidence: data_evidence(rank, &fault) },
        };
        if notes.send(Note::Event(event)).await.is_err() {
            return;
        }
    }
}

fn news(event: FeedEvent) -> Result<FeedNews, DataFault> {
    Ok(match event {
        FeedEvent::Attached { .. } => FeedNews::Attached,
        FeedEvent::Consumed { step, digest, samples, bytes } => {
            FeedNews::Consumed(ConsumedStep { step: Step(step), samples, bytes, digest })
        }
        FeedEvent::Committed { step } => FeedNews::Committed(Step(step)),
        FeedEvent::Reported { values } => FeedNews::Reported(values),
        FeedEvent::Detached => FeedNews::Detached,
        FeedEvent::Ended => FeedNews::Ended,
        FeedEvent::Fault(fault) => return Err(fault),
    })
}

fn data_evidence(rank: Rank, fault: &DataFault) -> Evidence {
    let sample = fault.sample.map(|sample| format!(", sample {sample}")).unwrap_or_default();
    let place = format!("shard {}, chunk {}{sample}", fault.shard, fault.chunk);
    Evidence {
        rank: Some(rank),
        cause: CauseKind::Data,
        seen_unix_ns: unix_ns(),
        message: format!("{} ({}; {place})", fault.message, fault.reason),
        hint: fault.hint.clone(),
        log_tail: Vec::new(),
    }
}

async fn load_manifest(file: &ManifestFile) -> Result<Manifest, PreflightFault> {
    let path = file.path.clone();
    let failed = |what: String| {
        let message = format!("cannot use the manifest {}: {what}", file.path.display());
        fault(
            "manifest_unreadable",
            message,
            "every host of the job must see the file that the launcher wrote",
        )
    };
    let loaded = tokio::task::spawn_blocking(move || -> Result<Manifest, String> {
        let bytes = read_file(&path).map_err(|error| error.to_string())?;
        manifest::decode(&bytes).map_err(|error| in_full(&error))
    });
    let loaded = loaded.await.map_err(|error| failed(error.to_string()))?.map_err(failed)?;
    let digest = loaded.digest().to_string();
    if digest == file.digest {
        Ok(loaded)
    } else {
        let message =
            format!("the manifest {} is of dataset {digest}, not {}", file.path.display(), file.digest);
        Err(fault("manifest_differs", message, "the dataset was indexed anew: submit the job again"))
    }
}

/// The manifest beside the data if there is one, else an index of it, made here and kept in memory: every worker of the
/// job does the same, and the launcher compares what they found.
async fn look_for_manifest(data: &DataConfig) -> Result<Manifest, Vec<PreflightFault>> {
    let store = Store::open(&data.source).await.map_err(|error| vec![source_fault(&error)])?;
    let layout =
        data.record.map(|record| RecordLayout { dtype: record.dtype, items: record.items, header_bytes: 0 });
    let items = data.record.map(|record| record.items);
    let options = IndexOptions { record: layout, items, ..IndexOptions::default() };
    let opened = index::open(&store, &options).await;
    let (manifest, origin) = opened.map_err(|faults| {
        let left_out = faults.len().saturating_sub(DATASET_FAULTS_MAX);
        let mut faults: Vec<PreflightFault> = faults
            .into_iter()
            .take(DATASET_FAULTS_MAX)
            .map(|found| fault("dataset_unusable", found.to_string(), &found.hint))
            .collect();
        if left_out > 0 {
            let message = format!("{left_out} more faults of the data set are not listed");
            faults.push(fault("dataset_unusable", message, "launcher data verify lists all of them"));
        }
        faults
    })?;
    tracing::info!(?origin, digest = %manifest.digest(), samples = manifest.sample_count(), "opened the data set");
    Ok(manifest)
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MANIFEST_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Opens the store and reads one byte of it: what a missing mount or a wrong permission would refuse.
async fn open_store(data: &DataConfig, manifest: &Manifest) -> Result<Store, PreflightFault> {
    let store = Store::open(&data.source).await.map_err(|error| source_fault(&error))?;
    if let Some(shard) = manifest.shards().iter().find(|shard| shard.bytes > 0) {
        let (_, read) = store.read(&shard.name, 0, Block::with_len(1)).await;
        read.map_err(|error| source_fault(&error))?;
    }
    Ok(store)
}

fn source_fault(error: &StoreError) -> PreflightFault {
    let hint = "is the dataset mounted on this host, and readable for this user?";
    fault("source_unreadable", format!("cannot {}", in_full(error)), hint)
}

/// The peers that have a data plane, as the plane knows them.
fn plane_peers(peers: &[PeerAddress]) -> Result<Vec<Peer>, PreflightFault> {
    peers.iter().filter_map(|peer| plane_peer(peer).transpose()).collect()
}

/// A peer that has a data plane, as the plane knows it.
fn plane_peer(peer: &PeerAddress) -> Result<Option<Peer>, PreflightFault> {
    let Some(addr) = peer.data_address else { return Ok(None) };
    let fingerprint = fingerprint(&peer.fingerprint).ok_or_else(|| {
        let message = format!("the fingerprint of worker {} is not 64 hexadecimal digits", peer.worker);
        fault("peer_malformed", message, "launcher and worker must be of one release")
    })?;
    let (id, server_name) = (PeerId(peer.worker.0), certificate_name(peer.worker));
    Ok(Some(Peer { id, addr, server_name, fingerprint, role: peer.role }))
}

fn fingerprint(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_or_refused() {
        let mut expected = [0x0f; 32];
        expected[0] = 0xab;
        assert_eq!(fingerprint(&format!("ab{}", "0f".repeat(31))), Some(expected));
        for wrong in ["", "0f", &"0g".repeat(32), &"é".repeat(32), &"0f".repeat(33)] {
            assert_eq!(fingerprint(wrong), None, "{wrong}");
        }
    }
}

//! Our lane between two planes: the server's cache holds everything, the client asks for ranges into slots.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::sync::Arc;

use datapath::dataset::{ChunkId, Dtype, Manifest, RecordLayout, SampleId, index};
use datapath::order::{Order, OrderSpec, Remainder, Shuffle};
use datapath::plane::{Membership, Peer, PeerId, PeerLane, Plane, PlaneConfig, Role};
use datapath::select::{Congestion, TransportPolicy};
use datapath::store::Store;
use datapath::transport::quic::tls::{Identity, fingerprint};
use datapath::transport::{Part, Piece};
use serde_json::Value;

use crate::server::{CLIENT, SERVER, Server};
use crate::work::{self, Client, Work};
use crate::{CHUNK_BYTES, CHUNKS, Failure, RECORD_BYTES};

const SERVING: PeerId = PeerId(0);
const ASKING: PeerId = PeerId(1);

/// Starts the serving plane.
pub(crate) async fn serve(identity: Identity, client: &[u8], folder: &Path) -> Result<Plane, Failure> {
    let server = identity.cert_der.clone();
    let (plane, _) = start(identity, folder).await?;
    // It asks nobody, so it need not know where the client is.
    let nowhere = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1);
    let peers = vec![peer(SERVING, plane.local_addr(), &server), peer(ASKING, nowhere, client)];
    plane.enter(Membership { fence: 1, me: SERVING, peers, roster: 0 }).await;
    Ok(plane)
}

/// Measures the lane.
pub(crate) async fn run(server: Server, folder: &Path, work: Work) -> Result<Value, Failure> {
    let mine = server.identity.cert_der.clone();
    let (plane, manifest) = start(server.identity.clone(), folder).await?;
    let peers =
        vec![peer(SERVING, server.address, &server.certificate), peer(ASKING, plane.local_addr(), &mine)];
    plane.enter(Membership { fence: 1, me: ASKING, peers, roster: 0 }).await;
    let lane = plane.lane(SERVING).ok_or("no lane")?;
    let result = work::measure(server, work, Lane { lane, manifest }).await;
    plane.close().await;
    result
}

async fn start(identity: Identity, folder: &Path) -> Result<(Plane, Arc<Manifest>), Failure> {
    let store = Store::open(folder.to_str().ok_or("a folder that is not UTF-8")?).await?;
    let layout = RecordLayout { dtype: Dtype::U8, items: u32::try_from(RECORD_BYTES)?, header_bytes: 0 };
    let options =
        index::IndexOptions { record: Some(layout), threads: NonZeroUsize::MIN, ..Default::default() };
    let (manifest, _) = index::open(&store, &options).await.map_err(|faults| format!("{faults:?}"))?;
    if manifest.chunks().iter().any(|chunk| u64::from(chunk.len) != CHUNK_BYTES) {
        return Err("the data is not cut into chunks of 4 MiB".into());
    }
    let manifest = Arc::new(manifest);
    let spec = OrderSpec {
        seed: 1,
        global_batch: NonZeroU32::MIN,
        shuffle: Shuffle::None,
        remainder: Remainder::Drop,
    };
    let plane = Plane::start(PlaneConfig {
        identity,
        bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
        manifest: Arc::clone(&manifest),
        store,
        order: Order::new(&manifest, spec)?,
        cache_bytes: CHUNKS * CHUNK_BYTES,
        tier: None,
        transport: TransportPolicy::Quic,
        congestion: Congestion::Fixed,
        devices: Default::default(),
    });
    Ok((plane.await?, manifest))
}

fn peer(id: PeerId, addr: SocketAddr, certificate: &[u8]) -> Peer {
    let name = if id == SERVING { SERVER } else { CLIENT };
    Peer { id, addr, server_name: name.to_owned(), fingerprint: fingerprint(certificate), role: Role::Worker }
}

struct Lane {
    lane: PeerLane,
    manifest: Arc<Manifest>,
}

impl Client for Lane {
    async fn fetch(&self, start: u64, slot: &mut [u8]) -> Result<(), Failure> {
        let chunk = ChunkId(u32::try_from(start / CHUNK_BYTES)?);
        let (first, offset) = (start / RECORD_BYTES, u32::try_from(start % CHUNK_BYTES)?);
        let record = u32::try_from(RECORD_BYTES)?;
        let targets = slot.chunks_mut(usize::try_from(RECORD_BYTES)?).zip(0_u32..);
        let pieces = targets.map(|(target, at)| {
            let sample = SampleId(first + u64::from(at));
            let ends_with = Some(self.manifest.sample_crc32c(sample));
            Piece { offset: offset + at * record, target, sample, ends_with }
        });
        let mut parts = [Part::new(chunk, 0, pieces.collect())];
        match self.lane.fetch(&mut parts).await.pop() {
            Some(Ok(())) => Ok(()),
            other => Err(format!("chunk {}: {other:?}", chunk.0).into()),
        }
    }

    async fn received(&self) -> (u64, u64) {
        self.lane.stats().await.map_or((0, 0), |stats| (stats.udp_rx.datagrams, stats.udp_rx.bytes))
    }
}

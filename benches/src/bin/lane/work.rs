//! What is asked for, and how it is measured: the same for every side.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::time::ClockId;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::server::Server;
use crate::{CHUNK_BYTES, CHUNKS, Failure};

/// How much is asked for, and in which pieces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// Bytes of one request: divides a chunk.
    pub(crate) request: u64,
    pub(crate) requests: u64,
    /// Requests under way at once.
    pub(crate) depth: u64,
}

/// A client that asks for one range at a time, many times at once.
pub(crate) trait Client: Send + Sync + 'static {
    /// Gets the range that begins at this byte of the data into the slot, which is as long as it.
    fn fetch(&self, start: u64, slot: &mut [u8]) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Datagrams received, and their bytes.
    fn received(&self) -> impl Future<Output = (u64, u64)> + Send;
}

impl Work {
    /// Where a request begins.
    pub(crate) fn start(self, number: u64) -> u64 {
        number * self.request % (CHUNKS * CHUNK_BYTES)
    }

    pub(crate) fn slot(self) -> Result<Vec<u8>, Failure> {
        Ok(vec![0; usize::try_from(self.request)?])
    }

    /// Requests of one pass over everything.
    fn pass(self) -> Range<u64> {
        0..CHUNKS * CHUNK_BYTES / self.request
    }
}

/// Measures a client.
pub(crate) async fn measure(mut server: Server, work: Work, client: impl Client) -> Result<Value, Failure> {
    let client = Arc::new(client);
    transfer(&client, work, work.pass()).await?;
    let (datagrams, bytes) = client.received().await;
    let begun = Begun::new(&mut server)?;
    transfer(&client, work, 0..work.requests).await?;
    let mut result = begun.end(&mut server, work)?;
    let (datagrams_then, bytes_then) = client.received().await;
    result["packet_bytes"] = ((bytes_then - bytes) / (datagrams_then - datagrams).max(1)).into();
    Ok(result)
}

/// The same for a client that blocks.
pub(crate) fn measure_blocking(
    mut server: Server,
    work: Work,
    mut transfer: impl FnMut(Range<u64>) -> Result<(), Failure>,
) -> Result<Value, Failure> {
    transfer(work.pass())?;
    let begun = Begun::new(&mut server)?;
    transfer(0..work.requests)?;
    begun.end(&mut server, work)
}

async fn transfer(client: &Arc<impl Client>, work: Work, requests: Range<u64>) -> Result<(), Failure> {
    let mut running = JoinSet::new();
    let next = Arc::new(AtomicU64::new(requests.start));
    for _ in 0..work.depth {
        let (client, next, mut slot) = (Arc::clone(client), Arc::clone(&next), work.slot()?);
        running.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= requests.end {
                    return Ok::<_, Failure>(());
                }
                client.fetch(work.start(number), &mut slot).await?;
            }
        });
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(())
}

/// Clocks at the beginning.
struct Begun {
    at: Instant,
    client_cpu: f64,
    server_cpu: f64,
}

impl Begun {
    fn new(server: &mut Server) -> Result<Self, Failure> {
        let server_cpu = server.cpu_seconds()?;
        #[expect(clippy::disallowed_methods, reason = "a bench measures time")]
        Ok(Self { at: Instant::now(), client_cpu: cpu_seconds(), server_cpu })
    }

    fn end(&self, server: &mut Server, work: Work) -> Result<Value, Failure> {
        let seconds = self.at.elapsed().as_secs_f64();
        let client = cpu_seconds() - self.client_cpu;
        let server = server.cpu_seconds()? - self.server_cpu;
        #[expect(clippy::cast_precision_loss, reason = "exact below 2^53, which no run reaches")]
        let gigabytes = (work.requests * work.request) as f64 / 1e9;
        Ok(json!({
            "gb": gigabytes,
            "seconds": seconds,
            "gb_per_s": gigabytes / seconds,
            "client_cpu_s_per_gb": client / gigabytes,
            "server_cpu_s_per_gb": server / gigabytes,
            "cpu_s_per_gb": (client + server) / gigabytes,
        }))
    }
}

/// CPU time of this process.
pub(crate) fn cpu_seconds() -> f64 {
    benches::cpu(ClockId::ProcessCPUTime).as_secs_f64()
}

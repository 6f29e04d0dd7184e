//! What a sidecar answers over HTTP: the probe that is the gang's barrier, the probe of its own life, its metrics.
//!
//! The kubelet starts the ranks' container when `/ready` has answered 200 once: the start-up probe of a native sidecar
//! (kubernetes.io, "Sidecar Containers"). Nothing secret is said, because everybody in the cluster may ask.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::status::{Seen, Status};

/// The media type of the text that [`metrics_text`] makes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A running server; dropping it stops it.
#[derive(Debug)]
pub(crate) struct Http {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Http {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Http {
    /// Answers at `address` until it is dropped.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub(crate) async fn start(address: SocketAddr, status: Arc<Status>) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let router = Router::new()
            .route("/ready", get(ready))
            .route("/healthz", get(|| async { "alive\n" }))
            .route("/metrics", get(metrics))
            .with_state(status);
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "probes are not answered any more");
            }
        });
        Ok(Self { address, task })
    }

    /// Where it answers.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn ready(State(status): State<Arc<Status>>) -> (StatusCode, String) {
    let seen = status.seen();
    let code = if seen.ranks_wanted { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, format!("{}\n", seen.doing))
}

async fn metrics(State(status): State<Arc<Status>>) -> Response {
    match metrics_text(&status.seen(), cpu()) {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// CPU time of this process, all threads, since its start.
fn cpu() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(used).unwrap_or_default()
}

/// The numbers as OpenMetrics text.
fn metrics_text(seen: &Seen, cpu: Duration) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("slipway_worker");
    let gauge = |value: u64| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    registry.register("generation", "Generation whose ranks run here, 0 for none", gauge(seen.generation));
    registry.register(
        "connected",
        "1 while the connection to the launcher stands",
        gauge(seen.connected.into()),
    );
    registry.register(
        "launches",
        "Generations whose ranks were executed here",
        ConstCounter::new(seen.launches),
    );
    let counters = &seen.counters;
    for (name, help, value) in [
        ("store", "Bytes read from the store", counters.store_bytes),
        ("tier", "Bytes read from the node-local tier", counters.tier_bytes),
        ("tier_kept", "Bytes written to the node-local tier", counters.tier_kept_bytes),
        ("local", "Sample bytes out of this worker's own cache", counters.local_bytes),
        ("quic_in", "Sample bytes received from other workers over QUIC", counters.quic_in_bytes),
        ("quic_out", "Sample bytes sent to other workers over QUIC", counters.quic_out_bytes),
        ("rdma_in", "Sample bytes read out of other workers' memory", counters.rdma_in_bytes),
        ("rdma_lent", "Bytes of chunks lent to other workers' devices", counters.rdma_lent_bytes),
    ] {
        registry.register_with_unit(name, help, Unit::Bytes, ConstCounter::new(value));
    }
    for (name, help, value) in [
        ("store_reads", "Reads from the store", counters.store_reads),
        ("rdma_failures", "Times that an RDMA lane was left for another one", counters.rdma_failures),
        ("rdma_returns", "Times that one was used again", counters.rdma_returns),
        ("retries", "Requests that were asked again", counters.retries),
        ("cache_hits", "Chunks found in the cache", counters.cache_hits),
        ("cache_evictions", "Chunks dropped before all had passed them", counters.cache_evictions),
        ("cache_rereads", "Chunks read again after such a drop", counters.cache_rereads),
        ("tier_faults", "Chunks of the node-local tier that were bad", counters.tier_faults),
        ("batches", "Batches published to trainers", counters.batches),
    ] {
        registry.register(name, help, ConstCounter::new(value));
    }
    let help = "CPU time of the sidecar, the data plane above all";
    registry.register_with_unit("cpu", help, Unit::Seconds, ConstCounter::new(cpu.as_secs_f64()));
    let waited = Duration::from_nanos(counters.slot_wait_ns).as_secs_f64();
    let help = "Time that feeds waited for a free slot: the trainer is slower than the data";
    registry.register_with_unit("slot_wait", help, Unit::Seconds, ConstCounter::new(waited));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_barrier_opens_when_the_ranks_are_wanted() {
        let status = Arc::new(Status::default());
        let http = Http::start("127.0.0.1:0".parse().unwrap(), Arc::clone(&status)).await.unwrap();
        let closed = ask(http.address(), "/ready").await;
        assert!(closed.starts_with("HTTP/1.1 503 ") && closed.ends_with("\r\n\r\nstarts\n"), "{closed}");
        status.doing("executes its ranks");
        status.ranks(true);
        let open = ask(http.address(), "/ready").await;
        assert!(open.starts_with("HTTP/1.1 200 ") && open.ends_with("executes its ranks\n"), "{open}");
        assert!(ask(http.address(), "/healthz").await.starts_with("HTTP/1.1 200 "));
        assert!(ask(http.address(), "/other").await.starts_with("HTTP/1.1 404 "));
    }

    #[tokio::test]
    async fn counters_are_shown_as_metrics() {
        let status = Arc::new(Status::default());
        let http = Http::start("127.0.0.1:0".parse().unwrap(), Arc::clone(&status)).await.unwrap();
        let counters =
            datapath::Counters { store_bytes: 7, slot_wait_ns: 1_500_000_000, ..Default::default() };
        status.count(counters);
        status.launched(3);
        let text = ask(http.address(), "/metrics").await;
        for line in [
            "slipway_worker_store_bytes_total 7\n",
            "slipway_worker_slot_wait_seconds_total 1.5\n",
            "slipway_worker_generation 3\n",
            "slipway_worker_launches_total 1\n",
            "slipway_worker_tier_bytes_total 0\n",
            "slipway_worker_cpu_seconds_total ",
            "# EOF\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}

//! What `launcher serve` answers over HTTP: its metrics, and whether it is alive and ready.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | Prometheus' text format |
//! | `/healthz` | 200 while the process answers at all |
//! | `/readyz` | 200 on the leader with filled caches, 503 with the reason elsewhere: so a Service leads to the leader |

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::metrics::Metrics;

/// How far the process is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    /// Another process leads.
    #[default]
    Standby,
    /// This one leads and fills its caches.
    Filling,
    /// It works.
    Ready,
}

#[derive(Clone)]
struct Answers {
    metrics: Arc<Metrics>,
    readiness: watch::Receiver<Readiness>,
}

/// Listens; requests are answered until the process ends.
///
/// # Errors
/// When the address cannot be bound.
pub async fn start(
    address: SocketAddr,
    metrics: Arc<Metrics>,
    readiness: watch::Receiver<Readiness>,
) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let routes = Router::new()
        .route("/metrics", get(answer_metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(answer_readiness))
        .with_state(Answers { metrics, readiness });
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "cannot answer over HTTP any more");
        }
    });
    Ok(bound)
}

async fn answer_metrics(State(answers): State<Answers>) -> Response {
    match answers.metrics.text() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn answer_readiness(State(answers): State<Answers>) -> Response {
    match *answers.readiness.borrow() {
        Readiness::Ready => "ready\n".into_response(),
        Readiness::Filling => (StatusCode::SERVICE_UNAVAILABLE, "filling its caches\n").into_response(),
        Readiness::Standby => (StatusCode::SERVICE_UNAVAILABLE, "another process leads\n").into_response(),
    }
}

//! The logs of a job's pods. A pod's ranks share one log, in which every line says whose it is (`[rank 3] …`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use futures_util::{AsyncBufReadExt, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, LogParams};
use kube::{Client, ResourceExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use worker::units::Rank;

use super::client::refused;
use super::controller::pods::{PodStage, PodView};
use super::jobs::Jobs;
use super::names;
use crate::backend::{LogLine, LogRequest};
use crate::error::{ExitCode, Failure};

/// Pods whose logs are read at a time: each is a connection to the API server.
const STREAMS_MAX: usize = 256;
/// How often pods that have come since are looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Bytes of one line at the most; a longer one is data.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Sends the lines that were asked for, in order per log, until there are none, the receiver is gone, or (when following)
/// the job is over.
///
/// # Errors
/// When there is no such job or rank, or its logs cannot be read.
pub async fn send(
    jobs: &Jobs,
    job: &str,
    request: LogRequest,
    lines: mpsc::Sender<LogLine>,
) -> Result<(), Failure> {
    let found = jobs.find(job).await?;
    let ranks = found.status.as_ref().map_or(0, |status| status.ranks);
    if let Some(rank) = request.rank
        && rank.0 >= ranks
    {
        return Err(Failure::new(ExitCode::NotFound, format!("failed to find rank {rank} of {job}"))
            .hint(format!("its ranks are 0 to {}", ranks.saturating_sub(1))));
    }
    let uid = found.uid().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(jobs.client().clone(), jobs.namespace());
    let of_job = ListParams::default().labels(&format!("{}={uid}", names::LABEL_UID));
    let mut read = BTreeSet::new();
    let mut streams = JoinSet::new();
    loop {
        let listed = pods.list(&of_job).await.map_err(|error| refused("list the job's pods", &error))?;
        for pod in listed.items.iter().filter_map(PodView::of) {
            // A data server has no ranks that could say anything.
            let has_run = matches!(pod.stage, PodStage::Running | PodStage::Ended { .. })
                && (request.system || !pod.is_server);
            if has_run && streams.len() < STREAMS_MAX && read.insert(pod.uid.clone()) {
                let (client, namespace) = (jobs.client().clone(), jobs.namespace().to_owned());
                streams.spawn(stream(client, namespace, pod, request.clone(), lines.clone()));
            }
        }
        if lines.is_closed() {
            return Ok(());
        }
        let is_over = jobs.find(job).await?.status.is_some_and(|status| status.phase.is_over());
        if !request.follow || is_over {
            break;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    while let Some(ended) = streams.join_next().await {
        if let Ok(Err(error)) = ended {
            tracing::warn!(%error, "cannot read a pod's log to its end");
        }
    }
    Ok(())
}

async fn stream(
    client: Client,
    namespace: String,
    pod: PodView,
    request: LogRequest,
    lines: mpsc::Sender<LogLine>,
) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(client, &namespace);
    let container = if request.system { names::SIDECAR } else { names::RANKS };
    let params = LogParams {
        container: Some(container.to_owned()),
        follow: request.follow,
        // Of a pod with several ranks the last lines of each are not known: all are read, and cut here.
        tail_lines: request.tail.filter(|_| request.system).and_then(|lines| i64::try_from(lines).ok()),
        ..LogParams::default()
    };
    let reader = loop {
        match api.log_stream(&pod.name, &params).await {
            Ok(reader) => break reader,
            // The container has not started yet.
            Err(kube::Error::Api(status)) if status.code == 400 && request.follow => {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Err(kube::Error::Api(status)) if status.code == 400 || status.code == 404 => return Ok(()),
            Err(error) => return Err(error),
        }
    };
    let mut texts = reader.lines().map_err(kube::Error::ReadEvents).boxed();
    let mut tail = Tail::new(request.tail.filter(|_| !request.system));
    while let Some(text) = texts.next().await {
        let Ok(mut text) = text else { break };
        text.truncate(floor_char(&text, LINE_BYTES_MAX));
        let line = if request.system {
            LogLine { log: format!("worker-{}", pod.worker), rank: None, text }
        } else {
            of_rank(&pod, text)
        };
        if request.rank.is_some() && line.rank != request.rank {
            continue;
        }
        if let Some(line) = tail.take(line)
            && lines.send(line).await.is_err()
        {
            return Ok(());
        }
    }
    for line in tail.rest() {
        if lines.send(line).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Keeps the last lines of each log, where only those are wanted.
struct Tail {
    limit: Option<usize>,
    kept: BTreeMap<String, VecDeque<LogLine>>,
}

impl Tail {
    fn new(limit: Option<u64>) -> Self {
        let limit = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
        Self { limit, kept: BTreeMap::new() }
    }

    fn take(&mut self, line: LogLine) -> Option<LogLine> {
        let Some(limit) = self.limit else { return Some(line) };
        let kept = self.kept.entry(line.log.clone()).or_default();
        kept.push_back(line);
        while kept.len() > limit {
            kept.pop_front();
        }
        None
    }

    fn rest(self) -> impl Iterator<Item = LogLine> {
        self.kept.into_values().flatten()
    }
}

/// Whose line it is; what no rank said is the worker's.
fn of_rank(pod: &PodView, text: String) -> LogLine {
    let rank = text.strip_prefix("[rank ").and_then(|rest| {
        let (number, said) = rest.split_once(']')?;
        Some((number.parse().ok()?, said.strip_prefix(' ').unwrap_or(said).to_owned()))
    });
    match rank {
        Some((rank, text)) => LogLine { log: format!("rank-{rank}"), rank: Some(Rank(rank)), text },
        None => LogLine { log: format!("worker-{}", pod.worker), rank: None, text },
    }
}

fn floor_char(text: &str, limit: usize) -> usize {
    if text.len() <= limit {
        return text.len();
    }
    (0..=limit).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use worker::units::WorkerId;

    #[test]
    fn a_line_is_its_ranks_or_its_workers() {
        let pod = PodView {
            name: "p".to_owned(),
            uid: "u".to_owned(),
            worker: WorkerId(2),
            is_server: false,
            is_gated: false,
            host: None,
            placed: None,
            created: 0,
            is_admitted: true,
            stage: PodStage::Running,
            is_leaving: false,
            trouble: String::new(),
        };
        let said = |text: &str| {
            let line = of_rank(&pod, text.to_owned());
            (line.log, line.rank, line.text)
        };
        assert_eq!(said("[rank 13] loss 0.1"), ("rank-13".to_owned(), Some(Rank(13)), "loss 0.1".to_owned()));
        assert_eq!(said("[rank 0] "), ("rank-0".to_owned(), Some(Rank(0)), String::new()));
        assert_eq!(said("[rank x] y"), ("worker-2".to_owned(), None, "[rank x] y".to_owned()));
        assert_eq!(said("plain"), ("worker-2".to_owned(), None, "plain".to_owned()));
        assert_eq!(floor_char("aé", 2), 1);
    }
}

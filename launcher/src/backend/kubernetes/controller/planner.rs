//! The shell around the ledger: one task that hears wishes and changes of the cluster, and answers jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use worker::units::WorkerId;

use super::api::Key;
use super::ledger::{Answer, Holding, Ledger};
use super::watch::Caches;
use crate::backend::clock::clock;
use crate::placement::Request;
use crate::serve::metrics::Metrics;
use crate::topology::kubernetes;

/// Wishes that wait for the planner: a burst of jobs waits at its senders beyond it.
const WISHES_MAX: usize = 1024;
/// Changes of the cluster are gathered for this long before it is made anew: many nodes change at a time, and a person
/// who waits for one does not notice.
const GATHER: Duration = Duration::from_millis(50);

/// Before every job that was ever created.
const FIRST: u64 = 0;

/// What jobs ask of the planner.
#[derive(Debug)]
pub(super) enum Wish {
    /// Places, answered on the job's own channel.
    Ask { key: Key, created: u64, request: Box<Request>, answers: mpsc::Sender<Answer> },
    /// The places that were given, planned anew on what is free now, before anybody else's turn.
    Renew { key: Key, request: Box<Request>, answers: mpsc::Sender<Answer> },
    /// All that the job holds, whoever gave it out.
    Hold { key: Key, holding: Box<Holding> },
    /// A worker has this place besides, whoever gave it out.
    Has { key: Key, holding: Box<Holding> },
    /// Pods of the job may run on these hosts, and nobody knows what they hold; empty: not any more.
    Avoid { key: Key, hosts: BTreeSet<String> },
    /// The worker's pod was taken by its kubelet.
    Admitted { key: Key, worker: WorkerId },
    /// These places are free again; `None`: all.
    Release { key: Key, workers: Option<BTreeSet<WorkerId>> },
    /// Of all jobs that there were at the start, it has been told what they hold: nobody is answered before.
    Open,
}

/// The way to the planner.
#[derive(Clone, Debug)]
pub(super) struct Planner(mpsc::Sender<Wish>);

impl Planner {
    /// Starts the task. It ends when all who could ask are gone.
    pub(super) fn start(caches: Arc<Caches>, metrics: Arc<Metrics>) -> Self {
        let (sender, wishes) = mpsc::channel(WISHES_MAX);
        tokio::spawn(run(wishes, caches, metrics));
        Self(sender)
    }

    pub(super) async fn tell(&self, wish: Wish) {
        // The planner ends with the process.
        let _ = self.0.send(wish).await;
    }
}

async fn run(mut wishes: mpsc::Receiver<Wish>, caches: Arc<Caches>, metrics: Arc<Metrics>) {
    let mut ledger = Ledger::default();
    let mut listeners: BTreeMap<Key, mpsc::Sender<Answer>> = BTreeMap::new();
    let changed: Arc<Notify> = caches.changed();
    let mut is_new = true;
    let mut is_open = false;
    let begun = clock();
    loop {
        let mut batch = Vec::new();
        // For nobody who does not wait.
        let due = if is_open && ledger.has_waiting() { ledger.due() } else { None };
        let due = due.map(|due| due.saturating_sub(begun.elapsed()));
        tokio::select! {
            heard = wishes.recv_many(&mut batch, WISHES_MAX) => if heard == 0 { return },
            () = changed.notified() => {
                tokio::time::sleep(GATHER).await;
                is_new = true;
                while let Ok(wish) = wishes.try_recv() {
                    batch.push(wish);
                }
            }
            () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => is_new = true,
        }
        let now = begun.elapsed();
        for wish in batch {
            is_open |= matches!(wish, Wish::Open);
            take(&mut ledger, &mut listeners, wish, now);
        }
        if !is_open || !ledger.has_waiting() {
            continue;
        }
        let solving = clock();
        let is_new_now = std::mem::take(&mut is_new) || ledger.is_stale();
        if is_new_now {
            let held = ledger.held(now);
            ledger.see(caches.with_facts(held, kubernetes::cluster), now);
        }
        let answers = ledger.pass(!is_new_now);
        metrics.solver.observe(solving.elapsed().as_secs_f64());
        for (key, answer) in answers {
            if let Some(listener) = listeners.get(&key) {
                // A job that is gone releases what it holds when it is told to.
                let _ = listener.send(answer).await;
            }
        }
    }
}

fn take(ledger: &mut Ledger, listeners: &mut BTreeMap<Key, mpsc::Sender<Answer>>, wish: Wish, now: Duration) {
    match wish {
        Wish::Ask { key, created, request, answers } => {
            listeners.insert(key.clone(), answers);
            ledger.ask(created, key, *request);
        }
        Wish::Renew { key, request, answers } => {
            listeners.insert(key.clone(), answers);
            ledger.release(&key, None);
            ledger.ask(FIRST, key, *request);
        }
        Wish::Hold { key, holding } => ledger.hold(key, *holding),
        Wish::Has { key, holding } => ledger.has(&key, *holding),
        Wish::Avoid { key, hosts } => ledger.avoid(&key, hosts),
        Wish::Admitted { key, worker } => ledger.admitted(&key, worker, now),
        Wish::Release { key, workers } => {
            if workers.is_none() {
                listeners.remove(&key);
            }
            ledger.release(&key, workers.as_ref());
        }
        Wish::Open => {}
    }
}

//! The thread that writes a controller's journal.
//!
//! A disk may take its time to make a line durable. The controller must hear heartbeats meanwhile, so it only queues,
//! and is told which records are safe. All that has queued up while the disk was busy is made durable at once.

use std::io;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::{Entry, Journal, Line};
use crate::rendezvous::group::RecordId;

/// Entries that wait for the disk. The membership has one commit under way at a time, and else a few records and
/// phases in a generation; beyond it the controller waits.
const QUEUE_MAX: usize = 256;

/// What is safe: everything up to a record, or why no more will be.
pub(in super::super) type Written = Result<RecordId, Arc<io::Error>>;

/// Queues entries for the thread.
#[derive(Debug)]
pub(in super::super) struct Writer {
    orders: mpsc::Sender<Order>,
    thread: std::thread::JoinHandle<()>,
}

/// One entry to be written.
#[derive(Debug)]
pub(in super::super) struct Order {
    /// Milliseconds since the Unix epoch.
    pub(in super::super) at: u64,
    pub(in super::super) entry: Entry,
    /// Told as written when it is in the file, or if that matters on the disk.
    pub(in super::super) record: Option<RecordId>,
}

impl Writer {
    /// Starts the thread.
    pub(in super::super) fn start(journal: Journal) -> io::Result<(Self, watch::Receiver<Written>)> {
        let (orders, queue) = mpsc::channel(QUEUE_MAX);
        let (written, told) = watch::channel(Ok(RecordId(0)));
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || write(journal, queue, &written))?;
        Ok((Self { orders, thread }, told))
    }

    /// Queues an entry; false when the thread has given up, and has said why.
    pub(in super::super) async fn append(&self, order: Order) -> bool {
        self.orders.send(order).await.is_ok()
    }

    /// Waits until everything is written.
    pub(in super::super) async fn close(self) {
        drop(self.orders);
        // It fails when the thread panicked: then nothing more can be written either.
        let _ = tokio::task::spawn_blocking(|| self.thread.join()).await;
    }
}

fn write(mut journal: Journal, mut queue: mpsc::Receiver<Order>, written: &watch::Sender<Written>) {
    let mut batch = Vec::with_capacity(QUEUE_MAX);
    while queue.blocking_recv_many(&mut batch, QUEUE_MAX) > 0 {
        let last = batch.iter().filter_map(|order| order.record).max();
        match append_all(&mut journal, &batch) {
            Ok(()) => {
                if let Some(last) = last {
                    // Replaces what was told before.
                    let _ = written.send_replace(Ok(last));
                }
            }
            Err(error) => {
                let _ = written.send_replace(Err(Arc::new(error)));
                return;
            }
        }
        batch.clear();
    }
}

fn append_all(journal: &mut Journal, batch: &[Order]) -> io::Result<()> {
    let mut text = Vec::new();
    for order in batch {
        text.extend(Line::encode(order.at, &order.entry)?);
    }
    let durable =
        batch.iter().any(|order| matches!(&order.entry, Entry::Group(record) if record.is_durable()));
    journal.append_text(&text, durable)
}

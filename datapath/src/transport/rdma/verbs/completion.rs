//! Completions: a task that sleeps until the device wakes it, and looks again for a moment before it sleeps.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use super::Device;
use super::keep::of_id;
use super::library::{Context, watch};
use super::queue::{Completion, RawCompletions};
use super::queue_pair::Shared as Pair;
use crate::transport::rdma::VerbsError;
use crate::transport::rdma::reason::{Operation, Reason};

/// Looks in vain before it sleeps, at the most: beyond this, waking up is cheaper than looking. On busy cores each look costs
/// whoever would make the next completion.
const LOOKS_MAX: u32 = 64;
/// Looks of a queue that nothing is known of.
const LOOKS_FIRST: u32 = 4;

/// How often to look in vain before sleeping (pure): often where that was worth it lately.
#[derive(Clone, Copy, Debug)]
struct Patience {
    looks: u32,
}

impl Patience {
    /// Something came while it was looked for.
    fn worth_it(&mut self) {
        self.looks = (self.looks * 2).clamp(1, LOOKS_MAX);
    }

    /// Nothing came.
    fn in_vain(&mut self) {
        self.looks = (self.looks / 2).max(1);
    }
}

/// Hears of ended work, for any number of queue pairs of one device.
pub struct CompletionQueue {
    inner: Arc<Inner>,
    driver: JoinHandle<()>,
}

struct Inner {
    raw: Arc<RawCompletions>,
    capacity: u32,
    registry: Mutex<Registry>,
    /// Held while completions are taken and brought to their queue pairs: they have an order.
    batch: Mutex<Vec<Completion>>,
}

#[derive(Default)]
struct Registry {
    pairs: BTreeMap<u32, Weak<Pair>>,
    next: u32,
    reserved: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CompletionQueue {
    /// A queue with room for the completions of that many requests, and the task that empties it: call it in tokio's runtime.
    ///
    /// # Errors
    /// When the driver refuses, most often since more memory may not be locked.
    pub fn new(device: &Device, capacity: u32) -> Result<Arc<Self>, VerbsError> {
        let raw = Arc::new(RawCompletions::new(&device.context, capacity)?);
        let fd = watch(&*raw).map_err(|source| VerbsError {
            operation: Operation::Create,
            device: device.name().to_owned(),
            reason: Reason::Refused,
            source,
        })?;
        let inner = Arc::new(Inner { raw, capacity, registry: Mutex::default(), batch: Mutex::default() });
        let driver = tokio::spawn(drive(Arc::clone(&inner), fd));
        Ok(Arc::new(Self { inner, driver }))
    }

    pub(super) fn raw(&self) -> &Arc<RawCompletions> {
        &self.inner.raw
    }

    /// Room for that many completions: a queue that runs over is broken, so it is never given more than it holds.
    pub(super) fn reserve(&self, context: &Arc<Context>, entries: u32) -> Result<Place, VerbsError> {
        let fault = |what| VerbsError::saying(Operation::Create, &context.name, Reason::Misuse, what);
        if !Arc::ptr_eq(context, self.inner.raw.context()) {
            return Err(fault("the completion queue is another device's"));
        }
        let mut registry = lock(&self.inner.registry);
        if entries > self.inner.capacity - registry.reserved {
            return Err(fault("the completion queue has no room for such a queue pair"));
        }
        registry.reserved += entries;
        let number = registry.next;
        // Four thousand million queue pairs later the first are long gone.
        registry.next = registry.next.wrapping_add(1);
        Ok(Place { inner: Arc::clone(&self.inner), number, entries })
    }

    /// Takes all completions that are there.
    pub(super) fn sweep(&self) {
        while matches!(self.inner.poll(), Ok(1..)) {}
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // No queue pair is left: each owns its completion queue.
        self.driver.abort();
    }
}

/// A queue pair's room in a completion queue, and its number there.
pub(super) struct Place {
    inner: Arc<Inner>,
    number: u32,
    entries: u32,
}

impl Place {
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Completions go to this pair from now on.
    pub(super) fn occupy(&self, pair: Weak<Pair>) {
        lock(&self.inner.registry).pairs.insert(self.number, pair);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut registry = lock(&self.inner.registry);
        registry.pairs.remove(&self.number);
        registry.reserved -= self.entries;
    }
}

impl Inner {
    /// Takes a batch of completions and tells whoever waits for them.
    fn poll(&self) -> Result<usize, VerbsError> {
        let (mut ended, mut pairs) = (Vec::new(), Vec::new());
        let mut batch = lock(&self.batch);
        batch.clear();
        let result = self.raw.poll(&mut batch);
        for completion in &*batch {
            let (number, kind, sequence) = of_id(completion.id);
            let pair = lock(&self.registry).pairs.get(&number).and_then(Weak::upgrade);
            // One that was taken down has left some behind.
            if let Some(pair) = pair {
                pair.complete(kind, sequence, completion, &mut ended);
                pairs.push(pair);
            }
        }
        drop(batch);
        // Without a lock: what ends may drop anything, also the last handle of a queue pair.
        for (kept, result) in ended {
            kept.end(result);
        }
        result
    }

    /// Tells all pairs that nothing comes any more.
    fn broken(&self, error: &VerbsError) {
        tracing::error!(%error, reason = error.reason.word(), "a completion queue is broken");
        let pairs: Vec<_> = lock(&self.registry).pairs.values().filter_map(Weak::upgrade).collect();
        for pair in pairs {
            pair.give_up(error.reason);
        }
    }
}

async fn drive(inner: Arc<Inner>, fd: AsyncFd<OwnedFd>) {
    if let Err(error) = empty(&inner, &fd).await {
        inner.broken(&error);
    }
}

/// Empties the queue until it breaks.
async fn empty(inner: &Inner, fd: &AsyncFd<OwnedFd>) -> Result<(), VerbsError> {
    let mut patience = Patience { looks: LOOKS_FIRST };
    let fault = |source| VerbsError {
        operation: Operation::Wait,
        device: inner.raw.context().name.clone(),
        reason: Reason::DeviceFatal,
        source,
    };
    loop {
        let mut looks = 0;
        while looks < patience.looks {
            if inner.poll()? > 0 {
                if looks > 0 {
                    patience.worth_it();
                }
                looks = 0;
            } else {
                looks += 1;
            }
            tokio::task::yield_now().await;
        }
        patience.in_vain();
        inner.raw.arm()?;
        // What came before it was armed wakes nobody.
        if inner.poll()? > 0 {
            continue;
        }
        let mut ready = fd.readable().await.map_err(fault)?;
        match ready.try_io(|_| inner.raw.take_wakeup()) {
            Ok(taken) => taken.map_err(fault)?,
            // Woken for nothing; it is still armed, and being armed twice does no harm.
            Err(_would_block) => {}
        }
    }
}

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionQueue").field("capacity", &self.inner.capacity).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_longer_where_that_was_worth_it() {
        let mut patience = Patience { looks: LOOKS_FIRST };
        for _ in 0..10 {
            patience.worth_it();
        }
        assert_eq!(patience.looks, LOOKS_MAX);
        for _ in 0..10 {
            patience.in_vain();
        }
        assert_eq!(patience.looks, 1, "at least once");
    }
}

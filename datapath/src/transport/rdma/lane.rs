//! The lane over verbs: what an owner lends lies in its cache, and whoever asked reads it from there with its own device.
//!
//! ```text
//! asker                                  owner
//! OFFER(half a queue pair)  ---------->  makes the other half, connects          one stream, as long as the pair
//!                           <----------  ACCEPT
//! ASK(chunk)                ---------->  takes it from its cache, registers it   one stream, as long as the lease
//!                           <----------  LEASE(address, key), and holds it
//! reads what it wants into pieces of its pool, copies from there into the slot, checks it there
//! end of the stream         ---------->  lets go
//! ```
//! **No device ever writes to a slot.** Slots are sparse, and registered memory is all there; so bytes are read into a small pool,
//! and a slot is written by this process only, with the copy that checks them. A read that is in doubt may still write to its piece:
//! that stays with the request until the device is done with it ([`PiecePool`]). So a late answer lands in memory that nobody uses.
//!
//! A failure of the lane is no failure of a batch: what had not come is asked for over QUIC in the same request. What only a wrong
//! program can cause is told instead.

mod asker;
mod cut;
mod owner;

pub(crate) use asker::Lane;

use std::fmt;
use std::sync::Arc;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use super::choose::{Choice, DevicesWanted, choose};
use super::reason::{Operation, Reason};
use super::verbs::{
    Access, CompletionQueue, Device, Event, Events, MemoryRegion, Path, ProtectionDomain, Sizes,
};
use super::{VerbsError, ask};
use crate::fault;
use crate::memory::host::Region;
use crate::memory::pieces::pieces;
use crate::memory::pool::PiecePool;

/// Bytes that are read into one piece at the most: large enough that a request is cheap beside its bytes, and in a core's cache when
/// they are copied.
const PIECE_BYTES: usize = 256 << 10;
/// Bytes of the pool, which are registered and so locked: full speed for sixteen peers at once.
const POOL_BYTES: usize = 16 << 20;
/// Chains of one queue pair under way: with [`PIECE_BYTES`] the mebibyte that a fast link has on its way.
const FLIGHTS_MAX: usize = 4;
/// Reads of a chain at the most, which is what devices answer at once.
const CHAIN_READS_MAX: usize = 16;
/// Requests of an asker's queue pair: all its chains. It receives nothing, but some drivers want room for one.
const ASKING: Sizes = Sizes { sends: 64, receives: 1 };
/// An owner's device answers by itself, so its queue pair does nothing; but it is not made for nothing.
const ANSWERING: Sizes = Sizes { sends: 1, receives: 1 };
/// Queue pairs that an owner answers by at the most.
const ANSWERING_MAX: u32 = 1024;

/// This host's device, and what all lanes share.
pub(crate) struct Adapter {
    device: Device,
    domain: ProtectionDomain,
    /// The pool's.
    memory: MemoryRegion,
    pool: Arc<PiecePool>,
    /// For the queue pairs that answer.
    answers: Arc<CompletionQueue>,
    answering: Arc<Semaphore>,
    trouble: watch::Receiver<Trouble>,
    listener: JoinHandle<()>,
    /// Tests lend with a key that is none.
    #[cfg(test)]
    pub(crate) is_lying: std::sync::atomic::AtomicBool,
}

/// What has happened to the device: queue pairs from before it are of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Trouble {
    count: u64,
    last: Reason,
}

/// Why there is no lane on this host.
#[derive(Debug)]
pub(crate) struct Absence {
    pub(crate) reason: Reason,
    pub(crate) words: String,
}

impl From<VerbsError> for Absence {
    fn from(error: VerbsError) -> Self {
        Self { reason: error.reason, words: fault::in_full(&error) }
    }
}

/// The devices to use, or why there is none.
pub(crate) fn devices(wanted: &DevicesWanted) -> Result<Choice, Absence> {
    let choice = choose(&ask::found()?, wanted);
    match choice.absence() {
        Some(note) => Err(VerbsError::saying(Operation::Open, &note.device, note.reason, note.words).into()),
        None => Ok(choice),
    }
}

impl Adapter {
    /// Opens the first of these devices that can be. Needs tokio's runtime.
    pub(crate) fn open(names: &[String]) -> Result<Arc<Self>, Absence> {
        let mut first = None;
        for name in names {
            match Self::on(name) {
                Ok(adapter) => return Ok(Arc::new(adapter)),
                Err(error) => _ = first.get_or_insert(error),
            }
        }
        let none =
            || VerbsError::saying(Operation::Open, "any device", Reason::NoDevice, "the list is empty");
        Err(first.unwrap_or_else(none).into())
    }

    fn on(name: &str) -> Result<Self, VerbsError> {
        let device = Device::open(name)?;
        let path = device.path()?;
        let domain = device.protection_domain()?;
        let region = Region::create(POOL_BYTES).map_err(|error| {
            VerbsError::saying(Operation::Register, name, Reason::Refused, fault::in_full(&error))
        })?;
        let (region, pieces) = pieces(region, PIECE_BYTES);
        let memory = domain.register(region, Access { local_write: true, ..Access::default() })?;
        let answers = CompletionQueue::new(&device, ANSWERING_MAX * (ANSWERING.sends + ANSWERING.receives))?;
        let (told, trouble) = watch::channel(Trouble { count: 0, last: Reason::Flushed });
        let listener = tokio::spawn(listen(device.events()?, device.clone(), path, told));
        let answering = Arc::new(Semaphore::new(usize::try_from(ANSWERING_MAX).unwrap_or(0)));
        let pool = PiecePool::new(pieces);
        Ok(Self {
            device,
            domain,
            memory,
            pool,
            answers,
            answering,
            trouble,
            listener,
            #[cfg(test)]
            is_lying: false.into(),
        })
    }

    /// Whether no piece is with a device, or with whoever waits for it.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        self.pool.free() == POOL_BYTES / PIECE_BYTES
    }

    /// The device's name.
    pub(crate) fn device(&self) -> &str {
        self.device.name()
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adapter").field("device", &self.device()).finish_non_exhaustive()
    }
}

/// Tells what makes queue pairs useless: sooner than they would find out themselves.
async fn listen(events: Events, device: Device, mut path: Path, told: watch::Sender<Trouble>) {
    while let Ok(event) = events.next().await {
        let reason = match event {
            Event::PortDown(port) if port == path.port => Reason::PortDown,
            Event::DeviceFatal | Event::QueueFatal => Reason::DeviceFatal,
            // Most often it is another address of the same port.
            Event::GidChanged(_) => match device.path() {
                Ok(now) if now == path => continue,
                Ok(now) => {
                    path = now;
                    Reason::GidChanged
                }
                Err(error) => error.reason,
            },
            _ => continue,
        };
        tracing::debug!(
            device = device.name(),
            ?event,
            reason = reason.word(),
            "a device says that it has trouble"
        );
        told.send_modify(|trouble| *trouble = Trouble { count: trouble.count + 1, last: reason });
    }
}

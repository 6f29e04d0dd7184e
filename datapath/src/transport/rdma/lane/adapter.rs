//! One device of this host, and what all lanes over it share.

use std::fmt;
use std::path::Path as FilePath;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{ANSWERING, ANSWERING_MAX, PIECE_BYTES, POOL_BYTES};
use crate::fault;
use crate::memory::host::Region;
use crate::memory::pieces::pieces;
use crate::memory::pool::PiecePool;
use crate::transport::rdma::reason::{Operation, Reason};
use crate::transport::rdma::verbs::{
    Access, CompletionQueue, Device, Event, Events, MemoryRegion, Path, ProtectionDomain,
};
use crate::transport::rdma::{VerbsError, sysfs};

/// How old a device's count of losses may be.
const COUNTS_AGE: Duration = Duration::from_millis(100);

/// An open device.
pub(super) struct Adapter {
    pub(super) device: Device,
    pub(super) domain: ProtectionDomain,
    /// The pool's.
    pub(super) memory: MemoryRegion,
    pub(super) pool: Arc<PiecePool>,
    /// For the queue pairs that answer.
    pub(super) answers: Arc<CompletionQueue>,
    pub(super) answering: Arc<Semaphore>,
    pub(super) trouble: watch::Receiver<Trouble>,
    /// What was last counted of which port, and when.
    counted: Mutex<Option<(Instant, u8, Option<u64>)>>,
    /// Nothing of it works any more.
    is_lost: Arc<AtomicBool>,
    listener: JoinHandle<()>,
}

/// What has happened to the device: queue pairs from before it are of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) count: u64,
    pub(super) last: Reason,
}

impl Adapter {
    /// Opens the device of that name. Needs tokio's runtime.
    pub(super) fn open(name: &str) -> Result<Self, VerbsError> {
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
        let is_lost = Arc::new(AtomicBool::new(false));
        let listener =
            tokio::spawn(listen(device.events()?, device.clone(), path, told, Arc::clone(&is_lost)));
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
            counted: Mutex::default(),
            is_lost,
            listener,
        })
    }

    /// The way from it into the fabric; none when nothing of it works any more, so that it is to be opened again.
    pub(super) fn way(&self) -> Option<Result<Path, VerbsError>> {
        if self.is_lost.load(Ordering::Acquire) {
            return None;
        }
        match self.device.path() {
            Err(error) if matches!(error.reason, Reason::NoDevice | Reason::DeviceFatal) => None,
            found => Some(found),
        }
    }

    /// Packets that a port has lost, as far as its device notices and counts it; not asked more often than each [`COUNTS_AGE`], as
    /// some devices ask their firmware.
    pub(super) fn lost_packets(&self, port: u8) -> Option<u64> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        match *counted {
            Some((when, of, lost)) if of == port && when.elapsed() < COUNTS_AGE => lost,
            _ => {
                let lost = self.lost_packets_now(port);
                *counted = Some((Instant::now(), port, lost));
                lost
            }
        }
    }

    /// The same, asked now.
    pub(super) fn lost_packets_now(&self, port: u8) -> Option<u64> {
        sysfs::lost_packets(FilePath::new(sysfs::SYSFS), self.device.name(), port)
    }

    /// Whether no piece is with the device, or with whoever waits for it.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.pool.free() == POOL_BYTES / PIECE_BYTES
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adapter").field("device", &self.device.name()).finish_non_exhaustive()
    }
}

/// Tells what makes queue pairs useless: sooner than they would find out themselves.
async fn listen(
    events: Events,
    device: Device,
    mut path: Path,
    told: watch::Sender<Trouble>,
    is_lost: Arc<AtomicBool>,
) {
    while let Ok(event) = events.next().await {
        let reason = match event {
            Event::PortDown(port) if port == path.port => Reason::PortDown,
            Event::DeviceFatal => {
                is_lost.store(true, Ordering::Release);
                Reason::DeviceFatal
            }
            Event::QueueFatal => Reason::DeviceFatal,
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
    is_lost.store(true, Ordering::Release);
}

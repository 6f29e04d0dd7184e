//! The lane over verbs: what an owner lends lies in its cache, and whoever asked reads it from there with its own device.
//!
//! ```text
//! asker                                  owner
//! OFFER(half a queue pair)  ---------->  makes the other half, connects          one stream, as long as the pair
//!                           <----------  ACCEPT
//! ASK(chunk)                ---------->  takes it from its cache, registers it   one stream, as long as the lease
//!                           <----------  LEASE(address, key), and holds it
//! reads what it wants into pieces of its pool, copies from there into the slot, checks it there
//! end of the stream         ---------->  lets go                                 when no later batch needs the chunk, or after some seconds
//! ```
//! **No device ever writes to a slot.** Slots are sparse, and registered memory is all there; so bytes are read into a small pool,
//! and a slot is written by this process only, with the copy that checks them. A read that is in doubt may still write to its piece:
//! that stays with the request until the device is done with it ([`PiecePool`](crate::memory::pool::PiecePool)). So a late answer lands in memory that nobody uses.
//!
//! A host may have several devices: they are its rails. Each rail has its queue pairs, its pool and its failures, and the parts of a
//! request are spread over those that work. What a rail of the asking side meets at the owner is the rail of the same number.
//!
//! A failure of the lane is no failure of a batch: what had not come is asked for over QUIC in the same request. What only a wrong
//! program can cause is told instead.
//!
//! Reading order: `adapter` is a device, `pair` what it is to one peer, `leases` what that has lent, `owner` lends, `transfer` reads,
//! `probe` finds out whether a rail is back, `asker` decides which rail brings what.

mod adapter;
mod asker;
mod cut;
mod leases;
mod owner;
mod pair;
mod probe;
mod transfer;

pub(crate) use asker::Lane;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use tokio::sync::watch;
use tokio::task::spawn_blocking;

use self::adapter::Adapter;
use super::choose::{DevicesWanted, Note, choose};
use super::reason::{Operation, Reason};
use super::verbs::{Path, Sizes};
use super::{VerbsError, ask};
use crate::fault;

/// Bytes that are read into one piece at the most: large enough that a request is cheap beside its bytes, and in a core's cache when
/// they are copied.
const PIECE_BYTES: usize = 256 << 10;
/// Bytes of a rail's pool, which are registered and so locked: full speed for sixteen peers at once.
const POOL_BYTES: usize = 16 << 20;
/// Chains of one queue pair under way: with [`PIECE_BYTES`] the mebibyte that a fast link has on its way.
const FLIGHTS_MAX: usize = 4;
/// Reads of a chain at the most, which is what devices answer at once.
const CHAIN_READS_MAX: usize = 16;
/// Requests of an asker's queue pair: all its chains. It receives nothing, but some drivers want room for one.
const ASKING: Sizes = Sizes { sends: 64, receives: 1 };
/// An owner's device answers by itself, so its queue pair does nothing; but it is not made for nothing.
const ANSWERING: Sizes = Sizes { sends: 1, receives: 1 };
/// Queue pairs that an owner answers by on one rail at the most.
const ANSWERING_MAX: u32 = 1024;
/// Rails of a host at the most: what the largest machines have of network devices for training.
const RAILS_MAX: usize = 8;

/// This host's devices, in the order of their numbers.
pub(crate) struct Rails {
    rails: Vec<Rail>,
    /// Requests so far, which take turns among equals.
    requests: AtomicUsize,
    /// Tests lend with a key that is none.
    #[cfg(test)]
    pub(crate) is_lying: std::sync::atomic::AtomicBool,
}

/// One of them. A device that is gone is opened again under its name when it is back.
struct Rail {
    name: String,
    /// Its queue pairs end when it is another one.
    current: watch::Sender<Arc<Adapter>>,
    /// Bytes that requests want by it now, of all peers.
    load: AtomicU64,
    /// Held by whoever opens it again: the others wait for that one.
    opening: tokio::sync::Mutex<()>,
}

impl Rail {
    fn new(name: &str, adapter: Adapter) -> Self {
        let current = watch::Sender::new(Arc::new(adapter));
        let load = AtomicU64::new(0);
        Self { name: name.to_owned(), current, load, opening: tokio::sync::Mutex::default() }
    }
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

impl Rails {
    /// Opens the devices that this worker is to use; those that cannot be opened are left out. Needs tokio's runtime.
    pub(crate) fn open(wanted: &DevicesWanted) -> Result<Arc<Self>, Absence> {
        let choice = choose(&ask::found()?, wanted);
        if let Some(note) = choice.absence() {
            return Err(VerbsError::saying(Operation::Open, &note.device, note.reason, note.words).into());
        }
        let (mut rails, mut faults) = (Vec::new(), Vec::new());
        for name in &choice.names {
            if rails.len() == RAILS_MAX {
                tracing::info!(device = name, most = RAILS_MAX, "a device is not used: there are enough");
                continue;
            }
            match Adapter::open(name) {
                Ok(adapter) => rails.push(Rail::new(name, adapter)),
                Err(error) => faults.push(error),
            }
        }
        if rails.is_empty() {
            let none =
                || VerbsError::saying(Operation::Open, "any device", Reason::NoDevice, "the list is empty");
            return Err(faults.into_iter().next().unwrap_or_else(none).into());
        }
        for error in faults {
            tracing::info!(device = error.device, reason = error.reason.word(), %error, "a device is not used");
        }
        let is_used = |note: &&Note| rails.iter().any(|rail| rail.name == note.device);
        for Note { device, reason, words } in choice.regrets().filter(is_used) {
            let reason = reason.word();
            tracing::warn!(
                device,
                reason,
                words,
                "an RDMA device is used that is not the one to be wished for"
            );
        }
        Ok(Arc::new(Self {
            rails,
            requests: AtomicUsize::new(0),
            #[cfg(test)]
            is_lying: false.into(),
        }))
    }

    /// How many there are: at least one.
    fn len(&self) -> usize {
        self.rails.len()
    }

    /// The rail that a peer means by its number.
    fn rail(&self, number: u8) -> (usize, &Rail) {
        let place = usize::from(number) % self.rails.len().max(1);
        (place, &self.rails[place])
    }

    /// The devices' names.
    pub(crate) fn devices(&self) -> String {
        let names: Vec<_> = self.rails.iter().map(|rail| rail.name.as_str()).collect();
        names.join(", ")
    }

    /// Whether no piece is with a device, or with whoever waits for it.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        self.rails.iter().all(|rail| rail.adapter().is_idle())
    }
}

impl Rail {
    fn adapter(&self) -> Arc<Adapter> {
        Arc::clone(&self.current.borrow())
    }

    /// The device, opened again if it was gone, and the way from it into the fabric: looked for each time, as an address may have
    /// changed since the last.
    async fn ready(&self) -> Result<(Arc<Adapter>, Path), VerbsError> {
        let adapter = self.adapter();
        match adapter.way() {
            Some(found) => found.map(|path| (adapter, path)),
            None => self.open_again(&adapter).await,
        }
    }

    /// In place of `lost`, unless somebody else has been faster.
    async fn open_again(&self, lost: &Arc<Adapter>) -> Result<(Arc<Adapter>, Path), VerbsError> {
        let _alone = self.opening.lock().await;
        let mut adapter = self.adapter();
        if Arc::ptr_eq(&adapter, lost) {
            let name = self.name.clone();
            // Its pool's pages are pinned by that.
            let opened = spawn_blocking(move || Adapter::open(&name)).await;
            let stopped =
                |_| VerbsError::saying(Operation::Open, &self.name, Reason::Flushed, "the runtime stops");
            adapter = Arc::new(opened.map_err(stopped)??);
            tracing::info!(device = self.name, "an RDMA device was opened again");
            self.current.send_replace(Arc::clone(&adapter));
        }
        let path = adapter.device.path()?;
        Ok((adapter, path))
    }
}

impl fmt::Debug for Rails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rails").field("devices", &self.devices()).finish_non_exhaustive()
    }
}

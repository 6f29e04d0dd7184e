//! The memory that a trainer reads batches from: equal slots in one sealed memfd.
//!
//! A [`Slot`] is the only way to a slot's bytes and exists at most once for each; dropping it makes the slot free
//! again. So a slot is never written while a trainer holds it (its [`Slot`] is kept until the trainer gives it
//! back), nor by two fills at once.

pub mod layout;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::memory::host::{Pages, Region, RegionError};

/// Virtual bytes of one ring at the most: slots are sized for the largest sample, so most of it is never touched,
/// but some tens of rings must fit into the 128 TiB of a process.
pub const RING_BYTES_MAX: u64 = 1 << 40;
/// Slots of one ring at the most: read-ahead beyond this hides no latency that fewer do not.
pub const SLOTS_MAX: u32 = 1024;

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// Slots times their size is too much.
    #[error(
        "make a ring of {slots} slots of {slot_bytes} bytes (at most {SLOTS_MAX} slots and {RING_BYTES_MAX} bytes \
         together; use fewer slots or a smaller global batch, or split the largest samples)"
    )]
    TooLarge {
        /// Slots asked for.
        slots: u32,
        /// Bytes of each.
        slot_bytes: u64,
    },
    /// No slot at all.
    #[error("make a ring without slots (one is the least, two let reading and training overlap)")]
    NoSlots,
    /// The kernel gave no memory.
    #[error(transparent)]
    Region(#[from] RegionError),
}

/// A ring and which of its slots are free. Clones share it.
#[derive(Clone, Debug)]
pub struct Ring {
    shared: Arc<Shared>,
}

struct Shared {
    region: Region,
    slots: u32,
    slot_bytes: usize,
    free: Mutex<Free>,
    returned: Notify,
}

struct Free {
    slots: Vec<u32>,
    last_generation: u64,
}

impl Ring {
    /// A ring of `slots` slots of `slot_bytes` each (a multiple of 4096).
    ///
    /// # Errors
    /// When it would be too large, or the kernel refuses.
    pub fn create(slots: u32, slot_bytes: u64) -> Result<Self, RingError> {
        let too_large = || RingError::TooLarge { slots, slot_bytes };
        if slots == 0 {
            return Err(RingError::NoSlots);
        }
        let total = slot_bytes.checked_mul(slots.into()).ok_or_else(too_large)?;
        if slots > SLOTS_MAX || total > RING_BYTES_MAX {
            return Err(too_large());
        }
        let region = Region::create(usize::try_from(total).map_err(|_| too_large())?)?;
        let slot_bytes = usize::try_from(slot_bytes).map_err(|_| too_large())?;
        // Low numbers on top: a slow trainer's ring touches few slots.
        let free = Free { slots: (0..slots).rev().collect(), last_generation: 0 };
        let shared = Shared { region, slots, slot_bytes, free: Mutex::new(free), returned: Notify::new() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// A free slot, now or never.
    #[must_use]
    pub fn try_take(&self) -> Option<Slot> {
        let mut free = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner);
        let index = free.slots.pop()?;
        free.last_generation += 1;
        let generation = free.last_generation;
        Some(Slot { shared: Arc::clone(&self.shared), index, generation })
    }

    /// A free slot, as soon as there is one.
    pub async fn take(&self) -> Slot {
        loop {
            let returned = self.shared.returned.notified();
            if let Some(slot) = self.try_take() {
                return slot;
            }
            returned.await;
        }
    }

    /// The memory, for the trainer to map.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.shared.region.fd()
    }

    /// How many slots it has.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.shared.slots
    }

    /// Bytes of each slot.
    #[must_use]
    pub fn slot_bytes(&self) -> usize {
        self.shared.slot_bytes
    }

    /// Which pages back it.
    #[must_use]
    pub fn pages(&self) -> Pages {
        self.shared.region.pages()
    }
}

/// The exclusive right to one slot's bytes, for one use of it.
pub struct Slot {
    shared: Arc<Shared>,
    index: u32,
    generation: u64,
}

impl Slot {
    /// Which slot.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Which use of it: never the same twice in one ring.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Its bytes; what the last use left is still there.
    #[expect(unsafe_code, reason = "this file hands out the ring's memory")]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let at = self.shared.slot_bytes * position(self.index);
        // SAFETY: this slot's number was taken from `free` and goes back only when `self` is dropped, so `self` is the
        // only one with these bytes, and `&mut self` makes this the only reference from it.
        unsafe { self.shared.region.slice_mut(at, self.shared.slot_bytes) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.free.lock().unwrap_or_else(PoisonError::into_inner).slots.push(self.index);
        self.shared.returned.notify_one();
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("index", &self.index)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("slots", &self.slots)
            .field("slot_bytes", &self.slot_bytes)
            .finish_non_exhaustive()
    }
}

fn position(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_exists_once_and_every_use_has_its_own_generation() {
        let ring = Ring::create(2, 4096).unwrap();
        let (mut one, two) = (ring.try_take().unwrap(), ring.try_take().unwrap());
        assert_eq!((one.index(), two.index()), (0, 1));
        assert_eq!((one.generation(), two.generation()), (1, 2));
        assert!(ring.try_take().is_none());
        one.bytes_mut()[4095] = 9;
        drop(two);
        let mut again = ring.try_take().unwrap();
        assert_eq!((again.index(), again.generation()), (1, 3));
        assert_eq!(again.bytes_mut().len(), 4096);
        assert_eq!(again.bytes_mut()[4095], 0, "slots do not overlap");
    }

    #[tokio::test]
    async fn whoever_waits_gets_the_slot_that_comes_back() {
        let ring = Ring::create(1, 4096).unwrap();
        let held = ring.take().await;
        let waiting = tokio::spawn({
            let ring = ring.clone();
            async move { ring.take().await.generation() }
        });
        tokio::task::yield_now().await;
        drop(held);
        assert_eq!(waiting.await.unwrap(), 2);
    }

    #[test]
    fn a_ring_has_bounds() {
        assert!(matches!(Ring::create(0, 4096), Err(RingError::NoSlots)));
        assert!(matches!(Ring::create(SLOTS_MAX + 1, 4096), Err(RingError::TooLarge { .. })));
        assert!(matches!(Ring::create(4, RING_BYTES_MAX / 2), Err(RingError::TooLarge { .. })));
        assert!(matches!(Ring::create(2, u64::MAX), Err(RingError::TooLarge { .. })));
    }

    #[test]
    fn a_large_ring_costs_nothing_until_it_is_touched() {
        let ring = Ring::create(4, 1 << 36).unwrap();
        let mut slot = ring.try_take().unwrap();
        slot.bytes_mut()[0] = 1;
        let resident = rustix::fs::fstat(ring.fd()).unwrap().st_blocks * 512;
        assert!(resident <= 4 << 20, "{resident} bytes are resident");
    }
}

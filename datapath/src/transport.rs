//! Lanes: ways for bytes between two workers, or from this worker's own cache.
//!
//! What every lane has in common is the [`Part`]: places in a slot for the samples of one chunk. It takes bytes,
//! puts each where it belongs, and checks each sample's CRC there, while it is still in the CPU's cache.

use std::fmt;

use crate::dataset::{ChunkId, SampleId};
use crate::integrity::Crc32c;
use crate::session::Failure;

pub mod local;
pub mod quic;
pub mod rdma;

/// Bytes copied before their checksum is computed: they are still in a core's first-level cache then.
pub const COPY_STEP_BYTES: usize = 32 << 10;

/// What came of one part of a request.
pub type Outcome = Result<(), Failure>;

/// One run of a sample's bytes.
pub struct Piece<'slot> {
    /// Where it starts in the chunk.
    pub offset: u32,
    /// Where it belongs.
    pub target: &'slot mut [u8],
    /// The sample.
    pub sample: SampleId,
    /// On a sample's last run: the CRC-32C over all of them.
    pub ends_with: Option<u32>,
}

/// Places in a slot for samples of one chunk.
pub struct Part<'slot> {
    chunk: ChunkId,
    until: u64,
    pieces: Vec<Piece<'slot>>,
    /// The piece that the next byte belongs to, and how much of it is there.
    at: usize,
    filled: usize,
    crc: Crc32c,
    /// The first sample whose CRC did not fit.
    bad: Option<SampleId>,
}

impl<'slot> Part<'slot> {
    /// Places for these runs of a chunk, in the order in which they are asked for; `until` is the last step, over all
    /// epochs, that needs the chunk.
    #[must_use]
    pub fn new(chunk: ChunkId, until: u64, pieces: Vec<Piece<'slot>>) -> Self {
        Self { chunk, until, pieces, at: 0, filled: 0, crc: Crc32c::new(), bad: None }
    }

    /// The chunk that it is filled from.
    #[must_use]
    pub fn chunk(&self) -> ChunkId {
        self.chunk
    }

    /// The last step that needs the chunk.
    #[must_use]
    pub fn until(&self) -> u64 {
        self.until
    }

    /// Offset and length of each run in the chunk, in the order in which [`Part::accept`] takes them.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = (u32, u32)> + '_ {
        self.pieces.iter().map(|piece| (piece.offset, u32::try_from(piece.target.len()).unwrap_or(u32::MAX)))
    }

    /// Bytes of all runs.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ranges().map(|(_, len)| u64::from(len)).sum()
    }

    /// Fills everything from the whole chunk.
    ///
    /// # Errors
    /// With the first sample whose bytes are not those of the manifest.
    pub fn fill_from(&mut self, chunk: &[u8]) -> Result<(), SampleId> {
        self.restart();
        for at in 0..self.pieces.len() {
            let (offset, len) = (self.pieces[at].offset, self.pieces[at].target.len());
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let Some(run) = chunk.get(start..start.saturating_add(len)) else {
                return Err(self.pieces[at].sample);
            };
            self.accept(run);
        }
        self.verdict()
    }

    /// Forgets what has come so far.
    pub fn restart(&mut self) {
        (self.at, self.filled, self.bad) = (0, 0, None);
        self.crc.take();
    }

    /// Takes the next bytes of the joined runs; returns those that belong to no run any more.
    pub fn accept<'bytes>(&mut self, mut bytes: &'bytes [u8]) -> &'bytes [u8] {
        while let Some(piece) = self.pieces.get_mut(self.at) {
            let target = &mut piece.target[self.filled..];
            let now = target.len().min(bytes.len()).min(COPY_STEP_BYTES);
            let (run, rest) = bytes.split_at(now);
            target[..now].copy_from_slice(run);
            // Over the copy, not the source: what the trainer will read is what was checked.
            self.crc.update(&target[..now]);
            self.filled += now;
            bytes = rest;
            if self.filled < piece.target.len() {
                if bytes.is_empty() {
                    return bytes;
                }
                continue;
            }
            if let Some(expected) = piece.ends_with
                && self.crc.take() != expected
            {
                self.bad.get_or_insert(piece.sample);
            }
            (self.at, self.filled) = (self.at + 1, 0);
        }
        bytes
    }

    /// Whether every byte has come.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.at == self.pieces.len()
    }

    /// Whether every sample that has come was good.
    ///
    /// # Errors
    /// With the first that was not.
    pub fn verdict(&self) -> Result<(), SampleId> {
        self.bad.map_or(Ok(()), Err)
    }
}

impl fmt::Debug for Part<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part")
            .field("chunk", &self.chunk)
            .field("pieces", &self.pieces.len())
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Piece<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Piece")
            .field("offset", &self.offset)
            .field("bytes", &self.target.len())
            .field("sample", &self.sample)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::integrity::crc32c;

    proptest! {
        #[test]
        fn bytes_arrive_in_any_pieces_and_a_wrong_one_is_seen(
            lens in proptest::collection::vec(0_usize..300, 1..20),
            cuts in proptest::collection::vec(1_usize..200, 1..50),
            wrong in any::<Option<prop::sample::Index>>(),
        ) {
            let total: usize = lens.iter().sum();
            let chunk: Vec<u8> = (0..total).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect();
            let mut slot = vec![0; total];
            let (mut pieces, mut rest, mut offset) = (Vec::new(), &mut slot[..], 0);
            for (at, &len) in lens.iter().enumerate() {
                let (target, after) = rest.split_at_mut(len);
                rest = after;
                let (sample, start) = (SampleId(u64::try_from(at / 2).unwrap()), u32::try_from(offset).unwrap());
                offset += len;
                // Two runs a sample; an odd last one stands alone.
                let first = if at % 2 == 1 { offset - len - lens[at - 1] } else { offset - len };
                let last = at % 2 == 1 || at + 1 == lens.len();
                let ends_with = last.then(|| crc32c(&chunk[first..offset]));
                pieces.push(Piece { offset: start, target, sample, ends_with });
            }
            let mut part = Part::new(ChunkId(0), 0, pieces);
            let mut sent = chunk.clone();
            let wrong = wrong.filter(|_| total > 0).map(|index| index.index(total));
            if let Some(at) = wrong { sent[at] ^= 1; }
            let (mut from, mut cuts) = (0, cuts.into_iter().cycle());
            while from < total {
                let to = total.min(from + cuts.next().unwrap());
                prop_assert!(part.accept(&sent[from..to]).is_empty());
                from = to;
            }
            part.accept(&[]);
            prop_assert!(part.is_full());
            prop_assert_eq!(part.verdict().is_err(), wrong.is_some());
            prop_assert_eq!(part.fill_from(&chunk), Ok(()));
            prop_assert_eq!(part.accept(b"more"), b"more");
            drop(part);
            prop_assert_eq!(slot, chunk);
        }
    }
}

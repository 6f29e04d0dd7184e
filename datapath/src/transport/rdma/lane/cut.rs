//! The ranges of a part, as reads that fit into pieces.

use std::collections::VecDeque;

/// Ranges of a chunk, in their order; neighbours are one.
#[derive(Debug)]
pub(super) struct Runs {
    left: VecDeque<(u64, usize)>,
}

impl Runs {
    /// Those ranges.
    pub(super) fn new(ranges: impl Iterator<Item = (u32, u32)>) -> Self {
        let mut left: VecDeque<(u64, usize)> = VecDeque::new();
        for (offset, len) in ranges.filter(|range| range.1 > 0) {
            let (offset, len) = (u64::from(offset), usize::try_from(len).unwrap_or(usize::MAX));
            match left.back_mut() {
                Some((start, before)) if *start + u64::try_from(*before).unwrap_or(u64::MAX) == offset => {
                    *before += len;
                }
                _ => left.push_back((offset, len)),
            }
        }
        Self { left }
    }

    /// Where the last byte of all ends.
    pub(super) fn end(&self) -> u64 {
        let ends = self.left.iter().map(|(offset, len)| offset + u64::try_from(*len).unwrap_or(u64::MAX));
        ends.max().unwrap_or(0)
    }

    /// Whether nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// The next read of at most `room` bytes: its offset and length.
    pub(super) fn next(&mut self, room: usize) -> Option<(u64, usize)> {
        let (offset, len) = self.left.front_mut()?;
        let now = (*offset, room.min(*len));
        if now.1 == *len {
            self.left.pop_front();
        } else {
            *offset += u64::try_from(now.1).unwrap_or(u64::MAX);
            *len -= now.1;
        }
        (now.1 > 0).then_some(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_joined_and_long_ones_cut() {
        let mut runs = Runs::new([(0, 10), (10, 5), (15, 0), (100, 7), (90, 2)].into_iter());
        assert_eq!(runs.end(), 107);
        let reads: Vec<_> = std::iter::from_fn(|| runs.next(8)).collect();
        assert_eq!(reads, [(0, 8), (8, 7), (100, 7), (90, 2)]);
        assert!(runs.is_empty());
        let mut runs = Runs::new([(3, 4)].into_iter());
        assert_eq!((runs.next(0), runs.is_empty()), (None, false), "no room takes nothing");
        assert!(Runs::new([(5, 0)].into_iter()).is_empty());
    }
}

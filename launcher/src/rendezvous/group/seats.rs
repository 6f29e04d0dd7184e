//! Who sits where: group ranks of a generation, sticky over generations (pure).
//!
//! A worker keeps its place as long as it is there. A place that fell free goes to a worker that had one and lost
//! it by a smaller world, then to one that had none (a spare), in the order of their numbers, which is the fabric's.

use std::collections::BTreeSet;

use worker::units::WorkerId;

/// Seats for at most `wanted` of `present`, when `previous` were the seats before; index = group rank.
#[must_use]
pub(super) fn seats(previous: &[WorkerId], present: &BTreeSet<WorkerId>, wanted: usize) -> Vec<WorkerId> {
    let size = wanted.min(present.len());
    let mut seats: Vec<Option<WorkerId>> = vec![None; size];
    let mut seated = BTreeSet::new();
    for (seat, worker) in seats.iter_mut().zip(previous) {
        if present.contains(worker) {
            *seat = Some(*worker);
            seated.insert(*worker);
        }
    }
    let displaced = previous.iter().skip(size).filter(|worker| present.contains(worker));
    let fresh = present.iter().filter(|worker| !previous.contains(worker));
    let mut waiting = displaced.chain(fresh).filter(|worker| !seated.contains(worker)).copied();
    seats.into_iter().filter_map(|seat| seat.or_else(|| waiting.next())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_sticky_and_a_spare_takes_the_dead_ones_only() {
        // (previous, present, wanted, expected)
        type Case<'a> = (&'a [u32], &'a [u32], usize, &'a [u32]);
        let table: &[Case<'_>] = &[
            (&[], &[0, 1, 2], 3, &[0, 1, 2]),
            (&[], &[0, 1, 2, 3], 3, &[0, 1, 2]),
            (&[0, 1, 2], &[0, 2, 3], 3, &[0, 3, 2]),
            (&[0, 3, 2], &[0, 1, 2, 3], 3, &[0, 3, 2]),
            (&[0, 1, 2], &[0, 1, 2, 3], 3, &[0, 1, 2]),
            (&[0, 1, 2], &[0, 2], 3, &[0, 2]),
            (&[0, 1, 2], &[1, 2], 2, &[2, 1]),
            (&[0, 2], &[0, 1, 2], 3, &[0, 2, 1]),
            (&[0, 1, 2, 3], &[1, 3], 4, &[3, 1]),
        ];
        for (previous, present, wanted, expected) in table {
            let ids = |list: &[u32]| list.iter().copied().map(WorkerId).collect::<Vec<_>>();
            let present = ids(present).into_iter().collect();
            assert_eq!(seats(&ids(previous), &present, *wanted), ids(expected), "{previous:?} {present:?}");
        }
    }
}

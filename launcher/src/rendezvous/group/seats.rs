//! Who sits where: group ranks of a generation, sticky over generations (pure).
//!
//! A worker keeps its place as long as its process lives. A place that fell free goes to a worker that is warm: one
//! that lost its place by a smaller world, then one that had none (a spare), in the order of their numbers, which is
//! the fabric's. What is left goes to processes that have just replaced dead ones, each to its old place if that is
//! still free; those that find none are the spares now.

use std::collections::BTreeSet;

use worker::units::WorkerId;

/// Seats for at most `wanted` of `present`, when `previous` were the seats before; index = group rank. The processes of
/// `replaced` are new since then.
#[must_use]
pub(super) fn seats(
    previous: &[WorkerId],
    present: &BTreeSet<WorkerId>,
    replaced: &BTreeSet<WorkerId>,
    wanted: usize,
) -> Vec<WorkerId> {
    let size = wanted.min(present.len());
    let mut seats: Vec<Option<WorkerId>> = vec![None; size];
    let is_warm = |worker: &&WorkerId| present.contains(worker) && !replaced.contains(worker);
    take_own(&mut seats, previous, is_warm);
    let displaced = previous.iter().skip(size).filter(is_warm);
    let spares = present.iter().filter(is_warm).filter(|worker| !previous.contains(worker));
    fill(&mut seats, displaced.chain(spares));
    take_own(&mut seats, previous, |worker| present.contains(worker));
    fill(&mut seats, present.iter());
    seats.into_iter().flatten().collect()
}

/// Gives those of `previous` that may have it their own place, if it is free and they have none.
fn take_own(seats: &mut [Option<WorkerId>], previous: &[WorkerId], may: impl Fn(&&WorkerId) -> bool) {
    for (index, worker) in previous.iter().enumerate().filter(|(_, worker)| may(worker)) {
        if !seats.contains(&Some(*worker))
            && let Some(seat @ None) = seats.get_mut(index)
        {
            *seat = Some(*worker);
        }
    }
}

/// Gives the free places to those who have none, in order.
fn fill<'a>(seats: &mut [Option<WorkerId>], waiting: impl Iterator<Item = &'a WorkerId>) {
    for worker in waiting {
        let Some(free) = seats.iter().position(Option::is_none) else { return };
        if !seats.contains(&Some(*worker))
            && let Some(seat) = seats.get_mut(free)
        {
            *seat = Some(*worker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_sticky_and_a_spare_takes_the_dead_ones_only() {
        // (previous, present, replaced, wanted, expected)
        type Case<'a> = (&'a [u32], &'a [u32], &'a [u32], usize, &'a [u32]);
        let table: &[Case<'_>] = &[
            (&[], &[0, 1, 2], &[], 3, &[0, 1, 2]),
            (&[], &[0, 1, 2, 3], &[], 3, &[0, 1, 2]),
            (&[0, 1, 2], &[0, 2, 3], &[], 3, &[0, 3, 2]),
            (&[0, 3, 2], &[0, 1, 2, 3], &[], 3, &[0, 3, 2]),
            (&[0, 1, 2], &[0, 1, 2, 3], &[], 3, &[0, 1, 2]),
            (&[0, 1, 2], &[0, 2], &[], 3, &[0, 2]),
            (&[0, 1, 2], &[1, 2], &[], 2, &[2, 1]),
            (&[0, 2], &[0, 1, 2], &[], 3, &[0, 2, 1]),
            (&[0, 1, 2, 3], &[1, 3], &[], 4, &[3, 1]),
            // Worker 1 died and was started again: the warm spare is quicker.
            (&[0, 1, 2], &[0, 1, 2, 3], &[1], 3, &[0, 3, 2]),
            (&[0, 1, 2], &[0, 1, 2], &[1], 3, &[0, 1, 2]),
            (&[0, 1, 2], &[0, 1, 2, 3], &[1, 2], 3, &[0, 3, 2]),
            (&[0, 3, 2], &[0, 1, 2, 3], &[3], 3, &[0, 1, 2]),
            (&[0, 1, 2], &[0, 1, 2, 3], &[3], 3, &[0, 1, 2]),
            (&[0, 1], &[0, 1], &[0, 1], 2, &[0, 1]),
        ];
        for (previous, present, replaced, wanted, expected) in table {
            let ids = |list: &[u32]| list.iter().copied().map(WorkerId).collect::<Vec<_>>();
            let set = |list: &[u32]| ids(list).into_iter().collect();
            let got = seats(&ids(previous), &set(present), &set(replaced), *wanted);
            assert_eq!(got, ids(expected), "{previous:?} {present:?} {replaced:?}");
        }
    }
}

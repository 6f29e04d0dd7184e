//! Which hosts take how many workers (pure): racks and blocks first, then hosts.
//!
//! Hosts are here only numbers, in the order of the fabric, so that a rack and a block are stretches of the list.

use std::cmp::Reverse;

use crate::job::spec::{Rack, Strategy};

/// A host that has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// Its place in the cluster's list.
    pub(super) host: usize,
    /// Its place in the order of the fabric.
    pub(super) position: u32,
    /// Workers that there is room for; more than 0.
    pub(super) room: u32,
    /// Workers of the job that are there already.
    pub(super) used: u32,
    /// NUMA nodes that nobody uses.
    pub(super) whole_nodes: u32,
    /// To be used only where no other host will do.
    pub(super) is_late: bool,
    /// Its block.
    pub(super) block: Area,
    /// Its rack.
    pub(super) rack: Area,
}

/// A block or a rack. Hosts of which nobody knows it count as one that is the last choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Area {
    /// Its number in the order of the fabric.
    pub(super) number: u32,
    pub(super) is_known: bool,
    /// Workers of the job are there already.
    pub(super) is_used: bool,
}

/// What is to be distributed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) strategy: Strategy,
    pub(super) block: Rack,
    pub(super) rack: Rack,
}

/// How many workers with ranks, and how many spares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) gang: u32,
    pub(super) spares: u32,
}

impl Number {
    fn all(self) -> u64 {
        u64::from(self.gang) + u64::from(self.spares)
    }

    /// As many of them as there is room for, the gang's first; and what is left.
    fn split(self, room: u64) -> (Self, Self) {
        let gang = up_to(self.gang, room);
        let spares = up_to(self.spares, room - u64::from(gang));
        (Self { gang, spares }, Self { gang: self.gang - gang, spares: self.spares - spares })
    }
}

/// What one host takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Take {
    pub(super) slot: Slot,
    pub(super) number: Number,
}

/// How good a choice is: less is better, the first difference counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cost {
    /// Workers on hosts that should be avoided.
    late: u64,
    /// Blocks, where that counts.
    blocks: u32,
    /// Racks, where that counts.
    racks: u32,
    /// Hosts; counted backwards when workers are to be spread.
    hosts: i64,
    /// The most workers on one host, when they are to be spread.
    crowd: u32,
    /// Spares beside workers of the gang.
    beside: u32,
    /// Room that stays on hosts that are used: what was whole and is no longer.
    rest: u64,
}

impl Cost {
    fn add(&mut self, other: Self) {
        self.late += other.late;
        self.blocks += other.blocks;
        self.racks += other.racks;
        self.crowd = self.crowd.max(other.crowd);
        self.hosts += other.hosts;
        self.beside += other.beside;
        self.rest = self.rest.saturating_add(other.rest);
    }
}

/// A choice.
#[derive(Clone, Debug, Default)]
pub(super) struct Chosen {
    pub(super) takes: Vec<Take>,
    pub(super) cost: Cost,
}

/// The best choice, or none when there is not enough room for all.
///
/// Hosts to be avoided are avoided before anything else, blocks and racks are counted before hosts.
pub(super) fn choose(slots: &[Slot], wanted: Wanted, number: Number) -> Option<Chosen> {
    // One rack lies in one block: where all must be in a rack, blocks need not be looked at, and must not divide the gang.
    let block = if wanted.rack == Rack::Required { Rack::Any } else { wanted.block };
    let levels = [Level::Block(block), Level::Rack(wanted.rack)];
    let levels: Vec<Level> = levels.into_iter().filter(|level| level.rule() != Rack::Any).collect();
    if slots.iter().any(|slot| slot.is_late) {
        let early: Vec<Slot> = slots.iter().filter(|slot| !slot.is_late).copied().collect();
        if let Some(chosen) = within(&levels, &early, wanted.strategy, number) {
            return Some(chosen);
        }
    }
    within(&levels, slots, wanted.strategy, number)
}

/// The room of all, or of the largest group where all must be in one.
pub(super) fn room(slots: &[Slot], wanted: Wanted) -> u64 {
    let level = match (wanted.rack, wanted.block) {
        (Rack::Required, _) => Level::Rack(Rack::Required),
        (_, Rack::Required) => Level::Block(Rack::Required),
        _ => return total(slots),
    };
    slots.chunk_by(|a, b| level.of(a) == level.of(b)).map(total).max().unwrap_or(0)
}

/// A level of the fabric, and how much it counts.
#[derive(Clone, Copy, Debug)]
enum Level {
    Block(Rack),
    Rack(Rack),
}

impl Level {
    fn rule(self) -> Rack {
        match self {
            Self::Block(rule) | Self::Rack(rule) => rule,
        }
    }

    fn of(self, slot: &Slot) -> Area {
        match self {
            Self::Block(_) => slot.block,
            Self::Rack(_) => slot.rack,
        }
    }

    /// A new group of this level.
    fn cost(self, is_new: bool) -> Cost {
        let one = u32::from(is_new);
        match self {
            Self::Block(_) => Cost { blocks: one, ..Cost::default() },
            Self::Rack(_) => Cost { racks: one, ..Cost::default() },
        }
    }
}

/// Hosts that are close, and whether workers of the job are there already.
struct Group<'a> {
    slots: &'a [Slot],
    room: u64,
    is_used: bool,
    is_known: bool,
}

fn within(levels: &[Level], slots: &[Slot], strategy: Strategy, number: Number) -> Option<Chosen> {
    if number.all() == 0 {
        return Some(Chosen::default());
    }
    let Some((level, below)) = levels.split_first() else { return hosts(slots, strategy, number) };
    let chunks = slots.chunk_by(|a, b| level.of(a) == level.of(b));
    let mut groups: Vec<Group<'_>> = chunks
        .map(|slots| Group {
            slots,
            room: total(slots),
            is_used: slots.first().is_some_and(|slot| level.of(slot).is_used),
            is_known: slots.first().is_some_and(|slot| level.of(slot).is_known),
        })
        .collect();
    let inside = |group: &Group<'_>, number| {
        let mut chosen = within(below, group.slots, strategy, number)?;
        chosen.cost.add(level.cost(!group.is_used));
        Some(chosen)
    };
    if level.rule() == Rack::Required {
        let fitting = groups.iter().filter(|group| group.room >= number.all());
        return fitting.filter_map(|group| inside(group, number)).min_by_key(|chosen| chosen.cost);
    }
    // The largest first leaves the fewest; the last one is the one that suits what is left best.
    groups.sort_by_key(|group| (Reverse(group.is_used), Reverse(group.is_known), Reverse(group.room)));
    let mut chosen = Chosen::default();
    let mut left = number;
    let mut rest = groups.as_slice();
    while let Some((group, others)) = rest.split_first() {
        if group.room >= left.all() {
            let alike = |other: &&Group<'_>| {
                (other.is_used, other.is_known) == (group.is_used, group.is_known) && other.room >= left.all()
            };
            let fitting = rest.iter().take_while(alike);
            let last = fitting.filter_map(|group| inside(group, left)).min_by_key(|chosen| chosen.cost)?;
            chosen.cost.add(last.cost);
            chosen.takes.extend(last.takes);
            return Some(chosen);
        }
        let (now, later) = left.split(group.room);
        let full = inside(group, now)?;
        chosen.cost.add(full.cost);
        chosen.takes.extend(full.takes);
        left = later;
        rest = others;
    }
    None
}

/// The hosts of one group: those of the gang first, the spares on others where there are others.
fn hosts(slots: &[Slot], strategy: Strategy, number: Number) -> Option<Chosen> {
    if total(slots) < number.all() {
        return None;
    }
    let mut pool: Vec<Seat> = slots.iter().map(|slot| Seat { slot: *slot, gang: 0, spares: 0 }).collect();
    pool.sort_by_key(|seat| (seat.slot.is_late, Reverse(seat.slot.room), seat.slot.whole_nodes));
    distribute(&mut pool, number.gang, strategy, |seat| seat.left(), |seat| &mut seat.gang);
    let away = |seat: &Seat| if seat.gang + seat.slot.used == 0 { seat.left() } else { 0 };
    let apart: u64 = pool.iter().map(|seat| u64::from(away(seat))).sum();
    let apart = up_to(number.spares, apart);
    distribute(&mut pool, apart, strategy, away, |seat| &mut seat.spares);
    let beside = number.spares - apart;
    distribute(&mut pool, beside, strategy, |seat| seat.left(), |seat| &mut seat.spares);

    let mut chosen = Chosen { takes: Vec::new(), cost: Cost { beside, ..Cost::default() } };
    for Seat { slot, gang, spares } in pool {
        let taken = gang + spares;
        if taken == 0 {
            continue;
        }
        let crowd = if strategy == Strategy::Spread { taken.saturating_add(slot.used) } else { 0 };
        chosen.cost.add(Cost {
            late: if slot.is_late { taken.into() } else { 0 },
            crowd,
            hosts: if strategy == Strategy::Spread { -1 } else { 1 },
            rest: u64::from(slot.room - taken),
            ..Cost::default()
        });
        chosen.takes.push(Take { slot, number: Number { gang, spares } });
    }
    Some(chosen)
}

/// A host while workers are being distributed.
struct Seat {
    slot: Slot,
    gang: u32,
    spares: u32,
}

impl Seat {
    fn left(&self) -> u32 {
        self.slot.room - self.gang - self.spares
    }
}

/// Distributes `number` workers (no more than there is room for) over hosts that are sorted by room, the largest first,
/// those to be avoided last.
fn distribute(
    pool: &mut [Seat],
    number: u32,
    strategy: Strategy,
    room: impl Fn(&Seat) -> u32,
    taken: impl Fn(&mut Seat) -> &mut u32,
) {
    let mut left = number;
    for tier in pool.chunk_by_mut(|a, b| a.slot.is_late == b.slot.is_late) {
        let rooms: Vec<u32> = tier.iter().map(&room).collect();
        let number = up_to(left, rooms.iter().map(|room| u64::from(*room)).sum());
        let shares = match strategy {
            Strategy::Pack => pack(&rooms, number),
            Strategy::Spread => {
                let bases: Vec<u32> =
                    tier.iter().map(|seat| seat.slot.used.saturating_add(seat.gang + seat.spares)).collect();
                spread(&rooms, &bases, number)
            }
        };
        for (seat, share) in tier.iter_mut().zip(shares) {
            *taken(seat) += share;
        }
        left -= number;
    }
}

/// As few places as possible: the largest are filled whole, and the last is the smallest that is enough.
///
/// `number` is no more than the sum of `rooms`.
pub(super) fn pack(rooms: &[u32], number: u32) -> Vec<u32> {
    let mut shares = vec![0; rooms.len()];
    let mut order: Vec<usize> = (0..rooms.len()).collect();
    let room = |at: usize| rooms.get(at).copied().unwrap_or(0);
    order.sort_by_key(|at| Reverse(room(*at)));
    let mut left = number;
    let mut rest = order.as_slice();
    while let (true, Some((largest, others))) = (left > 0, rest.split_first()) {
        let (at, share) = if room(*largest) >= left {
            let enough = rest.partition_point(|at| room(*at) >= left);
            let smallest = rest.get(enough - 1).map_or(0, |at| room(*at));
            let first = rest.partition_point(|at| room(*at) > smallest);
            (rest.get(first).copied().unwrap_or(*largest), left)
        } else {
            (*largest, room(*largest))
        };
        if let Some(slot) = shares.get_mut(at) {
            *slot = share;
        }
        left -= share;
        rest = others;
    }
    shares
}

/// On as many places as possible and evenly, what is there already (`bases`) counted in.
///
/// `number` is no more than the sum of `rooms`.
pub(super) fn spread(rooms: &[u32], bases: &[u32], number: u32) -> Vec<u32> {
    let places: Vec<(u32, u32)> = rooms.iter().copied().zip(bases.iter().copied()).collect();
    let at_level = |level: u64| {
        places.iter().map(move |(room, base)| level.saturating_sub((*base).into()).min((*room).into()))
    };
    // The lowest level at which all find a place: beyond the highest base plus the number, nothing changes.
    let (mut low, mut high) = (0_u64, u64::from(u32::MAX) * 2);
    while low < high {
        let middle = low.midpoint(high);
        if at_level(middle).sum::<u64>() >= number.into() { high = middle } else { low = middle + 1 }
    }
    let mut surplus = at_level(low).sum::<u64>().saturating_sub(number.into());
    let mut shares: Vec<u32> = at_level(low).map(|share| up_to(u32::MAX, share)).collect();
    // Who reached the level last gives back: the places in front have the most room.
    for (share, (room, base)) in shares.iter_mut().zip(&places).rev() {
        let reached = *share > 0 && u64::from(*base) + u64::from(*share) == low && *share <= *room;
        if surplus > 0 && reached {
            *share -= 1;
            surplus -= 1;
        }
    }
    shares
}

fn total(slots: &[Slot]) -> u64 {
    slots.iter().map(|slot| u64::from(slot.room)).sum()
}

/// A number, but no more than a bound.
fn up_to(number: u32, bound: u64) -> u32 {
    u32::try_from(bound).map_or(number, |bound| number.min(bound))
}

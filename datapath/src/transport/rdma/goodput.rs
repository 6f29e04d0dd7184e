//! Whether a lane over verbs brings bytes as fast as it did (pure). A fabric that loses packets raises no error: the devices send
//! them again, and what arrives is right, at a fraction of the speed.
//!
//! Speed is bytes by the time in which something was under way, so a trainer that takes its time is not held against the lane. It is
//! looked at in windows, each beside the fastest one so far. Times count from any fixed moment.

use std::time::Duration;

use super::reason::Reason;

/// Busy time of a window: some completions on a slow fabric, thousands on a fast one.
pub const WINDOW: Duration = Duration::from_millis(200);
/// So many slow windows in a row, in which packets were lost, make a lane that loses: more than a burst.
pub const LOSING_MAX: u32 = 3;
/// So many in a row that crawl, for whatever reason: longer than a processor is kept from this process.
pub const CRAWLING_MAX: u32 = 10;
/// Less losses than these prove nothing, however few packets there were.
const LOSSES_MIN: u64 = 3;
/// Of so many packets one was lost. Rarer losses are a fabric's daily life, and cost little.
const PACKETS_PER_LOSS: u64 = 500;
/// A window is slow at less than this part of the fastest.
const SLOW: u64 = 2;
/// And crawls at less than that part, if what is under way also takes long by any measure.
const CRAWLING: u64 = 8;
/// Of a fabric that works a chain of reads needs microseconds.
const LONG: Duration = Duration::from_millis(20);
/// The fastest window is believed a little less with each one that follows: fabrics change.
const FADING: u64 = 64;
/// So long after a chain has begun those before it have come through, so what comes still later is one after it.
const BEHIND: Duration = Duration::from_millis(200);
/// A probe reads one chain after the other, so it is slower than a lane in use even where all is well.
const PROBE: u64 = 8;

/// How a lane does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Goodput {
    under_way: u32,
    /// Since then something has been under way, or was last accounted for.
    since: Duration,
    /// When something last came through.
    last_end: Option<Duration>,
    now: Window,
    /// Bytes per second of the fastest window.
    best: u64,
    /// What the device had counted when it was last looked at.
    counted: Option<Counted>,
    losing: u32,
    crawling: u32,
}

/// What came while something was under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// That long.
    pub busy: Duration,
    /// So many bytes.
    pub bytes: u64,
    /// In so many chains.
    pub chains: u32,
}

/// What a device has counted, of all that it does: both only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Packets that were lost.
    pub lost: u64,
    /// Bytes that this process has read by it.
    pub bytes: u64,
}

impl Counted {
    /// What has come since.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self { lost: self.lost.saturating_sub(before.lost), bytes: self.bytes.saturating_sub(before.bytes) }
    }

    /// Whether a fabric that works does not lose so many.
    fn is_lossy(self, packet_bytes: u16) -> bool {
        let packets = self.bytes / u64::from(packet_bytes.max(1));
        self.lost >= LOSSES_MIN && self.lost.saturating_mul(PACKETS_PER_LOSS) >= packets
    }
}

/// Why a lane is left, in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slow {
    /// Bytes per second of the last window.
    pub rate: u64,
    /// Of the fastest.
    pub best: u64,
    /// Packets lost in the last window, where the device counts them.
    pub lost: Option<u64>,
}

impl Window {
    /// Bytes per second.
    #[must_use]
    pub fn rate(self) -> u64 {
        let rate = u128::from(self.bytes) * 1_000_000_000 / self.busy.as_nanos().max(1);
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

impl Goodput {
    /// A chain is under way from now on.
    pub fn begun(&mut self, now: Duration) {
        self.account(now);
        self.under_way += 1;
    }

    /// One has come through. The window, when that has filled it: it is to be judged.
    pub fn ended(&mut self, now: Duration, bytes: u64) -> Option<Window> {
        self.account(now);
        self.under_way = self.under_way.saturating_sub(1);
        self.last_end = Some(now);
        self.now.bytes += bytes;
        self.now.chains += 1;
        (self.now.busy >= WINDOW).then(|| std::mem::take(&mut self.now))
    }

    /// One is not waited for any more: whatever that says is said elsewhere, and this window says nothing.
    pub fn given_up(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
        self.now = Window::default();
    }

    /// Whether the lane is to be left after this window. `counted` is what its device has counted, none where it counts no losses;
    /// `packet_bytes` are the data of one packet.
    pub fn judge(&mut self, window: Window, counted: Option<Counted>, packet_bytes: u16) -> Option<Slow> {
        let before = std::mem::replace(&mut self.counted, counted);
        // Of the first window it is not known what was lost in it.
        let counted = counted.zip(before).map(|(now, before)| now.since(before));
        let rate = window.rate();
        self.best = rate.max(self.best - self.best / FADING);
        let is_losing = counted.is_some_and(|counted| counted.is_lossy(packet_bytes));
        let is_long = window.busy >= LONG * window.chains;
        self.losing = if is_losing && rate.saturating_mul(SLOW) < self.best { self.losing + 1 } else { 0 };
        self.crawling =
            if is_long && rate.saturating_mul(CRAWLING) < self.best { self.crawling + 1 } else { 0 };
        let is_slow = self.losing >= LOSING_MAX || self.crawling >= CRAWLING_MAX;
        is_slow.then(|| {
            (self.losing, self.crawling) = (0, 0);
            Slow { rate, best: self.best, lost: counted.map(|counted| counted.lost) }
        })
    }

    /// The lane is used again: what was counted in between says nothing of how it is now.
    pub fn restart(&mut self) {
        (self.now, self.counted, self.losing, self.crawling) = (Window::default(), None, 0, 0);
    }

    /// Whether a lane that was probed, chain after chain, is as it was; with what was counted meanwhile.
    #[must_use]
    pub fn is_restored(&self, probe: Window, counted: Option<Counted>, packet_bytes: u16) -> bool {
        let loses = counted.is_some_and(|counted| counted.is_lossy(packet_bytes));
        let is_long = probe.busy >= LONG * probe.chains;
        let crawls = is_long && probe.rate().saturating_mul(PROBE) < self.best;
        !loses && !crawls
    }

    /// When something last came through.
    #[must_use]
    pub const fn last_end(&self) -> Option<Duration> {
        self.last_end
    }

    /// What a silence means of something that was under way since `begun`: not that the peer is dead, if chains came through long
    /// after that, or packets were lost before.
    #[must_use]
    pub fn explain(&self, reason: Reason, begun: Duration) -> Reason {
        let has_moved = self.last_end.is_some_and(|end| end > begun + BEHIND);
        if reason == Reason::PeerDead && (has_moved || self.losing > 0) { Reason::Lossy } else { reason }
    }

    fn account(&mut self, now: Duration) {
        if self.under_way > 0 {
            self.now.busy += now.saturating_sub(self.since);
        }
        // Others may have been here with a later moment.
        self.since = self.since.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: u16 = 4096;
    const CHAIN: u64 = 256 << 10;

    /// One chain after the other, each taking so long, until a window is full.
    fn window(goodput: &mut Goodput, clock: &mut Duration, each: Duration) -> Window {
        loop {
            goodput.begun(*clock);
            *clock += each;
            if let Some(window) = goodput.ended(*clock, CHAIN) {
                return window;
            }
        }
    }

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn losses_that_halve_the_speed_are_told_after_some_windows() {
        let (mut goodput, mut clock) = (Goodput::default(), ms(5000));
        let mut counted = Counted { lost: 10, bytes: 77 };
        for _ in 0..5 {
            let full = window(&mut goodput, &mut clock, ms(4));
            assert_eq!(goodput.judge(full, Some(counted), PACKET), None);
        }
        for round in 1..=LOSING_MAX {
            let slow = window(&mut goodput, &mut clock, ms(15));
            counted = Counted { lost: counted.lost + 20, bytes: counted.bytes + slow.bytes };
            assert_eq!(goodput.judge(slow, Some(counted), PACKET).is_some(), round == LOSING_MAX);
        }
    }

    #[test]
    fn neither_losses_nor_slowness_alone_are_enough() {
        let (mut goodput, mut clock, mut counted) = (Goodput::default(), ms(0), Counted::default());
        for _ in 0..100 {
            let full = window(&mut goodput, &mut clock, ms(4));
            counted = Counted { lost: counted.lost + 20, bytes: counted.bytes + full.bytes };
            assert_eq!(goodput.judge(full, Some(counted), PACKET), None, "lost, and as fast as ever");
        }
        for _ in 0..100 {
            let slow = window(&mut goodput, &mut clock, ms(15));
            counted.bytes += slow.bytes;
            assert_eq!(goodput.judge(slow, Some(counted), PACKET), None, "slow, and nothing was lost");
        }
        for _ in 0..100 {
            let slow = window(&mut goodput, &mut clock, ms(15));
            counted = Counted { lost: counted.lost + 3, bytes: counted.bytes + 100 * slow.bytes };
            assert_eq!(goodput.judge(slow, Some(counted), PACKET), None, "slow, as others have more to do");
        }
        for _ in 0..100 {
            let slow = window(&mut goodput, &mut clock, ms(15));
            assert_eq!(goodput.judge(slow, None, PACKET), None, "slow, and nobody counts losses");
        }
    }

    #[test]
    fn what_crawls_is_told_without_any_count() {
        let (mut goodput, mut clock) = (Goodput::default(), ms(0));
        let full = window(&mut goodput, &mut clock, ms(4));
        assert_eq!(goodput.judge(full, None, PACKET), None);
        let told = (1..=CRAWLING_MAX).find(|_| {
            let slow = window(&mut goodput, &mut clock, ms(60));
            goodput.judge(slow, None, PACKET).is_some()
        });
        assert_eq!(told, Some(CRAWLING_MAX));
    }

    #[test]
    fn small_reads_after_large_ones_are_no_crawl() {
        let (mut goodput, mut clock) = (Goodput::default(), Duration::ZERO);
        let full = window(&mut goodput, &mut clock, Duration::from_micros(20));
        goodput.judge(full, Some(Counted::default()), PACKET);
        for _ in 0..50 {
            let small = loop {
                goodput.begun(clock);
                clock += Duration::from_micros(6);
                if let Some(window) = goodput.ended(clock, 4096) {
                    break window;
                }
            };
            assert!(small.rate() * CRAWLING < full.rate());
            assert_eq!(goodput.judge(small, Some(Counted::default()), PACKET), None);
        }
    }

    #[test]
    fn a_trainer_that_takes_its_time_is_not_held_against_the_lane() {
        let (mut goodput, mut clock) = (Goodput::default(), ms(0));
        let full = window(&mut goodput, &mut clock, ms(4));
        for _ in 0..200 {
            goodput.begun(clock);
            clock += ms(4);
            if let Some(window) = goodput.ended(clock, CHAIN) {
                assert_eq!(window.rate(), full.rate());
            }
            clock += ms(500);
        }
    }

    #[test]
    fn what_is_given_up_leaves_no_trace_in_the_speed() {
        let (mut goodput, mut clock) = (Goodput::default(), ms(0));
        let full = window(&mut goodput, &mut clock, ms(4));
        goodput.begun(clock);
        goodput.given_up();
        clock += ms(1500);
        assert_eq!(window(&mut goodput, &mut clock, ms(4)).rate(), full.rate());
    }

    #[test]
    fn a_silence_among_others_that_came_through_is_loss_and_not_death() {
        let mut goodput = Goodput::default();
        goodput.begun(ms(10));
        goodput.begun(ms(20));
        assert_eq!(goodput.explain(Reason::PeerDead, ms(20)), Reason::PeerDead);
        goodput.ended(ms(30), CHAIN);
        assert_eq!(goodput.explain(Reason::PeerDead, ms(20)), Reason::PeerDead, "that was one before it");
        goodput.ended(ms(900), CHAIN);
        assert_eq!(goodput.explain(Reason::PeerDead, ms(20)), Reason::Lossy);
        assert_eq!(goodput.explain(Reason::PeerDead, ms(800)), Reason::PeerDead);
        assert_eq!(goodput.explain(Reason::PortDown, ms(20)), Reason::PortDown);
    }

    #[test]
    fn a_probe_is_good_when_little_is_lost_and_it_does_not_crawl() {
        let (mut goodput, mut clock) = (Goodput::default(), ms(0));
        let full = window(&mut goodput, &mut clock, ms(4));
        goodput.judge(full, None, PACKET);
        let probe = |each| Window { busy: each * 16, bytes: 16 * CHAIN, chains: 16 };
        let lost = |lost| Some(Counted { lost, bytes: 16 * CHAIN });
        assert!(goodput.is_restored(probe(ms(15)), lost(0), PACKET));
        assert!(goodput.is_restored(probe(ms(15)), None, PACKET));
        assert!(!goodput.is_restored(probe(ms(15)), lost(10), PACKET), "one in a hundred");
        assert!(!goodput.is_restored(probe(ms(60)), lost(0), PACKET));
        let few = Some(Counted { lost: 2, bytes: 16 * 4096 });
        assert!(goodput.is_restored(probe(ms(15)), few, PACKET), "two may be anybody's");
    }
}

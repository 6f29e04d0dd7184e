//! One fault while a trainer is fed: when the other lane took over, how fast it was then, and when the first one came back.

use std::fmt;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

use super::fabric::Mended;
use super::fed::Fed;
use super::*;

/// For how long rates are measured while something is broken.
const BROKEN_WINDOW: Duration = Duration::from_millis(2500);
/// For how long QUIC's own rate is, before and after that.
const BASELINE_WINDOW: Duration = Duration::from_millis(1500);
/// How long after the first byte rates begin to count: what had waited comes in a burst.
const SETTLING: Duration = Duration::from_millis(200);
/// For how long they are where they are compared with nothing.
const SHORT_WINDOW: Duration = Duration::from_millis(800);
/// What of its rate a lane keeps at the least where it may stay: others' work on the same processors takes as much.
const STAYING_MIN: f64 = 0.25;
/// QUIC's share of its own rate at the least. An emulated processor among others says no more; the figure itself is printed.
const RATIO_MIN: f64 = 0.5;

/// A fault, and what is to come of it.
pub(super) struct Cell {
    pub(super) name: &'static str,
    pub(super) breaks: fn(),
    pub(super) heals: fn(),
    /// No warning has another reason than one of these.
    pub(super) reasons: &'static [&'static str],
    /// How long after the fault a byte may come over QUIC.
    pub(super) first_byte_max: Duration,
    /// How long after it is mended the lane may take.
    pub(super) back_max: Duration,
    /// Whether QUIC's rate is compared with what it is without a fault.
    pub(super) is_compared: bool,
    /// Whether the lane may stay in use, as long as it is about as fast as before.
    pub(super) may_stay: bool,
}

/// What was measured.
#[derive(Debug)]
pub(super) struct Figures {
    name: &'static str,
    /// How long the command took that broke it.
    command: Duration,
    /// Seconds from its end to the first byte over QUIC; less than 0 when that came before the command had ended.
    pub(super) first_byte: f64,
    /// Bytes over RDMA in each second, before.
    rdma: f64,
    /// Bytes in each second while it is broken.
    quic: f64,
    /// The same where there is no other lane.
    baseline: Option<f64>,
    /// From the end of the command that mends it.
    pub(super) back: Duration,
    /// The same until nothing came over QUIC any more.
    alone: Duration,
    /// The longest time without a batch, from the fault to the lane's return.
    pub(super) longest_gap: Duration,
    batches: u64,
    pub(super) reasons: Vec<String>,
}

impl Figures {
    fn ratio(&self) -> Option<f64> {
        self.baseline.map(|baseline| self.quic / baseline)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = |rate: f64| rate / 1e6;
        write!(
            f,
            "cell {}: command {} ms, first QUIC byte {:.0} ms after, QUIC rate {:.1} MB/s",
            self.name,
            self.command.as_millis(),
            self.first_byte * 1e3,
            megabytes(self.quic)
        )?;
        if let (Some(baseline), Some(ratio)) = (self.baseline, self.ratio()) {
            write!(f, " (baseline {:.1} MB/s, ratio {ratio:.2})", megabytes(baseline))?;
        }
        write!(
            f,
            ", RDMA before {:.1} MB/s, back after {:.2} s (alone after {:.2} s), longest gap {:.2} s, {} batches, reasons {:?}",
            megabytes(self.rdma),
            self.back.as_secs_f64(),
            self.alone.as_secs_f64(),
            self.longest_gap.as_secs_f64(),
            self.batches,
            self.reasons
        )
    }
}

/// QUIC's rate where there is nothing else.
async fn baseline() -> f64 {
    let group = start_served(TransportPolicy::Quic).await;
    let fed = Fed::begin(group, large()).await;
    fed.warm().await;
    let rate = fed.rate(BASELINE_WINDOW, |counters| counters.quic_in_bytes).await;
    fed.end().await;
    rate
}

/// Runs something of the system's beside the planes; says when it began and ended.
pub(super) async fn beside(command: fn()) -> (Instant, Instant) {
    let command = spawn_blocking(move || {
        let begun = Instant::now();
        command();
        (begun, Instant::now())
    });
    command.await.unwrap()
}

/// Seconds from one moment to another, which may be the earlier one.
pub(super) fn seconds(from: Instant, to: Instant) -> f64 {
    (to - from).as_secs_f64() - (from - to).as_secs_f64()
}

impl Cell {
    /// Breaks it and mends it again: every batch is what it should be, and the lane comes back. No figures where it stayed.
    pub(super) async fn run(self) -> Option<Figures> {
        let before = if self.is_compared { Some(baseline().await) } else { None };
        let group = start_served(TransportPolicy::PreferRdma).await;
        let fed = Fed::begin(group, large()).await;
        fed.ready().await;
        let window = if self.is_compared || self.may_stay { BASELINE_WINDOW } else { SHORT_WINDOW };
        let rdma = fed.rate(window, |counters| counters.rdma_in_bytes).await;
        let mended = Mended;
        let first = fed.growth(|counters| counters.quic_in_bytes);
        let (begun, broken) = beside(self.breaks).await;
        let Some(first) = self.wait_for(first, &fed, rdma).await else {
            fed.end().await;
            return None;
        };
        sleep(SETTLING).await;
        let window = if self.is_compared { BROKEN_WINDOW } else { SHORT_WINDOW };
        // By both lanes: a probe's bytes are bytes, too.
        let quic = fed.rate(window, |counters| counters.quic_in_bytes + counters.rdma_in_bytes).await;
        let back = fed.growth(|counters| counters.rdma_in_bytes);
        let (_, healed) = beside(self.heals).await;
        let back = timeout(self.back_max, back).await;
        let back = back.unwrap_or_else(|_| panic!("{}: not back: {:?}", self.name, Warnings::reasons()));
        let back = back.unwrap();
        let longest_gap = fed.longest_gap();
        let alone = timeout(self.back_max, fed.settled()).await;
        let alone = alone.unwrap_or_else(|_| panic!("{}: not alone: {:?}", self.name, Warnings::reasons()));
        // Before the end, which cuts off what is under way.
        let reasons = Warnings::reasons();
        let batches = fed.end().await;
        drop(mended);
        let baseline = match before {
            Some(before) => Some(f64::midpoint(before, baseline().await)),
            None => None,
        };
        let figures = Figures {
            name: self.name,
            command: broken - begun,
            first_byte: seconds(broken, first),
            rdma,
            quic,
            baseline,
            back: back - healed,
            alone: alone - healed,
            longest_gap,
            batches,
            reasons,
        };
        println!("{figures}");
        self.judge(&figures);
        Some(figures)
    }

    /// The moment of the first byte over QUIC; none where the lane stays, and may.
    async fn wait_for(&self, first: JoinHandle<Instant>, fed: &Fed, rdma: f64) -> Option<Instant> {
        let count = |counters: Counters| counters.rdma_in_bytes;
        let (begun, before) = (Instant::now(), count(fed.asker().counters()));
        // Somewhat longer than it may take, so that a late one is told with its figure.
        if let Ok(first) = timeout(self.first_byte_max + Duration::from_secs(1), first).await {
            return Some(first.unwrap());
        }
        #[expect(clippy::cast_precision_loss, reason = "a figure to be read")]
        let now = (count(fed.asker().counters()) - before) as f64 / begun.elapsed().as_secs_f64();
        let figures = format!(
            "cell {}: no byte over QUIC within {:.1} s, RDMA stays with {:.2} MB/s of {:.2} MB/s, longest gap {:.2} s, reasons {:?}",
            self.name,
            begun.elapsed().as_secs_f64(),
            now / 1e6,
            rdma / 1e6,
            fed.longest_gap().as_secs_f64(),
            Warnings::reasons()
        );
        println!("{figures}");
        assert!(self.may_stay && now > STAYING_MIN * rdma, "{figures}");
        None
    }

    fn judge(&self, figures: &Figures) {
        assert!(!figures.reasons.is_empty(), "{}: no reason is told", self.name);
        let are_known = figures.reasons.iter().all(|reason| self.reasons.contains(&reason.as_str()));
        assert!(are_known, "{}: {:?}, not only {:?}", self.name, figures.reasons, self.reasons);
        assert!(figures.first_byte < self.first_byte_max.as_secs_f64(), "{figures}");
        assert!(figures.ratio().is_none_or(|ratio| ratio > RATIO_MIN), "{figures}");
    }
}

//! A trainer that looks at every byte while things break, and what is measured meanwhile.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};

use super::super::exchange::digests;
use super::super::trainer::Trainer;
use super::*;

/// How often numbers are looked at.
const GLANCE: Duration = Duration::from_millis(1);
/// When all has come over RDMA for so long, the lane is used by everybody.
const ALONE: Duration = Duration::from_millis(300);

/// Planes of which the first one feeds a trainer. It takes everything, as fast as it comes.
pub(super) struct Fed {
    pub(super) group: Group,
    feed: JoinHandle<BTreeMap<u64, OrderDigest>>,
    trainer: JoinHandle<u64>,
    over: Arc<AtomicBool>,
    /// Microseconds.
    longest_gap: Arc<AtomicU64>,
}

impl Fed {
    /// Begins with planes that have entered fence 1. Whoever else is a peer only owns.
    pub(super) async fn begin(group: Group, dataset: &'static Dataset) -> Self {
        let mut config = group.feed_config(0, 1, 1_000_000);
        config.consumer.of = NonZeroU32::MIN;
        let name = config.socket.clone();
        let feed = digests(group.planes[0].feed(config).await.unwrap());
        let (over, longest_gap) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let trainer = {
            let (order, over, longest_gap) =
                (group.order.clone(), Arc::clone(&over), Arc::clone(&longest_gap));
            spawn_blocking(move || take(&name, dataset, &order, &over, &longest_gap))
        };
        Self { group, feed, trainer, over, longest_gap }
    }

    pub(super) fn asker(&self) -> &Plane {
        &self.group.planes[0]
    }

    /// Waits until the trainer has had everything once and all comes over RDMA, so that caches and connections are as they will be.
    /// What is told before is forgotten: on a busy machine a queue pair may need a second try.
    pub(super) async fn ready(&self) {
        self.warm().await;
        timeout(HANG, self.settled()).await.expect("all comes over RDMA");
        Warnings::listen();
        self.longest_gap();
    }

    /// Waits until the trainer has had everything once.
    pub(super) async fn warm(&self) {
        let steps = self.group.order.steps_per_epoch() + 4;
        let warm = async {
            while self.asker().counters().batches < steps {
                sleep(GLANCE).await;
            }
        };
        timeout(HANG, warm).await.expect("it goes on");
    }

    /// Bytes of that kind in each second of this time.
    pub(super) async fn rate(&self, window: Duration, count: impl Fn(Counters) -> u64) -> f64 {
        let (begun, before) = (Instant::now(), count(self.asker().counters()));
        sleep(window).await;
        #[expect(clippy::cast_precision_loss, reason = "a figure to be read")]
        let bytes = (count(self.asker().counters()) - before) as f64;
        bytes / begun.elapsed().as_secs_f64()
    }

    /// When the asker will have counted more.
    pub(super) fn growth(&self, count: impl Fn(Counters) -> u64 + Send + 'static) -> JoinHandle<Instant> {
        let counters = Arc::clone(&self.asker().counters);
        let before = count(counters.read());
        tokio::spawn(async move {
            while count(counters.read()) == before {
                sleep(GLANCE).await;
            }
            Instant::now()
        })
    }

    /// Waits until the asker has counted more so many times; says how long the first took.
    pub(super) async fn grown(&self, times: u32, count: impl Fn(Counters) -> u64) -> Duration {
        let begun = Instant::now();
        let mut first = None;
        for _ in 0..times {
            let before = count(self.asker().counters());
            let more = async {
                while count(self.asker().counters()) == before {
                    sleep(GLANCE).await;
                }
            };
            timeout(HANG, more).await.expect("it goes on");
            first.get_or_insert_with(|| begun.elapsed());
        }
        first.unwrap_or_default()
    }

    /// Since when all comes over RDMA.
    pub(super) async fn settled(&self) -> Instant {
        loop {
            let (begun, before) = (Instant::now(), self.asker().counters());
            sleep(ALONE).await;
            let now = self.asker().counters();
            if now.quic_in_bytes == before.quic_in_bytes && now.rdma_in_bytes > before.rdma_in_bytes {
                return begun;
            }
        }
    }

    /// The longest time without a batch since this was last asked; the first answer is of no use.
    pub(super) fn longest_gap(&self) -> Duration {
        Duration::from_micros(self.longest_gap.swap(0, Ordering::AcqRel))
    }

    /// Ends all of it; says how many batches came. Every one was right.
    pub(super) async fn end(self) -> u64 {
        self.over.store(true, Ordering::Release);
        let steps = timeout(HANG, self.trainer).await.expect("the trainer ends").unwrap();
        let rails = self.group.planes[0].rails.clone();
        for plane in self.group.planes {
            timeout(HANG, plane.close()).await.expect("a plane closes");
        }
        drop(self.feed);
        if let Ok(rails) = rails {
            // What was in doubt was let go of by the device, and not before.
            let idle = async {
                while !rails.is_idle() {
                    sleep(GLANCE).await;
                }
            };
            timeout(HANG, idle).await.expect("every piece comes back");
        }
        steps
    }
}

/// Takes batches until it is over, and compares each with what it must be.
fn take(name: &str, dataset: &Dataset, order: &Order, over: &AtomicBool, longest_gap: &AtomicU64) -> u64 {
    let (trainer, per_epoch) = (Trainer::attach(name), order.steps_per_epoch());
    let (mut step, mut last) = (0, Instant::now());
    while !over.load(Ordering::Acquire) {
        let descriptor = trainer.descriptor();
        let gap = u64::try_from(last.elapsed().as_micros()).unwrap();
        last = Instant::now();
        longest_gap.fetch_max(gap, Ordering::AcqRel);
        assert_eq!((descriptor.kind, descriptor.step), (1, step), "{descriptor:?}");
        let content = trainer.content(descriptor);
        let placed = order.epoch(step / per_epoch).step(step % per_epoch);
        assert_eq!(content.samples.len(), placed.len());
        for ((id, bytes), placed) in content.samples.iter().zip(placed) {
            assert_eq!(*id, placed.sample.0, "step {step}");
            assert!(*bytes == dataset.samples[usize::try_from(*id).unwrap()], "step {step}: other bytes");
        }
        trainer.say(1, descriptor);
        step += 1;
    }
    step
}

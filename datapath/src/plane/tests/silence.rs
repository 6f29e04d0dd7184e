//! Owners that fall silent in mid-epoch: killed, or stopped and continued. Nothing is lost or doubled, and each
//! consumer waits once, for a bounded time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::exchange::{check, digests};
use super::trainer::{Content, Trainer};
use super::*;
use crate::transport::quic::client::CONNECT_TIMEOUT;
use crate::transport::quic::tuning::IDLE_TIMEOUT;

/// Steps before the owner falls silent.
const BEFORE: u64 = 20;
/// Steps while it is: taken so slowly that it would be asked again if anybody still did.
const DURING: u64 = 50;
/// How slowly.
const PACE: Duration = Duration::from_millis(60);
/// What a consumer may wait at the most, for all of the silence: to find out that a connection is dead and that no
/// new one comes up, with some room for a machine that does other things.
const WAIT_MAX: Duration =
    IDLE_TIMEOUT.saturating_add(CONNECT_TIMEOUT).saturating_add(Duration::from_secs(1));
/// A gap of this length is a wait, and no pause of the machine.
const WAIT: Duration = Duration::from_secs(1);

/// What a consumer's trainer has seen.
struct Taken {
    batches: Vec<Content>,
    /// The longest time and the number of long times without a batch during the silence.
    longest: Duration,
    waits: usize,
}

#[expect(clippy::disallowed_methods, reason = "measures how long a batch takes")]
fn now() -> Instant {
    Instant::now()
}

fn one_thread() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Two consumers, and a third plane on its own runtime that only owns.
struct Story {
    dataset: Dataset,
    group: Group,
    feeds: Vec<JoinHandle<BTreeMap<u64, OrderDigest>>>,
    trainers: Vec<JoinHandle<Taken>>,
    /// Told by each trainer when it has taken [`BEFORE`] and then [`DURING`] steps.
    reached: tokio::sync::mpsc::UnboundedReceiver<()>,
    /// Lets the trainers go on.
    go: Vec<mpsc::Sender<()>>,
}

impl Story {
    /// Trainers stop by themselves at a step when `enough` is set, or at the end of the `epochs`.
    async fn begin(apart: &Runtime, epochs: u64, enough: &Arc<AtomicBool>) -> Self {
        let size = Size { samples: 800, sample_bytes: 500, samples_per_chunk: 8, chunks_per_shard: 20 };
        let dataset = Dataset::records(size);
        let order = order(&dataset, 10, Remainder::Drop);
        let group = Group::start_apart(&dataset, &order, 3, 1 << 20, apart.handle()).await;
        let (tell, reached) = tokio::sync::mpsc::unbounded_channel();
        let (mut feeds, mut trainers, mut go) = (Vec::new(), Vec::new(), Vec::new());
        for id in 0..2 {
            let mut config = group.feed_config(id, 1, epochs);
            config.consumer.of = NonZeroU32::new(2).unwrap();
            let name = config.socket.clone();
            feeds.push(digests(group.planes[usize::try_from(id).unwrap()].feed(config).await.unwrap()));
            let (sender, going) = mpsc::channel();
            go.push(sender);
            let (tell, enough) = (tell.clone(), Arc::clone(enough));
            trainers.push(spawn_blocking(move || take(&name, &going, &|| tell.send(()).unwrap(), &enough)));
        }
        Self { dataset, group, feeds, trainers, reached, go }
    }

    async fn both_have_reached(&mut self) {
        for _ in 0..2 {
            timeout(HANG, self.reached.recv()).await.expect("the trainers go on").unwrap();
        }
    }

    fn go_on(&self) {
        self.go.iter().for_each(|go| go.send(()).unwrap());
    }

    /// Waits for the trainers and checks everything.
    async fn end(self) -> Group {
        let mut batches = Vec::new();
        for trainer in self.trainers {
            let taken = timeout(HANG, trainer).await.expect("the trainer ends").unwrap();
            assert!(taken.waits <= 1, "a consumer waits once, not {} times", taken.waits);
            assert!(taken.longest < WAIT_MAX, "{:?}", taken.longest);
            batches.push(taken.batches);
        }
        let steps = batches.iter().map(Vec::len).min().unwrap();
        check(&self.dataset, &self.group.order, &batches, u64::try_from(steps).unwrap());
        for feed in self.feeds {
            feed.abort();
        }
        self.group
    }
}

fn take(name: &str, going: &mpsc::Receiver<()>, reached: &dyn Fn(), enough: &AtomicBool) -> Taken {
    let trainer = Trainer::attach(name);
    let mut taken = Taken { batches: Vec::new(), longest: Duration::ZERO, waits: 0 };
    loop {
        let step = u64::try_from(taken.batches.len()).unwrap();
        if step == BEFORE || step == BEFORE + DURING {
            reached();
            going.recv().unwrap();
        }
        let asked = now();
        let descriptor = trainer.descriptor();
        if descriptor.kind != 1 || enough.load(Ordering::Acquire) {
            return taken;
        }
        if (BEFORE..BEFORE + DURING).contains(&step) {
            let waited = asked.elapsed();
            taken.longest = taken.longest.max(waited);
            taken.waits += usize::from(waited > WAIT);
            // The pace of a training step, not a wait for anything.
            assert!(going.recv_timeout(PACE).is_err());
        }
        taken.batches.push(trainer.content(descriptor));
        trainer.say(1, descriptor);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_owner_costs_each_consumer_one_bounded_wait() {
    let (apart, enough) = (one_thread(), Arc::new(AtomicBool::new(false)));
    let mut story = Story::begin(&apart, 1, &enough).await;
    story.both_have_reached().await;
    assert!(story.group.planes[2].counters().quic_out_bytes > 0);
    // As by SIGKILL: its tasks and its socket are gone, and it has told nobody.
    apart.shutdown_background();
    story.go_on();
    story.both_have_reached().await;
    story.go_on();
    let group = story.end().await;
    assert!(group.planes[0].counters().retries > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_owner_is_replaced_and_used_again_once_it_goes_on() {
    let (apart, enough) = (one_thread(), Arc::new(AtomicBool::new(false)));
    let mut story = Story::begin(&apart, 10_000, &enough).await;
    story.both_have_reached().await;
    // As by SIGSTOP: its socket is there, and nobody looks at it.
    let (thaw, frozen) = mpsc::channel::<()>();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    apart.spawn(async move {
        stop.send(()).unwrap();
        assert!(frozen.recv().is_err());
    });
    stopped.await.unwrap();
    story.go_on();
    story.both_have_reached().await;
    let before = story.group.planes[2].counters().quic_out_bytes;
    drop(thaw);
    story.go_on();
    let used_again = async {
        while story.group.planes[2].counters().quic_out_bytes == before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(HANG, used_again).await.expect("the owner is used again");
    enough.store(true, Ordering::Release);
    drop(story.end().await);
    apart.shutdown_background();
}

//! One consumer's feed: a [`Loader`] on one side, the trainer's socket on the other, and events for the worker.
//!
//! ```text
//!            accept, hello                       end of its socket, or a packet that is none
//!  Waiting ----------------> Attached(trainer) ------------------------------------------> Waiting
//!  (slots are filled already)                   (a new ring, from the first step not acknowledged)
//! ```
//! A trainer that comes while another is attached is told so and sent away.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::fill::Source;
use super::{Batch, Loader};
use crate::dataset::Format;
use crate::handoff::message::{FromTrainer, PACKET_BYTES_MAX, ToTrainer, VERSION, decode, decode_hello};
use crate::handoff::{Client, Listener};
use crate::order::Order;
use crate::plane::{FeedConfig, FeedEvent};
use crate::ring::{Ring, RingError, SLOTS_MAX};
use crate::wire::Frame;

/// A trainer that has connected says hello within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that have not said hello yet, at the most.
const GREETINGS_MAX: usize = 8;
/// Wait after a connection that could not be accepted: the cause lasts, and trying at once would only burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Owners hear of this consumer's position every so many steps: often enough to release chunks long before the
/// cache is full, seldom enough to cost nothing.
const POSITION_EVERY_STEPS: u64 = 8;
/// Packets read after a trainer's end: one for each slot, and some commits and reports.
const LEFT_OVER_MAX: u32 = 4 * SLOTS_MAX;

/// Everything that a feed runs on.
pub(crate) struct FeedTask {
    config: FeedConfig,
    source: Source,
    order: Order,
    slot_bytes: u64,
    events: mpsc::Sender<FeedEvent>,
    loader: Loader,
    client: Option<Client>,
    /// Slots that the trainer may look at.
    held: BTreeMap<u32, Batch>,
    next_send: u64,
    /// The largest step that a trainer may say it has done.
    delivered: u64,
    /// The first step that the trainer has not acknowledged.
    acknowledged: u64,
    /// The end or a fault has been told to this trainer.
    told: bool,
    ended: bool,
    last_position: u64,
    tells: JoinSet<()>,
}

/// What a packet asks for besides being noted.
enum Reply {
    None,
    Seek { step: u64 },
    Refuse { error: String },
}

/// The worker no longer listens to the feed's events.
struct Abandoned;

impl FeedTask {
    /// Makes the ring; nothing is read before [`FeedTask::run`].
    pub(crate) fn new(
        config: FeedConfig,
        source: Source,
        order: Order,
        slot_bytes: u64,
        events: mpsc::Sender<FeedEvent>,
    ) -> Result<Self, RingError> {
        let ring = Ring::create(config.slots, slot_bytes)?;
        tracing::info!(slots = config.slots, slot_bytes, pages = ?ring.pages(), "the ring is made");
        let start = config.start_step;
        let loader =
            Loader::new(source.clone(), order.clone(), config.consumer, ring, start, config.end_step);
        Ok(Self {
            config,
            source,
            order,
            slot_bytes,
            events,
            loader,
            client: None,
            held: BTreeMap::new(),
            next_send: start,
            delivered: start,
            acknowledged: start,
            told: false,
            ended: false,
            last_position: start,
            tells: JoinSet::new(),
        })
    }

    /// Feeds one trainer after the other, until it is stopped from outside or nobody listens to its events.
    pub(crate) async fn run(mut self, listener: Listener) {
        let mut packet = Box::new([0; PACKET_BYTES_MAX]);
        let mut greetings = JoinSet::new();
        let mut pause = false;
        loop {
            self.loader.pump();
            if self.flush().await.is_err() && self.detach().await.is_err() {
                return;
            }
            let proceeded = tokio::select! {
                received = receive(self.client.as_ref(), &mut packet) => match received {
                    Ok(length) if length > 0 => self.handle(&packet[..length]).await,
                    _ => self.detach().await,
                },
                fault = self.loader.advance() => match fault {
                    Some(fault) => self.tell_worker(FeedEvent::Fault(fault)).await,
                    None => Ok(()),
                },
                Some(greeted) = greetings.join_next(), if !greetings.is_empty() => match greeted {
                    Ok(Some((client, hello))) => self.greet(client, hello).await,
                    _ => Ok(()),
                },
                accepted = accept(&listener, &mut pause), if greetings.len() < GREETINGS_MAX => {
                    if let Some(client) = accepted {
                        greetings.spawn(hello(client));
                    }
                    Ok(())
                }
                Some(_) = self.tells.join_next(), if !self.tells.is_empty() => Ok(()),
            };
            if proceeded.is_err() {
                return;
            }
        }
    }

    /// Tells the trainer of everything that is next in order and ready.
    async fn flush(&mut self) -> io::Result<()> {
        let Some(client) = &self.client else { return Ok(()) };
        while !self.told {
            let step = self.next_send;
            if step >= self.config.end_step {
                client.send(&ToTrainer::End { step }.encode()).await?;
                self.told = true;
            } else if let Some(batch) = self.loader.take(step) {
                let (slot, slot_generation) = (batch.slot.index(), batch.slot.generation());
                let bytes = batch.plan.slot_bytes();
                // Held before it is told: a release can only follow.
                self.held.insert(slot, batch);
                self.next_send = step + 1;
                self.delivered = self.delivered.max(step + 1);
                client.send(&ToTrainer::Ready { slot, slot_generation, step, bytes }.encode()).await?;
            } else if let Some(fault) = self.loader.fault_at(step) {
                let text = json!({ "error": fault.message, "hint": fault.hint, "reason": fault.reason });
                client.send(&ToTrainer::Fault { step }.encode()).await?;
                client.send(text.to_string().as_bytes()).await?;
                self.told = true;
            } else {
                break;
            }
        }
        Ok(())
    }

    /// Does what a packet says, and what has to be done about it on the socket.
    async fn handle(&mut self, packet: &[u8]) -> Result<(), Abandoned> {
        match self.take_in(packet).await? {
            Reply::None => Ok(()),
            Reply::Seek { step } => self.seek(step).await,
            Reply::Refuse { error } => self.refuse(&error).await,
        }
    }

    /// Notes what a packet says.
    async fn take_in(&mut self, packet: &[u8]) -> Result<Reply, Abandoned> {
        match decode(packet) {
            Ok(FromTrainer::Release { slot, slot_generation, step, acknowledge }) => {
                let known = self.held.get(&slot).is_some_and(|batch| {
                    batch.slot.generation() == slot_generation && batch.plan.place().step == step
                });
                if !known {
                    return Ok(Reply::Refuse { error: format!("slot {slot} does not hold step {step}") });
                }
                let batch = self.held.remove(&slot);
                if let Some(batch) = batch.filter(|_| acknowledge) {
                    self.consumed(&batch).await?;
                }
            }
            // A trainer commits what it has been given, before or after it acknowledges the last of it.
            Ok(FromTrainer::Commit { step }) if step <= self.delivered => {
                self.tell_worker(FeedEvent::Committed { step }).await?;
            }
            Ok(FromTrainer::Commit { step }) => {
                return Ok(Reply::Refuse {
                    error: format!("step {step} is committed before it was delivered"),
                });
            }
            Ok(FromTrainer::Seek { step }) => return Ok(Reply::Seek { step }),
            Ok(FromTrainer::Report { values }) => self.tell_worker(FeedEvent::Reported { values }).await?,
            Err(error) => return Ok(Reply::Refuse { error: error.to_string() }),
        }
        Ok(Reply::None)
    }

    async fn consumed(&mut self, batch: &Batch) -> Result<(), Abandoned> {
        let step = batch.plan.place().step;
        // Steps may be acknowledged in any order: what is still held has not been. Earlier ones were left by a seek.
        let held = self.held.values().map(|batch| batch.plan.place().step);
        let first_held = held.filter(|&held| held >= self.acknowledged).min();
        self.acknowledged = self.acknowledged.max(first_held.unwrap_or(self.next_send).min(self.next_send));
        self.tell_worker(FeedEvent::Consumed {
            step,
            digest: batch.plan.digest(),
            samples: batch.plan.real_samples().into(),
            bytes: batch.plan.real_bytes(),
        })
        .await?;
        self.tell_owners();
        if self.acknowledged >= self.config.end_step && !self.ended {
            self.ended = true;
            self.tell_worker(FeedEvent::Ended).await?;
        }
        Ok(())
    }

    /// Lets the owners of chunks know how far this consumer is.
    fn tell_owners(&mut self) {
        let (member, consumer, step) = (&self.source.member, self.config.consumer, self.acknowledged);
        if let Some(floor) = member.position(consumer.index, consumer.of.get(), step) {
            self.source.cache.advance(floor);
        }
        while self.tells.try_join_next().is_some() {}
        // One at a time: an owner that does not listen must not pile up tasks.
        if step < self.last_position + POSITION_EVERY_STEPS
            || !self.tells.is_empty()
            || member.roster().links.is_empty()
        {
            return;
        }
        self.last_position = step;
        let member = std::sync::Arc::clone(member);
        self.tells.spawn(async move {
            let (consumer, of) = (consumer.index, consumer.of.get());
            let frame = Frame::Position { fence: member.fence, consumer, of, step };
            for link in member.roster().links.values() {
                link.tell(&frame).await;
            }
        });
    }

    async fn seek(&mut self, step: u64) -> Result<(), Abandoned> {
        if step > self.config.end_step {
            let end = self.config.end_step;
            return self.refuse(&format!("there is no step {step} (the data ends at {end})")).await;
        }
        self.loader.seek(step).await;
        (self.next_send, self.told) = (step, false);
        // Whoever attaches next goes on from here, not from where this trainer was before.
        self.acknowledged = step;
        // Sought to the end of what was consumed already: the end may be reported once more.
        self.ended &= step >= self.config.end_step;
        if let Some(client) = &self.client
            && client.send(&ToTrainer::Sought { step }.encode()).await.is_err()
        {
            return self.detach().await;
        }
        Ok(())
    }

    /// Answers a hello.
    async fn greet(&mut self, client: Client, hello: Result<u32, String>) -> Result<(), Abandoned> {
        let refusal = match &hello {
            _ if self.client.is_some() => Some(json!({
                "error": "another process is reading this rank's batches",
                "hint": "read them in one process: use num_workers=0, or close the other reader first",
            })),
            Err(error) => Some(json!({
                "error": error,
                "hint": "use the slipway package that comes with this release",
            })),
            Ok(_) => None,
        };
        if let Some(refusal) = refusal {
            // It is gone afterwards in any case.
            drop(client.send(refusal.to_string().as_bytes()).await);
            return Ok(());
        }
        let greeting = self.greeting().to_string();
        let sent = client.send_with_fd(greeting.as_bytes(), self.loader.ring().fd()).await;
        if let (Ok(()), Ok(pid)) = (sent, hello) {
            self.client = Some(client);
            self.told = false;
            return self.tell_worker(FeedEvent::Attached { pid }).await;
        }
        Ok(())
    }

    fn greeting(&self) -> Value {
        let manifest = &self.source.manifest;
        let layout = match manifest.format() {
            Format::Tar => None,
            Format::Records(layout) => Some(layout),
        };
        let spec = self.order.spec();
        let steps_per_epoch = self.order.steps_per_epoch();
        let mut hello = json!({
            "version": VERSION,
            "slots": self.config.slots,
            "slot_bytes": self.slot_bytes,
            "fields": manifest.fields(),
            "format": if layout.is_some() { "records" } else { "tar" },
            "dtype": layout.map(|layout| layout.dtype.numpy_name()),
            "items": layout.map(|layout| layout.items),
            "samples": manifest.sample_count(),
            "dataset": manifest.digest().to_string(),
            "steps_per_epoch": steps_per_epoch,
            "epochs": self.config.end_step.div_ceil(steps_per_epoch.max(1)),
            "start_step": self.next_send,
            "end_step": self.config.end_step,
            "global_batch": spec.global_batch,
            "consumer": self.config.consumer.index,
            "consumers": self.config.consumer.of,
            "generation": self.config.fence,
            "seed": spec.seed,
        });
        if let (Some(hello), Value::Object(extra)) = (hello.as_object_mut(), &self.config.hello) {
            hello.extend(extra.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        hello
    }

    /// Sends the trainer away because it does not keep to the handoff.
    async fn refuse(&mut self, error: &str) -> Result<(), Abandoned> {
        if let Some(client) = &self.client {
            tracing::warn!(error, "the trainer does not keep to the handoff");
            let text = json!({
                "error": error,
                "hint": "this is a fault of the client: use the slipway package that comes with this release",
            });
            let fault = ToTrainer::Fault { step: self.next_send }.encode();
            if client.send(&fault).await.is_ok() {
                drop(client.send(text.to_string().as_bytes()).await);
            }
        }
        self.detach().await
    }

    /// The trainer is gone: whatever it still maps is not written any more, since the next one gets another ring.
    async fn detach(&mut self) -> Result<(), Abandoned> {
        let Some(client) = self.client.take() else { return Ok(()) };
        // What it said before it went counts: its last acknowledgement and commit, above all.
        let mut packet = Box::new([0; PACKET_BYTES_MAX]);
        for _ in 0..LEFT_OVER_MAX {
            let Some(length) = client.left_over(&mut packet) else { break };
            if !matches!(self.take_in(&packet[..length]).await?, Reply::None) {
                break;
            }
        }
        self.tell_worker(FeedEvent::Detached).await?;
        self.held.clear();
        let ring = match Ring::create(self.config.slots, self.slot_bytes) {
            Ok(ring) => ring,
            Err(error) => {
                tracing::error!(%error, "no ring for the next trainer");
                return Err(Abandoned);
            }
        };
        let (source, order) = (self.source.clone(), self.order.clone());
        let (start, end) = (self.acknowledged, self.config.end_step);
        self.loader = Loader::new(source, order, self.config.consumer, ring, start, end);
        (self.next_send, self.told) = (start, false);
        Ok(())
    }

    async fn tell_worker(&self, event: FeedEvent) -> Result<(), Abandoned> {
        self.events.send(event).await.map_err(|_| Abandoned)
    }
}

/// The next trainer. After a failure, of which the usual one is that there is no descriptor left, it pauses first.
async fn accept(listener: &Listener, pause: &mut bool) -> Option<Client> {
    if *pause {
        tokio::time::sleep(ACCEPT_PAUSE).await;
        *pause = false;
    }
    match listener.accept().await {
        Ok(client) => Some(client),
        Err(error) => {
            tracing::warn!(%error, "a trainer's connection cannot be accepted");
            *pause = true;
            None
        }
    }
}

async fn receive(client: Option<&Client>, packet: &mut [u8; PACKET_BYTES_MAX]) -> io::Result<usize> {
    match client {
        Some(client) => client.receive(packet).await,
        None => std::future::pending().await,
    }
}

/// A new connection's first packet.
async fn hello(client: Client) -> Option<(Client, Result<u32, String>)> {
    let mut packet = Box::new([0; PACKET_BYTES_MAX]);
    let received = timeout(HELLO_TIMEOUT, client.receive(&mut packet)).await;
    match received {
        Ok(Ok(length)) if length > 0 => {
            let hello = decode_hello(&packet[..length]).map_err(|error| error.to_string());
            Some((client, hello))
        }
        _ => None,
    }
}

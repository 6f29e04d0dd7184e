//! Answering: chunks that this worker owns, to the peers of the membership that it is in.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, Incoming, RecvStream, SendStream, VarInt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{QuicLane, STALL_TIMEOUT, read_frame, tls};
use crate::cache::{Cache, Held, LoadError};
use crate::counters::Counting;
use crate::dataset::{ChunkId, Manifest};
use crate::fault;
use crate::membership::Member;
use crate::select::PeerId;
use crate::transport::rdma::lane::Rails;
use crate::transport::rdma::reason::Reason;
use crate::wire::{self, Frame, Group, Refusal, Want};

mod lending;

/// Connections at once: the workers of the largest job we think of, with some that reconnect.
const CONNECTIONS_MAX: usize = 8192;
/// A peer that has connected says who it is within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// What an owner needs for its answers.
#[derive(Clone)]
pub(crate) struct Serving {
    pub(crate) lane: Arc<QuicLane>,
    /// This host's devices, or why no chunk is lent.
    pub(crate) rails: Result<Arc<Rails>, Reason>,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) cache: Cache,
    pub(crate) counters: Arc<Counting>,
    pub(crate) member: watch::Receiver<Option<Arc<Member>>>,
}

/// Accepts connections until the lane is closed.
pub(crate) async fn serve(serving: Serving) {
    let mut connections = JoinSet::new();
    while let Some(incoming) = serving.lane.endpoint.accept().await {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS_MAX {
            incoming.refuse();
            continue;
        }
        connections.spawn(greet(serving.clone(), incoming));
    }
}

async fn greet(mut serving: Serving, incoming: Incoming) {
    let senders = serving.member.borrow().as_ref().map_or(1, |member| member.roster().links.len());
    let config = serving.lane.server_config(incoming.remote_address(), senders);
    let hello = async {
        let connection = incoming.accept_with(config).ok()?.await.ok()?;
        let (send, mut receive) = connection.accept_bi().await.ok()?;
        let frame = read_frame(&mut receive).await.ok()?;
        Some((connection, send, receive, frame))
    };
    let Ok(Some((connection, mut send, receive, frame))) = timeout(HELLO_TIMEOUT, hello).await else {
        return;
    };
    // Marks this membership as seen: what changes from here on ends the connection.
    let member = serving.member.borrow_and_update().clone();
    match admit(&serving, member, &connection, &frame) {
        Ok(member) => {
            let welcome = wire::encode(&Frame::Welcome { fence: member.fence });
            if let Ok(welcome) = welcome
                && send.write_all(&welcome).await.is_ok()
            {
                attend(serving, member, &connection, receive).await;
            }
            connection.close(VarInt::from_u32(Refusal::Fenced.code().into()), b"fenced");
        }
        Err((refusal, retry_after)) => {
            answer_no(&mut send, 0, refusal, retry_after).await;
            // The other side closes, having read why; it has as long as for its hello.
            drop(timeout(HELLO_TIMEOUT, connection.closed()).await);
        }
    }
}

/// Decides whether a connection belongs to the membership of this moment.
fn admit(
    serving: &Serving,
    member: Option<Arc<Member>>,
    connection: &Connection,
    hello: &Frame,
) -> Result<Arc<Member>, (Refusal, Duration)> {
    let Frame::Hello { version, dataset, fence, peer } = hello else {
        return Err((Refusal::Malformed, Duration::ZERO));
    };
    if *version != wire::VERSION || *dataset != serving.manifest.digest().0 {
        return Err((Refusal::Stranger, Duration::ZERO));
    }
    let member = member.ok_or((Refusal::Fenced, Member::EARLY_RETRY))?;
    if *fence != member.fence {
        let retry_after = if *fence > member.fence { Member::EARLY_RETRY } else { Duration::ZERO };
        return Err((Refusal::Fenced, retry_after));
    }
    match tls::peer_fingerprint(connection) {
        Some(fingerprint) if member.knows(PeerId(*peer), fingerprint) => Ok(member),
        _ => Err((Refusal::Stranger, Duration::ZERO)),
    }
}

/// Serves a connection until it ends or the membership does.
async fn attend(serving: Serving, member: Arc<Member>, connection: &Connection, control: RecvStream) {
    let mut requests = JoinSet::new();
    let mut membership = serving.member.clone();
    requests.spawn(listen(control, Arc::clone(&member), serving.cache.clone()));
    loop {
        tokio::select! {
            biased;
            _ = membership.changed() => break,
            // Requests are bounded by the streams that a connection may have open.
            stream = connection.accept_bi() => match stream {
                Ok((send, receive)) => {
                    requests.spawn(answer(serving.clone(), Arc::clone(&member), send, receive));
                }
                Err(_) => break,
            },
            Some(_) = requests.join_next() => {}
        }
    }
    requests.shutdown().await;
}

/// Takes the peer's positions.
async fn listen(mut control: RecvStream, member: Arc<Member>, cache: Cache) {
    while let Ok(frame) = read_frame(&mut control).await {
        if let Frame::Position { fence, consumer, of, step } = frame
            && fence == member.fence
            && let Some(floor) = member.position(consumer, of, step)
        {
            cache.advance(floor);
        }
    }
}

async fn answer(serving: Serving, member: Arc<Member>, mut send: SendStream, mut receive: RecvStream) {
    match timeout(HELLO_TIMEOUT, read_frame(&mut receive)).await {
        Ok(Ok(Frame::Want(want))) => deliver(&serving, &member, &want, send).await,
        Ok(Ok(Frame::Offer { rail, half })) => lending::pair_up(&serving, rail, &half, send, receive).await,
        Ok(Ok(Frame::Ask(ask))) => lending::lend(&serving, &member, ask, send, receive).await,
        _ => drop(send.reset(VarInt::from_u32(Refusal::Malformed.code().into()))),
    }
}

async fn deliver(serving: &Serving, member: &Member, want: &Want, mut send: SendStream) {
    if want.fence != member.fence {
        answer_no(&mut send, want.request, Refusal::Fenced, Duration::ZERO).await;
        return;
    }
    let Some(bytes) = wanted_bytes(&serving.manifest, want) else {
        answer_no(&mut send, want.request, Refusal::Malformed, Duration::ZERO).await;
        return;
    };
    let Ok(have) = wire::encode(&Frame::Have { request: want.request, bytes }) else { return };
    if send.write_all(&have).await.is_err() {
        return;
    }
    if send_groups(serving, want, &mut send).await.is_ok() {
        drop(send.finish());
    }
}

/// The bytes that a request asks for; none when the manifest has no such ranges.
fn wanted_bytes(manifest: &Manifest, want: &Want) -> Option<u64> {
    let mut bytes = 0_u64;
    for group in &want.groups {
        let chunk = manifest.chunks().get(usize::try_from(group.chunk).ok()?)?;
        for (offset, len) in &group.ranges {
            (u64::from(*offset) + u64::from(*len) <= u64::from(chunk.len)).then_some(())?;
            bytes += u64::from(*len);
        }
    }
    Some(bytes)
}

/// Sends the ranges from the cached chunks, without a copy.
async fn send_groups(serving: &Serving, want: &Want, send: &mut SendStream) -> Result<(), quinn::WriteError> {
    for group in &want.groups {
        let mut ranges = match ranges(serving, want, group).await {
            Ok(ranges) => ranges,
            Err(refusal) => {
                // Codes are small: see `refusals!`.
                send.write_all(&[u8::try_from(refusal.code()).unwrap_or(u8::MAX)]).await?;
                continue;
            }
        };
        let bytes: usize = ranges.iter().skip(1).map(Bytes::len).sum();
        if !send_all(send, &mut ranges).await? {
            drop(send.reset(VarInt::from_u32(0)));
            return Ok(());
        }
        serving.counters.quic_out_bytes.add(bytes);
    }
    Ok(())
}

/// Sends everything; says no when the peer takes nothing for too long. What is unsent keeps its chunk in the cache.
async fn send_all(send: &mut SendStream, mut chunks: &mut [Bytes]) -> Result<bool, quinn::WriteError> {
    while !chunks.is_empty() {
        let Ok(written) = timeout(STALL_TIMEOUT, send.write_chunks(chunks)).await else { return Ok(false) };
        chunks = &mut chunks[written?.chunks..];
    }
    Ok(true)
}

/// A group's bytes, with their status in front.
async fn ranges(serving: &Serving, want: &Want, group: &Group) -> Result<Vec<Bytes>, Refusal> {
    let held = held(serving, want.fence, ChunkId(group.chunk), group.until, want.refresh).await?;
    let chunk = held.into_bytes();
    let range = |&(offset, len): &(u32, u32)| {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        chunk.slice(start..start + usize::try_from(len).unwrap_or(0))
    };
    let status = Bytes::from_static(&[wire::GROUP_FOLLOWS]);
    Ok(std::iter::once(status).chain(group.ranges.iter().map(range)).collect())
}

/// A chunk for a request of the membership with this fence.
async fn held(
    serving: &Serving,
    fence: u64,
    chunk: ChunkId,
    until: u64,
    refresh: bool,
) -> Result<Held, Refusal> {
    let held = if refresh {
        serving.cache.get_verified(chunk, until).await
    } else {
        serving.cache.get(chunk, until).await
    };
    let held = held.map_err(|error| refusal(&error))?;
    // Looked at after the wait for the store: a membership that ended meanwhile is not answered.
    let current = serving.member.borrow().as_ref().map(|member| member.fence);
    if current == Some(fence) { Ok(held) } else { Err(Refusal::Fenced) }
}

fn refusal(error: &LoadError) -> Refusal {
    match error.reason {
        fault::CRC_MISMATCH => Refusal::Corrupt,
        fault::NOT_FOUND => Refusal::NotFound,
        fault::SHORT_READ => Refusal::ShortRead,
        _ => Refusal::StoreFailed,
    }
}

async fn answer_no(send: &mut SendStream, request: u64, refusal: Refusal, retry_after: Duration) {
    let retry_after_ms = u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX);
    if let Ok(nack) = wire::encode(&Frame::Nack { request, refusal, retry_after_ms }) {
        // Whoever does not read the answer does not get one.
        drop(send.write_all(&nack).await);
        drop(send.finish());
    }
}

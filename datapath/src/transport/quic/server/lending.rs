//! What an owner says of lanes over verbs: pairs up with a peer's device, and lends chunks to it.

use std::sync::Arc;
use std::time::Duration;

use quinn::{RecvStream, SendStream};
use tokio::time::timeout;

use super::{Serving, answer_no, held};
use crate::dataset::ChunkId;
use crate::membership::Member;
use crate::transport::rdma::endpoint::Endpoint;
use crate::wire::{self, Ask, Frame, LEASE_MAX, Refusal};

/// Answers by a queue pair as long as the peer keeps the stream, or the connection lasts.
pub(super) async fn pair_up(
    serving: &Serving,
    rail: u8,
    peer: &Endpoint,
    mut send: SendStream,
    mut receive: RecvStream,
) {
    let answered = match &serving.rails {
        Ok(rails) => rails.answer(rail, peer).await,
        Err(reason) => Err(*reason),
    };
    match answered {
        Ok((_pair, own)) => {
            if say(&mut send, &Frame::Accept(own)).await {
                ended(&mut receive).await;
            }
        }
        Err(reason) => _ = say(&mut send, &Frame::Decline(reason)).await,
    }
}

/// Lends a chunk until the peer ends the stream. Each has a task of its own, so none is held while another is waited for.
pub(super) async fn lend(
    serving: &Serving,
    member: &Arc<Member>,
    ask: Ask,
    mut send: SendStream,
    mut receive: RecvStream,
) {
    let rails = match &serving.rails {
        Ok(rails) => rails,
        Err(reason) => {
            _ = say(&mut send, &Frame::Decline(*reason)).await;
            return;
        }
    };
    let chunks = u32::try_from(serving.manifest.chunks().len()).unwrap_or(u32::MAX);
    let held = if ask.fence != member.fence {
        Err(Refusal::Fenced)
    } else if ask.chunk >= chunks {
        Err(Refusal::Malformed)
    } else {
        held(serving, ask.fence, ChunkId(ask.chunk), ask.until, ask.refresh).await
    };
    let held = match held {
        Ok(held) => held,
        Err(refusal) => return answer_no(&mut send, 0, refusal, Duration::ZERO).await,
    };
    match rails.lend(ask.rail, held).await {
        Ok((_lending, lease)) => {
            if say(&mut send, &Frame::Lease(lease)).await {
                serving.counters.rdma_lent_bytes.add(lease.len);
                // A peer that never gives it back has it no longer than this. It knows, and trusts nothing that is older.
                drop(timeout(LEASE_MAX, ended(&mut receive)).await);
            }
        }
        Err(reason) => _ = say(&mut send, &Frame::Decline(reason)).await,
    }
}

async fn say(send: &mut SendStream, frame: &Frame) -> bool {
    let Ok(frame) = wire::encode(frame) else { return false };
    send.write_all(&frame).await.is_ok()
}

/// The peer has no more to say; whatever else it says is not listened to.
async fn ended(receive: &mut RecvStream) {
    let mut byte = [0];
    while let Ok(Some(_)) = receive.read(&mut byte).await {}
}

//! The codec against itself, against golden bytes, and against garbage.

use proptest::prelude::*;

use super::*;

fn refusal() -> impl Strategy<Value = Refusal> {
    (1_u64..=7).prop_map(|code| Refusal::from_code(code).unwrap())
}

fn group() -> impl Strategy<Value = Group> {
    (any::<(u32, u64)>(), proptest::collection::vec(any::<(u32, u32)>(), 0..20))
        .prop_map(|((chunk, until), ranges)| Group { chunk, until, ranges })
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    (any::<(u32, u32, [u8; 16], u16, u8)>(), 1_u32..=5).prop_map(|((qpn, psn, gid, lid, reads), mtu)| {
        Endpoint { qpn, psn, gid: Gid(gid), lid, mtu: PathMtu::of_number(mtu).unwrap(), reads }
    })
}

fn reason() -> impl Strategy<Value = Reason> {
    any::<prop::sample::Index>().prop_map(|index| Reason::ALL[index.index(Reason::ALL.len())])
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        (any::<u16>(), any::<[u8; 32]>(), any::<u64>(), any::<u32>())
            .prop_map(|(version, dataset, fence, peer)| Frame::Hello { version, dataset, fence, peer }),
        any::<u64>().prop_map(|fence| Frame::Welcome { fence }),
        (any::<u64>(), any::<u32>(), any::<u32>(), any::<u64>())
            .prop_map(|(fence, consumer, of, step)| Frame::Position { fence, consumer, of, step }),
        Just(Frame::Ping),
        (any::<(u64, u64, u64, bool)>(), proptest::collection::vec(group(), 0..20)).prop_map(
            |((request, fence, step, refresh), groups)| Frame::Want(Want {
                request,
                fence,
                step,
                refresh,
                groups
            })
        ),
        any::<(u64, u64)>().prop_map(|(request, bytes)| Frame::Have { request, bytes }),
        (any::<u64>(), refusal(), any::<u32>()).prop_map(|(request, refusal, retry_after_ms)| Frame::Nack {
            request,
            refusal,
            retry_after_ms
        }),
        (any::<u8>(), endpoint()).prop_map(|(rail, half)| Frame::Offer { rail, half }),
        endpoint().prop_map(Frame::Accept),
        reason().prop_map(Frame::Decline),
        any::<(u8, u64, u32, u64, bool)>().prop_map(|(rail, fence, chunk, until, refresh)| Frame::Ask(Ask {
            rail,
            fence,
            chunk,
            until,
            refresh
        })),
        any::<(u64, u32, u32)>().prop_map(|(address, key, len)| Frame::Lease(Lease { address, key, len })),
    ]
}

proptest! {
    #[test]
    fn every_frame_comes_back(frame in frame()) {
        let bytes = encode(&frame).unwrap();
        let (prefix, body) = bytes.split_first_chunk().unwrap();
        prop_assert_eq!(body_length(*prefix), Ok(body.len()));
        prop_assert_eq!(decode(body), Ok(frame));
    }

    #[test]
    fn a_cut_or_longer_frame_is_an_error(frame in frame(), cut in any::<prop::sample::Index>()) {
        let bytes = encode(&frame).unwrap();
        let body = &bytes[4..];
        prop_assert!(decode(&body[..cut.index(body.len())]).is_err());
        prop_assert!(decode(&[body, &[0]].concat()).is_err());
    }

    #[test]
    fn garbage_never_panics_and_what_is_accepted_is_canonical(body in proptest::collection::vec(any::<u8>(), 0..200), kind in 1_u8..37) {
        let mut body = body;
        if let Some(first) = body.first_mut() { *first = kind; }
        if let Ok(frame) = decode(&body) {
            prop_assert_eq!(&encode(&frame).unwrap()[4..], &body[..]);
        }
    }
}

#[test]
fn golden_bytes() {
    let want = Want {
        request: 1,
        fence: 2,
        step: 3,
        refresh: true,
        groups: vec![Group { chunk: 4, until: 7, ranges: vec![(5, 6)] }],
    };
    let golden = [
        54, 0, 0, 0, 16, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0,
        0, 4, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0,
    ];
    assert_eq!(encode(&Frame::Want(want)).unwrap(), golden);
    let nack = Frame::Nack { request: 9, refusal: Refusal::Fenced, retry_after_ms: 50 };
    assert_eq!(encode(&nack).unwrap(), [15, 0, 0, 0, 18, 9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 50, 0, 0, 0]);
}

#[test]
fn golden_bytes_of_lanes_over_verbs() {
    let gid = Gid([9; 16]);
    let endpoint = Endpoint { qpn: 1, psn: 2, gid, lid: 3, mtu: PathMtu::Bytes1024, reads: 16 };
    let mut golden = vec![31, 0, 0, 0, 32, 1, 0, 0, 0, 2, 0, 0, 0];
    golden.extend_from_slice(&[9; 16]);
    golden.extend_from_slice(&[3, 0, 0, 4, 16, 5]);
    assert_eq!(encode(&Frame::Offer { rail: 5, half: endpoint }).unwrap(), golden);
    assert_eq!(encode(&Frame::Decline(Reason::NoDevice)).unwrap(), [2, 0, 0, 0, 34, 2]);
    let lease = Frame::Lease(Lease { address: 4, key: 5, len: 6 });
    assert_eq!(encode(&lease).unwrap(), [17, 0, 0, 0, 36, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0]);
}

#[test]
fn counts_beyond_the_bytes_are_refused_before_anything_is_allocated() {
    let mut body = vec![WANT];
    body.extend_from_slice(&[0; 25]);
    body.extend_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(decode(&body), Err(WireError::Malformed { kind: WANT }));
}

#[test]
fn what_cannot_be_framed_is_an_error() {
    let ranges = vec![(0, 1); FRAME_BYTES_MAX / 8];
    let want = Want { groups: vec![Group { chunk: 0, until: 0, ranges }], ..Want::default() };
    assert!(matches!(encode(&Frame::Want(want)), Err(WireError::TooLong { .. })));
    assert!(matches!(body_length(u32::MAX.to_le_bytes()), Err(WireError::TooLong { .. })));
    assert_eq!(decode(&[]), Err(WireError::Empty));
    assert_eq!(decode(&[99]), Err(WireError::Unknown { kind: 99 }));
}

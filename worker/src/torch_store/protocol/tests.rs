//! The decoder against captured bytes, split streams, limits and rubbish.

use proptest::prelude::*;

use super::{Command, CommandLimits, Decoder, Fault, MAGIC, Query, Request, Step};

fn decoder() -> Decoder {
    Decoder::new(CommandLimits::default())
}

/// All requests of a stream, as text; it comes in pieces that end at `cuts`.
fn requests(stream: &[u8], cuts: &[usize]) -> Result<Vec<String>, Fault> {
    let mut decoder = decoder();
    let (mut buffer, mut found) = (Vec::new(), Vec::new());
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
    cuts.sort_unstable();
    cuts.push(stream.len());
    let mut start = 0;
    for end in cuts {
        buffer.extend_from_slice(&stream[start..end]);
        start = end;
        let mut at = 0;
        while let Step::Request(request, used) = decoder.decode(&buffer[at..])? {
            found.push(format!("{request:?}"));
            at += used;
        }
        drop(buffer.drain(..at));
    }
    Ok(found)
}

#[test]
fn captured_commands_are_understood() {
    let connect = b"\x00\xce\xf7\x85\x3c\x0d\x39\x30\x00\x00";
    let mut decoder = decoder();
    assert_eq!(decoder.decode(connect), Ok(Step::Request(Request::Validate(MAGIC), 5)));
    assert_eq!(decoder.decode(&connect[5..]), Ok(Step::Request(Request::Ping(12345), 5)));
    let set = b"\x01\x02\0\0\0\0\0\0\0/k\x01\0\0\0\0\0\0\0v";
    assert_eq!(decoder.decode(set), Ok(Step::Request(Request::Set(b"/k", b"v"), 20)));
    let add = b"\x04\x02\0\0\0\0\0\0\0/n\xfe\xff\xff\xff\xff\xff\xff\xff";
    assert_eq!(decoder.decode(add), Ok(Step::Request(Request::Add(b"/n", -2), 19)));
}

#[test]
fn what_the_encoder_makes_is_what_torch_sends() {
    let connect = [
        Command::new(Query::Validate).word(MAGIC).into_bytes(),
        Command::new(Query::Ping).word(12345).into_bytes(),
    ];
    assert_eq!(connect.concat(), b"\x00\xce\xf7\x85\x3c\x0d\x39\x30\x00\x00");
    let set = Command::new(Query::Set).bytes(b"/k").bytes(b"v").into_bytes();
    assert_eq!(set, b"\x01\x02\0\0\0\0\0\0\0/k\x01\0\0\0\0\0\0\0v");
}

#[test]
fn type_bytes_are_positions() {
    for (byte, query) in (0_u8..).zip(Query::ALL) {
        assert_eq!(query as u8, byte);
    }
}

#[test]
fn limits_are_met_before_the_bytes_come() {
    let limits = CommandLimits::default();
    let too_long = |query, length: i64| Command::new(query).signed(length).into_bytes();
    let decode = |bytes: &[u8]| decoder().decode(bytes).map(|_| ());
    assert_eq!(decode(&too_long(Query::Get, 8 << 10)), Ok(()));
    assert_eq!(decode(&too_long(Query::Get, (8 << 10) + 1)), Err(Fault::KeyTooLong((8 << 10) + 1)));
    assert_eq!(decode(&too_long(Query::Wait, 128 << 10)), Ok(()));
    assert_eq!(decode(&too_long(Query::Wait, (128 << 10) + 1)), Err(Fault::TooManyKeys((128 << 10) + 1)));
    assert_eq!(decode(&too_long(Query::MultiSet, -1)), Err(Fault::TooManyKeys(u64::MAX)));
    let set = |length| Command::new(Query::Set).bytes(b"/k").signed(length).into_bytes();
    assert_eq!(decode(&set(8 << 20)), Ok(()));
    assert_eq!(decode(&set((8 << 20) + 1)), Err(Fault::PayloadTooLong((8 << 20) + 1)));
    assert_eq!(decode(&[19]), Err(Fault::UnknownQuery(19)));
    let tight = CommandLimits { command_bytes: 100, ..limits };
    let long = Command::new(Query::Set).bytes(b"/k").signed(100).into_bytes();
    assert_eq!(Decoder::new(tight).decode(&long), Err(Fault::CommandTooLong(119)));
}

#[test]
fn a_long_command_is_walked_once() {
    // 20,000 keys, a byte at a time: walking from the start each time would be 4 × 10^9 steps.
    let keys: Vec<_> = (0..20_000).map(|key| format!("/key-{key}")).collect();
    let stream = Command::new(Query::Check).keys(&keys).into_bytes();
    let mut decoder = decoder();
    for end in 0..stream.len() {
        assert!(matches!(decoder.decode(&stream[..end]), Ok(Step::Need(need)) if need > end));
    }
    assert!(
        matches!(decoder.decode(&stream), Ok(Step::Request(Request::Check(keys), _)) if keys.left() == 20_000)
    );
}

/// Any command, well formed.
pub(crate) fn command() -> impl Strategy<Value = Vec<u8>> {
    let key = || proptest::sample::select(vec![&b"/a"[..], b"/b", b"init/", b"/queue", b""]);
    let value = || proptest::collection::vec(any::<u8>(), 0..40);
    let keys = || proptest::collection::vec(key(), 0..4);
    let one = |query| key().prop_map(move |key| Command::new(query).bytes(key).into_bytes());
    let many = |query| keys().prop_map(move |keys| Command::new(query).keys(&keys).into_bytes());
    let pair = |query| {
        (key(), value())
            .prop_map(move |(key, value)| Command::new(query).bytes(key).bytes(&value).into_bytes())
    };
    let number = |query| {
        (key(), -3..9_i64).prop_map(move |(key, n)| Command::new(query).bytes(key).signed(n).into_bytes())
    };
    let bare = |query| Just(Command::new(query).into_bytes());
    prop_oneof![
        pair(Query::Set),
        (key(), value(), value()).prop_map(|(key, expected, desired)| {
            Command::new(Query::CompareSet).bytes(key).bytes(&expected).bytes(&desired).into_bytes()
        }),
        one(Query::Get),
        number(Query::Add),
        many(Query::Check),
        many(Query::Wait),
        bare(Query::CountKeys),
        one(Query::Delete),
        pair(Query::Append),
        many(Query::MultiGet),
        proptest::collection::vec((key(), value()), 0..4).prop_map(|pairs| {
            let count = i64::try_from(pairs.len()).unwrap();
            let command = Command::new(Query::MultiSet).signed(count);
            pairs.iter().fold(command, |command, (key, value)| command.bytes(key).bytes(value)).into_bytes()
        }),
        bare(Query::CancelWait),
        any::<u32>().prop_map(|nonce| Command::new(Query::Ping).word(nonce).into_bytes()),
        pair(Query::QueuePush),
        one(Query::QueuePop),
        one(Query::QueueLen),
        bare(Query::ListKeys),
        number(Query::Barrier),
    ]
}

proptest! {
    #[test]
    fn any_split_gives_the_same_requests(
        commands in proptest::collection::vec(command(), 0..12),
        cuts in proptest::collection::vec(any::<usize>(), 0..40),
    ) {
        let stream = commands.concat();
        let whole = requests(&stream, &[]).unwrap();
        prop_assert_eq!(whole.len(), commands.len());
        prop_assert_eq!(&requests(&stream, &cuts).unwrap(), &whole);
        let every: Vec<_> = (0..stream.len()).collect();
        prop_assert_eq!(&requests(&stream, &every).unwrap(), &whole);
    }

    #[test]
    fn rubbish_is_refused_the_same_way_however_it_is_split(
        stream in proptest::collection::vec(prop_oneof![Just(0_u8), 0_u8..20, any::<u8>()], 0..200),
        cuts in proptest::collection::vec(any::<usize>(), 0..40),
    ) {
        prop_assert_eq!(requests(&stream, &cuts).is_err(), requests(&stream, &[]).is_err());
    }
}

//! Archives of every kind, cut anywhere, damaged anywhere.

use proptest::prelude::*;

use super::*;
use crate::dataset::build::ShardTable;
use crate::dataset::{Chunk, index_of};
use crate::integrity::crc32c;

/// An archive as the `tar` crate writes it (GNU headers).
pub(in crate::dataset) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(count(content.len()));
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// One header block, by hand.
fn block(magic: &[u8; 8], kind: u8, name: &[u8], prefix: &[u8], size: u64) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name);
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[156] = kind;
    block[257..265].copy_from_slice(magic);
    block[345..345 + prefix.len()].copy_from_slice(prefix);
    seal(&mut block);
    block
}

/// Puts the right checksum in.
fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u64 = block[..512].iter().map(|byte| u64::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// An entry with payload and padding.
fn entry(magic: &[u8; 8], kind: u8, name: &[u8], prefix: &[u8], content: &[u8]) -> Vec<u8> {
    let mut bytes = block(magic, kind, name, prefix, count(content.len()));
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

const USTAR: &[u8; 8] = b"ustar\x0000";
const GNU: &[u8; 8] = b"ustar  \0";
const END: [u8; 1024] = [0; 1024];

type Found = Vec<(u64, String, Vec<u8>)>;

fn scan_in(bytes: &[u8], piece: usize) -> Result<Found, DatasetFault> {
    let mut scanner = Scanner::new(count(bytes.len()));
    let mut found = Vec::new();
    for mut input in bytes.chunks(piece) {
        loop {
            let (used, event) = scanner.next(input)?;
            input = &input[used..];
            match event {
                Event::More => break,
                Event::Entry(entry) => found.push((entry.offset, entry.name, Vec::new())),
                Event::Data(piece) => found.last_mut().unwrap().2.extend(piece),
                Event::Refused(fault) => return Err(fault),
                Event::EntryEnd | Event::Skipped | Event::End => {}
            }
        }
        assert!(input.is_empty());
    }
    scanner.finish()?;
    Ok(found)
}

fn scan(bytes: &[u8]) -> Result<Found, DatasetFault> {
    let whole = scan_in(bytes, usize::MAX);
    for piece in [1, 7, 511, 512, 513] {
        assert_eq!(scan_in(bytes, piece), whole, "in pieces of {piece}");
    }
    whole
}

#[test]
fn what_common_writers_make() {
    let long = format!("{}/{}.jpg", "directory".repeat(20), "name".repeat(40));
    let bytes = archive(&[("a.jpg", b"one"), (&long, &[7; 600]), ("b.empty", b"")]);
    let found = scan(&bytes).unwrap();
    assert_eq!(found[0], (0, "a.jpg".into(), b"one".to_vec()));
    // The long name has an entry of its own in front: the sample begins there.
    assert_eq!(found[1], (1024, long, vec![7; 600]));
    assert_eq!((found[2].1.as_str(), found[2].2.len()), ("b.empty", 0));
    assert_eq!(found.len(), 3);
}

#[test]
fn ustar_prefixes_and_what_gnu_keeps_in_their_place() {
    let mut bytes = entry(USTAR, b'0', b"c.txt", b"a/b", b"x");
    bytes.extend(entry(GNU, 0, b"d.txt", b"12345", b"y"));
    bytes.extend(entry(b"\0\0\0\0\0\0\0\0", b'7', &[b'n'; 100], b"zz", b"z"));
    bytes.extend(END);
    let found = scan(&bytes).unwrap();
    let names: Vec<_> = found.iter().map(|(_, name, _)| name.as_str()).collect();
    assert_eq!(names, ["a/b/c.txt", "d.txt", &"n".repeat(100)]);
}

#[test]
fn pax_overrides_hold_for_one_entry_or_for_all() {
    let mut bytes = entry(USTAR, b'g', b"global", b"", b"12 path=g.x\n");
    bytes.extend(entry(USTAR, b'0', b"one.x", b"", b"1"));
    bytes.extend(entry(USTAR, b'x', b"local", b"", "16 path=\u{e9}t\u{e9}.y\n10 size=2\n".as_bytes()));
    // The header's own size is wrong; the extension's counts.
    let mut two = entry(USTAR, b'0', b"two", b"", b"22");
    two[124..136].copy_from_slice(b"00000000000\0");
    seal(&mut two);
    bytes.extend(two);
    bytes.extend(entry(USTAR, b'0', b"three.x", b"", b"3"));
    bytes.extend(END);
    let found = scan(&bytes).unwrap();
    assert_eq!(found[0], (0, "g.x".into(), b"1".to_vec()));
    assert_eq!(found[1], (2048, "\u{e9}t\u{e9}.y".into(), b"22".to_vec()));
    assert_eq!(found[2].1, "g.x");
}

#[test]
fn a_size_in_base_256() {
    let mut bytes = entry(GNU, b'0', b"a.b", b"", b"abc");
    bytes[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
    seal(&mut bytes);
    bytes.extend(END);
    assert_eq!(scan(&bytes).unwrap()[0].2, b"abc");
    bytes[125] = 0x7F;
    seal(&mut bytes);
    assert_eq!(scan(&bytes).unwrap_err().code, FaultCode::TarHeader);
}

#[test]
fn a_cut_is_noticed_wherever_it_is() {
    let bytes = archive(&[("a.jpg", &[1; 700]), ("b.jpg", b"2")]);
    let end = bytes.len() - 1024;
    for cut in 0..end + 512 {
        let fault = scan_in(&bytes[..cut], usize::MAX).unwrap_err();
        assert_eq!(fault.code, FaultCode::Truncated, "{cut}");
        assert!(fault.offset.is_some());
    }
    // One block of zeros is an end; what follows is padding.
    scan(&bytes[..end + 512]).unwrap();
    scan(&bytes[..end + 700]).unwrap();
}

#[test]
fn every_flipped_bit_of_a_header_is_noticed() {
    let bytes = archive(&[("a.jpg", b"1")]);
    for bit in 0..512 * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let result = scan_in(&damaged, usize::MAX);
        // The checksum's own last two bytes, and the case of octal blanks, carry no information.
        if (148..156).contains(&(bit / 8)) && result.is_ok() {
            continue;
        }
        assert_eq!(result.unwrap_err().code, FaultCode::TarHeader, "bit {bit}");
    }
}

#[test]
fn what_comes_behind_the_end_is_a_fault() {
    let one = archive(&[("a.jpg", b"1")]);
    let both = [one.clone(), archive(&[("b.jpg", b"2")])].concat();
    let fault = scan(&both).unwrap_err();
    assert_eq!((fault.code, fault.offset), (FaultCode::TrailingBytes, Some(count(one.len()))));
    assert!(fault.hint.contains("--concatenate"), "{fault}");
}

#[test]
fn links_devices_and_sparse_files_are_refused() {
    for kind in [b'1', b'2', b'3', b'6', b'S', b'M', b'?'] {
        let bytes = [block(GNU, kind, b"a.jpg", b"", 0), END.to_vec()].concat();
        let fault = scan(&bytes).unwrap_err();
        assert_eq!((fault.code, fault.offset), (FaultCode::TarEntryKind, Some(0)), "{kind}");
    }
    let mut bytes = entry(USTAR, b'x', b"pax", b"", b"22 GNU.sparse.major=1\n");
    bytes.extend(entry(USTAR, b'0', b"a.jpg", b"", b"1"));
    bytes.extend(END);
    assert_eq!(scan(&bytes).unwrap_err().code, FaultCode::TarEntryKind);
}

#[test]
fn announced_lengths_cost_nothing() {
    let huge = block(GNU, b'L', b"././@LongLink", b"", 1 << 32);
    assert_eq!(scan(&[huge, END.to_vec()].concat()).unwrap_err().code, FaultCode::Truncated);
    let large = entry(GNU, b'L', b"././@LongLink", b"", &vec![b'n'; (1 << 20) + 1]);
    let fault = scan_in(&[large, END.to_vec()].concat(), usize::MAX).unwrap_err();
    assert_eq!(fault.code, FaultCode::TarHeader);
    let long = entry(GNU, b'L', b"././@LongLink", b"", &[b'n'; MAX_NAME_BYTES + 1]);
    let named = [long, entry(GNU, b'0', b"a", b"", b""), END.to_vec()].concat();
    assert_eq!(scan_in(&named, usize::MAX).unwrap_err().code, FaultCode::BadName);
    let dangling = [entry(GNU, b'L', b"././@LongLink", b"", b"a.jpg\0"), END.to_vec()].concat();
    assert_eq!(scan(&dangling).unwrap_err().code, FaultCode::TarHeader);
}

/// A shard's table, fed in pieces.
fn index_in(bytes: &[u8], piece: usize, chunk_bytes: u32) -> Result<ShardTable, Vec<DatasetFault>> {
    let mut indexer = TarIndexer::new(count(bytes.len()), chunk_bytes);
    for piece in bytes.chunks(piece) {
        if !indexer.feed(piece) {
            break;
        }
    }
    indexer.finish()
}

/// The content of every sample as fields and bytes, after a check of every checksum against the archive's bytes.
fn samples(bytes: &[u8], table: &ShardTable) -> Vec<Vec<(String, Vec<u8>)>> {
    let mut samples = Vec::new();
    let mut from = 0;
    for chunk in &table.chunks {
        let raw = chunk_bytes(bytes, chunk);
        assert_eq!(crc32c(raw), chunk.crc32c);
        assert_eq!(chunk.first_sample.0, count(samples.len()));
        for _ in 0..chunk.samples {
            let to = index_of(table.span_ends[samples.len()].into());
            let spans = &table.spans[from..to];
            let content = |span: &crate::dataset::FieldSpan| {
                let offset = index_of(span.offset.into());
                raw[offset..offset + index_of(span.len.into())].to_vec()
            };
            let joined: Vec<u8> = spans.iter().flat_map(content).collect();
            assert_eq!(crc32c(&joined), table.sample_crcs[samples.len()]);
            let named = |span| (table.fields[usize::from(span_field(span))].clone(), content(span));
            samples.push(spans.iter().map(named).collect());
            from = to;
        }
    }
    assert_eq!(samples.len(), table.sample_crcs.len());
    samples
}

fn span_field(span: &crate::dataset::FieldSpan) -> u16 {
    span.field
}

fn chunk_bytes<'a>(bytes: &'a [u8], chunk: &Chunk) -> &'a [u8] {
    &bytes[index_of(chunk.offset)..index_of(chunk.offset + u64::from(chunk.len))]
}

#[test]
fn files_become_samples_by_the_convention() {
    let mut bytes = block(GNU, b'5', b"train/", b"", 0);
    for (name, content) in [
        ("__header__", "left out"),
        ("train/000.jpg", "j0"),
        ("train/000.seg.PNG", "s0"),
        ("train/._001.jpg", "a Mac's"),
        ("train/001.jpg", "j1"),
        ("v1.0/001.jpg", "a dot in a folder's name"),
    ] {
        bytes.extend(entry(GNU, b'0', name.as_bytes(), b"", content.as_bytes()));
    }
    bytes.extend(END);
    for piece in [1, 512, 777, usize::MAX] {
        for chunk in [1, 2500, 1 << 20] {
            let table = index_in(&bytes, piece, chunk).unwrap();
            let found = samples(&bytes, &table);
            let field = |name: &str, content: &str| (name.to_owned(), content.as_bytes().to_vec());
            assert_eq!(found[0], [field("jpg", "j0"), field("seg.png", "s0")]);
            assert_eq!(found[1], [field("jpg", "j1")]);
            assert_eq!(found[2], [field("jpg", "a dot in a folder's name")]);
            assert_eq!(found.len(), 3);
            // The samples have 3 KiB (with the Mac's file in between), 1 KiB and 1 KiB.
            let chunks = match chunk {
                1 => 3,
                2500 => 2,
                _ => 1,
            };
            assert_eq!(table.chunks.len(), chunks);
            assert_eq!(table.chunks[0].offset, 512 + 1024);
        }
    }
}

#[test]
fn a_large_file_that_is_left_out_is_not_read_with_a_chunk() {
    let junk = vec![1; 100 << 10];
    let bytes = archive(&[("a.x", b"1"), (".junk", &junk), ("b.x", b"2"), (".small", b"s"), ("c.x", b"3")]);
    let table = index_in(&bytes, 4096, 1 << 20).unwrap();
    assert_eq!(samples(&bytes, &table).len(), 3);
    let lens: Vec<_> = table.chunks.iter().map(|chunk| (chunk.len, chunk.samples)).collect();
    assert_eq!(lens, [(1024, 1), (3 * 1024, 2)]);
}

#[test]
fn what_is_wrong_with_samples_is_said_all_at_once() {
    let bytes = archive(&[("a.x", b"1"), ("a.X", b"1"), ("README", b"2"), ("b.x", b"3")]);
    let faults = index_in(&bytes, 4096, 1 << 20).unwrap_err();
    let codes: Vec<_> = faults.iter().map(|fault| (fault.code, fault.offset.unwrap())).collect();
    assert_eq!(codes, [(FaultCode::DuplicateField, 1024), (FaultCode::NoField, 2048)]);
    let bytes = archive(&[("a.x", b"1"), ("b.x", b"1"), ("a.y", b"2")]);
    let faults = index_in(&bytes, 4096, 1 << 20).unwrap_err();
    assert_eq!((faults[0].code, faults[0].offset), (FaultCode::SampleSplit, Some(2048)));
    assert!(faults[0].hint.contains("--sort=name"));
    let names: Vec<_> = (0..=crate::dataset::MAX_FIELDS).map(|at| format!("a.{at}")).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    assert_eq!(index_in(&archive(&files), 4096, 1 << 20).unwrap_err()[0].code, FaultCode::TooMany);
}

#[test]
fn a_sample_that_is_too_large_is_refused_without_reading_it_into_memory() {
    let len = u64::from(crate::dataset::MAX_CHUNK_BYTES) - 511;
    let head = block(GNU, b'0', b"a.x", b"", len);
    let mut indexer = TarIndexer::new(len + 512 + 511 + 1024, 1 << 20);
    assert!(indexer.feed(&head));
    let piece = vec![0; 1 << 20];
    for _ in 0..len.div_ceil(1 << 20) {
        indexer.feed(&piece);
    }
    indexer.feed(&[0; 1024]);
    let faults = indexer.finish().unwrap_err();
    assert_eq!((faults[0].code, faults[0].offset), (FaultCode::SampleTooLarge, Some(0)));
}

proptest! {
    #[test]
    fn any_samples_come_back_whatever_the_pieces(
        sizes in proptest::collection::vec(proptest::collection::vec(0usize..2000, 1..4), 1..20),
        piece in 1usize..5000,
        chunk in 1u32..10_000,
    ) {
        let mut files = Vec::new();
        let mut expected = Vec::new();
        for (sample, sizes) in sizes.iter().enumerate() {
            let fields: Vec<_> = sizes.iter().enumerate().map(|(field, size)| {
                let content: Vec<u8> = (0..*size).map(|at| u8::try_from((at * 7 + sample + field) % 251).unwrap()).collect();
                (format!("f{field}"), content)
            }).collect();
            files.extend(fields.iter().map(|(field, content)| (format!("{sample:04}.{field}"), content.clone())));
            expected.push(fields);
        }
        let files: Vec<_> = files.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
        let bytes = archive(&files);
        let table = index_in(&bytes, piece, chunk).unwrap();
        prop_assert_eq!(samples(&bytes, &table), expected);
        for at in &table.chunks {
            prop_assert!(at.len <= chunk || at.samples == 1);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000), piece in 1usize..3000) {
        drop(index_in(&bytes, piece, 1000));
    }

    #[test]
    fn damaged_archives_never_panic(
        damage in proptest::collection::vec((0usize..8000, any::<u8>()), 1..5),
        sealed in any::<bool>(),
        piece in 1usize..3000,
    ) {
        let long = "n".repeat(150) + ".x";
        let mut bytes = archive(&[("a.x", b"1"), (&long, &[2; 700]), ("b.y", b"3")]);
        bytes.extend(entry(USTAR, b'x', b"pax", b"", b"12 path=c.d\n"));
        for (at, byte) in damage {
            let at = at % bytes.len();
            bytes[at] = byte;
            if sealed {
                let start = at / 512 * 512;
                seal(&mut bytes[start..start + 512]);
            }
        }
        drop(index_in(&bytes, piece, 1000));
    }
}

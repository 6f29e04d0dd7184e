//! One header block of a tar archive, and the extensions that override it (pure).

use super::{DatasetFault, FaultCode, REWRITE, name_from};

/// Archives are made of blocks of this size.
pub(super) const BLOCK_BYTES: usize = 512;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    /// Without payload, and named so in messages.
    Link(&'static str),
    Pax,
    PaxGlobal,
    GnuLongName,
    GnuLongLink,
    Unknown,
}

impl Kind {
    pub(super) fn is_extension(self) -> bool {
        matches!(self, Self::Pax | Self::PaxGlobal | Self::GnuLongName | Self::GnuLongLink)
    }

    fn of(flag: u8) -> Self {
        match flag {
            b'0' | 0 | b'7' => Self::File,
            b'1' => Self::Link("a hard link"),
            b'2' => Self::Link("a symbolic link"),
            b'3' | b'4' => Self::Link("a device"),
            b'5' => Self::Directory,
            b'6' => Self::Link("a pipe"),
            // A volume's label has no payload either.
            b'V' => Self::Directory,
            b'x' | b'X' => Self::Pax,
            b'g' => Self::PaxGlobal,
            b'L' => Self::GnuLongName,
            b'K' => Self::GnuLongLink,
            _ => Self::Unknown,
        }
    }
}

/// The numbers of a header block, and the block for its name.
#[derive(Debug)]
pub(super) struct Header<'a> {
    pub(super) kind: Kind,
    /// Payload bytes that follow the header.
    pub(super) size: u64,
    block: &'a [u8; BLOCK_BYTES],
}

impl<'a> Header<'a> {
    /// Checks the checksum first: everything else in a damaged header means nothing.
    pub(super) fn parse(block: &'a [u8; BLOCK_BYTES]) -> Result<Self, DatasetFault> {
        let wrong = |message| DatasetFault::new(FaultCode::TarHeader, message, HEADER_HINT);
        let stated = number(&block[148..156]).ok_or_else(|| wrong("a header's checksum is no number"))?;
        let (unsigned, signed) = checksums(block);
        // Some old writers summed signed characters.
        if stated != unsigned && i64::try_from(stated) != Ok(signed) {
            return Err(wrong("a header's checksum does not match"));
        }
        let size = number(&block[124..136]).filter(|size| i64::try_from(*size).is_ok());
        let size = size.ok_or_else(|| wrong("an entry's size is no number"))?;
        Ok(Self { kind: Kind::of(block[156]), size, block })
    }

    /// The name that stands in the block itself.
    pub(super) fn name(&self) -> Result<String, DatasetFault> {
        let name = until_nul(&self.block[..100]);
        let prefix = until_nul(&self.block[345..500]);
        // GNU's own format ("ustar" and two blanks) keeps other things where POSIX keeps the prefix.
        if &self.block[257..263] == b"ustar\0" && !prefix.is_empty() {
            return name_from(&[prefix, b"/", name].concat());
        }
        name_from(name)
    }
}

const HEADER_HINT: &str = "the shard is damaged, compressed or no tar archive: copy or write it again";

/// What extensions say about the next entry, or about all.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    pub(super) path: Option<String>,
    pub(super) size: Option<u64>,
    pub(super) sparse: bool,
    /// An extension was there, whatever it said: an entry must follow.
    pub(super) begun: bool,
}

impl Overrides {
    /// Records `LENGTH KEY=VALUE\n`, where the length counts the whole record. An empty value takes an override back.
    pub(super) fn read_pax(&mut self, content: &[u8]) -> Result<(), DatasetFault> {
        let wrong = || DatasetFault::new(FaultCode::TarHeader, "a pax extension is malformed", REWRITE);
        let mut rest = content;
        while !rest.is_empty() {
            let digits = rest.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
            let length =
                decimal(&rest[..digits]).and_then(|length| usize::try_from(length).ok()).ok_or_else(wrong)?;
            let record = rest
                .get(digits + 1..length)
                .and_then(|record| record.strip_suffix(b"\n"))
                .ok_or_else(wrong)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" if value.is_empty() => self.path = None,
                b"path" => self.path = Some(name_from(value)?),
                b"size" if value.is_empty() => self.size = None,
                b"size" => {
                    let size = decimal(value).filter(|size| i64::try_from(*size).is_ok());
                    self.size = Some(size.ok_or_else(wrong)?);
                }
                _ => self.sparse |= key.starts_with(b"GNU.sparse."),
            }
            rest = &rest[length..];
        }
        Ok(())
    }

    /// The name, ended by a NUL.
    pub(super) fn read_long_name(&mut self, content: &[u8]) -> Result<(), DatasetFault> {
        self.path = Some(name_from(until_nul(content))?);
        Ok(())
    }
}

/// The sum of all bytes, with the checksum's own eight read as blanks; and the same of signed bytes.
fn checksums(block: &[u8; BLOCK_BYTES]) -> (u64, i64) {
    let high = block.iter().map(|byte| u64::from(*byte >> 7)).sum::<u64>() - high_bits(&block[148..156]);
    let sum = block.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    let own = block[148..156].iter().map(|byte| u64::from(*byte)).sum::<u64>();
    let unsigned = sum - own + 8 * u64::from(b' ');
    // Each byte with its high bit set counts 256 less.
    (unsigned, i64::try_from(unsigned).unwrap_or(0) - 256 * i64::try_from(high).unwrap_or(0))
}

fn high_bits(bytes: &[u8]) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte >> 7)).sum()
}

/// Octal digits among blanks and NULs; or, with the first bit set, a big-endian number of the other bits.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        // 0xFF begins a negative number.
        let first = u64::from(field[0] & 0x7F);
        return field[1..]
            .iter()
            .try_fold(first, |number, byte| (number >> 56 == 0).then(|| number << 8 | u64::from(*byte)));
    }
    let text = field.trim_ascii_start();
    let digits = text.iter().position(|byte| matches!(byte, b' ' | 0)).unwrap_or(text.len());
    text[..digits].iter().try_fold(0u64, |number, byte| {
        let digit = matches!(byte, b'0'..=b'7').then(|| u64::from(*byte - b'0'))?;
        number.checked_mul(8)?.checked_add(digit)
    })
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 20 {
        return None;
    }
    digits.iter().try_fold(0u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(*byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_both_notations() {
        assert_eq!(number(b"00000000017\0"), Some(15));
        assert_eq!(number(b"     17 \0\0\0\0"), Some(15));
        assert_eq!(number(&[0; 12]), Some(0));
        assert_eq!(number(b"0000000008\0\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]), Some(258));
        assert_eq!(number(&[0xFF; 12]), None);
    }

    #[test]
    fn pax_records_count_themselves() {
        let mut overrides = Overrides::default();
        overrides.read_pax(b"12 path=a.b\n10 size=7\n13 mtime=1.5\n").unwrap();
        assert_eq!((overrides.path.as_deref(), overrides.size), (Some("a.b"), Some(7)));
        overrides.read_pax(b"8 path=\n").unwrap();
        assert_eq!(overrides.path, None);
        for wrong in
            [&b"99 path=a\n"[..], b"x path=a\n", b"11 path=a.b\n", b"3 \n", b"0 ", b"10 size=-\n", b"12 path"]
        {
            assert!(Overrides::default().read_pax(wrong).is_err(), "{}", String::from_utf8_lossy(wrong));
        }
    }
}

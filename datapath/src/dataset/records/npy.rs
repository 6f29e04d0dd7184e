//! The header of a `.npy` file (pure): `\x93NUMPY`, version, length, and a Python dictionary of three known keys.

use super::Dtype;
use crate::dataset::{DatasetFault, FaultCode, count};

/// Longest header that is read, in bytes. NumPy itself refuses more than 10 000 characters unless told otherwise.
pub const MAX_NPY_HEADER_BYTES: usize = 64 << 10;

/// Most dimensions that are read; two are served.
const MAX_DIMENSIONS: usize = 32;

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// What a `.npy` header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NpyHeader {
    /// Type of an item.
    pub dtype: Dtype,
    /// Length of each dimension, slowest first.
    pub shape: Vec<u64>,
    /// Where the items begin in the file.
    pub data_offset: u64,
}

impl NpyHeader {
    /// Bytes of all items; `None` if that overflows.
    pub fn data_bytes(&self) -> Option<u64> {
        let items = self.shape.iter().try_fold(1u64, |product, length| product.checked_mul(*length))?;
        items.checked_mul(self.dtype.bytes().into())
    }
}

/// Reads the header from a file's first bytes: `prefix` is the whole file or at least [`MAX_NPY_HEADER_BYTES`] of it.
pub fn parse_npy(prefix: &[u8]) -> Result<NpyHeader, DatasetFault> {
    let Some(rest) = prefix.strip_prefix(MAGIC) else {
        return Err(refuse("it does not begin like a .npy file", "save it with numpy.save").at(0));
    };
    let Some((&[major, _minor], rest)) = rest.split_first_chunk::<2>() else { return Err(truncated(prefix)) };
    let (length, rest) = match major {
        1 => match rest.split_first_chunk::<2>() {
            Some((length, rest)) => (usize::from(u16::from_le_bytes(*length)), rest),
            None => return Err(truncated(prefix)),
        },
        2 | 3 => match rest.split_first_chunk::<4>() {
            Some((length, rest)) => {
                (usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX), rest)
            }
            None => return Err(truncated(prefix)),
        },
        other => {
            let message = format!("version {other} of the .npy format is not known");
            return Err(refuse(message, "save it with numpy.save").at(6));
        }
    };
    let before = prefix.len() - rest.len();
    if length > MAX_NPY_HEADER_BYTES - before {
        let message = format!("its header has {length} bytes, more than {MAX_NPY_HEADER_BYTES}");
        return Err(refuse(message, "save a plain array of numbers").at(8));
    }
    let Some(header) = rest.get(..length) else { return Err(truncated(prefix)) };
    let text = std::str::from_utf8(header)
        .map_err(|_| refuse("its header is no text", "save it with numpy.save").at(10))?;
    let (dtype, shape) = dictionary(text).map_err(|fault| fault.at(count(before)))?;
    Ok(NpyHeader { dtype, shape, data_offset: count(before + length) })
}

fn truncated(prefix: &[u8]) -> DatasetFault {
    DatasetFault::new(FaultCode::Truncated, "the file ends inside its .npy header", "copy the file again")
        .at(count(prefix.len()))
}

fn refuse(message: impl Into<String>, hint: &str) -> DatasetFault {
    DatasetFault::new(FaultCode::Npy, message, hint)
}

fn dictionary(text: &str) -> Result<(Dtype, Vec<u64>), DatasetFault> {
    let bad = || refuse("its header is not the dictionary that numpy.save writes", "save it with numpy.save");
    let (mut dtype, mut shape, mut fortran) = (None, None, None);
    let mut literal = Literal(text);
    literal.token("{").ok_or_else(bad)?;
    while literal.token("}").is_none() {
        let key = literal.string().ok_or_else(bad)?;
        literal.token(":").ok_or_else(bad)?;
        match key {
            "descr" if literal.peek('[') => {
                let hint = "save each field as an array of its own, or write tar shards";
                return Err(refuse("its items are structures of several fields", hint));
            }
            "descr" => dtype = Some(descr(literal.string().ok_or_else(bad)?)?),
            "fortran_order" => fortran = Some(literal.boolean().ok_or_else(bad)?),
            "shape" => shape = Some(literal.tuple().ok_or_else(bad)?),
            _ => return Err(bad()),
        }
        if literal.token(",").is_none() {
            literal.token("}").ok_or_else(bad)?;
            break;
        }
    }
    if !literal.0.trim().is_empty() {
        return Err(bad());
    }
    let (Some(dtype), Some(shape), Some(fortran)) = (dtype, shape, fortran) else { return Err(bad()) };
    // One dimension has the same bytes in both orders.
    if fortran && shape.len() > 1 {
        return Err(refuse("it is stored column by column", "save numpy.ascontiguousarray(array)"));
    }
    Ok((dtype, shape))
}

/// NumPy's type string: byte order (`<`, `>`, `|`, `=`), kind and size.
fn descr(text: &str) -> Result<Dtype, DatasetFault> {
    let order = text.chars().next().unwrap_or(' ');
    let code = text.strip_prefix(['<', '>', '|', '=']).unwrap_or(text);
    if code.starts_with('O') {
        let hint = "save an array of numbers: objects are pickled code, which is never loaded";
        return Err(refuse("its items are Python objects", hint));
    }
    let Some(dtype) = Dtype::from_numpy_code(code) else {
        let message = format!("its items are of type {:?}", text.chars().take(32).collect::<String>());
        return Err(refuse(message, "convert it with array.astype to a plain integer or float type"));
    };
    match order {
        '<' => Ok(dtype),
        '|' if dtype.bytes() == 1 => Ok(dtype),
        '>' if dtype.bytes() == 1 => Ok(dtype),
        '>' => Err(refuse(
            "its items are big-endian",
            "convert it with array.astype(array.dtype.newbyteorder('<'))",
        )),
        _ => Err(refuse("its items have no byte order", "save it with numpy.save")),
    }
}

/// What is left of a Python literal. Every method skips blanks in front.
struct Literal<'a>(&'a str);

impl<'a> Literal<'a> {
    fn token(&mut self, token: &str) -> Option<()> {
        self.0 = self.0.trim_start().strip_prefix(token)?;
        Some(())
    }

    fn peek(&self, token: char) -> bool {
        self.0.trim_start().starts_with(token)
    }

    fn string(&mut self) -> Option<&'a str> {
        let text = self.0.trim_start();
        let quote = text.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
        let (string, rest) = text[1..].split_once(quote)?;
        self.0 = rest;
        // None of the strings that are known has an escape.
        (!string.contains('\\')).then_some(string)
    }

    fn boolean(&mut self) -> Option<bool> {
        match self.token("True") {
            Some(()) => Some(true),
            None => self.token("False").map(|()| false),
        }
    }

    fn number(&mut self) -> Option<u64> {
        let text = self.0.trim_start();
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number = text[..digits].parse().ok()?;
        // Python 2 wrote `10L`.
        let rest = &text[digits..];
        self.0 = rest.strip_prefix('L').unwrap_or(rest);
        Some(number)
    }

    fn tuple(&mut self) -> Option<Vec<u64>> {
        self.token("(")?;
        let mut numbers = Vec::new();
        while self.token(")").is_none() {
            if numbers.len() == MAX_DIMENSIONS {
                return None;
            }
            numbers.push(self.number()?);
            if self.token(",").is_none() {
                self.token(")")?;
                break;
            }
        }
        Some(numbers)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file's first bytes, padded as NumPy does.
    fn file(major: u8, text: &str) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([major, 0]);
        let length = text.len() + 1;
        if major == 1 {
            bytes.extend(u16::try_from(length).unwrap().to_le_bytes());
        } else {
            bytes.extend(u32::try_from(length).unwrap().to_le_bytes());
        }
        bytes.extend(text.as_bytes());
        bytes.push(b'\n');
        bytes
    }

    #[test]
    fn what_numpy_writes_in_each_version() {
        for (major, before) in [(1, 10), (2, 12), (3, 12)] {
            let bytes = file(major, "{'descr': '<u2', 'fortran_order': False, 'shape': (10, 20), }      ");
            let header = parse_npy(&bytes).unwrap();
            assert_eq!(header.dtype, Dtype::U16);
            assert_eq!(header.shape, [10, 20]);
            assert_eq!(header.data_offset, count(bytes.len()));
            assert_eq!(
                bytes.len() - before,
                "{'descr': '<u2', 'fortran_order': False, 'shape': (10, 20), }      ".len() + 1
            );
            assert_eq!(header.data_bytes(), Some(400));
        }
        let header = parse_npy(&file(1, "{'shape':(7,),'fortran_order':True,'descr':\"|u1\"}")).unwrap();
        assert_eq!((header.dtype, header.shape), (Dtype::U8, vec![7]));
        let scalar = parse_npy(&file(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (), }")).unwrap();
        assert!(scalar.shape.is_empty());
    }

    #[test]
    fn what_cannot_be_served_is_refused_with_a_way_out() {
        for (text, word) in [
            ("{'descr': '>u2', 'fortran_order': False, 'shape': (3,), }", "newbyteorder"),
            ("{'descr': '<u2', 'fortran_order': True, 'shape': (3, 4), }", "ascontiguousarray"),
            ("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }", "pickled"),
            ("{'descr': [('a', '<u2')], 'fortran_order': False, 'shape': (3,), }", "tar shards"),
            ("{'descr': '<c16', 'fortran_order': False, 'shape': (3,), }", "astype"),
            ("{'descr': '<u2', 'shape': (3,), }", "numpy.save"),
            ("{'descr': '<u2', 'fortran_order': False, 'shape': (-3,), }", "numpy.save"),
            ("{'descr': '<u2', 'fortran_order': False, 'shape': (3,), } x", "numpy.save"),
            ("", "numpy.save"),
        ] {
            let fault = parse_npy(&file(1, text)).unwrap_err();
            assert_eq!(fault.code, FaultCode::Npy, "{text}");
            assert!(fault.hint.contains(word), "{fault}");
        }
        assert_eq!(parse_npy(b"PK\x03\x04 an .npz").unwrap_err().code, FaultCode::Npy);
        assert_eq!(parse_npy(&file(4, "{}")).unwrap_err().code, FaultCode::Npy);
        let bytes = file(1, "{'descr': '<u2', 'fortran_order': False, 'shape': (3,), }");
        for cut in 6..bytes.len() - 1 {
            assert_eq!(parse_npy(&bytes[..cut]).unwrap_err().code, FaultCode::Truncated, "{cut}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(major in 0u8..5, text in "[ -~]{0,200}", raw in proptest::collection::vec(any::<u8>(), 0..100)) {
            drop(parse_npy(&file(major, &text)));
            drop(parse_npy(&raw));
            let mut with_magic = MAGIC.to_vec();
            with_magic.extend(&raw);
            drop(parse_npy(&with_magic));
        }

        #[test]
        fn damaged_headers_never_panic(at in 0usize..80, byte in any::<u8>()) {
            let mut bytes = file(2, "{'descr': '<u2', 'fortran_order': False, 'shape': (10, 20), }");
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(header) = parse_npy(&bytes) {
                prop_assert!(header.shape.len() <= MAX_DIMENSIONS);
            }
        }
    }
}

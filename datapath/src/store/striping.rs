//! How a shard lies in objects of a pool (pure): whole in one, or striped as Ceph's own `libradosstriper` does it.
//!
//! A striped shard `name` is the objects `name.%016x`. Its bytes are cut into stripe units, which go round over
//! `stripe_count` objects; when those are full (`object_size`), the next set of objects follows. Object 0 carries the layout
//! as extended attributes, as decimal text. So `rados --striper put` and `get` work on the same shards.

use crate::dataset::index_of;

/// The attribute of object 0 with the shard's size. A shard without it is not complete.
pub(super) const SIZE: &str = "striper.size";
/// The attributes with the layout.
pub(super) const STRIPE_UNIT: &str = "striper.layout.stripe_unit";
pub(super) const STRIPE_COUNT: &str = "striper.layout.stripe_count";
pub(super) const OBJECT_SIZE: &str = "striper.layout.object_size";

/// The size of an object that we write: what RBD, CephFS and the object gateway use, and OSDs are tuned for.
pub(super) const OBJECT_BYTES: u64 = 4 << 20;

/// Pieces of one read at the most: a chunk of 64 MiB in units of 4 KiB.
const PIECES_MAX: usize = 1 << 14;

/// How a striped shard is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Striping {
    pub(super) stripe_unit: u64,
    pub(super) stripe_count: u64,
    pub(super) object_size: u64,
}

/// A run of bytes in one object, and where it belongs in what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// The object's number.
    pub(super) object: u64,
    /// Where in the object.
    pub(super) offset: u64,
    /// Where in the memory that is filled.
    pub(super) at: usize,
    pub(super) len: usize,
}

impl Striping {
    /// What we write: one object after the other.
    pub(super) const OURS: Self =
        Self { stripe_unit: OBJECT_BYTES, stripe_count: 1, object_size: OBJECT_BYTES };

    /// A layout as it was found; none when it is not one.
    pub(super) fn checked(stripe_unit: u64, stripe_count: u64, object_size: u64) -> Option<Self> {
        let sound = stripe_unit > 0
            && (1..=1 << 16).contains(&stripe_count)
            && object_size > 0
            && object_size.is_multiple_of(stripe_unit)
            && object_size <= 1 << 40;
        sound.then_some(Self { stripe_unit, stripe_count, object_size })
    }

    /// The pieces of `offset..offset + len`, in the order of its bytes; neighbours in one object are one piece. None when
    /// there are too many, or the range passes the end of numbers.
    pub(super) fn pieces(&self, offset: u64, len: usize) -> Option<Vec<Piece>> {
        let units_per_object = self.object_size / self.stripe_unit;
        let mut pieces: Vec<Piece> = Vec::new();
        let mut done = 0;
        while done < len {
            let from = offset.checked_add(u64::try_from(done).ok()?)?;
            let (unit, within) = (from / self.stripe_unit, from % self.stripe_unit);
            let (stripe, column) = (unit / self.stripe_count, unit % self.stripe_count);
            let (set, row) = (stripe / units_per_object, stripe % units_per_object);
            let piece = Piece {
                object: set * self.stripe_count + column,
                offset: row * self.stripe_unit + within,
                at: done,
                len: index_of(self.stripe_unit - within).min(len - done),
            };
            done += piece.len;
            let end = |last: &Piece| last.offset.checked_add(u64::try_from(last.len).ok()?);
            let follows = |last: &&mut Piece| last.object == piece.object && end(last) == Some(piece.offset);
            if let Some(last) = pieces.last_mut().filter(follows) {
                last.len += piece.len;
            } else if pieces.len() == PIECES_MAX {
                return None;
            } else {
                pieces.push(piece);
            }
        }
        Some(pieces)
    }

    /// How many objects a shard of that size has, the first one always.
    pub(super) fn objects(&self, bytes: u64) -> u64 {
        let set_bytes = self.object_size.saturating_mul(self.stripe_count);
        let (sets, rest) = (bytes / set_bytes, bytes % set_bytes);
        (sets * self.stripe_count + rest.div_ceil(self.stripe_unit).min(self.stripe_count)).max(1)
    }
}

/// The name of a striped shard's object.
pub(super) fn object_name(shard: &str, number: u64) -> String {
    format!("{shard}.{number:016x}")
}

/// The shard and the number that an object's name stands for, if it has the form of a striped shard's object.
pub(super) fn parse_object_name(name: &str) -> Option<(&str, u64)> {
    let (shard, digits) = name.rsplit_once('.')?;
    let is_number = digits.len() == 16
        && digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let number = is_number.then(|| u64::from_str_radix(digits, 16).ok()).flatten()?;
    (!shard.is_empty()).then_some((shard, number))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_object_after_the_other() {
        let pieces = Striping::OURS.pieces(OBJECT_BYTES - 10, 30).unwrap();
        let expected = [
            Piece { object: 0, offset: OBJECT_BYTES - 10, at: 0, len: 10 },
            Piece { object: 1, offset: 0, at: 10, len: 20 },
        ];
        assert_eq!(pieces, expected);
        let sizes = [(0, 1), (1, 1), (OBJECT_BYTES, 1), (OBJECT_BYTES + 1, 2)];
        assert!(sizes.iter().all(|(bytes, objects)| Striping::OURS.objects(*bytes) == *objects));
    }

    /// The example of Ceph's own documentation of striping: units go round over a set of objects.
    #[test]
    fn units_go_round() {
        let striping = Striping::checked(2, 3, 4).unwrap();
        let pieces = striping.pieces(0, 26).unwrap();
        let places: Vec<_> = pieces.iter().map(|piece| (piece.object, piece.offset, piece.len)).collect();
        let first = [(0, 0, 2), (1, 0, 2), (2, 0, 2), (0, 2, 2), (1, 2, 2), (2, 2, 2)];
        let second = first.map(|(object, offset, len)| (object + 3, offset, len));
        assert_eq!(places, [&first[..], &second[..], &[(6, 0, 2)]].concat());
        assert_eq!(striping.objects(26), 7);
    }

    #[test]
    fn what_is_no_layout_is_refused() {
        for (unit, count, size) in [(0, 1, 4), (3, 1, 4), (2, 0, 4), (2, 1, 0), (8, 1, 4), (1, 1, 1 << 41)] {
            assert_eq!(Striping::checked(unit, count, size), None);
        }
        assert_eq!(Striping::checked(1, 2, 1).unwrap().pieces(0, PIECES_MAX + 1), None);
        assert_eq!(Striping::OURS.pieces(u64::MAX - 1, 8), None);
    }

    #[test]
    fn object_names() {
        assert_eq!(object_name("train/a.tar", 255), "train/a.tar.00000000000000ff");
        assert_eq!(parse_object_name("train/a.tar.00000000000000ff"), Some(("train/a.tar", 255)));
        for other in ["a.tar", "a.00000000000000FF", "a.0ff", ".00000000000000ff", "a.00000000000000fg"] {
            assert_eq!(parse_object_name(other), None, "{other}");
        }
    }

    proptest! {
        /// Every byte has one place, no two share one, and each lies inside its object.
        #[test]
        fn bytes_are_where_a_model_puts_them(
            unit in 1_u64..9, count in 1_u64..5, rows in 1_u64..5, offset in 0_u64..300, len in 0_usize..300,
        ) {
            let striping = Striping::checked(unit, count, unit * rows).unwrap();
            let pieces = striping.pieces(offset, len).unwrap();
            let mut next = 0;
            for piece in &pieces {
                prop_assert_eq!(piece.at, next);
                prop_assert!(piece.len > 0);
                next += piece.len;
                prop_assert!(piece.offset + u64::try_from(piece.len).unwrap() <= striping.object_size);
                for at in 0..piece.len {
                    let byte = offset + u64::try_from(piece.at + at).unwrap();
                    // The model walks the bytes of whole sets, stripe by stripe.
                    let set_bytes = unit * count * rows;
                    let (set, inside) = (byte / set_bytes, byte % set_bytes);
                    let (stripe, rest) = (inside / (unit * count), inside % (unit * count));
                    prop_assert_eq!(piece.object, set * count + rest / unit);
                    prop_assert_eq!(piece.offset + u64::try_from(at).unwrap(), stripe * unit + rest % unit);
                    prop_assert!(piece.object < striping.objects(byte + 1));
                }
            }
            prop_assert_eq!(next, len);
        }
    }
}

//! The order of hosts: neighbours in it are neighbours in the fabric (pure).

use std::cmp::Ordering;

use crate::topology::{Fabric, Host};

/// By block, rack, domain and name; what is unknown comes last.
pub(super) fn by_fabric(one: &Host, other: &Host) -> Ordering {
    let (a, b) = (&one.fabric, &other.fabric);
    same_rack_order(a, b)
        .then_with(|| known_first(a.domain.as_deref(), b.domain.as_deref()))
        .then_with(|| natural(&one.name, &other.name))
}

/// By block and rack alone.
pub(super) fn same_rack_order(a: &Fabric, b: &Fabric) -> Ordering {
    known_first(a.block.as_deref(), b.block.as_deref())
        .then_with(|| known_first(a.rack.as_deref(), b.rack.as_deref()))
}

fn known_first(a: Option<&str>, b: Option<&str>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => natural(a, b),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    }
}

/// As people count: `node-2` before `node-10`. Names that differ only in leading zeros keep an order of their own.
pub(super) fn natural(a: &str, b: &str) -> Ordering {
    // Most hosts share their block, and many their rack.
    if a == b {
        return Ordering::Equal;
    }
    let (mut left, mut right) = (a.as_bytes(), b.as_bytes());
    loop {
        let (Some(&x), Some(&y)) = (left.first(), right.first()) else {
            return left.len().cmp(&right.len()).then_with(|| a.cmp(b));
        };
        if x.is_ascii_digit() && y.is_ascii_digit() {
            let (one, one_rest) = number(left);
            let (other, other_rest) = number(right);
            let order = one.len().cmp(&other.len()).then_with(|| one.cmp(other));
            if order != Ordering::Equal {
                return order;
            }
            (left, right) = (one_rest, other_rest);
        } else if x == y {
            (left, right) = (left.get(1..).unwrap_or_default(), right.get(1..).unwrap_or_default());
        } else {
            return x.cmp(&y);
        }
    }
}

/// The digits in front, without leading zeros, and what follows them.
fn number(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let zeros = digits.iter().position(|digit| *digit != b'0').unwrap_or(digits.len());
    (digits.get(zeros..).unwrap_or_default(), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ordered_as_people_count() {
        let mut names = ["n10", "n2", "n2a", "m7", "n02", "n", "n1-rack12", "n1-rack9", ""];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["", "m7", "n", "n1-rack9", "n1-rack12", "n02", "n2", "n2a", "n10"]);
    }

    #[test]
    fn unknown_places_come_last() {
        let fabric = |block: Option<&str>, rack: Option<&str>| Fabric {
            block: block.map(str::to_owned),
            rack: rack.map(str::to_owned),
            domain: None,
        };
        let known = fabric(Some("b"), Some("r10"));
        assert_eq!(same_rack_order(&known, &fabric(Some("b"), None)), Ordering::Less);
        assert_eq!(same_rack_order(&known, &fabric(Some("b"), Some("r9"))), Ordering::Greater);
        assert_eq!(same_rack_order(&fabric(None, Some("a")), &known), Ordering::Greater);
    }
}

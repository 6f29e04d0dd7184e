//! Quantities as the API server writes them (pure): `3920m`, `16Gi`, `1e3`.
//!
//! The syntax is that of `k8s.io/apimachinery/pkg/api/resource.Quantity`. What is offered is rounded down: a part of a
//! unit cannot be had.

use serde_json::Value;

/// Digits of a number at the most, so that the arithmetic stays within 128 bits; 8 EiB in thousandths have 22.
const DIGITS_MAX: usize = 24;
/// Powers of ten at the most: more is no amount of anything.
const EXPONENT_MAX: i32 = 21;

/// Thousandths, rounded down; none where the text is no quantity, is negative, or is more than 64 bits hold.
#[must_use]
pub fn millis(text: &str) -> Option<u64> {
    u64::try_from(parse(text)?).ok()
}

/// Whole units, rounded down.
#[must_use]
pub fn units(text: &str) -> Option<u64> {
    u64::try_from(parse(text)? / 1000).ok()
}

/// A quantity in JSON: text, or a number.
#[must_use]
pub fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn parse(text: &str) -> Option<u128> {
    let text = text.trim().trim_start_matches('+');
    let end = text.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() > DIGITS_MAX || whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = i32::try_from(fraction.len()).ok()?;
    let (factor, exponent) = suffix_of(suffix)?;
    scaled(digits.checked_mul(factor)?, exponent + 3 - scale)
}

/// What a suffix multiplies by: a factor, and a power of ten.
fn suffix_of(suffix: &str) -> Option<(u128, i32)> {
    let binary = |power: u32| Some((1_u128 << power, 0));
    match suffix {
        "n" => Some((1, -9)),
        "u" => Some((1, -6)),
        "m" => Some((1, -3)),
        "" => Some((1, 0)),
        "k" => Some((1, 3)),
        "M" => Some((1, 6)),
        "G" => Some((1, 9)),
        "T" => Some((1, 12)),
        "P" => Some((1, 15)),
        "E" => Some((1, 18)),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            (exponent.abs() <= EXPONENT_MAX).then_some((1, exponent))
        }
    }
}

fn scaled(number: u128, exponent: i32) -> Option<u128> {
    let power = 10_u128.checked_pow(exponent.unsigned_abs());
    if exponent >= 0 { number.checked_mul(power?) } else { Some(power.map_or(0, |power| number / power)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_the_api_server_means_them() {
        for (text, expected) in [
            ("3920m", Some(3920)),
            ("4", Some(4000)),
            ("0.5", Some(500)),
            (".5", Some(500)),
            ("+2.", Some(2000)),
            ("1e3", Some(1_000_000)),
            ("1E3", Some(1_000_000)),
            ("15e-1", Some(1500)),
            ("1E", None),
            ("1Ki", Some(1_024_000)),
            ("1.5Gi", Some(1_610_612_736_000)),
            ("999999n", Some(0)),
            ("2500000u", Some(2500)),
            ("", None),
            ("-1", None),
            (".", None),
            ("1.2.3", None),
            ("1KB", None),
            ("1e99", None),
            ("e3", None),
        ] {
            assert_eq!(millis(text), expected, "{text}");
        }
    }

    #[test]
    fn units_hold_what_a_number_of_bytes_may_be() {
        assert_eq!(units("8Ei"), Some(1 << 63));
        assert_eq!(units("1E"), Some(1_000_000_000_000_000_000));
        assert_eq!(units("65961108Ki"), Some(67_544_174_592));
        assert_eq!(units("1999m"), Some(1));
        assert_eq!(units("16Ei"), None);
        assert_eq!(text(&serde_json::json!(24)).as_deref(), Some("24"));
        assert_eq!(text(&serde_json::json!([])), None);
    }
}

//! Quantities, durations and GPU modes as a user writes them, and as types (pure).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest duration that is accepted: a year. Deadlines are added to clocks, which must not overflow.
pub const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// Why a text is no quantity, duration or mode; fits after "must be …".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{expected}")]
pub struct UnitError {
    /// What it must be.
    pub expected: &'static str,
    /// What to write instead.
    pub hint: String,
}

/// Suffixes of Kubernetes quantities, longest first.
const SUFFIXES: [(&str, u64); 11] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("", 1),
];

impl FromStr for Bytes {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let expected = "a number of bytes with an optional suffix (Ki, Mi, Gi, Ti, Pi, k, M, G, T, P)";
        let refuse = |hint: String| UnitError { expected, hint };
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(split);
        let known = SUFFIXES.iter().find(|(known, _)| *known == suffix);
        let Some((_, factor)) = known else {
            return Err(refuse(suggest_suffix(number, suffix)));
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let parsed = (whole.parse::<u64>(), fraction.parse::<u64>());
        let ((Ok(whole), Ok(tenths)), true) = (parsed, fraction.len() <= 9) else {
            return Err(refuse("write for example 8Gi".to_owned()));
        };
        let scale = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(9));
        let bytes =
            u128::from(whole) * u128::from(*factor) + u128::from(tenths) * u128::from(*factor) / scale;
        match u64::try_from(bytes) {
            Ok(bytes) if i64::try_from(bytes).is_ok() => Ok(Self(bytes)),
            _ => Err(refuse("that is more than 8 EiB".to_owned())),
        }
    }
}

fn suggest_suffix(number: &str, suffix: &str) -> String {
    let letter = suffix.trim_start().chars().next().map(|c| c.to_ascii_uppercase());
    match letter {
        _ if suffix == "m" => "memory has no thousandths; write for example 8Gi".to_owned(),
        Some(c @ ('K' | 'M' | 'G' | 'T' | 'P')) if !number.is_empty() => {
            format!("did you mean {number}{c}i?")
        }
        Some('B') if !number.is_empty() => format!("bytes have no suffix: write {number}"),
        _ => "write for example 8Gi".to_owned(),
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, factor) in
            [("Pi", 1_u64 << 50), ("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)]
        {
            if self.0 >= factor && self.0.is_multiple_of(factor) {
                return write!(f, "{}{name}", self.0 / factor);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// A quantity as written: text with a suffix, or a whole number of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantity(pub String);

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => Ok(Self(text)),
            serde_json::Value::Number(number) => Ok(Self(number.to_string())),
            _ => Err(serde::de::Error::custom("expected a quantity")),
        }
    }
}

impl JsonSchema for Quantity {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["integer", "string"],
            "format": "quantity",
            "x-kubernetes-int-or-string": true
        })
    }
}

/// A duration as written: `1h30m`, `10s`, `250ms`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DurationText(pub String);

impl DurationText {
    /// The duration.
    ///
    /// # Errors
    /// When it is none, or longer than [`DURATION_MAX`].
    pub fn parse(&self) -> Result<Duration, UnitError> {
        parse_duration(&self.0)
    }
}

impl JsonSchema for DurationText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "duration" })
    }
}

/// Numbers with units, largest first or not: `1h30m`, `10s`, `250ms`.
///
/// # Errors
/// When it is none, or longer than [`DURATION_MAX`].
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let refuse = |hint: &str| UnitError {
        expected: "a duration: whole numbers with units (ms, s, m, h, d)",
        hint: hint.to_owned(),
    };
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() || text.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        if !number.is_empty() && unit.is_empty() && after.is_empty() {
            return Err(refuse(&format!("add a unit: {text}s")));
        }
        let milliseconds: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(refuse("write for example 30s, 10m or 1h30m")),
        };
        let number: u64 = number.parse().map_err(|_| refuse("write for example 30s, 10m or 1h30m"))?;
        let part = number.checked_mul(milliseconds).map(Duration::from_millis);
        total = part
            .and_then(|part| total.checked_add(part))
            .filter(|total| *total <= DURATION_MAX)
            .ok_or_else(|| refuse("at most 366d"))?;
        rest = after;
    }
    Ok(total)
}

/// A duration, as short as it can be written: `1h30m`, `250ms`, `0s`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let mut milliseconds = duration.as_millis();
    if milliseconds == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if milliseconds >= size {
            text.push_str(&format!("{}{unit}", milliseconds / size));
            milliseconds %= size;
        }
    }
    text
}

/// How a GPU is had.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GpuMode {
    /// Whole GPUs, nobody else's.
    #[default]
    Exclusive,
    /// GPUs that other workers use too.
    Shared,
    /// A hardware partition.
    Mig {
        /// Its profile: `1g.10gb`.
        profile: String,
    },
}

impl FromStr for GpuMode {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let refuse =
            |hint: &str| UnitError { expected: "exclusive, shared or mig-<profile>", hint: hint.to_owned() };
        match text {
            "exclusive" => Ok(Self::Exclusive),
            "shared" => Ok(Self::Shared),
            "mig" => Err(refuse("name the profile, for example mig-1g.10gb")),
            _ => {
                let profile =
                    text.strip_prefix("mig-").ok_or_else(|| refuse("write for example mig-1g.10gb"))?;
                let parts = profile
                    .split_once("g.")
                    .and_then(|(slices, memory)| Some((slices, memory.split_once("gb")?.0)));
                let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
                match parts {
                    Some((slices, memory)) if number(slices) && number(memory) => {
                        Ok(Self::Mig { profile: profile.to_owned() })
                    }
                    _ => Err(refuse("a profile reads <slices>g.<memory>gb, for example mig-1g.10gb")),
                }
            }
        }
    }
}

/// A GPU mode as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GpuModeText(pub String);

impl JsonSchema for GpuModeText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "GpuMode".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "gpu-mode" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_those_of_kubernetes() {
        for (text, bytes) in [
            ("8Gi", 8 << 30),
            ("512M", 512_000_000),
            ("1.5Ki", 1536),
            ("0", 0),
            ("4096", 4096),
            ("1Pi", 1 << 50),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for (text, hint) in [
            ("8GB", "did you mean 8Gi?"),
            ("8g", "did you mean 8Gi?"),
            ("8 Gi", "did you mean"),
            ("", "write for example 8Gi"),
            ("12B", "bytes have no suffix: write 12"),
            ("99999999Pi", "that is more than 8 EiB"),
            ("-1", "write for example 8Gi"),
            ("1..5Gi", "write for example 8Gi"),
        ] {
            let error = text.parse::<Bytes>().unwrap_err();
            assert!(error.hint.starts_with(hint) || text == "8 Gi", "{text}: {}", error.hint);
        }
    }

    #[test]
    fn durations_add_up_and_come_back() {
        for (text, milliseconds) in
            [("250ms", 250), ("30s", 30_000), ("1h30m", 5_400_000), ("1d", 86_400_000)]
        {
            let duration = parse_duration(text).unwrap();
            assert_eq!(duration.as_millis(), milliseconds);
            assert_eq!(format_duration(duration), text);
        }
        assert_eq!(parse_duration("30").unwrap_err().hint, "add a unit: 30s");
        assert_eq!(parse_duration("400d").unwrap_err().hint, "at most 366d");
        for text in ["", "s", "1 h", "-1s", "1.5h", "1w", "99999999999999999999s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn gpu_modes_have_a_profile_where_they_need_one() {
        assert_eq!("exclusive".parse(), Ok(GpuMode::Exclusive));
        assert_eq!("mig-1g.10gb".parse(), Ok(GpuMode::Mig { profile: "1g.10gb".to_owned() }));
        for text in ["mig", "mig-", "mig-1g", "mig-xg.10gb", "whole"] {
            assert!(text.parse::<GpuMode>().is_err(), "{text}");
        }
    }
}

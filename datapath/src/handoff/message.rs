//! What trainer and sidecar say to each other over the handoff socket (pure): descriptors of 32 bytes, little-endian,
//! and JSON packets, told apart by their first byte and length.
//!
//! ```text
//! descriptor   u32 kind   u32 slot   u64 slot generation   u64 step   u64 bytes (from the sidecar), 0 (from the trainer)
//! ```

use std::collections::BTreeMap;

use serde::Deserialize;

/// The version of the handoff.
pub const VERSION: u32 = 1;
/// Bytes of one packet at the most: a hello with some hundred field names fits.
pub const PACKET_BYTES_MAX: usize = 64 << 10;
/// Bytes of a descriptor.
pub const DESCRIPTOR_BYTES: usize = 32;
/// Values of one report at the most: a screenful of metrics.
pub const REPORT_VALUES_MAX: usize = 64;

/// From the sidecar to the trainer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToTrainer {
    /// A batch lies in the slot.
    Ready {
        /// The slot.
        slot: u32,
        /// Which use of it.
        slot_generation: u64,
        /// The batch's step.
        step: u64,
        /// Bytes from the slot's start to the payload's end.
        bytes: u64,
    },
    /// There are no steps from this one on.
    End {
        /// The step after the last.
        step: u64,
    },
    /// The data cannot be had; a JSON packet with `error` and `hint` follows.
    Fault {
        /// The step that is missing.
        step: u64,
    },
    /// From now on only batches of this step and later ones come.
    Sought {
        /// The step.
        step: u64,
    },
}

impl ToTrainer {
    /// Its bytes.
    #[must_use]
    pub fn encode(self) -> [u8; DESCRIPTOR_BYTES] {
        let (kind, slot, slot_generation, step, bytes) = match self {
            Self::Ready { slot, slot_generation, step, bytes } => (1_u32, slot, slot_generation, step, bytes),
            Self::End { step } => (2, 0, 0, step, 0),
            Self::Fault { step } => (3, 0, 0, step, 0),
            Self::Sought { step } => (4, 0, 0, step, 0),
        };
        let mut out = [0; DESCRIPTOR_BYTES];
        out[0..4].copy_from_slice(&kind.to_le_bytes());
        out[4..8].copy_from_slice(&slot.to_le_bytes());
        out[8..16].copy_from_slice(&slot_generation.to_le_bytes());
        out[16..24].copy_from_slice(&step.to_le_bytes());
        out[24..32].copy_from_slice(&bytes.to_le_bytes());
        out
    }
}

/// From the trainer to the sidecar, after its hello.
#[derive(Clone, Debug, PartialEq)]
pub enum FromTrainer {
    /// The batch is no longer looked at.
    Release {
        /// The slot.
        slot: u32,
        /// Which use of it.
        slot_generation: u64,
        /// The batch's step.
        step: u64,
        /// Whether the step counts as consumed.
        acknowledge: bool,
    },
    /// Everything up to here is durably saved.
    Commit {
        /// Steps done: the next one to run after a resume.
        step: u64,
    },
    /// Go on at another step.
    Seek {
        /// The step.
        step: u64,
    },
    /// Numbers for people.
    Report {
        /// By name.
        values: BTreeMap<String, f64>,
    },
}

/// Why a packet is no message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Neither JSON nor as long as a descriptor.
    #[error("take a packet of {bytes} bytes for a descriptor (32 bytes) or JSON")]
    Shape {
        /// Its length.
        bytes: usize,
    },
    /// No such kind.
    #[error("know descriptor kind {kind}")]
    Kind {
        /// What it says.
        kind: u32,
    },
    /// Not the JSON that is due.
    #[error("parse a JSON packet: {0}")]
    Json(String),
    /// Another version of the handoff.
    #[error(
        "speak handoff version {theirs} (this is version {VERSION}: use the slipway package of this release)"
    )]
    Version {
        /// What the trainer speaks.
        theirs: u32,
    },
    /// Too many values.
    #[error("take a report of {values} values (at most {REPORT_VALUES_MAX})")]
    Report {
        /// How many.
        values: usize,
    },
}

/// A trainer's first packet: its process id.
///
/// # Errors
/// When it is no hello of this version.
pub fn decode_hello(packet: &[u8]) -> Result<u32, MessageError> {
    #[derive(Deserialize)]
    struct Hello {
        version: u32,
        pid: u32,
    }
    let hello: Hello =
        serde_json::from_slice(packet).map_err(|error| MessageError::Json(error.to_string()))?;
    if hello.version == VERSION {
        Ok(hello.pid)
    } else {
        Err(MessageError::Version { theirs: hello.version })
    }
}

/// Any later packet of a trainer.
///
/// # Errors
/// When it is none of [`FromTrainer`].
pub fn decode(packet: &[u8]) -> Result<FromTrainer, MessageError> {
    if packet.first() == Some(&b'{') {
        return decode_report(packet);
    }
    let bytes = packet.len();
    let packet: &[u8; DESCRIPTOR_BYTES] = packet.try_into().map_err(|_| MessageError::Shape { bytes })?;
    let four = |at: usize| u32::from_le_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
    let eight = |at: usize| u64::from(four(at)) | u64::from(four(at + 4)) << 32;
    let (kind, slot, slot_generation, step) = (four(0), four(4), eight(8), eight(16));
    match kind {
        1 | 5 => Ok(FromTrainer::Release { slot, slot_generation, step, acknowledge: kind == 1 }),
        2 => Ok(FromTrainer::Commit { step }),
        3 => Ok(FromTrainer::Seek { step }),
        _ => Err(MessageError::Kind { kind }),
    }
}

fn decode_report(packet: &[u8]) -> Result<FromTrainer, MessageError> {
    #[derive(Deserialize)]
    struct Report {
        report: BTreeMap<String, f64>,
    }
    let report: Report =
        serde_json::from_slice(packet).map_err(|error| MessageError::Json(error.to_string()))?;
    let values = report.report.len();
    if values > REPORT_VALUES_MAX {
        return Err(MessageError::Report { values });
    }
    Ok(FromTrainer::Report { values: report.report })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_descriptors() {
        let ready = ToTrainer::Ready { slot: 2, slot_generation: 3, step: 4, bytes: 5 };
        let golden =
            [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(ready.encode(), golden);
        assert_eq!(
            ToTrainer::End { step: 9 }.encode()[..17],
            [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]
        );
        assert_eq!(ToTrainer::Fault { step: 0 }.encode()[0], 3);
        assert_eq!(ToTrainer::Sought { step: 0 }.encode()[0], 4);
        let mut packet = golden;
        let release =
            |acknowledge| FromTrainer::Release { slot: 2, slot_generation: 3, step: 4, acknowledge };
        assert_eq!(decode(&packet).unwrap(), release(true));
        packet[0] = 5;
        assert_eq!(decode(&packet).unwrap(), release(false));
        packet[0] = 2;
        assert_eq!(decode(&packet).unwrap(), FromTrainer::Commit { step: 4 });
        packet[0] = 3;
        assert_eq!(decode(&packet).unwrap(), FromTrainer::Seek { step: 4 });
        packet[0] = 4;
        assert!(matches!(decode(&packet), Err(MessageError::Kind { kind: 4 })));
    }

    #[test]
    fn json_packets() {
        assert_eq!(decode_hello(br#"{"version":1,"pid":7}"#).unwrap(), 7);
        assert!(matches!(
            decode_hello(br#"{"version":2,"pid":7}"#),
            Err(MessageError::Version { theirs: 2 })
        ));
        assert!(matches!(decode_hello(b"hello"), Err(MessageError::Json(_))));
        let values = BTreeMap::from([("accuracy".to_owned(), 0.95)]);
        assert_eq!(decode(br#"{"report":{"accuracy":0.95}}"#).unwrap(), FromTrainer::Report { values });
        assert!(decode(br#"{"report":7}"#).is_err());
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_or_a_message(packet in proptest::collection::vec(any::<u8>(), 0..100)) {
            drop(decode(&packet));
            drop(decode_hello(&packet));
        }
    }
}

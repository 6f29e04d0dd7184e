//! What two sides tell each other before a queue pair can be brought up, and what they agree on (pure).
//!
//! It crosses the workers' own connection: verbs have a connection manager of their own, which does not work where a device was
//! moved into a pod's network namespace.

use serde::{Deserialize, Serialize};

use super::gid::Gid;

/// Reads of one queue pair under way at once at the most: what adapters offer.
pub const READS_MAX: u8 = 16;
/// Sequence numbers have 24 bits.
pub const PSN_MASK: u32 = 0x00ff_ffff;

/// The largest packet's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub enum PathMtu {
    /// 256 bytes.
    Bytes256,
    /// 512 bytes.
    Bytes512,
    /// 1024 bytes.
    Bytes1024,
    /// 2048 bytes.
    Bytes2048,
    /// 4096 bytes.
    Bytes4096,
}

impl PathMtu {
    const ALL: [Self; 5] =
        [Self::Bytes256, Self::Bytes512, Self::Bytes1024, Self::Bytes2048, Self::Bytes4096];

    /// How many bytes.
    #[must_use]
    pub const fn bytes(self) -> u16 {
        match self {
            Self::Bytes256 => 256,
            Self::Bytes512 => 512,
            Self::Bytes1024 => 1024,
            Self::Bytes2048 => 2048,
            Self::Bytes4096 => 4096,
        }
    }

    /// The number that verbs have for it (`ibv_mtu`).
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Bytes256 => 1,
            Self::Bytes512 => 2,
            Self::Bytes1024 => 3,
            Self::Bytes2048 => 4,
            Self::Bytes4096 => 5,
        }
    }

    /// The one with that number.
    #[must_use]
    pub fn of_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|mtu| mtu.number() == number)
    }
}

impl From<PathMtu> for u16 {
    fn from(mtu: PathMtu) -> Self {
        mtu.bytes()
    }
}

impl TryFrom<u16> for PathMtu {
    type Error = String;

    fn try_from(bytes: u16) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|mtu| mtu.bytes() == bytes);
        found.ok_or_else(|| format!("{bytes} bytes are no path MTU of RDMA"))
    }
}

/// One side of a queue pair, as the other side must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The queue pair's number.
    pub qpn: u32,
    /// The first packet's sequence number, as this side sends.
    pub psn: u32,
    /// Its port's address.
    pub gid: Gid,
    /// Its port's local identifier; 0 on Ethernet.
    pub lid: u16,
    /// The largest packet that its port takes.
    pub mtu: PathMtu,
    /// Reads that its device answers at once.
    pub reads: u8,
}

/// What both sides keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The smaller of the two.
    pub mtu: PathMtu,
    /// Reads that this side has under way: what it can ask and the other can answer.
    pub asks: u8,
    /// Reads that this side answers at once.
    pub answers: u8,
}

impl Endpoint {
    /// What this side and the other one agree on.
    #[must_use]
    pub fn agree(&self, other: &Self) -> Agreed {
        let reads = self.reads.min(other.reads).min(READS_MAX);
        Agreed { mtu: self.mtu.min(other.mtu), asks: reads, answers: self.reads.min(READS_MAX) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_of_the_two_is_agreed_on() {
        let gid = Gid::parse("::ffff:10.9.0.1").unwrap();
        let one = Endpoint { qpn: 17, psn: 0x12_3456, gid, lid: 0, mtu: PathMtu::Bytes4096, reads: 128 };
        let other = Endpoint { mtu: PathMtu::Bytes1024, reads: 4, ..one };
        assert_eq!(one.agree(&other), Agreed { mtu: PathMtu::Bytes1024, asks: 4, answers: READS_MAX });
        assert_eq!(other.agree(&one), Agreed { mtu: PathMtu::Bytes1024, asks: 4, answers: 4 });
    }

    #[test]
    fn an_endpoint_comes_back_and_a_strange_mtu_does_not() {
        let endpoint =
            Endpoint { qpn: 1, psn: 2, gid: Gid([7; 16]), lid: 3, mtu: PathMtu::Bytes2048, reads: 16 };
        let text = serde_json::to_string(&endpoint).unwrap();
        assert_eq!(serde_json::from_str::<Endpoint>(&text).unwrap(), endpoint);
        assert!(serde_json::from_str::<Endpoint>(&text.replace("2048", "1500")).is_err());
        for number in 1..=5 {
            assert_eq!(PathMtu::of_number(number).unwrap().number(), number);
        }
        assert_eq!(PathMtu::of_number(0), None);
    }
}

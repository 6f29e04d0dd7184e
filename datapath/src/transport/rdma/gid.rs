//! Which of a port's addresses (GIDs) a lane uses (pure).
//!
//! A port has a table of them, most of them of no use: empty ones, link-local ones, those of the first RoCE, which no router
//! passes, and those of interfaces in other network namespaces.

use std::fmt;
use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use super::reason::Reason;

/// A port's address: 16 bytes, those of an IPv6 address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Gid(pub [u8; 16]);

impl Gid {
    /// No address: an empty place of the table.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0 == [0; 16]
    }

    /// fe80::/10.
    #[must_use]
    pub const fn is_link_local(self) -> bool {
        self.0[0] == 0xfe && self.0[1] & 0xc0 == 0x80
    }

    /// An IPv4 address in IPv6's form, ::ffff:0:0/96.
    #[must_use]
    pub fn is_ipv4(self) -> bool {
        self.0[..10] == [0; 10] && self.0[10..12] == [0xff; 2]
    }

    /// As sysfs writes it: eight groups of four digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        text.trim().parse::<Ipv6Addr>().ok().map(|address| Self(address.octets()))
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = Ipv6Addr::from(self.0);
        match address.to_ipv4_mapped() {
            Some(address) => address.fmt(f),
            None => address.fmt(f),
        }
    }
}

/// What carries a port's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkLayer {
    /// RoCE: the address decides.
    Ethernet,
    /// InfiniBand: local identifiers within a subnet, so any address does.
    InfiniBand,
}

/// One place of a port's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place.
    pub index: u8,
    /// What is there.
    pub gid: Gid,
    /// Of the second RoCE, which is UDP. What type it has is unreadable where it belongs to another network namespace.
    pub is_roce_v2: bool,
    /// The network interface, where it has one.
    pub netdev: Option<String>,
}

/// The place that a lane uses, and what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Its place in the table.
    pub index: u8,
    /// What is there.
    pub gid: Gid,
}

/// The first IPv4 address, or else the first other one, that is of RoCE's second version, can be routed, and belongs to one of
/// `netdevs`, which are those of this network namespace.
///
/// # Errors
/// With [`Reason::GidMissing`] and what the table has instead.
pub fn choose(layer: LinkLayer, table: &[Entry], netdevs: &[String]) -> Result<Chosen, (Reason, String)> {
    let fault = |entry: &Entry| {
        if entry.gid.is_zero() {
            return Some("is empty");
        }
        if layer == LinkLayer::InfiniBand {
            return None;
        }
        let is_mine = entry.netdev.as_ref().is_some_and(|name| netdevs.contains(name));
        if !is_mine {
            Some("is of no interface in this network namespace")
        } else if !entry.is_roce_v2 {
            Some("is not RoCE v2")
        } else if entry.gid.is_link_local() {
            Some("is link-local")
        } else {
            None
        }
    };
    let usable = table.iter().filter(|entry| fault(entry).is_none());
    let best = usable.min_by_key(|entry| (!entry.gid.is_ipv4() && layer == LinkLayer::Ethernet, entry.index));
    best.map(|entry| Chosen { index: entry.index, gid: entry.gid }).ok_or_else(|| {
        let faults = table
            .iter()
            .filter(|entry| !entry.gid.is_zero())
            .map(|entry| format!("{} at {} {}", entry.gid, entry.index, fault(entry).unwrap_or("is usable")));
        let faults: Vec<_> = faults.collect();
        let what = if faults.is_empty() { "the table is empty".to_owned() } else { faults.join("; ") };
        (Reason::GidMissing, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u8, gid: &str, is_roce_v2: bool, netdev: &str) -> Entry {
        let netdev = (!netdev.is_empty()).then(|| netdev.to_owned());
        Entry { index, gid: Gid::parse(gid).unwrap(), is_roce_v2, netdev }
    }

    fn table() -> Vec<Entry> {
        vec![
            entry(0, "fe80::1", false, "va"),
            entry(1, "fe80::1", true, "va"),
            entry(2, "::ffff:10.9.0.7", true, "elsewhere"),
            entry(3, "::ffff:10.9.0.1", false, "va"),
            entry(4, "2001:db8::1", true, "va"),
            entry(5, "::ffff:10.9.0.1", true, "va"),
            entry(6, "::", true, "va"),
        ]
    }

    #[test]
    fn routable_addresses_of_mine_are_chosen_ipv4_first() {
        let mine = ["va".to_owned()];
        let mut table = table();
        let chosen = choose(LinkLayer::Ethernet, &table, &mine).unwrap();
        assert_eq!((chosen.index, chosen.gid.to_string().as_str()), (5, "10.9.0.1"));
        table.remove(5);
        let chosen = choose(LinkLayer::Ethernet, &table, &mine).unwrap();
        assert_eq!((chosen.index, chosen.gid.to_string().as_str()), (4, "2001:db8::1"));
        table.remove(4);
        let (reason, what) = choose(LinkLayer::Ethernet, &table, &mine).unwrap_err();
        assert_eq!(reason, Reason::GidMissing);
        for words in
            ["fe80::1 at 1 is link-local", "10.9.0.7 at 2 is of no interface", "10.9.0.1 at 3 is not RoCE v2"]
        {
            assert!(what.contains(words), "{what}");
        }
        assert_eq!(choose(LinkLayer::Ethernet, &[], &mine).unwrap_err().1, "the table is empty");
    }

    #[test]
    fn on_infiniband_any_address_does() {
        let table = [entry(0, "fe80::9:a", false, "")];
        assert_eq!(choose(LinkLayer::InfiniBand, &table, &[]).unwrap().index, 0);
    }

    #[test]
    fn sysfs_groups_are_read() {
        let gid = Gid::parse("0000:0000:0000:0000:0000:ffff:0a09:0001\n").unwrap();
        assert!(gid.is_ipv4() && !gid.is_zero() && !gid.is_link_local());
        assert_eq!(gid.to_string(), "10.9.0.1");
        assert_eq!(Gid::parse("nothing"), None);
    }
}

//! Which addresses each network interface has, from what the kernel lists under /proc/net: no socket is opened, and a
//! folder can stand for the host.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::interface;

/// What marks an address of the host itself in /proc/net/fib_trie.
const LOCAL_MARK: &str = "/32 host LOCAL";

/// The addresses of an interface that others can reach: version 4 first, then version 6 without the link-local ones.
#[must_use]
pub fn of_interface(root: &Path, name: &str) -> Vec<IpAddr> {
    let read = |file: &str| fs::read_to_string(root.join("proc/net").join(file)).unwrap_or_default();
    let v4 = local_v4(&read("fib_trie")).into_iter().map(IpAddr::V4);
    let v4 = v4.filter(|address| interface::of_address(root, *address).as_deref() == Some(name));
    v4.chain(listed_v6(&read("if_inet6"), name).into_iter().map(IpAddr::V6)).collect()
}

/// Local addresses: each stands on the line above its mark, once per table that knows it.
fn local_v4(trie: &str) -> BTreeSet<Ipv4Addr> {
    let mut found = BTreeSet::new();
    let mut last = None;
    for line in trie.lines() {
        let text = line.trim_start_matches([' ', '|', '-', '+']);
        if text == LOCAL_MARK {
            found.extend(last);
        } else if let Ok(address) = text.parse::<Ipv4Addr>() {
            last = Some(address);
        }
    }
    found
}

/// /proc/net/if_inet6: address, index, prefix, scope (20 is link-local, Documentation of net/ipv6), flags, name.
fn listed_v6(table: &str, name: &str) -> Vec<Ipv6Addr> {
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, scope, of) = (*fields.first()?, *fields.get(3)?, *fields.get(5)?);
        let address = u128::from_str_radix(address, 16).ok()?;
        (of == name && scope != "20").then(|| Ipv6Addr::from(address))
    };
    table.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIE: &str = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n\
        Local:\n  +-- 0.0.0.0/0 2 0 2\n     +-- 10.9.0.0/24 2 0 2\n        |-- 10.9.0.0\n           /24 link UNICAST\n\
        \x20       |-- 10.9.0.3\n           /32 host LOCAL\n        |-- 10.9.0.255\n           /32 link BROADCAST\n\
        \x20    |-- 127.0.0.1\n        /32 host LOCAL\n";
    const ROUTES: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
        net1\t0000090A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
    const LISTING: &str = "fe800000000000000000000000000001 02 40 20 80     net1\n\
        20010db8000000000000000000000007 02 40 00 80     net1\n\
        20010db8000000000000000000000008 03 40 00 80     eth0\n";

    #[test]
    fn an_interface_has_the_addresses_of_its_network() {
        let root = tempfile::tempdir().unwrap();
        let net = root.path().join("proc/net");
        fs::create_dir_all(&net).unwrap();
        for (name, text) in [("fib_trie", TRIE), ("route", ROUTES), ("if_inet6", LISTING)] {
            fs::write(net.join(name), text).unwrap();
        }
        let expected: [IpAddr; 2] = ["10.9.0.3".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        assert_eq!(of_interface(root.path(), "net1"), expected);
        assert_eq!(of_interface(root.path(), "eth0"), ["2001:db8::8".parse::<IpAddr>().unwrap()]);
        assert_eq!(of_interface(root.path(), "eth1"), [] as [IpAddr; 0]);
    }

    #[test]
    fn the_running_host_has_its_loopback() {
        assert!(of_interface(Path::new("/"), "lo").contains(&Ipv4Addr::LOCALHOST.into()));
    }
}

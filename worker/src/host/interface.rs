//! Which network interface has an address, from what the kernel lists under /proc/net.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// The interface of this address; none when the kernel lists none, or the address is of no single interface.
#[must_use]
pub fn of_address(root: &Path, address: IpAddr) -> Option<String> {
    let read = |name: &str| fs::read_to_string(root.join("proc/net").join(name)).unwrap_or_default();
    match address.to_canonical() {
        address if address.is_loopback() => Some("lo".to_owned()),
        address if address.is_unspecified() => None,
        IpAddr::V4(address) => by_route(&read("route"), address),
        IpAddr::V6(address) => by_listing(&read("if_inet6"), address),
    }
}

/// An IPv4 address of ours lies in the network that is connected to its interface: of /proc/net/route the entry
/// without a gateway whose network is the narrowest around it. Numbers are hexadecimal, bytes in network order.
fn by_route(table: &str, address: Ipv4Addr) -> Option<String> {
    let hex = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::from_be);
    let routes = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (interface, network, gateway, mask) =
            (*fields.first()?, hex(fields.get(1)?)?, hex(fields.get(2)?)?, hex(fields.get(7)?)?);
        let is_around = gateway == 0 && mask != 0 && u32::from(address) & mask == network;
        is_around.then(|| (mask.count_ones(), interface.to_owned()))
    });
    routes.max().map(|(_, interface)| interface)
}

/// /proc/net/if_inet6: address, index, prefix, scope, flags, name.
fn by_listing(table: &str, address: Ipv6Addr) -> Option<String> {
    let wanted = format!("{:032x}", u128::from(address));
    table.lines().find_map(|line| line.strip_prefix(&wanted)?.split_whitespace().last().map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        eth0\t0000000A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
        ib0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
    const LISTING: &str = "fe800000000000000000000000000001 02 40 20 80     eth0\n\
        20010db8000000000000000000000007 03 40 00 80      ib0\n";

    #[test]
    fn the_narrowest_connected_network_names_the_interface() {
        let of = |text: &str| by_route(ROUTES, text.parse().unwrap());
        assert_eq!(of("10.0.7.1").as_deref(), Some("eth0"));
        assert_eq!(of("10.0.2.9").as_deref(), Some("ib0"));
        assert_eq!(of("192.168.0.1"), None, "only the default route leads there");
        assert_eq!(by_route("garbage\nx y z", "1.2.3.4".parse().unwrap()), None);
    }

    #[test]
    fn addresses_of_version_6_are_listed_with_their_interface() {
        assert_eq!(by_listing(LISTING, "2001:db8::7".parse().unwrap()).as_deref(), Some("ib0"));
        assert_eq!(by_listing(LISTING, "2001:db8::8".parse().unwrap()), None);
    }

    #[test]
    fn loopback_is_known_and_any_address_is_of_no_interface() {
        let of = |text: &str| of_address(Path::new("/nonexistent"), text.parse().unwrap());
        assert_eq!(of("127.3.2.1").as_deref(), Some("lo"));
        assert_eq!(of("::1").as_deref(), Some("lo"));
        assert_eq!(of("0.0.0.0"), None);
        assert_eq!(of("10.0.0.1"), None);
    }
}

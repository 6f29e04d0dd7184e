//! The cable between the two devices, and what is done to it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// The rig's script that makes and mends cables.
const FABRIC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/rig/rdma/fabric.sh");

/// Runs a command of the system's.
pub(super) fn system(command: &str) {
    let mut words = command.split_whitespace();
    assert!(Command::new(words.next().unwrap()).args(words).status().unwrap().success(), "{command}");
}

/// Several commands of `ip` by one process: on an emulated processor each process costs more than what it does.
pub(super) fn ip(commands: &[String]) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(commands.join("\n").as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{commands:?}");
}

fn hardware_address(link: &str) -> String {
    let path = format!("/sys/class/net/{link}/address");
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

/// Puts va back: the link, its address, and the way to the other end, which the kernel forgets with either. As the rig's `fabric.sh`
/// does, only faster.
pub(super) fn lift_va() {
    ip(&[
        "link set va up".to_owned(),
        "addr replace 10.9.0.1/32 dev va".to_owned(),
        "route replace 10.9.0.2/32 dev va table 101".to_owned(),
        format!("neigh replace 10.9.0.2 lladdr {} dev va nud permanent", hardware_address("vb")),
    ]);
}

/// Gives va the address 10.9.0.3 instead of 10.9.0.1, with the ways from and to it.
pub(super) fn move_va() {
    ip(&[
        "addr add 10.9.0.3/32 dev va".to_owned(),
        "rule add pref 23 from 10.9.0.3 to 10.9.0.2 lookup 101".to_owned(),
        "route replace 10.9.0.3/32 dev vb table 102".to_owned(),
        "rule add pref 24 from 10.9.0.2 to 10.9.0.3 lookup 102".to_owned(),
        format!("neigh replace 10.9.0.3 lladdr {} dev vb nud permanent", hardware_address("va")),
        "addr del 10.9.0.1/32 dev va".to_owned(),
    ]);
}

/// Bytes that an end of a cable has sent.
pub(super) fn sent_by(link: &str) -> u64 {
    let sent = std::fs::read_to_string(format!("/sys/class/net/{link}/statistics/tx_bytes")).unwrap();
    sent.trim().parse().unwrap()
}

/// Bytes that the ends of the cable have sent.
pub(super) fn on_cable() -> u64 {
    ["va", "vb"].map(sent_by).iter().sum()
}

/// Makes a second cable, with rxe_c and rxe_d on it.
pub(super) fn second_cable() {
    system(&format!("{FABRIC} 2"));
}

/// Mends the cable when the test ends, however it ends.
pub(in crate::plane::tests) struct Mended;

impl Mended {
    fn now() {
        // There may be nothing to remove of all that a test may have left.
        for left in [
            "tc qdisc del dev vb root",
            "ip addr del 10.9.0.3/32 dev va",
            "ip rule del pref 23",
            "ip rule del pref 24",
        ] {
            let mut words = left.split_whitespace();
            drop(Command::new(words.next().unwrap()).args(words).output());
        }
        assert!(Path::new(FABRIC).exists());
        system(FABRIC);
    }
}

impl Drop for Mended {
    fn drop(&mut self) {
        Self::now();
    }
}

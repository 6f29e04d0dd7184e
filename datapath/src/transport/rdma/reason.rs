//! Why a lane over verbs is not to be had, or has ended, as stable words; and what follows: another lane, or a fault (pure).
//!
//! A device's own numbers are written out here, so that builds without the feature `rdma` know the words as well.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why there is no lane over verbs, or none any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// This program was built without the feature `rdma`.
    NotBuilt,
    /// libibverbs is not installed.
    NoLibrary,
    /// The kernel has no RDMA device.
    NoDevice,
    /// The kernel has a device, and this process may not open its node below /dev/infiniband.
    NoUverbsNode,
    /// libibverbs has no provider that fits the kernel's driver.
    ProviderAbi,
    /// More memory is to be registered than may be locked.
    Memlock,
    /// The port has no address that can be routed.
    GidMissing,
    /// The kernel finds no way from this port's address to the peer's.
    GidWrong,
    /// The address is another one than when it was chosen.
    GidChanged,
    /// The port is down.
    PortDown,
    /// The peer, or the network up to it, does not answer.
    PeerDead,
    /// The device or the queue pair was broken by the driver.
    DeviceFatal,
    /// The peer's device forbids what was asked of it: a wrong key, or memory that is registered for less.
    RemoteAccess,
    /// The device forbids what it was told: a mistake of this program.
    Misuse,
    /// The driver refused for a reason that has no word here.
    Refused,
    /// Other requests of the queue pair failed, or it was closed.
    Flushed,
    /// This worker's job does not allow it.
    NotWanted,
    /// The device is not on the NUMA node that this worker runs on.
    WrongNuma,
    /// Bytes arrive, but far more slowly than they did: packets are lost, or wait.
    Lossy,
}

impl Reason {
    /// All of them. Peers tell each other the places here, so new ones come at the end.
    pub const ALL: [Self; 19] = [
        Self::NotBuilt,
        Self::NoLibrary,
        Self::NoDevice,
        Self::NoUverbsNode,
        Self::ProviderAbi,
        Self::Memlock,
        Self::GidMissing,
        Self::GidWrong,
        Self::GidChanged,
        Self::PortDown,
        Self::PeerDead,
        Self::DeviceFatal,
        Self::RemoteAccess,
        Self::Misuse,
        Self::Refused,
        Self::Flushed,
        Self::NotWanted,
        Self::WrongNuma,
        Self::Lossy,
    ];

    /// Its number on the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        let place = Self::ALL.iter().position(|&reason| reason == self);
        place.and_then(|place| u8::try_from(place).ok()).unwrap_or(u8::MAX)
    }

    /// The one with that number; none when it is a newer release's.
    #[must_use]
    pub fn of_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// The word, for logs and metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::NotBuilt => "not_built",
            Self::NoLibrary => "no_library",
            Self::NoDevice => "no_device",
            Self::NoUverbsNode => "no_uverbs_node",
            Self::ProviderAbi => "provider_abi",
            Self::Memlock => "memlock",
            Self::GidMissing => "gid_missing",
            Self::GidWrong => "gid_wrong",
            Self::GidChanged => "gid_changed",
            Self::PortDown => "port_down",
            Self::PeerDead => "peer_dead",
            Self::DeviceFatal => "device_fatal",
            Self::RemoteAccess => "remote_access",
            Self::Misuse => "misuse",
            Self::Refused => "refused",
            Self::Flushed => "flushed",
            Self::NotWanted => "not_wanted",
            Self::WrongNuma => "wrong_numa",
            Self::Lossy => "lossy",
        }
    }

    /// What follows from it. Another lane hides no mistake: what only a wrong program can cause is told.
    #[must_use]
    pub const fn class(self) -> Class {
        match self {
            Self::RemoteAccess | Self::Misuse => Class::Fatal,
            _ => Class::FailOver,
        }
    }

    /// What a user can do about it.
    #[must_use]
    pub const fn hint(self) -> &'static str {
        match self {
            Self::NotBuilt => "use a build with the feature rdma",
            Self::NoLibrary => "install libibverbs1 and ibverbs-providers in the image",
            Self::NoDevice => {
                "give the worker an RDMA device (a virtual function, or a shared device plugin)"
            }
            Self::NoUverbsNode => {
                "let the worker open /dev/infiniband/uverbs*: device plugin, or its permissions"
            }
            Self::ProviderAbi => "install ibverbs-providers of the release that the kernel's driver needs",
            Self::Memlock => "raise the limit of locked memory (ulimit -l), or give CAP_IPC_LOCK",
            Self::GidMissing => "give the device's network interface an address in this network namespace",
            Self::GidWrong => "check the route between the two addresses, and that both are of one fabric",
            Self::GidChanged => {
                "nothing, if the address was changed on purpose: the lane comes back with the new one"
            }
            Self::PortDown => "check the link of the device's network interface",
            Self::PeerDead => "check the other worker, and the fabric between the two",
            Self::DeviceFatal => "look at the kernel's log for the device's driver",
            Self::RemoteAccess | Self::Misuse => "report it: it is a mistake of this program",
            Self::Refused => "look at the kernel's log for the device's driver",
            Self::Flushed => "look for the first failure of the lane",
            Self::NotWanted => "use the same transport policy on all workers",
            Self::WrongNuma => {
                "give the worker a device of its own NUMA node, or set `locality: none`, which takes a far one"
            }
            Self::Lossy => {
                "check the fabric for losses (flow control, congestion marks, cables); the lane comes back when it is as fast again"
            }
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The same bytes are asked for by another lane.
    FailOver,
    /// The job fails and says so.
    Fatal,
}

/// How a work request ended: a value of `ibv_wc_status` that is not success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkStatus(pub u32);

impl WorkStatus {
    /// An earlier one failed, or the queue pair was taken down.
    pub const FLUSHED: Self = Self(5);
    /// The peer's device refused the key, or the range, or what was to be done with it.
    pub const REMOTE_ACCESS: Self = Self(10);
    /// No acknowledgement, however often it was sent.
    pub const RETRY_EXCEEDED: Self = Self(12);
    /// The device is broken.
    pub const FATAL: Self = Self(19);

    /// `ibv_wc_status` by name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            1 => "LOC_LEN_ERR",
            2 => "LOC_QP_OP_ERR",
            3 => "LOC_EEC_OP_ERR",
            4 => "LOC_PROT_ERR",
            5 => "WR_FLUSH_ERR",
            6 => "MW_BIND_ERR",
            7 => "BAD_RESP_ERR",
            8 => "LOC_ACCESS_ERR",
            9 => "REM_INV_REQ_ERR",
            10 => "REM_ACCESS_ERR",
            11 => "REM_OP_ERR",
            12 => "RETRY_EXC_ERR",
            13 => "RNR_RETRY_EXC_ERR",
            14 => "LOC_RDD_VIOL_ERR",
            15 => "REM_INV_RD_REQ_ERR",
            16 => "REM_ABORT_ERR",
            17 => "INV_EECN_ERR",
            18 => "INV_EEC_STATE_ERR",
            19 => "FATAL_ERR",
            20 => "RESP_TIMEOUT_ERR",
            21 => "GENERAL_ERR",
            _ => "an unknown status",
        }
    }

    /// Why it ended so. A port that cannot be reached explains whatever does not come, so it is said first; a device may also
    /// say LOC_QP_OP_ERR of what it cannot send there (Soft-RoCE does).
    #[must_use]
    pub const fn reason(self, way: Way) -> Reason {
        match (self.0, way) {
            (2 | 5 | 12 | 13 | 20, Way::PortDown) => Reason::PortDown,
            (2 | 5 | 12 | 13 | 20, Way::GidMissing) => Reason::GidMissing,
            (2 | 5 | 12 | 13 | 20, Way::GidChanged) => Reason::GidChanged,
            (5, Way::Open) => Reason::Flushed,
            // Soft-RoCE says so of what it has no route for, and then another lane may have one.
            (2, Way::Open) => Reason::DeviceFatal,
            // The receiver never got ready: as good as silent. Or the peer's device could not finish, or gave up.
            (11 | 12 | 13 | 16 | 20, _) => Reason::PeerDead,
            (9 | 10, _) => Reason::RemoteAccess,
            (19, _) => Reason::DeviceFatal,
            _ => Reason::Misuse,
        }
    }
}

/// How a port is when something of it has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is up, and has the address that the queue pair was made with.
    Open,
    /// It is down.
    PortDown,
    /// It is up, without the address.
    GidMissing,
    /// It is up, and has another address there.
    GidChanged,
}

impl fmt::Display for WorkStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

/// What of a device was to be made, or done, when the system refused it: the same number means different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Opening the device.
    Open,
    /// Asking it, its port or its addresses for something.
    Query,
    /// Making a domain, a queue or a queue pair.
    Create,
    /// Registering memory.
    Register,
    /// Bringing a queue pair up towards its peer.
    Connect,
    /// Handing work to it.
    Post,
    /// Waiting for what has ended, or happened.
    Wait,
    /// Taking it down.
    Destroy,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Query => "query",
            Self::Create => "create a queue of",
            Self::Register => "register memory with",
            Self::Connect => "connect a queue pair of",
            Self::Post => "post work to",
            Self::Wait => "wait for completions of",
            Self::Destroy => "take down a queue of",
        })
    }
}

/// Why the system refused, by its error number.
#[must_use]
pub const fn of_errno(operation: Operation, errno: i32) -> Reason {
    // Of <errno.h>; the same on all architectures that this is built for.
    const EPERM: i32 = 1;
    const ENOENT: i32 = 2;
    const EIO: i32 = 5;
    const ENOMEM: i32 = 12;
    const EACCES: i32 = 13;
    const ENODEV: i32 = 19;
    const EINVAL: i32 = 22;
    const ENETUNREACH: i32 = 101;
    const ETIMEDOUT: i32 = 110;
    const EHOSTUNREACH: i32 = 113;
    match (operation, errno) {
        (Operation::Open, EPERM | EACCES | ENOENT) => Reason::NoUverbsNode,
        // Queues are locked memory, too.
        (Operation::Register | Operation::Create, ENOMEM) => Reason::Memlock,
        // The kernel resolves the peer's address while a queue pair gets ready to receive, and says so in many ways.
        (Operation::Connect, ENODEV | EINVAL | ENETUNREACH | ETIMEDOUT | EHOSTUNREACH) => Reason::GidWrong,
        (_, EIO | ENODEV) => Reason::DeviceFatal,
        (Operation::Post, EINVAL) => Reason::Misuse,
        _ => Reason::Refused,
    }
}

/// What is known of a host on which libibverbs lists no device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emptiness {
    /// The kernel has devices.
    pub has_devices: bool,
    /// One of their nodes below /dev/infiniband is there for this process.
    pub has_node: bool,
}

/// Why it lists none.
#[must_use]
pub const fn of_empty_list(found: Emptiness) -> Reason {
    match found {
        Emptiness { has_devices: false, .. } => Reason::NoDevice,
        Emptiness { has_node: false, .. } => Reason::NoUverbsNode,
        // The library leaves out what no provider of its can drive.
        Emptiness { .. } => Reason::ProviderAbi,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_peer_is_another_lanes_business_and_a_wrong_key_is_not() {
        let class = |status: u32, way| WorkStatus(status).reason(way).class();
        for status in [5, 11, 12, 13, 16, 19, 20] {
            assert_eq!(class(status, Way::Open), Class::FailOver, "{}", WorkStatus(status));
        }
        for status in [1, 4, 6, 7, 8, 9, 10, 21, 99] {
            for way in [Way::Open, Way::PortDown, Way::GidMissing, Way::GidChanged] {
                assert_eq!(
                    class(status, way),
                    Class::Fatal,
                    "{}: a port hides no mistake",
                    WorkStatus(status)
                );
            }
        }
        assert_eq!(WorkStatus::RETRY_EXCEEDED.reason(Way::Open), Reason::PeerDead);
        assert_eq!(WorkStatus::RETRY_EXCEEDED.reason(Way::PortDown), Reason::PortDown);
        assert_eq!(WorkStatus::FLUSHED.reason(Way::GidMissing), Reason::GidMissing);
        assert_eq!(WorkStatus(2).reason(Way::GidChanged), Reason::GidChanged);
        assert_eq!(WorkStatus(2).reason(Way::Open), Reason::DeviceFatal);
        assert_eq!(WorkStatus::REMOTE_ACCESS.reason(Way::Open), Reason::RemoteAccess);
    }

    #[test]
    fn one_error_number_means_what_was_being_done() {
        assert_eq!(of_errno(Operation::Register, 12), Reason::Memlock);
        assert_eq!(of_errno(Operation::Create, 12), Reason::Memlock);
        assert_eq!(of_errno(Operation::Post, 12), Reason::Refused);
        assert_eq!(of_errno(Operation::Open, 13), Reason::NoUverbsNode);
        assert_eq!(of_errno(Operation::Connect, 110), Reason::GidWrong);
        assert_eq!(of_errno(Operation::Post, 5), Reason::DeviceFatal);
        assert_eq!(of_errno(Operation::Post, 22), Reason::Misuse);
    }

    #[test]
    fn an_empty_list_has_a_reason() {
        let why = |has_devices, has_node| of_empty_list(Emptiness { has_devices, has_node });
        assert_eq!(why(false, false), Reason::NoDevice);
        assert_eq!(why(true, false), Reason::NoUverbsNode);
        assert_eq!(why(true, true), Reason::ProviderAbi);
    }

    #[test]
    fn words_are_those_that_are_serialised() {
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.word());
            assert_eq!(Reason::of_code(reason.code()), Some(reason));
        }
        assert_eq!((Reason::NotBuilt.code(), Reason::Flushed.code(), Reason::of_code(200)), (0, 15, None));
    }
}

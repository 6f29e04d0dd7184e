//! An open device, the way from it into the fabric, and what happens to it.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::unix::AsyncFd;

use super::library::{Context, device_names, watch};
use super::memory::ProtectionDomain;
use crate::transport::rdma::VerbsError;
use crate::transport::rdma::choose::way;
use crate::transport::rdma::endpoint::PathMtu;
use crate::transport::rdma::gid::{Chosen, LinkLayer};
use crate::transport::rdma::reason::{Operation, Reason};
use crate::transport::rdma::sysfs;

/// An open device. Clones share it; it closes when nothing of it is left.
#[derive(Clone)]
pub struct Device {
    pub(super) context: Arc<Context>,
    events_taken: Arc<AtomicBool>,
}

/// The way from a device into the fabric: a port, and the address that it is known by there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// The port's number.
    pub port: u8,
    /// What carries its packets.
    pub layer: LinkLayer,
    /// Its address.
    pub gid: Chosen,
    /// Its local identifier; 0 on Ethernet.
    pub lid: u16,
    /// The largest packet that it takes.
    pub mtu: PathMtu,
    /// The largest work request.
    pub message_bytes_max: u32,
}

impl Device {
    /// The names of all devices that could be opened.
    ///
    /// # Errors
    /// When there is none, and why.
    pub fn list() -> Result<Vec<String>, VerbsError> {
        device_names()
    }

    /// Opens one.
    ///
    /// # Errors
    /// When it is not there, or not for this process.
    pub fn open(name: &str) -> Result<Self, VerbsError> {
        Ok(Self { context: Context::open(name)?, events_taken: Arc::default() })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.context.name
    }

    /// Its first port that is up and has an address that can be routed.
    ///
    /// # Errors
    /// Why the best of its ports cannot be used.
    pub fn path(&self) -> Result<Path, VerbsError> {
        self.path_by(FilePath::new(sysfs::SYSFS))
    }

    fn path_by(&self, root: &FilePath) -> Result<Path, VerbsError> {
        let fault = |reason, what: String| VerbsError {
            operation: Operation::Query,
            device: self.name().to_owned(),
            reason,
            source: io::Error::new(io::ErrorKind::NotFound, what),
        };
        let device = sysfs::devices(root).into_iter().find(|found| found.name == self.name());
        let device = device.ok_or_else(|| {
            fault(Reason::NoDevice, "it is not below /sys/class/infiniband any more".to_owned())
        })?;
        let way = way(&device, &sysfs::netdevs(root)).map_err(|(reason, what)| fault(reason, what))?;
        let facts = self.context.port(way.port)?;
        Ok(Path {
            port: way.port,
            layer: way.layer,
            gid: way.gid,
            lid: facts.lid,
            mtu: facts.mtu,
            message_bytes_max: facts.message_bytes_max,
        })
    }

    /// Whether a port carries packets now.
    #[must_use]
    pub fn is_up(&self, port: u8) -> bool {
        self.context.port(port).is_ok_and(|facts| facts.is_up)
    }

    /// A domain, in which memory is registered and queue pairs are made.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn protection_domain(&self) -> Result<ProtectionDomain, VerbsError> {
        ProtectionDomain::new(&self.context)
    }

    /// What happens to the device; given out once, as every event is told to one listener. Needs tokio's runtime.
    ///
    /// # Errors
    /// When it has been given out, or there is no runtime.
    pub fn events(&self) -> Result<Events, VerbsError> {
        if self.events_taken.swap(true, Ordering::AcqRel) {
            let source = io::Error::new(io::ErrorKind::AlreadyExists, "its events are given out already");
            let device = self.name().to_owned();
            return Err(VerbsError { operation: Operation::Wait, device, reason: Reason::Misuse, source });
        }
        let fd = watch(&*self.context).map_err(|source| VerbsError {
            operation: Operation::Wait,
            device: self.name().to_owned(),
            reason: Reason::Refused,
            source,
        })?;
        Ok(Events { context: Arc::clone(&self.context), fd })
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("name", &self.name()).finish_non_exhaustive()
    }
}

/// What happens to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A port carries packets again.
    PortUp(u8),
    /// A port carries no packets.
    PortDown(u8),
    /// A port's addresses are others.
    GidChanged(u8),
    /// The device is broken.
    DeviceFatal,
    /// A queue, or a queue pair, is broken.
    QueueFatal,
    /// Anything else, by its number.
    Other(u32),
}

impl Event {
    /// By `ibv_event_type`.
    const fn of(kind: u32, port: u8) -> Self {
        match kind {
            0 | 1 => Self::QueueFatal,
            8 => Self::DeviceFatal,
            9 => Self::PortUp(port),
            10 => Self::PortDown(port),
            18 => Self::GidChanged(port),
            other => Self::Other(other),
        }
    }
}

/// The events of one device.
pub struct Events {
    context: Arc<Context>,
    fd: AsyncFd<OwnedFd>,
}

impl Events {
    /// The next one. Nothing is lost when the wait is given up.
    ///
    /// # Errors
    /// When the device is gone.
    pub async fn next(&self) -> io::Result<Event> {
        loop {
            let mut ready = self.fd.readable().await?;
            if let Ok(event) = ready.try_io(|_| self.context.event()) {
                return event.map(|(kind, port)| Event::of(kind, port));
            }
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("device", &self.context.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_host_has_devices_or_says_why_not() {
        let why = Device::list().map_err(|error| error.reason);
        let is_named = matches!(
            why,
            Ok(_) | Err(Reason::NoLibrary | Reason::NoDevice | Reason::NoUverbsNode | Reason::ProviderAbi)
        );
        assert!(is_named, "{why:?}");
        let missing = Device::open("no such device").unwrap_err();
        assert!(matches!(missing.reason, Reason::NoLibrary | Reason::NoDevice) || why.is_err(), "{missing}");
    }
}

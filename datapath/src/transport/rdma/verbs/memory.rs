//! Protection domains, and memory that a device knows.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rdma_sys::ibv_access_flags as Flag;

use super::library::{Context, Domain, Registration};
use super::queue_pair::{Sizes, Unconnected};
use super::{CompletionQueue, Path};
use crate::memory::span::{Exposed, Span, Stable};
use crate::transport::rdma::VerbsError;

/// What a registration is for, besides being read by this host's own requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// This host's requests may write to it: reads from a peer, and receives.
    pub local_write: bool,
    /// Peers that know its key may read it.
    pub remote_read: bool,
}

impl Access {
    fn flags(self) -> Flag {
        let mut flags = Flag(0);
        if self.local_write {
            flags |= Flag::IBV_ACCESS_LOCAL_WRITE;
        }
        if self.remote_read {
            flags |= Flag::IBV_ACCESS_REMOTE_READ;
        }
        flags
    }
}

/// Memory and queue pairs that may be used with each other. Clones share it.
#[derive(Clone)]
pub struct ProtectionDomain {
    domain: Arc<Domain>,
}

impl ProtectionDomain {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, VerbsError> {
        Ok(Self { domain: Arc::new(Domain::new(context)?) })
    }

    /// Registers memory, all of it: slow, so once for as long as it is used.
    ///
    /// # Errors
    /// When the driver refuses, most often since more may not be locked.
    pub fn register(&self, memory: Arc<dyn Stable>, access: Access) -> Result<MemoryRegion, VerbsError> {
        let registration = Registration::host(&self.domain, memory, access.flags())?;
        Ok(MemoryRegion::new(registration, access))
    }

    /// Registers memory that peers may write to as well as read, as long as it is registered.
    ///
    /// # Errors
    /// As for [`ProtectionDomain::register`].
    pub fn register_exposed(&self, memory: Arc<impl Exposed>) -> Result<MemoryRegion, VerbsError> {
        let access = Access { local_write: true, remote_read: true };
        let flags = access.flags() | Flag::IBV_ACCESS_REMOTE_WRITE;
        Ok(MemoryRegion::new(Registration::host(&self.domain, memory, flags)?, access))
    }

    /// Whether [`ProtectionDomain::register_dmabuf`] works with this device's driver.
    #[must_use]
    pub fn takes_dmabuf(&self) -> bool {
        self.domain.takes_dmabuf()
    }

    /// Registers memory of another device, a GPU's say, by its dma-buf. It is no memory of this process, so peers may do
    /// everything with it. Addresses in it count from 0.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn register_dmabuf(
        &self,
        file: OwnedFd,
        offset: u64,
        len: usize,
    ) -> Result<MemoryRegion, VerbsError> {
        let access = Access { local_write: true, remote_read: true };
        let flags = access.flags() | Flag::IBV_ACCESS_REMOTE_WRITE;
        let registration = Registration::dmabuf(&self.domain, file, offset, len, flags)?;
        Ok(MemoryRegion::new(registration, access))
    }

    /// Half of a queue pair: the other half is made by the peer.
    ///
    /// # Errors
    /// When the driver refuses, or the path's address has gone or changed.
    pub fn queue_pair(
        &self,
        queue: &Arc<CompletionQueue>,
        path: &Path,
        sizes: Sizes,
    ) -> Result<Unconnected, VerbsError> {
        Unconnected::new(&self.domain, queue, path, sizes)
    }
}

impl fmt::Debug for ProtectionDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProtectionDomain").field("device", &self.domain.context.name).finish_non_exhaustive()
    }
}

/// Memory that a device knows. Clones share the registration, which keeps the memory.
#[derive(Clone)]
pub struct MemoryRegion {
    pub(super) registration: Arc<Registration>,
    pub(super) access: Access,
    pub(super) local_key: u32,
    remote_key: u32,
    span: Span,
}

impl MemoryRegion {
    fn new(registration: Registration, access: Access) -> Self {
        let ((local_key, remote_key), span) = (registration.keys(), registration.span());
        Self { registration: Arc::new(registration), access, local_key, remote_key, span }
    }

    /// Its bytes, as this host's device counts them.
    #[must_use]
    pub fn span(&self) -> Span {
        self.span
    }

    /// Whether it was registered there.
    #[must_use]
    pub fn is_of(&self, domain: &ProtectionDomain) -> bool {
        Arc::ptr_eq(&self.registration.domain, &domain.domain)
    }

    /// What a peer needs to reach its byte `at`.
    #[must_use]
    pub fn remote(&self, at: usize) -> super::Remote {
        let address = u64::try_from(self.span.address + at.min(self.span.len)).unwrap_or(u64::MAX);
        super::Remote { address, key: self.remote_key }
    }
}

impl fmt::Debug for MemoryRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRegion")
            .field("bytes", &self.span.len)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

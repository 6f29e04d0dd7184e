//! Who may speak at the rendezvous: jobs by the name that their workers dial, workers by their certificates.
//!
//! A certificate is good when it is one of the workers' that were enlisted, byte for byte: that needs no chain, and tells
//! at once whose it is. Which of the launcher's own certificates is shown follows from the name that was dialled.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use datapath::transport::quic::tls::{self, Identity, TlsError, fingerprint};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use tokio::sync::mpsc;
use worker::units::WorkerId;

use super::Inbound;

/// All jobs of a server.
#[derive(Debug)]
pub(super) struct Directory {
    jobs: RwLock<Jobs>,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug, Default)]
struct Jobs {
    /// What is shown to whom dials that name.
    names: BTreeMap<String, Arc<CertifiedKey>>,
    workers: BTreeMap<[u8; 32], Seat>,
}

/// Whose certificate it is, and who hears what it says.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    pub(super) worker: WorkerId,
    pub(super) inbound: mpsc::Sender<Inbound>,
}

/// One job's entry; dropping it strikes the job out. Its sessions end when their receiver is gone.
#[derive(Debug)]
pub struct Entry {
    directory: Arc<Directory>,
    name: String,
    workers: Vec<[u8; 32]>,
}

impl Directory {
    pub(super) fn new() -> Arc<Self> {
        let algorithms = tls::provider().signature_verification_algorithms;
        Arc::new(Self { jobs: RwLock::default(), algorithms })
    }

    /// Enters a job: its launcher's identity under the name that its workers dial, and its workers.
    pub(super) fn enter(
        self: &Arc<Self>,
        name: &str,
        launcher: &Identity,
        workers: &BTreeMap<[u8; 32], WorkerId>,
        inbound: &mpsc::Sender<Inbound>,
    ) -> Result<Entry, TlsError> {
        let key = Arc::new(tls::certified_key(launcher)?);
        let seats = workers
            .iter()
            .map(|(print, worker)| (*print, Seat { worker: *worker, inbound: inbound.clone() }));
        let mut jobs = self.jobs.write().unwrap_or_else(PoisonError::into_inner);
        jobs.names.insert(name.to_owned(), key);
        jobs.workers.extend(seats);
        drop(jobs);
        let workers = workers.keys().copied().collect();
        Ok(Entry { directory: Arc::clone(self), name: name.to_owned(), workers })
    }

    pub(super) fn seat(&self, fingerprint: &[u8; 32]) -> Option<Seat> {
        self.jobs.read().unwrap_or_else(PoisonError::into_inner).workers.get(fingerprint).cloned()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut jobs = self.directory.jobs.write().unwrap_or_else(PoisonError::into_inner);
        jobs.names.remove(&self.name);
        for worker in &self.workers {
            jobs.workers.remove(worker);
        }
    }
}

impl ResolvesServerCert for Directory {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let jobs = self.jobs.read().unwrap_or_else(PoisonError::into_inner);
        jobs.names.get(hello.server_name()?).cloned()
    }
}

impl ClientCertVerifier for Directory {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.seat(&fingerprint(end_entity)) {
            Some(_) => Ok(ClientCertVerified::assertion()),
            None => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("QUIC has no TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

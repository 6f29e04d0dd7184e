//! A job's certificate authority: a pure function of a 32-byte seed, so that whoever has the seed knows every party's
//! certificate without asking anybody, and a launcher that restarts knows its workers again.
//!
//! All keys are Ed25519: they are made from bytes without a search, and their signatures are deterministic. On this
//! machine the seed lives in the controller's memory and dies with it; on a cluster it lies in a Secret that only the
//! controller reads. A worker is only ever given its own key.

use std::collections::BTreeMap;

use datapath::transport::quic::tls::{Identity, fingerprint};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ED25519,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use sha2::{Digest, Sha256};
use worker::pod::identity::{SEED_BYTES, pkcs8};
use worker::rendezvous::certificate_name;
use worker::units::WorkerId;

/// The end of the name in the launcher's certificate; the job's uid stands in front of it, so that one port serves
/// many jobs.
const LAUNCHER_SUFFIX: &str = "launcher.slipway.internal";

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The kernel gives no random numbers.
    #[error("draw the seed of the job's certificates: {0}")]
    Random(getrandom::Error),
    /// A certificate cannot be made.
    #[error("make the job's certificates")]
    Certificate(#[from] rcgen::Error),
}

/// What everything of an authority is made from. It is as secret as all of its keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub [u8; SEED_BYTES]);

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seed(..)")
    }
}

impl Seed {
    /// A new one.
    ///
    /// # Errors
    /// When the kernel gives no random numbers.
    pub fn draw() -> Result<Self, AuthorityError> {
        let mut seed = [0; SEED_BYTES];
        getrandom::fill(&mut seed).map_err(AuthorityError::Random)?;
        Ok(Self(seed))
    }

    /// The seed of one party's key: a keyed hash under a label of its own, so no party's tells another's.
    fn of(&self, party: &str) -> [u8; SEED_BYTES] {
        let mut hash = Sha256::new();
        hash.update(b"slipway certificate key v1\0");
        hash.update(self.0);
        hash.update(party.as_bytes());
        hash.finalize().into()
    }
}

/// One job's authority.
pub struct Authority {
    job_uid: String,
    seed: Seed,
    ca_der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
    fingerprints: BTreeMap<[u8; 32], WorkerId>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("workers", &self.fingerprints.len()).finish_non_exhaustive()
    }
}

impl Authority {
    /// The authority of that seed.
    ///
    /// # Errors
    /// When its certificate cannot be made.
    pub fn new(job_uid: &str, seed: Seed) -> Result<Self, AuthorityError> {
        let key = key(&seed.of("authority"))?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = named(&format!("slipway job {job_uid}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca_der = params.self_signed(&key)?.der().to_vec();
        let issuer = Issuer::new(params, key);
        Ok(Self { job_uid: job_uid.to_owned(), seed, ca_der, issuer, fingerprints: BTreeMap::new() })
    }

    /// The authority's own certificate, DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.ca_der
    }

    /// The launcher's own identity.
    ///
    /// # Errors
    /// When its certificate cannot be made.
    pub fn launcher(&self) -> Result<Identity, AuthorityError> {
        self.sign(&launcher_name(&self.job_uid)).map(|(_, identity)| identity)
    }

    /// A worker's identity; its fingerprint belongs to that number from now on.
    ///
    /// # Errors
    /// When its certificate cannot be made.
    pub fn worker(&mut self, worker: WorkerId) -> Result<Identity, AuthorityError> {
        self.seeded_worker(worker).map(|(_, identity)| identity)
    }

    /// The same, with the seed of the worker's key: what a pod's identity file holds.
    ///
    /// # Errors
    /// When its certificate cannot be made.
    pub fn seeded_worker(
        &mut self,
        worker: WorkerId,
    ) -> Result<([u8; SEED_BYTES], Identity), AuthorityError> {
        let (seed, identity) = self.sign(&certificate_name(worker))?;
        self.fingerprints.insert(fingerprint(&identity.cert_der), worker);
        Ok((seed, identity))
    }

    /// Which worker each certificate belongs to.
    #[must_use]
    pub fn fingerprints(&self) -> &BTreeMap<[u8; 32], WorkerId> {
        &self.fingerprints
    }

    fn sign(&self, name: &str) -> Result<([u8; SEED_BYTES], Identity), AuthorityError> {
        let seed = self.seed.of(name);
        let key = key(&seed)?;
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name = named(name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Both: every worker's data plane listens and calls.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        let identity = Identity {
            ca_der: self.ca_der.clone(),
            cert_der: certificate.der().to_vec(),
            key_der: pkcs8(&seed).to_vec(),
        };
        Ok((seed, identity))
    }
}

/// The name in the certificate of a job's launcher.
#[must_use]
pub fn launcher_name(job_uid: &str) -> String {
    format!("{job_uid}.{LAUNCHER_SUFFIX}")
}

fn key(seed: &[u8; SEED_BYTES]) -> Result<KeyPair, AuthorityError> {
    let der = PrivatePkcs8KeyDer::from(pkcs8(seed).to_vec());
    Ok(KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519)?)
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

#[cfg(test)]
mod tests {
    use datapath::transport::quic::tls::{client_config, server_config};

    use super::*;

    #[test]
    fn every_party_has_a_certificate_of_its_own_that_both_ends_can_use() {
        let mut authority = Authority::new("j", Seed::draw().unwrap()).unwrap();
        let launcher = authority.launcher().unwrap();
        let workers = [authority.worker(WorkerId(0)).unwrap(), authority.worker(WorkerId(1)).unwrap()];
        assert_eq!(authority.fingerprints().len(), 2);
        assert_eq!(authority.fingerprints()[&fingerprint(&workers[1].cert_der)], WorkerId(1));
        for identity in workers.iter().chain([&launcher]) {
            server_config(identity, b"x").unwrap();
            client_config(identity, b"x").unwrap();
        }
        assert!(!format!("{authority:?}{launcher:?}").contains("key"), "no key is shown");
    }

    #[test]
    fn a_seed_says_everything_and_another_says_something_else() {
        let make = |seed: u8| {
            let mut authority = Authority::new("j", Seed([seed; SEED_BYTES])).unwrap();
            let (seed, worker) = authority.seeded_worker(WorkerId(7)).unwrap();
            (seed, worker.ca_der, worker.cert_der, authority.launcher().unwrap().cert_der)
        };
        assert_eq!(make(1), make(1));
        let (one, other) = (make(1), make(2));
        assert!(one.0 != other.0 && one.1 != other.1 && one.2 != other.2 && one.3 != other.3);
        assert_eq!(format!("{:?}", Seed([1; SEED_BYTES])), "Seed(..)");
        // A Secret of 1 MiB holds the identities of two thousand workers.
        assert!(one.0.len() + one.2.len() < 500, "{}", one.2.len());
    }
}

//! A job's certificate authority: it lives in the controller's memory, signs one certificate per party, and dies
//! with the controller. No key is ever written to a file; a worker's travels over its standard input.

use std::collections::BTreeMap;

use datapath::transport::quic::tls::{Identity, fingerprint};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use worker::units::WorkerId;

/// The name in the launcher's certificate.
pub const LAUNCHER_NAME: &str = "launcher.slipway.internal";

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
#[error("make the job's certificates")]
pub struct AuthorityError(#[from] rcgen::Error);

/// One job's authority.
pub struct Authority {
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
    /// A new one.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new(job: &str) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = named(&format!("slipway job {job}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca_der = params.self_signed(&key)?.der().to_vec();
        Ok(Self { ca_der, issuer: Issuer::new(params, key), fingerprints: BTreeMap::new() })
    }

    /// The launcher's own identity.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn launcher(&self) -> Result<Identity, AuthorityError> {
        self.sign(LAUNCHER_NAME)
    }

    /// A worker's identity; its fingerprint belongs to that number from now on.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn worker(&mut self, worker: WorkerId) -> Result<Identity, AuthorityError> {
        let identity = self.sign(&worker_name(worker))?;
        self.fingerprints.insert(fingerprint(&identity.cert_der), worker);
        Ok(identity)
    }

    /// Which worker each certificate belongs to.
    #[must_use]
    pub fn fingerprints(&self) -> &BTreeMap<[u8; 32], WorkerId> {
        &self.fingerprints
    }

    fn sign(&self, name: &str) -> Result<Identity, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name = named(name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Both: every worker's data plane listens and calls.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity {
            ca_der: self.ca_der.clone(),
            cert_der: certificate.der().to_vec(),
            key_der: key.serialize_der(),
        })
    }
}

/// The name in a worker's certificate.
#[must_use]
pub fn worker_name(worker: WorkerId) -> String {
    format!("worker-{worker}")
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
        let mut authority = Authority::new("j").unwrap();
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
}

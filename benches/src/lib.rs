//! What the programs beside peers share: certificates, a trainer, and the CPU that something took.

use std::error::Error;
use std::time::Duration;

use datapath::transport::quic::tls::Identity;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustix::time::{ClockId, clock_gettime};

pub mod trainer;

/// Whatever a bench cannot go on after.
pub type Failure = Box<dyn Error + Send + Sync>;

/// Parties of those names, with certificates of one authority.
///
/// # Errors
/// When no key can be made.
pub fn identities<const N: usize>(names: [&str; N]) -> Result<[Identity; N], Failure> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let identity = |name: &str| {
        let key = KeyPair::generate()?;
        let cert = CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, &authority)?;
        let (ca_der, cert_der) = (authority.der().to_vec(), cert.der().to_vec());
        Ok::<_, Failure>(Identity { ca_der, cert_der, key_der: key.serialize_der() })
    };
    let made: Vec<Identity> = names.into_iter().map(identity).collect::<Result<_, _>>()?;
    made.try_into().map_err(|_| "as many as names".into())
}

/// CPU time by that clock.
#[must_use]
pub fn cpu(clock: ClockId) -> Duration {
    Duration::try_from(clock_gettime(clock)).unwrap_or_default()
}

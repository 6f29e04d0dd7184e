//! Mutual TLS from a per-job authority: the configurations of both ends of a QUIC connection.
//!
//! TLS 1.3 only, AES-GCM only (`AES-128` first: it is the cheapest per byte with AES instructions, and ChaCha20 would
//! double a transfer's cost), no session tickets: every connection shows both certificates anew. A certificate is
//! good when the job's authority signed it; which party it is, a caller reads from [`peer_fingerprint`].

use std::fmt;
use std::sync::Arc;

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The ALPN of a data connection.
pub const DATA_ALPN: &[u8] = b"slipway-data/1";

/// One party's certificate and key, and the authority that signed all of the job's.
#[derive(Clone, Serialize, Deserialize)]
pub struct Identity {
    /// The job's authority, DER.
    pub ca_der: Vec<u8>,
    /// This party's certificate, DER.
    pub cert_der: Vec<u8>,
    /// Its private key, PKCS#8 DER.
    pub key_der: Vec<u8>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The authority's certificate cannot be read or cannot be an authority.
    #[error("use the job's certificate authority")]
    Authority(#[source] rustls::Error),
    /// No verifier can be built from the authority.
    #[error("verify clients by the job's certificate authority")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    /// The certificate or its key is unusable.
    #[error("use this party's certificate and key")]
    Certificate(#[source] rustls::Error),
    /// The cipher suites do not suit QUIC.
    #[error("use TLS for QUIC")]
    Quic(#[source] NoInitialCipherSuite),
}

/// The listening side: demands a certificate of the same authority.
///
/// # Errors
/// When the identity's certificates or key are malformed or do not belong together.
pub fn server_config(identity: &Identity, alpn: &[u8]) -> Result<quinn::ServerConfig, TlsError> {
    let provider = provider();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(identity)?), Arc::clone(&provider))
            .build()
            .map_err(TlsError::Verifier)?;
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Certificate)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(identity), key(identity))
        .map_err(TlsError::Certificate)?;
    without_sessions(tls, alpn)
}

fn without_sessions(mut tls: rustls::ServerConfig, alpn: &[u8]) -> Result<quinn::ServerConfig, TlsError> {
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    let crypto = QuicServerConfig::try_from(tls).map_err(TlsError::Quic)?;
    Ok(quinn::ServerConfig::with_crypto(Arc::new(crypto)))
}

/// The listening side for many authorities at once: `resolver` says what is shown to whom, `verifier` whose certificates
/// are good.
///
/// # Errors
/// When the cipher suites do not suit QUIC.
pub fn shared_server_config(
    resolver: Arc<dyn ResolvesServerCert>,
    verifier: Arc<dyn ClientCertVerifier>,
    alpn: &[u8],
) -> Result<quinn::ServerConfig, TlsError> {
    let tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Certificate)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    without_sessions(tls, alpn)
}

/// A certificate and its key, for a resolver of [`shared_server_config`].
///
/// # Errors
/// When they are malformed or do not belong together.
pub fn certified_key(identity: &Identity) -> Result<CertifiedKey, TlsError> {
    CertifiedKey::from_der(chain(identity), key(identity), &provider()).map_err(TlsError::Certificate)
}

/// The connecting side: shows this party's certificate and demands one of the same authority for the name it dials.
///
/// # Errors
/// When the identity's certificates or key are malformed or do not belong together.
pub fn client_config(identity: &Identity, alpn: &[u8]) -> Result<quinn::ClientConfig, TlsError> {
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Certificate)?
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(chain(identity), key(identity))
        .map_err(TlsError::Certificate)?;
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    let crypto = QuicClientConfig::try_from(tls).map_err(TlsError::Quic)?;
    Ok(quinn::ClientConfig::new(Arc::new(crypto)))
}

/// SHA-256 of the certificate that the other end showed; none before the handshake's end.
#[must_use]
pub fn peer_fingerprint(connection: &quinn::Connection) -> Option<[u8; 32]> {
    let identity = connection.peer_identity()?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.first().map(|leaf| fingerprint(leaf))
}

/// SHA-256 of a certificate in DER: what [`peer_fingerprint`] says of a party that shows it.
#[must_use]
pub fn fingerprint(cert_der: &[u8]) -> [u8; 32] {
    Sha256::digest(cert_der).into()
}

/// The ciphers of every connection.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites =
        vec![cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS13_AES_256_GCM_SHA384];
    Arc::new(provider)
}

fn roots(identity: &Identity) -> Result<rustls::RootCertStore, TlsError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(identity.ca_der.clone())).map_err(TlsError::Authority)?;
    Ok(roots)
}

fn chain(identity: &Identity) -> Vec<CertificateDer<'static>> {
    vec![CertificateDer::from(identity.cert_der.clone())]
}

fn key(identity: &Identity) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key_der.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Authority;
    use std::net::SocketAddr;

    fn server(identity: &Identity) -> quinn::Endpoint {
        let config = server_config(identity, DATA_ALPN).unwrap();
        quinn::Endpoint::server(config, SocketAddr::from(([127, 0, 0, 1], 0))).unwrap()
    }

    /// What the server saw of a client that dialled it under the name `peer-1`.
    async fn meet(server_identity: &Identity, client_identity: &Identity) -> Option<[u8; 32]> {
        let server = server(server_identity);
        let mut client = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        client.set_default_client_config(client_config(client_identity, DATA_ALPN).unwrap());
        let dial = async {
            let connection = client.connect(server.local_addr().unwrap(), "peer-1").unwrap().await.ok()?;
            assert_eq!(peer_fingerprint(&connection), Some(fingerprint(&server_identity.cert_der)));
            // A client certificate is judged after the client believes the handshake done: wait for its verdict.
            Some(connection.closed().await)
        };
        let accept = async {
            let connection = server.accept().await?.await.ok()?;
            let seen = peer_fingerprint(&connection);
            connection.close(0_u32.into(), b"seen");
            seen
        };
        let (_, seen) = tokio::join!(dial, accept);
        seen
    }

    #[tokio::test]
    async fn both_ends_learn_the_others_certificate() {
        let authority = Authority::new();
        let (one, two) = (authority.identity("peer-1"), authority.identity("peer-2"));
        assert_eq!(meet(&one, &two).await, Some(fingerprint(&two.cert_der)));
    }

    #[tokio::test]
    async fn another_jobs_certificate_is_refused_on_either_side() {
        let (ours, other) = (Authority::new(), Authority::new());
        assert_eq!(meet(&ours.identity("peer-1"), &other.identity("peer-2")).await, None);
    }

    #[test]
    fn a_key_is_never_shown() {
        let identity = Authority::new().identity("peer-1");
        assert_eq!(format!("{identity:?}"), "Identity { .. }");
    }

    #[test]
    fn garbage_is_an_error() {
        let mut identity = Authority::new().identity("peer-1");
        identity.key_der = vec![1, 2, 3];
        assert!(matches!(server_config(&identity, DATA_ALPN), Err(TlsError::Certificate(_))));
        identity.ca_der = vec![];
        assert!(matches!(client_config(&identity, DATA_ALPN), Err(TlsError::Authority(_))));
    }
}

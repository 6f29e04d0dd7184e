//! A launcher for tests: a certificate authority and a few lines of quinn.

use std::time::Duration;

use datapath::transport::quic::tls::{Identity, server_config};
use quinn::{Endpoint, RecvStream, SendStream};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::time::timeout;

use super::message::{ALPN, Registration, ToLauncher, ToWorker, body_length, decode, encode};

/// Longer than any of these tests needs on a busy host.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Authority {
    der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

pub(crate) fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let der = parameters.self_signed(&key).unwrap().der().to_vec();
    Authority { der, issuer: Issuer::new(parameters, key) }
}

impl Authority {
    pub(crate) fn identity(&self, name: &str) -> Identity {
        self.identity_of(name, &KeyPair::generate().unwrap())
    }

    pub(crate) fn identity_of(&self, name: &str, key: &KeyPair) -> Identity {
        let certificate =
            CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(key, &self.issuer).unwrap();
        Identity {
            ca_der: self.der.clone(),
            cert_der: certificate.der().to_vec(),
            key_der: key.serialize_der(),
        }
    }
}

/// One end of an accepted session.
pub(crate) struct Peer {
    pub(crate) connection: quinn::Connection,
    pub(crate) send: SendStream,
    pub(crate) receive: RecvStream,
}

impl Peer {
    pub(crate) async fn say(&mut self, message: &ToWorker) {
        self.send.write_all(&encode(message).unwrap()).await.unwrap();
    }

    pub(crate) async fn hear(&mut self) -> ToLauncher {
        let mut prefix = [0; 4];
        self.receive.read_exact(&mut prefix).await.unwrap();
        let mut body = vec![0; body_length(prefix).unwrap()];
        self.receive.read_exact(&mut body).await.unwrap();
        decode(&body).unwrap()
    }

    pub(crate) async fn hear_registration(&mut self) -> Registration {
        match self.hear().await {
            ToLauncher::Register(registration) => registration,
            other => panic!("{other:?}"),
        }
    }
}

/// A launcher's end on a free port.
pub(crate) fn listen(identity: &Identity) -> Endpoint {
    let server = server_config(identity, ALPN).unwrap();
    Endpoint::server(server, "127.0.0.1:0".parse().unwrap()).unwrap()
}

/// The next session.
pub(crate) async fn accept(launcher: &Endpoint) -> Peer {
    let connection = timeout(PATIENCE, launcher.accept()).await.unwrap().unwrap().await.unwrap();
    let (send, receive) = timeout(PATIENCE, connection.accept_bi()).await.unwrap().unwrap();
    Peer { connection, send, receive }
}

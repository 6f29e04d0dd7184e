//! A worker's identity as a file in its pod: the seed of its key, then its certificate (pure).
//!
//! An Ed25519 key is made from 32 bytes (RFC 8032, section 5.1.5). The file is as short as it can be, because the
//! identities of a whole gang lie in Secrets of at most 1 MiB.

use datapath::transport::quic::tls::Identity;

/// Bytes of a key's seed.
pub const SEED_BYTES: usize = 32;
/// What stands before the seed in PKCS#8: version 1, the algorithm id-Ed25519 (1.3.101.112), an octet string in an octet
/// string (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// The key of that seed, PKCS#8 DER.
#[must_use]
pub fn pkcs8(seed: &[u8; SEED_BYTES]) -> [u8; PKCS8_PREFIX.len() + SEED_BYTES] {
    let mut der = [0; PKCS8_PREFIX.len() + SEED_BYTES];
    der[..PKCS8_PREFIX.len()].copy_from_slice(&PKCS8_PREFIX);
    der[PKCS8_PREFIX.len()..].copy_from_slice(seed);
    der
}

/// The file's bytes.
#[must_use]
pub fn encode(seed: &[u8; SEED_BYTES], cert_der: &[u8]) -> Vec<u8> {
    [&seed[..], cert_der].concat()
}

/// The identity in a file's bytes, with the authority's certificate from the file beside it; none when it is too short
/// to be one.
#[must_use]
pub fn decode(file: &[u8], ca_der: Vec<u8>) -> Option<Identity> {
    let (seed, cert_der) = file.split_first_chunk::<SEED_BYTES>()?;
    (!cert_der.is_empty()).then(|| Identity {
        ca_der,
        cert_der: cert_der.to_vec(),
        key_der: pkcs8(seed).to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_back_and_a_short_one_is_not() {
        let identity = decode(&encode(&[7; SEED_BYTES], b"certificate"), b"authority".to_vec()).unwrap();
        assert_eq!(identity.cert_der, b"certificate");
        assert_eq!(identity.ca_der, b"authority");
        assert_eq!(identity.key_der, pkcs8(&[7; SEED_BYTES]));
        assert!(decode(&[7; SEED_BYTES], Vec::new()).is_none());
        assert!(decode(&[7; 3], Vec::new()).is_none());
    }
}

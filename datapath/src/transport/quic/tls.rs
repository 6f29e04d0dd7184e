//! Mutual TLS from a per-job authority.

use std::fmt;

use serde::{Deserialize, Serialize};

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

//! How a pool is opened: whose configuration and key, and how long anybody is waited for.
//!
//! Ceph's clients wait for ever by default: for a monitor 300 s, for an OSD without end. Here all of it has a limit, which
//! `ceph.conf` may set. Corrupt bytes on the only copy of an object show as such a timeout, too: the OSD goes on looking for
//! a better copy.

use std::ffi::CString;
use std::io;
use std::path::Path;

use super::aio::{Cluster, Errno, Pool};
use super::c_string;
use crate::store::StoreError;
use crate::store::address::RadosAddress;
use crate::store::credentials::Credentials;

/// Seconds that a monitor may take, where `ceph.conf` leaves Ceph's default of 300.
const MOUNT_TIMEOUT: (&str, &str, &str) = ("client_mount_timeout", "300", "15");
/// Seconds that a question to the monitors may take, as for the first map of OSDs, where `ceph.conf` leaves no limit.
const MON_TIMEOUT: (&str, &str, &str) = ("rados_mon_op_timeout", "0", "15");
/// Seconds that an operation may take, where `ceph.conf` leaves Ceph's default of no limit. It has to be longer than a
/// cluster needs to notice a dead OSD and to ask the next one: 20 s of grace and an interval of 6 s by default; and than the
/// 10 s (`objecter_timeout`) after which a client asks whether the OSD that does not answer has come back elsewhere.
const OP_TIMEOUT: (&str, &str, &str) = ("rados_osd_op_timeout", "0", "30");

/// A pool that was opened.
pub(super) struct Connection {
    pub(super) pool: Pool,
    /// As whom, with its type.
    pub(super) user: String,
    /// The cluster's own name of itself.
    pub(super) fsid: String,
}

/// Opens the pool. Waits in the calling thread.
pub(super) fn connect(address: &RadosAddress, url: &str) -> Result<Connection, StoreError> {
    let refused = |what: String| StoreError::Connect { url: url.into(), what };
    let credentials = match &address.credentials {
        Some(folder) => Some(Credentials::open(folder).map_err(refused)?),
        None => None,
    };
    let secret = |names: &[&str]| match &credentials {
        Some(credentials) => credentials.text(names).map_err(|error| {
            refused(format!("{} of the credentials cannot be read: {error}", names.join(" or ")))
        }),
        None => Ok(None),
    };
    let user = match &address.user {
        Some(user) => Some(user.clone()),
        None => secret(&["userID", "adminID"])?,
    };
    // What Ceph's own tools take, too.
    let user = user.unwrap_or_else(|| "admin".into());
    let user = format!("client.{}", user.strip_prefix("client.").unwrap_or(&user));
    let failed = |step: &str, error: Errno| refused(format!("{step}: {}", io::Error::from(error)));
    let cluster =
        Cluster::new(&c_string(user.as_str())).map_err(|error| failed("librados refuses a handle", error))?;
    let file = |names: &[&str]| credentials.as_ref().and_then(|credentials| credentials.file(names));
    let conf = address.conf.clone().or_else(|| file(&["ceph.conf"]));
    let monitors = secret(&["mon_host", "monitors"])?;
    match cluster.read_conf(conf.as_deref().map(path_string).as_deref()) {
        // Without one of its own a client may know the monitors from elsewhere.
        Err(Errno::NOT_FOUND) if conf.is_none() => {}
        Err(error) => {
            let path = conf.map_or_else(|| "ceph.conf".into(), |path| path.display().to_string());
            return Err(failed(&format!("{path} cannot be read"), error));
        }
        Ok(()) => {}
    }
    cluster.read_env().map_err(|error| failed("CEPH_ARGS cannot be read", error))?;
    let set = |option: &str, value: &str| {
        let result = cluster.set(&c_string(option), &c_string(value));
        result.map_err(|error| failed(&format!("librados does not take {option}"), error))
    };
    // What it has to say comes back as errors.
    set("log_to_stderr", "false")?;
    set("err_to_stderr", "false")?;
    if let Some(monitors) = monitors {
        set("mon_host", &monitors)?;
    }
    if let Some(path) = file(&["keyring"]) {
        set("keyring", &path.to_string_lossy())?;
    }
    // A Secret of Rook's has the key under the user's name, one of ceph-csi's under userKey.
    let bare = user.strip_prefix("client.").unwrap_or(&user);
    if let Some(key) = secret(&["key", "userKey", "adminKey", bare])? {
        set("key", &key)?;
    }
    for (option, default, ours) in [MOUNT_TIMEOUT, MON_TIMEOUT, OP_TIMEOUT] {
        let value = cluster.get(&c_string(option)).unwrap_or_default();
        if value.split('.').next() == Some(default) {
            set(option, ours)?;
        }
    }
    let mon_host = cluster.get(c"mon_host").unwrap_or_default();
    cluster.connect().map_err(|error| refused(connect_cause(error, &user, &mon_host)))?;
    let fsid = cluster.fsid().map_err(|error| failed("the cluster does not say its fsid", error))?;
    let (pool, namespace) = (c_string(address.pool.as_str()), c_string(address.namespace.as_str()));
    let opened = Pool::open(cluster, &pool, &namespace, address.replicas);
    let pool = opened.map_err(|error| match error {
        Errno::NOT_FOUND => refused(format!("there is no pool {}", address.pool)),
        error => failed(&format!("the pool {} cannot be opened", address.pool), error),
    })?;
    Ok(Connection { pool, user, fsid })
}

/// The address without its options.
pub(super) fn shown(address: &RadosAddress) -> String {
    let user = address.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
    let namespace =
        if address.namespace.is_empty() { String::new() } else { format!(":{}", address.namespace) };
    let prefix = if address.prefix.is_empty() { String::new() } else { format!("/{}", address.prefix) };
    format!("rados://{user}{}{namespace}{prefix}", address.pool)
}

/// What a failure to connect means: librados tells a wrong key as an I/O error, and no key as a file that is not there.
fn connect_cause(error: Errno, user: &str, mon_host: &str) -> String {
    match error {
        // Without them librados has looked into DNS (`mon_dns_srv_name`), and tells what it missed by this number, too.
        Errno::NOT_FOUND if mon_host.is_empty() => {
            "no monitors are known: name a ceph.conf (conf=FILE, CEPH_CONF), or put mon_host into the credentials".into()
        }
        Errno::NOT_FOUND => {
            format!("there is no key for {user}: name a keyring in ceph.conf, or a folder by credentials=")
        }
        Errno::IO | Errno::ACCESS | Errno::PERMISSION => {
            format!("the cluster does not know {user} by this key")
        }
        Errno::TIMED_OUT => {
            format!(
                "no monitor of {mon_host} answers (client_mount_timeout): are they up, and reachable from this host?"
            )
        }
        Errno::INVALID => format!("ceph.conf or the key of {user} is malformed"),
        error => format!("the cluster cannot be reached: {}", io::Error::from(error)),
    }
}

fn path_string(path: &Path) -> CString {
    c_string(path.as_os_str().as_encoded_bytes())
}

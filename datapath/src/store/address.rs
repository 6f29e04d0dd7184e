//! A dataset's address: `PATH`, `file:///PATH`, `rados://[USER@]POOL[:NAMESPACE][/PREFIX]` or `s3://BUCKET[/PREFIX]` (pure).
//!
//! What else a store must be told stands behind a `?`, as `name=value`, separated by `&`. Keys and passwords are no part of
//! an address, which is shown and logged: `credentials` names a folder with them.

use std::path::{Path, PathBuf};

use super::StoreError;

/// What a dataset's address may begin with.
pub const KNOWN_SCHEMES: &[&str] = &["file://", "rados://", "s3://"];

/// A parsed address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A directory of a mounted file system.
    Directory(PathBuf),
    /// Objects of a Ceph pool.
    Rados(RadosAddress),
    /// Objects of an S3 bucket.
    S3(S3Address),
}

/// Where in which Ceph cluster, and as whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RadosAddress {
    /// The cephx user without its type: `reader` for `client.reader`. None: the credentials' `userID`, or `admin`.
    pub user: Option<String>,
    /// The pool.
    pub pool: String,
    /// The pool's namespace; empty for the default one.
    pub namespace: String,
    /// What every object's name begins with, without a slash at its end; empty for the whole namespace.
    pub prefix: String,
    /// `ceph.conf`; none: the one in `credentials`, `CEPH_CONF`'s, or `/etc/ceph/ceph.conf`.
    pub conf: Option<PathBuf>,
    /// A folder with a file per secret, or with a keyring.
    pub credentials: Option<PathBuf>,
    /// Which copies are read.
    pub replicas: Replicas,
}

/// Which copies of an object may answer a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replicas {
    /// The primary's.
    #[default]
    Primary,
    /// Any.
    Balance,
    /// The nearest by `crush_location`.
    Localize,
}

/// Where in which S3 service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3Address {
    /// The bucket.
    pub bucket: String,
    /// What every key begins with, without a slash at its end; empty for the whole bucket.
    pub prefix: String,
    /// The service's URL; none: `AWS_ENDPOINT_URL`'s, or Amazon's.
    pub endpoint: Option<String>,
    /// The region; none: `AWS_REGION`'s or us-east-1, which other services than Amazon's do not look at.
    pub region: Option<String>,
    /// A folder with `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.
    pub credentials: Option<PathBuf>,
}

impl Address {
    /// Reads an address.
    ///
    /// # Errors
    /// With what is wrong with it.
    pub fn parse(url: &str) -> Result<Self, StoreError> {
        let Some((scheme, rest)) = url.split_once("://") else { return Ok(Self::Directory(url.into())) };
        let bad = |what: String| StoreError::BadAddress { url: url.into(), what };
        match scheme {
            "file" if rest.starts_with('/') => Ok(Self::Directory(rest.into())),
            "file" => Err(bad("the path must be absolute: file:///PATH".into())),
            "rados" => rados(rest).map(Self::Rados).map_err(bad),
            "s3" => s3(rest).map(Self::S3).map_err(bad),
            _ => Err(StoreError::UnknownScheme { url: url.into() }),
        }
    }

    /// The folder of credentials that it names.
    #[must_use]
    pub fn credentials(&self) -> Option<&Path> {
        match self {
            Self::Directory(_) => None,
            Self::Rados(address) => address.credentials.as_deref(),
            Self::S3(address) => address.credentials.as_deref(),
        }
    }
}

/// The address `url` of a store that asks who one is, with that folder of credentials, which it does not name itself.
#[must_use]
pub fn with_credentials(url: &str, folder: &str) -> String {
    let mark = if url.contains('?') { '&' } else { '?' };
    format!("{url}{mark}credentials={folder}")
}

/// What the names of objects below a prefix begin with.
#[cfg(any(feature = "ceph", feature = "s3"))]
pub(super) fn with_slash(prefix: &str) -> String {
    if prefix.is_empty() { String::new() } else { format!("{prefix}/") }
}

fn rados(rest: &str) -> Result<RadosAddress, String> {
    let (place, options) = split_options(rest)?;
    let (authority, prefix) = place.split_once('/').unwrap_or((place, ""));
    let (user, pool) = match authority.split_once('@') {
        Some((user, pool)) => (Some(user), pool),
        None => (None, authority),
    };
    let (pool, namespace) = pool.split_once(':').unwrap_or((pool, ""));
    if pool.is_empty() {
        return Err("it names no pool: rados://[USER@]POOL[:NAMESPACE][/PREFIX]".into());
    }
    let user = user.map(|user| user.strip_prefix("client.").unwrap_or(user));
    if user.is_some_and(|user| user.is_empty() || user.contains(':')) {
        return Err("before the @ stands a cephx user and no key: put the key into a keyring".into());
    }
    let mut address = RadosAddress {
        user: user.map(str::to_owned),
        pool: pool.into(),
        namespace: namespace.into(),
        prefix: clean_prefix(prefix)?,
        ..RadosAddress::default()
    };
    for (name, value) in options {
        match name {
            "conf" => address.conf = Some(value.into()),
            "credentials" => address.credentials = Some(value.into()),
            "replicas" => {
                address.replicas = match value {
                    "primary" => Replicas::Primary,
                    "balance" => Replicas::Balance,
                    "localize" => Replicas::Localize,
                    _ => return Err(format!("replicas={value}: it is primary, balance or localize")),
                }
            }
            _ => return Err(unknown(name, "conf, credentials and replicas")),
        }
    }
    Ok(address)
}

fn s3(rest: &str) -> Result<S3Address, String> {
    let (place, options) = split_options(rest)?;
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    if bucket.contains(['@', ':']) {
        return Err("it names a bucket only; put keys into a credentials folder".into());
    }
    // Amazon's rule, and Ceph's too unless told otherwise.
    if !(3..=63).contains(&bucket.len()) {
        return Err(format!("the bucket {bucket:?} must have 3 to 63 characters: s3://BUCKET[/PREFIX]"));
    }
    let mut address =
        S3Address { bucket: bucket.into(), prefix: clean_prefix(prefix)?, ..S3Address::default() };
    for (name, value) in options {
        match name {
            "endpoint" if value.starts_with("http://") || value.starts_with("https://") => {
                address.endpoint = Some(value.into());
            }
            "endpoint" => return Err(format!("endpoint={value}: it begins with http:// or https://")),
            "region" => address.region = Some(value.into()),
            "credentials" => address.credentials = Some(value.into()),
            _ => return Err(unknown(name, "endpoint, region and credentials")),
        }
    }
    Ok(address)
}

fn unknown(name: &str, known: &str) -> String {
    match name {
        "key" | "keyring" | "secret" | "password" => {
            format!(
                "{name} is no part of an address, which is shown: put it into the folder of credentials=FOLDER"
            )
        }
        _ => format!("the option {name:?} is not known; there are {known}"),
    }
}

/// Names and values.
type Options<'url> = Vec<(&'url str, &'url str)>;

/// What stands behind the question mark, each name once.
fn split_options(rest: &str) -> Result<(&str, Options<'_>), String> {
    let Some((place, text)) = rest.split_once('?') else { return Ok((rest, Vec::new())) };
    let mut options = Options::new();
    for option in text.split('&').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some((name, value)) if !name.is_empty() && !value.is_empty() => {
                if options.iter().any(|(known, _)| *known == name) {
                    return Err(format!("{name} is given twice"));
                }
                options.push((name, value));
            }
            _ => return Err(format!("{option:?} is not name=value")),
        }
    }
    Ok((place, options))
}

/// Without slashes at the end; parts that would be lost or ambiguous are refused.
fn clean_prefix(prefix: &str) -> Result<String, String> {
    let prefix = prefix.trim_end_matches('/');
    let is_bad = |part: &str| part.is_empty() || part == "." || part == "..";
    if !prefix.is_empty() && (prefix.split('/').any(is_bad) || prefix.contains('\0')) {
        return Err(format!("the prefix {prefix:?} has a part that is empty or made of dots"));
    }
    Ok(prefix.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_one_more_option() {
        for url in ["s3://bucket/a", "rados://u@pool/a?replicas=balance", "s3://bucket?region=x&"] {
            assert_eq!(Address::parse(url).unwrap().credentials(), None);
            let with = Address::parse(&with_credentials(url, "/run/keys")).unwrap();
            assert_eq!(with.credentials(), Some(Path::new("/run/keys")), "{url}");
        }
    }

    fn rados(url: &str) -> RadosAddress {
        match Address::parse(url).unwrap() {
            Address::Rados(address) => address,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rados_addresses() {
        let plain = RadosAddress { pool: "shards".into(), ..RadosAddress::default() };
        assert_eq!(rados("rados://shards"), plain);
        assert_eq!(rados("rados://shards/"), plain);
        let full = RadosAddress {
            user: Some("reader".into()),
            namespace: "team".into(),
            prefix: "digits/train".into(),
            conf: Some("/c/ceph.conf".into()),
            credentials: Some("/run/secrets/ceph".into()),
            replicas: Replicas::Localize,
            ..plain
        };
        let options = "conf=/c/ceph.conf&credentials=/run/secrets/ceph&replicas=localize";
        assert_eq!(rados(&format!("rados://client.reader@shards:team/digits/train/?{options}")), full);
        assert_eq!(rados(&format!("rados://reader@shards:team/digits/train?{options}")), full);
    }

    #[test]
    fn s3_addresses() {
        let url = "s3://bucket/train?endpoint=http://10.0.0.1:8000&region=eu&credentials=/s";
        let Address::S3(address) = Address::parse(url).unwrap() else { panic!() };
        assert_eq!((address.bucket.as_str(), address.prefix.as_str()), ("bucket", "train"));
        assert_eq!(address.endpoint.as_deref(), Some("http://10.0.0.1:8000"));
        assert_eq!(address.region.as_deref(), Some("eu"));
        assert_eq!(address.credentials, Some("/s".into()));
    }

    #[test]
    fn directories() {
        assert_eq!(Address::parse("shards").unwrap(), Address::Directory("shards".into()));
        assert_eq!(Address::parse("file:///a/b").unwrap(), Address::Directory("/a/b".into()));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (url, word) in [
            ("file://a", "absolute"),
            ("rados:///x", "no pool"),
            ("rados://@pool/x", "cephx user"),
            ("rados://reader:AQ==@pool/x", "no key"),
            ("rados://pool/x?key=AQ==", "credentials=FOLDER"),
            ("rados://pool/x?retries=2", "not known"),
            ("rados://pool/x?conf", "name=value"),
            ("rados://pool/x?conf=a&conf=b", "twice"),
            ("rados://pool/x?replicas=any", "balance"),
            ("rados://pool/a//b", "empty"),
            ("rados://pool/../b", "dots"),
            ("s3://ab/x", "3 to 63"),
            ("s3://id:secret@bucket/x", "credentials folder"),
            ("s3://bucket/x?endpoint=10.0.0.1", "http://"),
            ("gs://bucket/x", "not known"),
        ] {
            let error = Address::parse(url).unwrap_err();
            assert!(error.to_string().contains(word), "{url}: {error}");
            assert!(["bad_address", "unknown_scheme"].contains(&error.code()), "{url}: {error}");
        }
    }
}

//! Objects of an S3 bucket as a store: Ceph's object gateway, Amazon, and others that speak it.
//!
//! Keys come from the address's `credentials` folder, or from where Amazon's own tools take them: the environment, a
//! service account's token, the instance. What a service answers is copied once, from the connection into the block.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};
use object_store::path::Path;
use object_store::{
    ClientOptions, GetOptions, GetRange, MultipartUpload as _, ObjectStore, ObjectStoreExt as _, PutPayload,
    RetryConfig, StaticCredentialProvider,
};

use super::address::{S3Address, with_slash};
use super::credentials::Credentials;
use super::directory::MAX_OBJECTS;
use super::{Object, Store, StoreError, is_listed};
use crate::dataset::{count, index_of, is_shard_name};
use crate::fault::in_full;
use crate::memory::Block;

/// One request, with the body of its answer: 16 MiB at 1 MB/s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// To connect: a service on a data network answers in milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A request is repeated on a lost connection and on answers that say so: over the restart of a gateway, not over its loss.
const RETRIES_MAX: usize = 6;
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
/// A part of an upload, whose least size is 5 MiB.
const PART_BYTES: u64 = 16 << 20;
/// Parts of an upload at the most.
const PARTS_MAX: u64 = 10_000;

/// A bucket, and what the keys of a dataset's objects begin with. Clones share connections.
#[derive(Clone)]
pub struct S3Store {
    client: Arc<AmazonS3>,
    /// Without options, as it is shown.
    url: Arc<str>,
    /// The same for all addresses of a place at one service.
    place: Arc<str>,
    /// With its slash, or empty.
    prefix: Arc<str>,
}

impl S3Store {
    /// Nothing is asked of the service yet.
    ///
    /// # Errors
    /// When the credentials cannot be read or the settings do not fit.
    pub fn open(address: &S3Address) -> Result<Self, StoreError> {
        let url = match address.prefix.as_str() {
            "" => format!("s3://{}", address.bucket),
            prefix => format!("s3://{}/{prefix}", address.bucket),
        };
        let refused = |what: String| StoreError::Connect { url: url.clone(), what };
        let options = ClientOptions::new()
            .with_timeout(REQUEST_TIMEOUT)
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_allow_http(true);
        let retry =
            RetryConfig { max_retries: RETRIES_MAX, retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(&address.bucket)
            .with_client_options(options)
            .with_retry(retry);
        if let Some(endpoint) = &address.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(region) = &address.region {
            builder = builder.with_region(region);
        }
        if let Some(folder) = &address.credentials {
            let credentials = Credentials::open(folder).map_err(refused)?;
            let secret = |names: &[&str]| {
                let text = credentials.text(names);
                text.map_err(|error| refused(format!("{} cannot be read: {error}", names.join(" or "))))
            };
            let (id, key) = (
                secret(&["AWS_ACCESS_KEY_ID", "accessKey", "AccessKey"])?,
                secret(&["AWS_SECRET_ACCESS_KEY", "secretKey", "SecretKey"])?,
            );
            let (Some(id), Some(key)) = (id, key) else {
                let folder = folder.display();
                return Err(refused(format!(
                    "the folder {folder} has no AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                )));
            };
            let token = secret(&["AWS_SESSION_TOKEN"])?;
            // Not one by one: what the environment has (a session's token) belongs to a key of its own.
            let credential = AwsCredential { key_id: id, secret_key: key, token };
            builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(credential)));
            if let (None, Some(endpoint)) =
                (&address.endpoint, secret(&["AWS_ENDPOINT_URL", "endpoint", "Endpoint"])?)
            {
                builder = builder.with_endpoint(endpoint);
            }
        }
        let service = builder.get_config_value(&AmazonS3ConfigKey::Endpoint).unwrap_or_default();
        let place = format!("{}/{}/{}", service.trim_end_matches('/'), address.bucket, address.prefix);
        let client = builder.build().map_err(|error| refused(on_one_line(&error)))?;
        Ok(Self {
            client: Arc::new(client),
            url: url.as_str().into(),
            place: place.into(),
            prefix: with_slash(&address.prefix).into(),
        })
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// All objects below the prefix, sorted by name.
    pub async fn list(&self) -> Result<Vec<Object>, StoreError> {
        let failed = |error| StoreError::List { name: self.url.to_string(), source: cause(&error) };
        let prefix = Path::parse(self.prefix.trim_end_matches('/')).map_err(|error| failed(error.into()))?;
        let mut found = self.client.list(Some(&prefix));
        let mut objects = Vec::new();
        while let Some(object) = found.next().await {
            let object = object.map_err(failed)?;
            let key = object.location.as_ref();
            let Some(name) = key.strip_prefix(&*self.prefix) else { continue };
            if !is_listed(name) {
                continue;
            }
            if objects.len() == MAX_OBJECTS {
                return Err(StoreError::TooMuch {
                    name: self.url.to_string(),
                    what: "there are too many objects",
                });
            }
            objects.push(Object { name: name.into(), bytes: object.size });
        }
        objects.sort();
        Ok(objects)
    }

    /// Fills all of `block` from that offset, by one ranged request.
    pub async fn read(&self, name: &str, offset: u64, mut block: Block) -> (Block, Result<(), StoreError>) {
        let result = self.read_into(name, offset, &mut block).await;
        (block, result)
    }

    async fn read_into(&self, name: &str, offset: u64, block: &mut [u8]) -> Result<(), StoreError> {
        if block.is_empty() {
            return Ok(());
        }
        let path = self.path(name)?;
        let wanted = offset.saturating_add(count(block.len()));
        let failed = |error| match error {
            object_store::Error::NotFound { .. } => StoreError::NotFound { name: name.into() },
            error => StoreError::Read { name: name.into(), source: cause(&error) },
        };
        let options = GetOptions { range: Some(GetRange::Bounded(offset..wanted)), ..GetOptions::default() };
        let answer = match self.client.get_opts(&path, options).await {
            Ok(answer) => answer,
            // A range that begins behind the end is an error of its own; how long the object is, only it knows.
            Err(error) => match self.client.head(&path).await {
                Ok(found) if found.size < wanted => {
                    return Err(StoreError::ShortRead { name: name.into(), end: found.size, wanted });
                }
                _ => return Err(failed(error)),
            },
        };
        let mut stream = answer.into_stream();
        let mut done = 0;
        while let Some(bytes) = stream.try_next().await.map_err(failed)? {
            let Some(place) = block.get_mut(done..done + bytes.len()) else {
                let source =
                    io::Error::new(io::ErrorKind::InvalidData, "the answer is longer than the range");
                return Err(StoreError::Read { name: name.into(), source });
            };
            place.copy_from_slice(&bytes);
            done += bytes.len();
        }
        if done < block.len() {
            return Err(StoreError::ShortRead { name: name.into(), end: offset + count(done), wanted });
        }
        Ok(())
    }

    /// Writes a small object, all or nothing.
    pub async fn write(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        let put = self.client.put(&self.path(name)?, PutPayload::from(bytes)).await;
        put.map(|_| ()).map_err(|error| StoreError::Write { name: name.into(), source: cause(&error) })
    }

    /// Copies a shard of that size from another store; it becomes visible when it is complete.
    pub async fn copy_from(&self, name: &str, bytes: u64, from: &Store) -> Result<(), StoreError> {
        let path = self.path(name)?;
        let failed = |error| StoreError::Write { name: name.into(), source: cause(&error) };
        if bytes <= PART_BYTES {
            let (block, read) = from.read(name, 0, Block::with_len(index_of(bytes))).await;
            read?;
            return self.write(name, block.to_vec()).await;
        }
        let mut upload = self.client.put_multipart(&path).await.map_err(failed)?;
        let copied = async {
            let mut done = 0;
            let part = PART_BYTES.max(bytes.div_ceil(PARTS_MAX));
            while done < bytes {
                let len = (bytes - done).min(part);
                let (block, read) = from.read(name, done, Block::with_len(index_of(len))).await;
                read?;
                upload.put_part(PutPayload::from(block.to_vec())).await.map_err(failed)?;
                done += len;
            }
            upload.complete().await.map_err(failed)
        };
        let result = copied.await.map(|_| ());
        if result.is_err() {
            // The parts would be kept, and paid for. The first error is the one to report.
            drop(upload.abort().await);
        }
        result
    }

    fn path(&self, name: &str) -> Result<Path, StoreError> {
        let bad = || StoreError::BadName { name: name.into() };
        if !is_shard_name(name) {
            return Err(bad());
        }
        Path::parse(format!("{}{name}", self.prefix)).map_err(|_| bad())
    }
}

/// What the service said, on one line.
fn cause(error: &object_store::Error) -> io::Error {
    use object_store::Error::{NotFound, PermissionDenied, Unauthenticated};
    const UNKNOWN: &str = "the service does not know this key";
    const FORBIDDEN: &str = "the service does not allow it with this key";
    const ABSENT: &str = "there is no such bucket or object";
    let text = on_one_line(error);
    let (kind, text) = match (error, code(&text)) {
        (_, Some("InvalidAccessKeyId" | "SignatureDoesNotMatch")) | (Unauthenticated { .. }, _) => {
            (io::ErrorKind::PermissionDenied, UNKNOWN.to_owned())
        }
        (_, Some("AccessDenied")) | (PermissionDenied { .. }, _) => {
            (io::ErrorKind::PermissionDenied, FORBIDDEN.to_owned())
        }
        (_, Some("NoSuchBucket" | "NoSuchKey")) | (NotFound { .. }, _) => {
            (io::ErrorKind::NotFound, ABSENT.to_owned())
        }
        _ => (io::ErrorKind::Other, text),
    };
    io::Error::new(kind, text)
}

/// The code in the document that an S3 service answers with.
fn code(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("<Code>")?;
    rest.split_once("</Code>").map(|(code, _)| code)
}

/// An error on one line: services answer with documents of several.
fn on_one_line(error: &dyn std::error::Error) -> String {
    in_full(error).split_whitespace().collect::<Vec<_>>().join(" ")
}

impl fmt::Display for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Store").field("url", &self.url).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_says_is_told_in_a_few_words() {
        let said = |text: &str| {
            let error = object_store::Error::Generic { store: "S3", source: text.to_owned().into() };
            cause(&error).to_string()
        };
        let document =
            |code: &str| said(&format!("403 Forbidden: <Error><Code>{code}</Code><RequestId/></Error>"));
        assert_eq!(document("SignatureDoesNotMatch"), "the service does not know this key");
        assert_eq!(document("AccessDenied"), "the service does not allow it with this key");
        assert_eq!(document("NoSuchBucket"), "there is no such bucket or object");
        assert!(document("SlowDown").contains("SlowDown"));
        assert_eq!(said("builder\n  error"), "Generic S3 error: builder error");
    }
}

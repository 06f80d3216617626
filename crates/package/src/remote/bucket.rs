//! A bucket of an S3-compatible store, or a folder, with the same keys:
//! `blobs/sha256/<hex>`, `packages/<hex>/manifest.json`, `packages/<hex>/signatures/<hex>.json`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{
    ClientConfigKey, Error as StoreError, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, RetryConfig,
};
use tokio::io::AsyncWriteExt as _;
use tokio_util::bytes::Bytes;
use tracing::warn;

use super::transfer::{Blob, Blobs, Reading, causes, read_small, receive_package, send_files};
use super::{Direction, Progress, Pulled, Pushed, RemoteError};
use crate::manifest::MAX_MANIFEST_BYTES;
use crate::signing::Signature;
use crate::store::{MAX_SIGNATURE_BYTES, MAX_SIGNATURES};
use crate::{Digest, MANIFEST, PackageError, Store, VerifiedPackage};

/// Bytes of a part of an upload: at S3's 10,000 parts, a file may have 156 GiB.
const PART_BYTES: usize = 16 << 20;
const PARTS_AT_ONCE: usize = 2;
/// How often, and how long in all, a request is tried.
const RETRY: (usize, Duration) = (4, Duration::from_secs(30));
/// How long the store may be silent, and how long a whole request may take: a large file is one request.
const TIMES: [(ClientConfigKey, &str); 2] = [(ClientConfigKey::ReadTimeout, "5m"), (ClientConfigKey::Timeout, "24h")];

/// The objects below a prefix, and the package that is meant where the address names one.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Without the package.
    address: String,
    objects: Arc<dyn ObjectStore>,
    /// Empty, or ends with `/`.
    prefix: String,
    package: Option<Digest>,
}

impl Bucket {
    /// The bucket of `s3://BUCKET/PREFIX[@sha256:…]` or the folder of `file:///FOLDER[@sha256:…]`.
    pub fn open(address: &str, direction: Direction) -> Result<Self, RemoteError> {
        let refuse = |reason: String| RemoteError::Address { address: address.to_owned(), reason };
        let (place, package) = match address.split_once("@sha256:") {
            Some((place, hex)) => {
                let digest = format!("sha256:{hex}").parse::<Digest>();
                (place, Some(digest.map_err(|error| refuse(error.to_string()))?))
            }
            None => (address, None),
        };
        let (objects, prefix): (Arc<dyn ObjectStore>, _) = match place.split_once("://") {
            Some(("s3", rest)) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                (Arc::new(connect(bucket).map_err(|error| refuse(causes(&error)))?), prefix.trim_end_matches('/'))
            }
            Some(("file", folder)) if folder.starts_with('/') => {
                if direction == Direction::Push {
                    std::fs::create_dir_all(folder).map_err(PackageError::io(folder))?;
                }
                let objects = LocalFileSystem::new_with_prefix(folder).map_err(|error| refuse(causes(&error)))?;
                (Arc::new(objects.with_fsync(true)), "")
            }
            _ => return Err(refuse("expected `s3://BUCKET/PREFIX` or `file:///FOLDER`".to_owned())),
        };
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { address: place.trim_end_matches('/').to_owned(), objects, prefix, package })
    }

    pub async fn push(
        &self,
        package: &VerifiedPackage,
        signatures: &[Signature],
        progress: &Progress,
    ) -> Result<Pushed, RemoteError> {
        let digest = package.digest();
        if let Some(named) = self.package.filter(|named| *named != digest) {
            let address = format!("{}@{named}", self.address);
            return Err(RemoteError::Address { address, reason: format!("the package is {digest}") });
        }
        let sent = send_files(self, package, progress).await?;
        for signature in signatures {
            let key = self.key(&format!("packages/{}/signatures/{}.json", digest.hex(), signature.digest().hex()));
            self.put(&key, signature.bytes().to_vec(), "a signature").await?;
        }
        // Last: where it is, the rest is.
        let key = self.key(&format!("packages/{}/{MANIFEST}", digest.hex()));
        self.put(&key, package.manifest().canonical()?, MANIFEST).await?;
        Ok(Pushed {
            address: format!("{}@{digest}", self.address),
            package: digest,
            sent: sent.sent,
            already_there: sent.already_there,
            sent_bytes: sent.sent_bytes,
        })
    }

    pub async fn pull(&self, store: &Store, progress: &Progress) -> Result<Pulled, RemoteError> {
        let digest = match self.package {
            Some(digest) => digest,
            None => self.only_package().await?,
        };
        let key = self.key(&format!("packages/{}/{MANIFEST}", digest.hex()));
        let what = format!("package {digest}");
        let head = self.objects.head(&key).await.map_err(|error| self.failed(&format!("send {what}"), &what, error))?;
        let blob = Blob { file: MANIFEST.to_owned(), digest, size_bytes: head.size };
        let manifest = read_small(self, &blob, MAX_MANIFEST_BYTES).await?;
        let signatures = self.signatures(&digest).await?;
        receive_package(self, &digest, &manifest, &signatures, store, progress).await
    }

    /// The package of a place that holds one.
    async fn only_package(&self) -> Result<Digest, RemoteError> {
        let listed = self.objects.list_with_delimiter(Some(&self.key("packages"))).await;
        let listed = listed.map_err(|error| self.failed("list its packages", "a package", error))?;
        let digest = |key: &Key| format!("sha256:{}", key.filename()?).parse::<Digest>().ok();
        let packages: Vec<Digest> = listed.common_prefixes.iter().filter_map(digest).collect();
        match packages.as_slice() {
            [package] => Ok(*package),
            [] => Err(RemoteError::NotFound { place: self.place(), what: "a package".to_owned() }),
            several => {
                let reason =
                    format!("it holds {} packages: name one, `{}@{}`", several.len(), self.address, several[0]);
                Err(RemoteError::Address { address: self.address.clone(), reason })
            }
        }
    }

    /// The signatures of a package; those that cannot be read are left out, since anybody who may write may put some.
    async fn signatures(&self, package: &Digest) -> Result<Vec<Signature>, RemoteError> {
        let folder = self.key(&format!("packages/{}/signatures", package.hex()));
        let failed = |error| self.failed("list signatures", "a signature", error);
        let listed: Vec<_> =
            self.objects.list(Some(&folder)).take(MAX_SIGNATURES).try_collect().await.map_err(failed)?;
        let mut signatures = Vec::new();
        for object in listed {
            if object.size > MAX_SIGNATURE_BYTES {
                warn!("Passing over `{}`: it has {} bytes", object.location, object.size);
                continue;
            }
            let failed = |error| self.failed("send a signature", "a signature", error);
            let bytes = self.objects.get(&object.location).await.map_err(failed)?.bytes().await.map_err(failed)?;
            match Signature::parse(bytes.to_vec()) {
                Ok(signature) => signatures.push(signature),
                Err(error) => warn!("Passing over `{}`: {error}", object.location),
            }
        }
        Ok(signatures)
    }

    async fn put(&self, key: &Key, bytes: Vec<u8>, what: &str) -> Result<(), RemoteError> {
        let put = self.objects.put(key, bytes.into()).await;
        put.map(drop).map_err(|error| self.failed(&format!("store {what}"), what, error))
    }

    fn key(&self, path: &str) -> Key {
        Key::from(format!("{}{path}", self.prefix))
    }

    fn blob_key(&self, blob: &Blob) -> Key {
        self.key(&format!("blobs/sha256/{}", blob.digest.hex()))
    }

    fn failed(&self, asked: &str, what: &str, error: StoreError) -> RemoteError {
        let place = self.place();
        match error {
            StoreError::NotFound { .. } => RemoteError::NotFound { place, what: what.to_owned() },
            other => RemoteError::Transfer { place, asked: asked.to_owned(), reason: causes(&other) },
        }
    }
}

impl Blobs for Bucket {
    fn place(&self) -> String {
        self.address.clone()
    }

    async fn has(&self, blob: &Blob) -> Result<bool, RemoteError> {
        match self.objects.head(&self.blob_key(blob)).await {
            Ok(object) => Ok(object.size == blob.size_bytes),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(self.failed(&format!("say whether it has `{}`", blob.file), &blob.file, error)),
        }
    }

    async fn send(
        &self,
        blob: &Blob,
        mut content: BoxStream<'static, std::io::Result<Bytes>>,
    ) -> Result<(), RemoteError> {
        let failed = |reason: String| RemoteError::Transfer {
            place: self.place(),
            asked: format!("store `{}`", blob.file),
            reason,
        };
        let writer = BufWriter::with_capacity(Arc::clone(&self.objects), self.blob_key(blob), PART_BYTES);
        let mut writer = writer.with_max_concurrency(PARTS_AT_ONCE);
        while let Some(chunk) = content.next().await {
            let written = match chunk {
                Ok(chunk) => writer.put(chunk).await.map_err(|error| causes(&error)),
                Err(error) => Err(error.to_string()),
            };
            if let Err(reason) = written {
                // The first error is the one to tell; parts that stay are for the bucket's own rule to remove.
                drop(writer.abort().await);
                return Err(failed(reason));
            }
        }
        writer.shutdown().await.map_err(|error| failed(error.to_string()))
    }

    async fn read(&self, blob: &Blob, offset: u64) -> Result<Reading, RemoteError> {
        let range = (offset > 0).then_some(GetRange::Offset(offset));
        let options = GetOptions { range, ..GetOptions::default() };
        let got = self.objects.get_opts(&self.blob_key(blob), options).await;
        let got =
            got.map_err(|error| self.failed(&format!("send `{}`", blob.file), &format!("`{}`", blob.file), error))?;
        let from = got.range.start;
        let chunks = got.into_stream().map_err(std::io::Error::other).boxed();
        Ok(if from == offset { Reading::Rest(chunks) } else { Reading::Whole(chunks) })
    }
}

/// Credentials, region and endpoint are those of the environment (`AWS_*`).
fn connect(bucket: &str) -> Result<object_store::aws::AmazonS3, StoreError> {
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    let set = |key| builder.get_config_value(&key);
    let endpoint = set(AmazonS3ConfigKey::S3Endpoint).or_else(|| set(AmazonS3ConfigKey::Endpoint));
    let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    for (key, value) in TIMES {
        builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
    }
    let (max_retries, retry_timeout) = RETRY;
    builder
        .with_allow_http(plain)
        .with_retry(RetryConfig { max_retries, retry_timeout, ..RetryConfig::default() })
        .build()
}

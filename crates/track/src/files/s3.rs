//! A bucket of an S3-compatible store: objects appear whole or not at all, and clients may be sent to them.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::Method;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::buffered::BufWriter;
use object_store::list::{PaginatedListOptions, PaginatedListResult, PaginatedListStore as _};
use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path as Key;
use object_store::signer::{SignedUrlOptions, Signer as _};
use object_store::{ClientConfigKey, Error as StoreError, ObjectStore as _, ObjectStoreExt as _, RetryConfig};
use tokio::io::AsyncWriteExt as _;

use super::{ArtifactPath, Artifacts, Content, Entry, MAX_ENTRIES, Transfers, broke_off, no_artifact};
use crate::TrackError;

/// Where MLflow users name the endpoint; goes before `AWS_ENDPOINT_URL`, as in MLflow.
const MLFLOW_ENDPOINT: &str = "MLFLOW_S3_ENDPOINT_URL";
/// Longest key, in bytes, by S3's rule.
const MAX_KEY_BYTES: usize = 1024;
/// Parts of one object, by S3's rule.
const MAX_PARTS: usize = 10_000;
/// Bytes of a part of an upload through the server. A smaller file is one request to the store.
const PART_BYTES: usize = 16 << 20;
/// Parts of one upload that are on their way at once; one more is being filled.
const PARTS_AT_ONCE: usize = 2;
/// Longest upload through the server: 156 GiB.
const MAX_UPLOAD_BYTES: u64 = (PART_BYTES * MAX_PARTS) as u64;
/// How long a client may write a part. It gets all addresses at once and never new ones, so the whole file must fit.
const PART_URL_LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// How long a client may read; it can ask again.
const DOWNLOAD_URL_LIFETIME: Duration = Duration::from_secs(3600);
/// How often, and how long in all, a request is tried: a store that is away is told, not waited for.
const RETRY: (usize, Duration) = (4, Duration::from_secs(30));

/// How long the store may be silent; a part that is written, and parts that are joined, take their time.
const SILENCE: &str = "5m";
/// How long a whole request may take; a large file is one request to read.
const LONGEST: &str = "24h";

/// The objects of a bucket whose keys begin with a prefix.
#[derive(Debug)]
pub struct Bucket {
    store: Arc<AmazonS3>,
    place: Artifacts,
    /// Empty, or ends with `/`.
    prefix: String,
    transfers: Transfers,
}

/// A part that a client has written.
#[derive(Debug)]
pub struct Part {
    /// From 1.
    pub number: usize,
    /// What the store answered.
    pub etag: String,
}

/// An upload whose parts the client writes itself.
#[derive(Debug)]
pub struct Started {
    /// What the store calls it.
    pub upload_id: String,
    /// Where to write each part, from part 1.
    pub part_urls: Vec<String>,
}

impl Bucket {
    /// Errors if the bucket does not exist, cannot be reached or may not be listed.
    pub async fn open(bucket: String, prefix: String, transfers: Transfers) -> Result<Self, TrackError> {
        let place = Artifacts::S3 { bucket: bucket.clone(), prefix: prefix.clone() };
        let prefix = if prefix.is_empty() { prefix } else { format!("{prefix}/") };
        let fail = |source: StoreError| TrackError::OpenArtifacts { place: place.clone(), reason: why_closed(&source) };
        let store = Arc::new(connect(&bucket).map_err(fail)?);
        let one = PaginatedListOptions { max_keys: Some(1), ..PaginatedListOptions::default() };
        store.list_paginated(Some(&prefix), one).await.map_err(fail)?;
        Ok(Self { store, place, prefix, transfers })
    }

    pub fn transfers(&self) -> Transfers {
        self.transfers
    }

    /// Writes `body` to `path` in parts of [`PART_BYTES`], in bounded memory. Nothing is seen of it before all of it is there.
    pub async fn write<E: std::fmt::Display + Send + 'static>(
        &self,
        path: &ArtifactPath,
        body: impl Stream<Item = Result<Bytes, E>> + Unpin + Send + 'static,
    ) -> Result<(), TrackError> {
        let key = self.key(path)?;
        let place = self.place.clone();
        let writer = BufWriter::with_capacity(Arc::clone(&self.store) as _, key, PART_BYTES);
        // On its own, so that what has been written is given up also where the request is dropped with its connection.
        let written = tokio::spawn(write_all(writer.with_max_concurrency(PARTS_AT_ONCE), body, place));
        written
            .await
            .unwrap_or_else(|gone| Err(TrackError::Artifacts { place: self.place.clone(), reason: gone.to_string() }))
    }

    /// A file's length and its bytes.
    pub async fn open_file(&self, path: &ArtifactPath) -> Result<Content, TrackError> {
        let got = self.store.get(&self.key(path)?).await.map_err(|error| self.absent(path, error))?;
        let size_bytes = got.meta.size;
        Ok(Content { size_bytes, bytes: got.into_stream().map_err(std::io::Error::from).boxed() })
    }

    /// A file's length.
    pub async fn size_bytes(&self, path: &ArtifactPath) -> Result<u64, TrackError> {
        let head = self.store.head(&self.key(path)?).await;
        head.map(|meta| meta.size).map_err(|error| self.absent(path, error))
    }

    /// The entries of a folder, in no order; none if it does not exist.
    pub async fn list(&self, folder: Option<&ArtifactPath>) -> Result<Vec<Entry>, TrackError> {
        let within = match folder {
            Some(folder) => format!("{}{}/", self.prefix, folder.as_str()),
            None => self.prefix.clone(),
        };
        let mut entries = Vec::new();
        let mut page_token = None;
        loop {
            let page = PaginatedListOptions { delimiter: Some("/".into()), page_token, ..Default::default() };
            let page = self.store.list_paginated(Some(&within), page).await.map_err(|error| self.failed(error))?;
            page_token = page.page_token.clone();
            entries.extend(page_entries(&within, page));
            if page_token.is_none() || entries.len() >= MAX_ENTRIES {
                entries.truncate(MAX_ENTRIES);
                return Ok(entries);
            }
        }
    }

    /// Removes a file or all objects of a folder.
    pub async fn delete(&self, path: &ArtifactPath) -> Result<(), TrackError> {
        let key = self.key(path)?;
        // Of all keys that begin like this one, it is the first.
        let one = PaginatedListOptions { max_keys: Some(1), ..PaginatedListOptions::default() };
        let found = self.store.list_paginated(Some(key.as_ref()), one).await.map_err(|error| self.failed(error))?;
        let file = found.result.objects.into_iter().map(|object| object.location).find(|first| *first == key);
        let below = self.store.list(Some(&key)).map_ok(|object| object.location);
        let gone = self.store.delete_stream(futures_util::stream::iter(file.map(Ok)).chain(below).boxed());
        let n_gone = gone.try_fold(0_usize, async |n, _| Ok(n + 1)).await.map_err(|error| self.failed(error))?;
        if n_gone == 0 { Err(no_artifact(path)) } else { Ok(()) }
    }

    /// Begins an upload of `n_parts` parts which the client writes to the store itself.
    pub async fn start_upload(&self, path: &ArtifactPath, n_parts: usize) -> Result<Started, TrackError> {
        if !(1..=MAX_PARTS).contains(&n_parts) {
            return Err(TrackError::Invalid(format!("an upload has 1 to {MAX_PARTS} parts, not {n_parts}")));
        }
        let key = self.key(path)?;
        let upload_id = self.store.create_multipart(&key).await.map_err(|error| self.failed(error))?;
        let mut part_urls = Vec::with_capacity(n_parts);
        for number in 1..=n_parts {
            let query = [("partNumber", number.to_string()), ("uploadId", upload_id.clone())];
            part_urls.push(self.sign(Method::PUT, &key, PART_URL_LIFETIME, query).await?);
        }
        Ok(Started { upload_id, part_urls })
    }

    /// Makes the parts one file. Errors if they are not 1, 2, … in order, or not what the store has.
    pub async fn finish_upload(&self, path: &ArtifactPath, id: &str, parts: Vec<Part>) -> Result<(), TrackError> {
        if parts.is_empty() || parts.iter().zip(1..).any(|(part, number)| part.number != number) {
            return Err(TrackError::Invalid("the parts must be numbered 1, 2, … in order, without a gap".into()));
        }
        let parts = parts.into_iter().map(|part| PartId { content_id: part.etag }).collect();
        let finished = self.store.complete_multipart(&self.key(path)?, &id.to_owned(), parts).await;
        finished.map(drop).map_err(|error| self.no_upload(error))
    }

    /// Gives an upload up; nothing of it stays.
    pub async fn give_up(&self, path: &ArtifactPath, id: &str) -> Result<(), TrackError> {
        let given_up = self.store.abort_multipart(&self.key(path)?, &id.to_owned()).await;
        given_up.map_err(|error| self.no_upload(error))
    }

    /// Where a client may read a file for a while.
    pub async fn download_url(&self, path: &ArtifactPath) -> Result<String, TrackError> {
        // A stored file is a stranger's: a browser saves it.
        let query = [("response-content-disposition", "attachment".to_owned())];
        self.sign(Method::GET, &self.key(path)?, DOWNLOAD_URL_LIFETIME, query).await
    }

    async fn sign<const N: usize>(
        &self,
        method: Method,
        key: &Key,
        lifetime: Duration,
        query: [(&str, String); N],
    ) -> Result<String, TrackError> {
        let options = SignedUrlOptions::new().with_query(query);
        let signed = self.store.signed_url_opts(method, key, lifetime, &options).await;
        signed.map(String::from).map_err(|error| self.failed(error))
    }

    fn key(&self, path: &ArtifactPath) -> Result<Key, TrackError> {
        let key = format!("{}{}", self.prefix, path.as_str());
        let invalid = |why: String| TrackError::Invalid(format!("Invalid path: {why}"));
        if key.len() > MAX_KEY_BYTES {
            return Err(invalid(format!("with its prefix it is over {MAX_KEY_BYTES} bytes, which S3 does not take")));
        }
        Key::parse(key).map_err(|error| invalid(error.to_string()))
    }

    fn failed(&self, error: StoreError) -> TrackError {
        failed(&self.place, &error)
    }

    fn absent(&self, path: &ArtifactPath, error: StoreError) -> TrackError {
        match error {
            StoreError::NotFound { .. } => no_artifact(path),
            other => self.failed(other),
        }
    }

    /// What a client says about its upload may be wrong; the store knows.
    fn no_upload(&self, error: StoreError) -> TrackError {
        match code(&error).as_deref() {
            Some("NoSuchUpload") => {
                TrackError::Missing("No such upload: it was completed, aborted or never begun".into())
            }
            Some(code @ ("InvalidPart" | "InvalidPartOrder" | "InvalidRequest" | "EntityTooSmall")) => {
                TrackError::Invalid(format!("the store does not take these parts: {code}"))
            }
            _ => self.failed(error),
        }
    }
}

/// A client with credentials, region and endpoint of the environment.
fn connect(bucket: &str) -> Result<AmazonS3, StoreError> {
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    if let Some(endpoint) = std::env::var(MLFLOW_ENDPOINT).ok().filter(|endpoint| !endpoint.is_empty()) {
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
    }
    let set = |key| builder.get_config_value(&key);
    let endpoint = set(AmazonS3ConfigKey::S3Endpoint).or_else(|| set(AmazonS3ConfigKey::Endpoint));
    let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    for (key, value) in [(ClientConfigKey::ReadTimeout, SILENCE), (ClientConfigKey::Timeout, LONGEST)] {
        builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
    }
    let (max_retries, retry_timeout) = RETRY;
    let retry = RetryConfig { max_retries, retry_timeout, ..RetryConfig::default() };
    builder.with_allow_http(plain).with_retry(retry).build()
}

async fn write_all<E: std::fmt::Display>(
    mut writer: BufWriter,
    mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    place: Artifacts,
) -> Result<(), TrackError> {
    let filled = fill(&mut writer, &mut body, &place).await;
    if filled.is_err() {
        // The first error is the one to tell; parts that stay are for the bucket's own rule to remove.
        drop(writer.abort().await);
        return filled;
    }
    writer.shutdown().await.map_err(|error| TrackError::Artifacts { place, reason: first_line(&error.to_string()) })
}

async fn fill<E: std::fmt::Display>(
    writer: &mut BufWriter,
    body: &mut (impl Stream<Item = Result<Bytes, E>> + Unpin),
    place: &Artifacts,
) -> Result<(), TrackError> {
    let mut size_bytes = 0;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(broke_off)?;
        size_bytes += chunk.len() as u64;
        if size_bytes > MAX_UPLOAD_BYTES {
            return Err(TrackError::TooLarge(format!("one upload takes at most {MAX_UPLOAD_BYTES} bytes")));
        }
        writer.put(chunk).await.map_err(|error| failed(place, &error))?;
    }
    Ok(())
}

fn page_entries(within: &str, page: PaginatedListResult) -> Vec<Entry> {
    let name = |key: &Key| key.as_ref().strip_prefix(within).filter(|name| !name.is_empty()).map(str::to_owned);
    let result = page.result;
    let folders = result.common_prefixes.iter().filter_map(|key| Some(Entry { name: name(key)?, size_bytes: None }));
    let files = result
        .objects
        .iter()
        .filter_map(|object| Some(Entry { name: name(&object.location)?, size_bytes: Some(object.size) }));
    folders.chain(files).collect()
}

fn failed(place: &Artifacts, error: &StoreError) -> TrackError {
    TrackError::Artifacts { place: place.clone(), reason: reason(error) }
}

/// Why a bucket cannot be used, and what helps.
fn why_closed(error: &StoreError) -> String {
    match code(error).as_deref() {
        Some("NoSuchBucket") => "there is no such bucket; make it, or check the name and AWS_ENDPOINT_URL".to_owned(),
        Some(code @ ("AccessDenied" | "InvalidAccessKeyId" | "NotSignedUp" | "SignatureDoesNotMatch")) => format!(
            "the store does not let these credentials list it ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, \
             AWS_REGION and the bucket's policy"
        ),
        _ if std::env::var_os("AWS_ACCESS_KEY_ID").is_none() => {
            format!("{}; AWS_ACCESS_KEY_ID is not set", reason(error))
        }
        _ => reason(error),
    }
}

/// What went wrong in one line, without the document that a store sends along: it may name the credentials.
fn reason(error: &StoreError) -> String {
    let text = first_line(&error.to_string());
    match code(error) {
        Some(code) => format!("{text} {code}"),
        None => text,
    }
}

fn first_line(text: &str) -> String {
    text.split(['\n', '<']).next().unwrap_or_default().trim_end().to_owned()
}

/// S3's own word for it, such as `NoSuchBucket`.
fn code(error: &StoreError) -> Option<String> {
    let text = error.to_string();
    let (_, rest) = text.split_once("<Code>")?;
    rest.split_once("</Code>").map(|(code, _)| code.to_owned())
}

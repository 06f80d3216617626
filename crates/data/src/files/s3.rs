//! Objects of an S3-compatible store, copied once to a local directory.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use futures_util::TryStreamExt as _;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _};
use sha2::{Digest as _, Sha256};

use super::{Local, WILDCARDS};
use crate::table::DataError;

/// Copies what `uri` (`s3://` and `rest`) means to `dir`.
pub(super) fn fetch(
    uri: &str,
    rest: &str,
    options: &BTreeMap<String, String>,
    dir: &Path,
) -> Result<Vec<Local>, DataError> {
    let broken = |reason: String| DataError::File { path: uri.to_owned(), reason };
    let (bucket, key) = rest.split_once('/').ok_or_else(|| broken("an S3 URI is s3://BUCKET/KEY".to_owned()))?;
    let store = open(bucket, options).map_err(|error| broken(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| broken(error.to_string()))?;
    runtime.block_on(async {
        let mut objects = list(&store, key).await.map_err(|error| broken(error.to_string()))?;
        if objects.is_empty() {
            return Err(DataError::NoMatch(uri.to_owned()));
        }
        objects.sort_by(|a, b| a.location.cmp(&b.location));
        let mut files = Vec::new();
        for object in objects {
            let name = format!("s3://{bucket}/{}", object.location);
            let path = copy(&store, &object, &name, dir).await;
            files.push(Local { path: path.map_err(|reason| DataError::File { path: name.clone(), reason })?, name });
        }
        Ok(files)
    })
}

/// Credentials, region and endpoint are those of the environment (`AWS_*`); `options` go before it.
fn open(bucket: &str, options: &BTreeMap<String, String>) -> object_store::Result<AmazonS3> {
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    for (key, value) in options {
        builder = builder.with_config(key.parse::<AmazonS3ConfigKey>()?, value);
    }
    let set = |key| builder.get_config_value(&key);
    let endpoint = set(AmazonS3ConfigKey::S3Endpoint).or_else(|| set(AmazonS3ConfigKey::Endpoint));
    let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    builder.with_allow_http(plain).build()
}

/// The object called `key`, or all that match it where it is a pattern.
async fn list(store: &AmazonS3, key: &str) -> object_store::Result<Vec<ObjectMeta>> {
    let Some(wild) = key.find(WILDCARDS) else {
        return Ok(vec![store.head(&object_store::path::Path::parse(key)?).await?]);
    };
    let folder = key[..wild].rsplit_once('/').map(|(folder, _)| object_store::path::Path::from(folder));
    let Ok(pattern) = glob::Pattern::new(key) else { return Ok(Vec::new()) };
    // As in a local glob, `*` stays within a folder.
    let within = glob::MatchOptions { require_literal_separator: true, ..glob::MatchOptions::new() };
    let all: Vec<ObjectMeta> = store.list(folder.as_ref()).try_collect().await?;
    Ok(all.into_iter().filter(|object| pattern.matches_with(object.location.as_ref(), within)).collect())
}

/// The local copy, made anew unless one of the same name, size and version is there.
async fn copy(store: &AmazonS3, object: &ObjectMeta, name: &str, dir: &Path) -> Result<PathBuf, String> {
    let version = object.e_tag.clone().unwrap_or_else(|| object.last_modified.to_rfc3339());
    let path = dir.join(hex::encode(Sha256::digest(format!("{name}\n{version}\n{}", object.size))));
    if path.metadata().is_ok_and(|found| found.len() == object.size) {
        return Ok(path);
    }
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(|error| error.to_string())?;
    let mut chunks = store.get(&object.location).await.map_err(|error| error.to_string())?.into_stream();
    while let Some(chunk) = chunks.try_next().await.map_err(|error| error.to_string())? {
        file.write_all(&chunk).map_err(|error| error.to_string())?;
    }
    let size = file.as_file().metadata().map_err(|error| error.to_string())?.len();
    if size != object.size {
        return Err(format!("{size} of {} bytes arrived", object.size));
    }
    file.persist(&path).map_err(|error| error.to_string())?;
    Ok(path)
}

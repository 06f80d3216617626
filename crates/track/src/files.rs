//! Artifacts: on a local folder or in a bucket of an S3-compatible store, written whole or not at all.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use axum::body::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, TryStreamExt as _};

use crate::TrackError;

mod local;
mod s3;

use local::Folder;
pub(crate) use s3::{Bucket, Part};

/// Longest path, in bytes.
const MAX_PATH_BYTES: usize = 1024;
/// Longest part of a path; most file systems' own limit.
const MAX_PART_BYTES: usize = 255;
/// Most entries one listing returns.
const MAX_ENTRIES: usize = 100_000;
/// Uploads under way in a folder; never listed, and the name no artifact may have.
const PARTIAL: &str = ".highroad-partial";

/// Where artifacts are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Artifacts {
    /// Plain files under this folder.
    Folder(PathBuf),
    /// Objects of a bucket. Endpoint, region and credentials are those of the environment.
    S3 {
        /// The bucket; it must exist.
        bucket: String,
        /// What the key of every object begins with, without slashes around it; may be empty.
        prefix: String,
    },
}

/// How clients may move artifacts that are in a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transfers {
    /// Through the server, or past it: clients that ask get signed addresses of the store itself.
    #[default]
    Presigned,
    /// Every byte through the server, for stores that clients cannot reach.
    Proxied,
}

/// The artifacts.
#[derive(Debug)]
pub struct Files(Kept);

#[derive(Debug)]
enum Kept {
    Folder(Folder),
    S3(Bucket),
}

/// What a file holds, to be read once.
pub struct Content {
    /// Its length.
    pub size_bytes: u64,
    /// Its bytes, in order.
    pub bytes: BoxStream<'static, std::io::Result<Bytes>>,
}

/// A relative path of plain parts. Only [`ArtifactPath::parse`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactPath(String);

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name in the folder that was listed.
    pub name: String,
    /// Length of a file; none for a folder.
    pub size_bytes: Option<u64>,
}

impl Files {
    /// Opens the place: a folder is made where it does not exist, a bucket must be there and let us in.
    pub async fn open(place: Artifacts, transfers: Transfers) -> Result<Self, TrackError> {
        let kept = match place {
            Artifacts::Folder(root) => Folder::open(root).await.map(Kept::Folder),
            Artifacts::S3 { bucket, prefix } => Bucket::open(bucket, prefix, transfers).await.map(Kept::S3),
        };
        kept.map(Self)
    }

    /// Writes `body` to `path`, replacing what is there only when every byte has arrived. `upload` names the upload.
    pub async fn write<E: fmt::Display + Send + 'static>(
        &self,
        path: &ArtifactPath,
        upload: &str,
        body: impl Stream<Item = Result<Bytes, E>> + Unpin + Send + 'static,
    ) -> Result<(), TrackError> {
        match &self.0 {
            Kept::Folder(folder) => folder.write(path, upload, body).await,
            Kept::S3(bucket) => bucket.write(path, body).await,
        }
    }

    /// A file's length and its bytes.
    pub async fn open_file(&self, path: &ArtifactPath) -> Result<Content, TrackError> {
        match &self.0 {
            Kept::Folder(folder) => folder.open_file(path).await,
            Kept::S3(bucket) => bucket.open_file(path).await,
        }
    }

    /// A file's length.
    pub async fn size_bytes(&self, path: &ArtifactPath) -> Result<u64, TrackError> {
        match &self.0 {
            Kept::Folder(folder) => folder.size_bytes(path).await,
            Kept::S3(bucket) => bucket.size_bytes(path).await,
        }
    }

    /// The whole content, if it has at most `most` bytes.
    pub async fn read(&self, path: &ArtifactPath, most: u64) -> Result<Vec<u8>, TrackError> {
        let Content { size_bytes, bytes } = self.open_file(path).await?;
        if size_bytes > most {
            return Err(TrackError::TooLarge(format!("`{}` has {size_bytes} bytes, over {most}", path.as_str())));
        }
        let whole = bytes.try_fold(Vec::new(), async |mut whole, chunk| {
            whole.extend_from_slice(&chunk);
            Ok(whole)
        });
        whole.await.map_err(|source| TrackError::Io { path: path.as_str().into(), source })
    }

    /// The entries of a folder by name; none if it does not exist, since object stores have no empty folders either.
    pub async fn list(&self, folder: Option<&ArtifactPath>) -> Result<Vec<Entry>, TrackError> {
        let mut entries = match &self.0 {
            Kept::Folder(files) => files.list(folder).await,
            Kept::S3(bucket) => bucket.list(folder).await,
        }?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// Removes a file or a folder with all it holds.
    pub async fn delete(&self, path: &ArtifactPath) -> Result<(), TrackError> {
        match &self.0 {
            Kept::Folder(folder) => folder.delete(path).await,
            Kept::S3(bucket) => bucket.delete(path).await,
        }
    }

    /// The bucket, if clients may be sent there.
    pub(crate) fn presigning(&self) -> Option<&Bucket> {
        match &self.0 {
            Kept::S3(bucket) if bucket.transfers() == Transfers::Presigned => Some(bucket),
            _ => None,
        }
    }
}

impl FromStr for Artifacts {
    type Err = TrackError;

    /// `s3://BUCKET/PREFIX`, or the path of a folder.
    fn from_str(text: &str) -> Result<Self, TrackError> {
        let invalid = |why: &str| Err(TrackError::Invalid(why.to_owned()));
        match text.split_once("://") {
            Some(("s3", rest)) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
                if bucket.is_empty() || !bucket.chars().all(plain) {
                    return invalid("it is `s3://BUCKET/PREFIX`; credentials and endpoint come from the environment");
                }
                let prefix = prefix.trim_end_matches('/');
                if !prefix.is_empty() {
                    ArtifactPath::parse(prefix)?;
                }
                Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
            }
            Some(_) => invalid("artifacts are kept in a folder or in `s3://BUCKET/PREFIX`"),
            None if text.is_empty() => invalid("the path of the artifacts is empty"),
            None => Ok(Self::Folder(text.into())),
        }
    }
}

impl FromStr for Transfers {
    type Err = TrackError;

    fn from_str(text: &str) -> Result<Self, TrackError> {
        match text {
            "presigned" => Ok(Self::Presigned),
            "proxied" => Ok(Self::Proxied),
            _ => Err(TrackError::Invalid("it is `presigned` or `proxied`".into())),
        }
    }
}

impl fmt::Display for Artifacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => path.display().fmt(f),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

impl ArtifactPath {
    /// Errors if the path is empty, absolute, or has a part that is empty, `.`, `..`, too long, or holds `\`, NUL or
    /// another control character. The text must be percent-decoded already; what still looks encoded is refused, so that
    /// no later decoding can turn it into something else.
    pub fn parse(text: &str) -> Result<Self, TrackError> {
        let invalid = || TrackError::Invalid(format!("Invalid path: {:?}", text.chars().take(80).collect::<String>()));
        let decoded_twice = percent_encoding::percent_decode_str(text).decode_utf8().map_err(|_| invalid())?;
        for reading in [text, &decoded_twice] {
            let plain = |part: &str| {
                !matches!(part, "" | "." | ".." | PARTIAL)
                    && part.len() <= MAX_PART_BYTES
                    && !part.contains(|c: char| c == '\\' || c.is_control())
            };
            if reading.len() > MAX_PATH_BYTES || !reading.split('/').all(plain) {
                return Err(invalid());
            }
            // A drive letter or a scheme (`C:`, `file:`) is a path of its own elsewhere.
            if reading.split('/').next().is_some_and(|first| first.len() >= 2 && first.ends_with(':')) {
                return Err(invalid());
            }
        }
        Ok(Self(text.to_owned()))
    }

    /// The path with `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn no_artifact(path: &ArtifactPath) -> TrackError {
    TrackError::Missing(format!("No such artifact: '{}'", path.as_str()))
}

fn broke_off(error: impl fmt::Display) -> TrackError {
    TrackError::Invalid(format!("the upload broke off: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        let long = "a".repeat(256);
        for hostile in [
            "",
            "/etc/passwd",
            "..",
            "a/../b",
            "a/..",
            "./a",
            "a//b",
            "a/",
            "a\0b",
            "a\\..\\b",
            "a\nb",
            "%2e%2e/x",
            "a/%2e%2e/b",
            "a%2f..%2fb",
            "a%00b",
            "C:/x",
            "file:/etc",
            "a/.highroad-partial/b",
            &long,
        ] {
            assert!(ArtifactPath::parse(hostile).is_err(), "{hostile:?}");
        }
        for fine in ["a", "0/abc/artifacts/model.pkl", "a b/ü.txt", "a..b/...", ".hidden", "100%/x"] {
            assert!(ArtifactPath::parse(fine).is_ok(), "{fine:?}");
        }
    }

    #[test]
    fn a_place_is_a_folder_or_a_bucket() {
        let bucket = |bucket: &str, prefix: &str| Artifacts::S3 { bucket: bucket.into(), prefix: prefix.into() };
        let parse = |text: &str| text.parse::<Artifacts>();
        assert_eq!(parse("s3://models").unwrap(), bucket("models", ""));
        assert_eq!(parse("s3://models/team/a/").unwrap(), bucket("models", "team/a"));
        assert_eq!(parse("/srv/artifacts").unwrap(), Artifacts::Folder("/srv/artifacts".into()));
        for wrong in
            ["", "s3://", "s3:///key", "s3://KEY:SECRET@bucket/x", "s3://b/../c", "gs://bucket/x", "file:///srv"]
        {
            let error = parse(wrong).unwrap_err().to_string();
            assert!(!error.contains("SECRET"), "{error}");
        }
    }
}

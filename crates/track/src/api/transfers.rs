//! Artifacts that clients move past the server: signed addresses of the store, in MLflow's words.

use axum::Json;
use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Args, Reply, done};
use crate::files::{Bucket, Part};
use crate::wire::Int;
use crate::{ArtifactPath, TrackError, Tracker};

/// What a client of MLflow falls back to one request on.
const MULTIPART_UPLOAD: TrackError = TrackError::Unsupported("Multipart upload");
const MULTIPART_DOWNLOAD: TrackError = TrackError::Unsupported("Multipart download");

#[derive(Deserialize)]
pub struct Create {
    /// The file on the client's machine; its last part names the artifact.
    path: String,
    #[serde(default = "one")]
    num_parts: Int,
}

fn one() -> Int {
    Int(1)
}

/// Begins an upload into a folder, with an address for each part.
pub async fn create(State(tracker): State<Tracker>, Path(folder): Path<String>, Args(args): Args<Create>) -> Reply {
    let bucket = uploads(&tracker)?;
    let n_parts = usize::try_from(args.num_parts.0).unwrap_or_default();
    let started = bucket.start_upload(&below(&folder, &args.path)?, n_parts).await?;
    let part = |(url, number): (&String, usize)| json!({ "url": url, "part_number": number });
    let credentials: Vec<Value> = started.part_urls.iter().zip(1..).map(part).collect();
    Ok(Json(json!({ "upload_id": started.upload_id, "credentials": credentials })))
}

#[derive(Deserialize)]
pub struct Complete {
    path: String,
    upload_id: String,
    parts: Vec<WrittenPart>,
}

#[derive(Deserialize)]
pub struct WrittenPart {
    part_number: Int,
    #[serde(default)]
    etag: Option<String>,
}

/// Makes the parts one artifact.
pub async fn complete(State(tracker): State<Tracker>, Path(folder): Path<String>, Args(args): Args<Complete>) -> Reply {
    let bucket = uploads(&tracker)?;
    let part = |part: WrittenPart| Part {
        number: usize::try_from(part.part_number.0).unwrap_or_default(),
        etag: part.etag.unwrap_or_default(),
    };
    let parts = args.parts.into_iter().map(part).collect();
    bucket.finish_upload(&below(&folder, &args.path)?, &args.upload_id, parts).await?;
    done()
}

#[derive(Deserialize)]
pub struct Abort {
    path: String,
    upload_id: String,
}

/// Gives an upload up.
pub async fn abort(State(tracker): State<Tracker>, Path(folder): Path<String>, Args(args): Args<Abort>) -> Reply {
    let bucket = uploads(&tracker)?;
    bucket.give_up(&below(&folder, &args.path)?, &args.upload_id).await?;
    done()
}

/// Where to read an artifact, in ranges if the client likes.
pub async fn presigned(State(tracker): State<Tracker>, Path(path): Path<String>) -> Reply {
    let path = ArtifactPath::parse(&path)?;
    let bucket = tracker.files.presigning().ok_or(MULTIPART_DOWNLOAD)?;
    let size_bytes = bucket.size_bytes(&path).await?;
    let url = bucket.download_url(&path).await?;
    Ok(Json(json!({ "url": url, "headers": {}, "file_size": size_bytes })))
}

fn uploads(tracker: &Tracker) -> Result<&Bucket, TrackError> {
    tracker.files.presigning().ok_or(MULTIPART_UPLOAD)
}

/// The artifact in `folder` that is called as the client's file is, on whatever system.
fn below(folder: &str, file: &str) -> Result<ArtifactPath, TrackError> {
    let name = file.rsplit(['/', '\\']).next().unwrap_or_default();
    ArtifactPath::parse(&format!("{folder}/{name}"))
}

//! Proxied artifacts: raw bytes in and out, never held whole.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Args, Edge, Reply, done, missing};
use crate::{ArtifactPath, Content, Entry, TrackError, Tracker};

/// The scheme of URIs whose artifacts this server keeps.
const PROXIED: &str = "mlflow-artifacts:/";

pub async fn upload(
    State(tracker): State<Tracker>,
    Path(path): Path<String>,
    request: Request,
) -> Result<StatusCode, Edge> {
    let path = ArtifactPath::parse(&path)?;
    let upload = uuid::Uuid::new_v4().simple().to_string();
    tracker.files.write(&path, &upload, request.into_body().into_data_stream()).await?;
    Ok(StatusCode::OK)
}

/// A stored file is a stranger's: a browser must neither run it here nor guess what it is.
pub async fn download(State(tracker): State<Tracker>, Path(path): Path<String>) -> Result<Response, Edge> {
    let path = ArtifactPath::parse(&path)?;
    let Content { size_bytes, bytes } = tracker.files.open_file(&path).await?;
    let mut response = Response::new(Body::from_stream(bytes));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size_bytes));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox; default-src 'none'"));
    Ok(response)
}

pub async fn remove(State(tracker): State<Tracker>, Path(path): Path<String>) -> Reply {
    tracker.files.delete(&ArtifactPath::parse(&path)?).await?;
    done()
}

#[derive(Deserialize)]
pub struct Folder {
    #[serde(default)]
    path: Option<String>,
}

/// Paths are relative to the folder asked for.
pub async fn list_folder(State(tracker): State<Tracker>, Args(args): Args<Folder>) -> Reply {
    let path = folder_path(args.path.as_deref().unwrap_or_default())?;
    let entries = tracker.files.list(path.as_ref()).await?;
    Ok(Json(json!({ "files": entries.iter().map(|entry| file_info("", entry)).collect::<Vec<_>>() })))
}

#[derive(Deserialize)]
pub struct RunFolder {
    #[serde(default)]
    run_id: Option<String>,
    #[serde(default)]
    run_uuid: Option<String>,
    #[serde(default)]
    path: Option<String>,
}

/// Paths are relative to the run's artifacts.
pub async fn list_run(State(tracker): State<Tracker>, Args(args): Args<RunFolder>) -> Reply {
    let id = args.run_id.or(args.run_uuid).filter(|id| !id.is_empty()).ok_or_else(|| missing("run_id"))?;
    let root = tracker.store.run(&id).await?.info.artifact_uri;
    list_under(&tracker, &root, args.path.as_deref().unwrap_or_default()).await
}

#[derive(Deserialize)]
pub struct ModelFolder {
    #[serde(default)]
    artifact_directory_path: Option<String>,
}

/// Paths are relative to the logged model's artifacts.
pub async fn list_logged_model(
    State(tracker): State<Tracker>,
    Path(id): Path<String>,
    Args(args): Args<ModelFolder>,
) -> Reply {
    let root = tracker.store.logged_model(&id).await?.info.artifact_uri;
    list_under(&tracker, &root, args.artifact_directory_path.as_deref().unwrap_or_default()).await
}

async fn list_under(tracker: &Tracker, root_uri: &str, path: &str) -> Reply {
    let root = root_uri.strip_prefix(PROXIED).ok_or_else(|| {
        TrackError::Invalid(format!("the artifacts are at `{root_uri}`, which this server does not keep"))
    })?;
    let below = folder_path(path)?;
    let folder = match &below {
        Some(below) => format!("{root}/{}", below.as_str()),
        None => root.to_owned(),
    };
    let entries = tracker.files.list(Some(&ArtifactPath::parse(&folder)?)).await?;
    let prefix = below.map(|below| format!("{}/", below.as_str())).unwrap_or_default();
    let files: Vec<Value> = entries.iter().map(|entry| file_info(&prefix, entry)).collect();
    Ok(Json(json!({ "root_uri": root_uri, "files": files })))
}

/// The folder asked for; none is the root. A slash at the end is fine here.
fn folder_path(path: &str) -> Result<Option<ArtifactPath>, TrackError> {
    let trimmed = path.strip_suffix('/').unwrap_or(path);
    if trimmed.is_empty() { Ok(None) } else { ArtifactPath::parse(trimmed).map(Some) }
}

fn file_info(prefix: &str, entry: &Entry) -> Value {
    let path = format!("{prefix}{}", entry.name);
    match entry.size_bytes {
        Some(size_bytes) => json!({ "path": path, "is_dir": false, "file_size": size_bytes }),
        None => json!({ "path": path, "is_dir": true }),
    }
}

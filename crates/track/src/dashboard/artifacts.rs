use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::{Args, Edge};
use crate::{ArtifactPath, TrackError, Tracker};

/// The scheme of URIs whose artifacts this server keeps.
const PROXIED: &str = "mlflow-artifacts:/";

/// A folder of the artifacts of a run or of a logged model.
#[derive(Deserialize)]
pub struct Folder {
    #[serde(default)]
    run_id: Option<String>,
    #[serde(default)]
    model_id: Option<String>,
    #[serde(default)]
    path: String,
}

#[derive(Serialize, ToSchema)]
pub struct ArtifactList {
    /// Whether this server keeps them; if not, `files` is empty.
    kept_here: bool,
    uri: String,
    files: Vec<Artifact>,
}

#[derive(Serialize, ToSchema)]
pub struct Artifact {
    name: String,
    /// Below the artifacts of the run or model.
    path: String,
    /// None for a folder.
    #[schema(required)]
    size_bytes: Option<u64>,
    /// Where the bytes are.
    #[schema(required)]
    href: Option<String>,
}

/// What one folder holds.
#[utoipa::path(
    get, operation_id = "list_artifacts", path = "/artifacts",
    params(
        ("run_id" = Option<String>, Query, description = "Of this run; else give `model_id`."),
        ("model_id" = Option<String>, Query, description = "Of this logged model."),
        ("path" = Option<String>, Query, description = "The folder; nothing for the topmost."),
    ),
    responses((status = OK, body = ArtifactList)),
)]
pub async fn list(State(tracker): State<Tracker>, Args(folder): Args<Folder>) -> Result<Json<ArtifactList>, Edge> {
    let uri = match (&folder.run_id, &folder.model_id) {
        (Some(id), None) => tracker.store.run(id).await?.info.artifact_uri,
        (None, Some(id)) => tracker.store.logged_model(id).await?.info.artifact_uri,
        _ => return Err(TrackError::Invalid("give either `run_id` or `model_id`".into()).into()),
    };
    let Some(root) = uri.strip_prefix(PROXIED) else {
        return Ok(Json(ArtifactList { kept_here: false, uri, files: Vec::new() }));
    };
    let below = |name: &str| if folder.path.is_empty() { name.to_owned() } else { format!("{}/{name}", folder.path) };
    let at = if folder.path.is_empty() { root.to_owned() } else { format!("{root}/{}", folder.path) };
    let entries = tracker.files.list(Some(&ArtifactPath::parse(&at)?)).await?;
    let files = entries.into_iter().map(|entry| Artifact {
        path: below(&entry.name),
        href: entry.size_bytes.map(|_| href(&format!("{at}/{}", entry.name))),
        size_bytes: entry.size_bytes,
        name: entry.name,
    });
    let files = files.collect();
    Ok(Json(ArtifactList { kept_here: true, uri, files }))
}

fn href(path: &str) -> String {
    let encode = |part| percent_encoding::utf8_percent_encode(part, percent_encoding::NON_ALPHANUMERIC).to_string();
    let encoded: Vec<String> = path.split('/').map(encode).collect();
    format!("/api/2.0/mlflow-artifacts/artifacts/{}", encoded.join("/"))
}

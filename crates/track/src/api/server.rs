//! What the server says about itself.

use axum::Json;
use axum::extract::State;
use serde_json::json;

use super::{Edge, Reply};
use crate::{TrackError, Tracker};

/// What clients ask before they use an optional part.
pub async fn info(State(tracker): State<Tracker>) -> Reply {
    let presigns = tracker.files.presigning().is_some();
    Ok(Json(json!({
        "store_type": "SqlStore",
        "workspaces_enabled": false,
        "trace_archival_enabled": false,
        "multipart_uploads_enabled": presigns,
        "multipart_downloads_enabled": presigns,
        "presigned_upload_run_id_supported": false,
        "presigned_upload_model_id_supported": false,
        "features_enabled": { "gateway": false },
    })))
}

/// The version of MLflow whose interface this is. Clients that get one send their spans to `/v1/traces`.
pub async fn version() -> &'static str {
    "3.17.2"
}

/// There is one workspace, `default`, as on an MLflow server that runs without `--enable-workspaces`.
pub async fn no_workspaces() -> Edge {
    TrackError::Disabled("this server has no workspaces; `server-info` says so".into()).into()
}

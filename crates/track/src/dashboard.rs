//! The dashboard under `/ui`: a single-page program, embedded, and what it asks the server for under `/ui/api`.
//!
//! Its endpoints read and never write. Each is described where it is written (`utoipa`), and the description of all of
//! them, `dashboard/openapi.json`, is what the TypeScript client is generated from.

use axum::Router;
use axum::http::{HeaderValue, Method, Uri, header};
use tower_http::compression::CompressionLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::{Edge, unknown_route};
use crate::{TrackError, Tracker};

mod artifacts;
mod assets;
mod experiments;
mod models;
mod runs;
mod series;
mod viewer;

#[derive(OpenApi)]
#[openapi(info(
    title = "Highroad dashboard",
    description = "What the pages under /ui ask for. Made for them and changed with them; programs use MLflow's REST interface."
))]
struct Document;

/// Everything under `/ui`.
pub fn routes(tracker: Tracker) -> Router {
    let (api, _) = described().split_for_parts();
    let api = api
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_route)
        .layer(axum::middleware::map_response(never_stored))
        .layer(CompressionLayer::new())
        .with_state(tracker);
    Router::new().nest("/api", api).fallback(page)
}

fn described() -> OpenApiRouter<Tracker> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(experiments::list))
        .routes(routes!(experiments::get))
        .routes(routes!(experiments::keys))
        .routes(routes!(runs::table))
        .routes(routes!(runs::get))
        .routes(routes!(runs::several))
        .routes(routes!(series::query))
        .routes(routes!(artifacts::list))
        .routes(routes!(models::list))
        .routes(routes!(models::get))
        .routes(routes!(models::moves))
        .routes(routes!(viewer::get))
}

/// An embedded file, or the page for every address that a person may have in the address bar.
async fn page(method: Method, uri: Uri, headers: axum::http::HeaderMap) -> Result<axum::response::Response, Edge> {
    if !matches!(method, Method::GET | Method::HEAD) {
        return Err(TrackError::UnknownRoute { method: method.to_string(), path: uri.path().to_owned() }.into());
    }
    assets::answer(uri.path(), &headers)
}

/// Answers change from one moment to the next, and hold what a team keeps to itself.
async fn never_stored(mut response: axum::response::Response) -> axum::response::Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `UPDATE_OPENAPI=1 cargo nextest run --workspace -E 'test(the_openapi_document_is_current)'` writes it.
    #[test]
    fn the_openapi_document_is_current() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dashboard/openapi.json");
        let made = described().to_openapi().to_pretty_json().unwrap() + "\n";
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(&path, &made).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap();
        assert!(kept == made, "{} is not what the code says: set UPDATE_OPENAPI=1 to write it anew", path.display());
    }
}

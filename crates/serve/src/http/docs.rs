//! `/openapi.json` and `/docs`, a page that shows it and calls the routes. The page needs nothing from elsewhere.

use std::sync::LazyLock;

use axum::Json;
use axum::extract::Path;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use highroad_service::Problem;
use serde_json::Value;

use super::{Routes, oip_method};
use crate::openapi;

static DOCUMENT: LazyLock<Value> = LazyLock::new(openapi::document);

/// Files of Swagger UI, compressed as `build.rs` found them.
const BUNDLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui-bundle.js.gz"));
const STYLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui.css.gz"));

const PAGE: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Highroad serving</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"#;

const START: &str =
    "SwaggerUIBundle({ url: '/openapi.json', dom_id: '#page', deepLinking: true, validatorUrl: null });\n";

pub(super) fn routes() -> Routes {
    Routes::default()
        .get("/openapi.json", get(|| async { Json(&*DOCUMENT) }).fallback(oip_method))
        .get("/docs", get(page).fallback(oip_method))
        .get("/docs/{file}", get(file).fallback(oip_method))
}

async fn page() -> Response {
    // Swagger UI writes styles into its elements, and draws its icons from data.
    const POLICY: &str =
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'";
    with(PAGE, [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, POLICY)])
}

async fn file(Path(name): Path<String>) -> Response {
    let gzip = (header::CONTENT_ENCODING, "gzip");
    let script = (header::CONTENT_TYPE, "text/javascript; charset=utf-8");
    match name.as_str() {
        "start.js" => with(START, [script]),
        "swagger-ui-bundle.js" => with(BUNDLE, [script, gzip]),
        "swagger-ui.css" => with(STYLE, [(header::CONTENT_TYPE, "text/css; charset=utf-8"), gzip]),
        _ => Problem::not_found("`/docs` has no such file").into_response(),
    }
}

fn with<const N: usize>(body: impl IntoResponse, headers: [(HeaderName, &'static str); N]) -> Response {
    let mut response = body.into_response();
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

//! The built dashboard, embedded by `build.rs`.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;

use crate::TrackError;
use crate::api::Edge;

/// A file of `dashboard/dist`.
struct Asset {
    /// Below `/ui/`.
    path: &'static str,
    content_type: &'static str,
    /// Quoted, for `ETag`.
    tag: &'static str,
    plain: &'static [u8],
    /// The same, where that is worth it.
    gzip: Option<&'static [u8]>,
}

include!(concat!(env!("OUT_DIR"), "/assets.rs"));

/// Vite names these by what they hold, so they never change.
const IMMUTABLE: &str = "assets/";
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; connect-src 'self'; \
     img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const HEADERS: [(HeaderName, &str); 4] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::VARY, "accept-encoding"),
];

/// The file at `path` (which has `/ui` taken off), or the page itself: its own router knows what to show.
pub fn answer(path: &str, request: &HeaderMap) -> Result<Response, Edge> {
    let wanted = path.trim_start_matches('/');
    let found = ASSETS.iter().find(|asset| asset.path == wanted);
    if found.is_none() && wanted.starts_with(IMMUTABLE) {
        return Err(TrackError::Missing(format!("there is no `{wanted}` in this binary; reload the page")).into());
    }
    let asset = found.unwrap_or(&ASSETS[INDEX]);
    Ok(respond(asset, request))
}

fn respond(asset: &Asset, request: &HeaderMap) -> Response {
    let has = |name, part: &str| {
        request.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).is_some_and(|text| text.contains(part))
    };
    let mut response = Response::new(Body::empty());
    if has(header::IF_NONE_MATCH, asset.tag) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        let gzip = asset.gzip.filter(|_| has(header::ACCEPT_ENCODING, "gzip"));
        *response.body_mut() = Body::from(gzip.unwrap_or(asset.plain));
        if gzip.is_some() {
            response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
    }
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let cache = if asset.path.starts_with(IMMUTABLE) { "public, max-age=31536000, immutable" } else { "no-cache" };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(asset.content_type));
    headers.insert(header::ETAG, HeaderValue::from_static(asset.tag));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_the_page_except_files_that_are_not_there() {
        let none = HeaderMap::new();
        let page = answer("/runs/abc", &none).unwrap();
        assert_eq!(page.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8");
        assert_eq!(page.headers()[header::CACHE_CONTROL], "no-cache");
        assert!(!POLICY.contains("unsafe"));
        assert!(answer("/assets/gone.js", &none).is_err());
    }

    #[test]
    fn what_a_browser_has_is_not_sent_again() {
        let page = answer("/", &HeaderMap::new()).unwrap();
        let known = HeaderMap::from_iter([(header::IF_NONE_MATCH, page.headers()[header::ETAG].clone())]);
        assert_eq!(answer("/", &known).unwrap().status(), StatusCode::NOT_MODIFIED);
    }
}

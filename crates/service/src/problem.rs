use std::fmt;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Why a request is not answered, in no protocol's words. Handlers return it; the edge chooses the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What sort of problem; decides the status.
    pub kind: Kind,
    /// One plain clause for the person behind the client. Never secrets, never inputs.
    pub message: String,
    /// When to try again, for [`Kind::Overloaded`] and [`Kind::Unavailable`].
    pub retry_after: Option<Duration>,
}

/// What sort of problem, each with one HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// 400: the request cannot be read or breaks a rule.
    Invalid,
    /// 401: who asks is unknown.
    Unauthenticated,
    /// 403: refused by a rule, whoever asks again.
    Forbidden,
    /// 404: the thing does not exist.
    NotFound,
    /// 405: the path exists, but not for this method.
    MethodNotAllowed,
    /// 409: it contradicts what is there.
    Conflict,
    /// 413: the body is over the limit.
    TooLarge,
    /// 415: the body is in a form that is not spoken.
    UnsupportedMedia,
    /// 422: readable, but this model cannot answer it.
    Unprocessable,
    /// 429: the queue is full.
    Overloaded,
    /// 500: a fault of ours; the message is for people, details go to the log.
    Internal,
    /// 501: known and not spoken.
    Unsupported,
    /// 502: a server that this one asked failed.
    BadGateway,
    /// 503: not ready, draining, or a dependency is away.
    Unavailable,
}

impl Kind {
    /// Its HTTP status.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Invalid => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMedia => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Unprocessable => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unsupported => StatusCode::NOT_IMPLEMENTED,
            Self::BadGateway => StatusCode::BAD_GATEWAY,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl Problem {
    /// A problem with no time to try again.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None }
    }

    /// [`Kind::Invalid`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// [`Kind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// [`Kind::Internal`]: logs `detail` once and tells the client nothing of it.
    pub fn internal(detail: &dyn fmt::Display) -> Self {
        tracing::error!(error = %detail, "Request failed: {detail}");
        Self::new(Kind::Internal, "the server failed; its log has the reason")
    }

    /// The same problem with a time to try again.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The response with the body in the shape of one protocol.
    ///
    /// `retry-after` is in whole seconds, rounded up, and `retry-after-ms` exact, as the OpenAI client reads them.
    pub fn respond(&self, shape: impl FnOnce(&Self) -> Value) -> Response {
        let mut response = (self.kind.status(), Json(shape(self))).into_response();
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_millis().div_ceil(1000);
            response.headers_mut().insert(header::RETRY_AFTER, number(seconds));
            response.headers_mut().insert("retry-after-ms", number(wait.as_millis()));
        }
        response
    }
}

fn number(n: u128) -> HeaderValue {
    HeaderValue::from_str(&n.to_string()).expect("decimal digits are a header value")
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

/// The plain shape, for routes that belong to no protocol: `{"error": "…"}`, which is also OIP's.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.respond(|problem| json!({ "error": problem.message }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_in_whole_seconds_and_in_milliseconds() {
        let response = Problem::new(Kind::Overloaded, "busy").retry_after(Duration::from_millis(1200)).into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["retry-after-ms"], "1200");
    }
}

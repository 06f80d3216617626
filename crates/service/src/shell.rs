use std::future::Future;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::decompression::RequestDecompressionLayer;

use crate::metrics::{HTTP_DURATION, HTTP_REQUESTS};
use crate::{Kind, Problem, ServiceError};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID_BYTES: usize = 128;
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// A socket that listens. Print [`Bound::address`] as the first line of stdout before [`Bound::serve`].
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

/// What surrounds a router.
#[derive(Debug, Clone)]
pub struct Shell {
    /// Largest body an extractor (`Bytes`, `Json`) reads, after decompression; larger ones get 413. Routes that stream a
    /// body see all of it and keep their own limit.
    pub body_limit_bytes: usize,
    /// How long open requests may go on after the signal to stop.
    pub drain: Duration,
}

impl Default for Shell {
    /// 8 MiB bodies, 20 seconds to drain.
    fn default() -> Self {
        Self { body_limit_bytes: 8 << 20, drain: Duration::from_secs(20) }
    }
}

/// The id of this request, a request extension and the response header `x-request-id`.
///
/// The client's own if it sent a sane one (1 to 128 of `A-Z a-z 0-9 . _ -`), else a new UUIDv7.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(pub String);

impl Bound {
    /// Listens on `HOST:PORT`; port 0 takes a free one.
    pub async fn bind(address: &str) -> Result<Self, ServiceError> {
        let fail = |source| ServiceError::Bind { address: address.to_owned(), source };
        let listener = TcpListener::bind(address).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        Ok(Self { listener, address })
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://HOST:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Serves until `stop` resolves and open requests have drained, or the time to drain is over.
    pub async fn serve(
        self,
        router: Router,
        shell: Shell,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ServiceError> {
        let Self { listener, address } = self;
        let (stopping, mut stopped) = watch::channel(());
        let stop = async move {
            stop.await;
            tracing::info!(server.address = %address, "Draining {address}");
            drop(stopping);
        };
        // Small answers must not wait for the peer's acknowledgement of the previous packet.
        let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        let drain = shell.drain;
        let server = axum::serve(listener, shell.wrap(router, address)).with_graceful_shutdown(stop);
        let deadline = async move {
            let _closed = stopped.changed().await;
            tokio::time::sleep(drain).await;
        };
        let upkeep = tokio::spawn(upkeep());
        let result = tokio::select! {
            result = server => result.map_err(|source| ServiceError::Serve { address, source }),
            () = deadline => {
                tracing::warn!(server.address = %address, "Stopped {address} with requests still open after {drain:?}");
                Ok(())
            }
        };
        upkeep.abort();
        result
    }
}

impl Shell {
    /// `router` inside request ids, log lines, metrics, body limit, gzip requests, panic catch and the browser rules.
    ///
    /// [`Bound::serve`] does this; tests that call a router in process do it themselves.
    pub fn wrap(&self, router: Router, address: SocketAddr) -> Router {
        crate::metrics::install();
        let inner = ServiceBuilder::new()
            .layer(CatchPanicLayer::custom(answer_panic))
            .layer(RequestDecompressionLayer::new().pass_through_unaccepted(true))
            .map_request(|request: Request<_>| request.map(Body::new));
        router
            .layer(DefaultBodyLimit::max(self.body_limit_bytes))
            .layer(inner)
            .layer(middleware::from_fn_with_state(address, refuse_foreign_pages))
            .layer(middleware::from_fn(observe))
    }
}

/// Resolves at SIGTERM or ctrl-c.
pub async fn stop_signal() {
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending::<()>().await,
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}

/// Outermost: the request's id, its log line and its metrics.
async fn observe(mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers());
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched".to_owned(), |m| m.as_str().to_owned());
    request.extensions_mut().insert(RequestId(id.clone()));

    let mut response = next.run(request).await;

    let seconds = started.elapsed().as_secs_f64();
    let status = response.status();
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(X_REQUEST_ID, value);
    }
    let label = method_label(&method);
    metrics::histogram!(HTTP_DURATION, "method" => label, "route" => route.clone()).record(seconds);
    metrics::counter!(HTTP_REQUESTS, "method" => label, "route" => route, "status" => status.as_u16().to_string())
        .increment(1);
    tracing::info!(
        request.id = %id, http.status = status.as_u16(), duration.ms = seconds * 1e3,
        "{method} {path} {} in {:.1} ms", status.as_u16(), seconds * 1e3
    );
    response
}

fn request_id(headers: &HeaderMap) -> String {
    let sane = |id: &&str| {
        (1..=MAX_REQUEST_ID_BYTES).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    match headers.get(X_REQUEST_ID).and_then(|value| value.to_str().ok()).filter(sane) {
        Some(id) => id.to_owned(),
        None => uuid::Uuid::now_v7().to_string(),
    }
}

/// Methods are free text in HTTP; a label must not be.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// Refuses what only a hostile web page sends: a write whose `Origin` is another site, and, on a loopback address, a
/// `Host` that is not a loopback name (DNS rebinding). The server has no login, so the browser must not lend it one.
async fn refuse_foreign_pages(State(address): State<SocketAddr>, request: Request, next: Next) -> Response {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .or_else(|| request.uri().authority().map(|authority| authority.as_str()));
    if address.ip().is_loopback() && host.is_some_and(|host| !is_loopback_name(host)) {
        let message = "this server listens on a loopback address and answers only to `localhost`";
        return Problem::new(Kind::Forbidden, message).into_response();
    }
    let origin = request.headers().get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let same = |origin: &str| origin.split_once("://").map(|(_, authority)| authority) == host;
    if !reads && origin.is_some_and(|origin| !same(origin)) {
        return Problem::new(Kind::Forbidden, "a page of another origin may not write here").into_response();
    }
    next.run(request).await
}

fn is_loopback_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn answer_panic(panic: Box<dyn std::any::Any + Send + 'static>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    Problem::internal(&format_args!("panic: {}", text.unwrap_or("of an unknown kind"))).into_response()
}

async fn upkeep() {
    let mut ticks = tokio::time::interval(UPKEEP_EVERY);
    loop {
        ticks.tick().await;
        crate::metrics::upkeep();
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use axum::http::StatusCode;
    use axum::routing::{get, post};
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(request: Request) -> Response {
        let router = Router::new()
            .route("/length", post(|body: Bytes| async move { body.len().to_string() }))
            .route("/panic", get(|| async { panic!("on purpose") as &'static str }))
            .route("/id", get(|axum::Extension(id): axum::Extension<RequestId>| async move { id.0 }));
        let shell = Shell { body_limit_bytes: 8, ..Shell::default() };
        let address = "127.0.0.1:80".parse().expect("an address");
        shell.wrap(router, address).oneshot(request).await.expect("infallible")
    }

    fn request(method: &str, path: &str) -> axum::http::request::Builder {
        Request::builder().method(method).uri(path).header("host", "localhost:80")
    }

    #[tokio::test]
    async fn a_sane_request_id_is_kept_and_a_hostile_one_replaced() {
        let kept = ask(request("GET", "/id").header("x-request-id", "abc-1").body(Body::empty()).unwrap()).await;
        assert_eq!(kept.headers()["x-request-id"], "abc-1");
        let long = "a".repeat(129);
        for hostile in ["../../etc", "a b", "", long.as_str()] {
            let made = ask(request("GET", "/id").header("x-request-id", hostile).body(Body::empty()).unwrap()).await;
            let id = made.headers()["x-request-id"].to_str().unwrap();
            assert_eq!(uuid::Uuid::parse_str(id).unwrap().get_version_num(), 7);
        }
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_413() {
        let fits = ask(request("POST", "/length").body(Body::from("12345678")).unwrap()).await;
        assert_eq!(fits.status(), StatusCode::OK);
        let over = ask(request("POST", "/length").body(Body::from("123456789")).unwrap()).await;
        assert_eq!(over.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[tokio::test]
    async fn a_panic_is_one_500() {
        assert_eq!(ask(request("GET", "/panic").body(Body::empty()).unwrap()).await.status(), 500);
    }

    #[tokio::test]
    async fn a_foreign_page_can_neither_write_nor_rebind() {
        let page = |origin: &str| request("POST", "/length").header("origin", origin).body(Body::empty()).unwrap();
        assert_eq!(ask(page("http://evil.example")).await.status(), StatusCode::FORBIDDEN);
        assert_eq!(ask(page("http://localhost:80")).await.status(), StatusCode::OK);
        let rebound = Request::builder().uri("/id").header("host", "evil.example").body(Body::empty()).unwrap();
        assert_eq!(ask(rebound).await.status(), StatusCode::FORBIDDEN);
    }

    #[tokio::test]
    async fn a_stopping_server_finishes_its_open_request() {
        let bound = Bound::bind("127.0.0.1:0").await.unwrap();
        let address = bound.address();
        let (arrived, arrives) = tokio::sync::oneshot::channel::<()>();
        let arrived = std::sync::Arc::new(std::sync::Mutex::new(Some(arrived)));
        let router = Router::new().route(
            "/slow",
            get(move || async move {
                drop(arrived.lock().unwrap().take());
                tokio::time::sleep(Duration::from_millis(50)).await;
                "done"
            }),
        );
        let stop = async move { drop(arrives.await) };
        let server = tokio::spawn(bound.serve(router, Shell::default(), stop));
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        stream.write_all(b"GET /slow HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
        server.await.unwrap().unwrap();
    }
}

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum_server::Handle;
use axum_server::accept::NoDelayAcceptor;
use axum_server::tls_rustls::RustlsAcceptor;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};
use tower_http::decompression::RequestDecompressionLayer;
use tower_http::timeout::RequestBodyTimeoutLayer;

use crate::access::{self, Access, ErrorShape};
use crate::metrics::{HTTP_DURATION, HTTP_REQUESTS};
use crate::trace::{KeyValue, Span};
use crate::{Kind, Problem, ServiceError, Tls};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const UNIQUE_REQUEST_ID: HeaderName = HeaderName::from_static("x-highroad-request-id");
const MAX_REQUEST_ID_BYTES: usize = 128;
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
const RELOAD_EVERY: Duration = Duration::from_secs(1);

/// Longest wait for the whole head of a request, and for the next request on an open connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for the next part of a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest head of a request over HTTP/1 and list of headers over HTTP/2, in bytes.
const HEAD_BYTES: usize = 64 << 10;
/// Most requests at one time on one HTTP/2 connection.
const HTTP2_STREAMS: u32 = 256;
/// Connections that wait to be accepted; the system may allow fewer.
const BACKLOG: u32 = 4096;
/// An HTTP/2 connection that is silent this long is asked whether it lives, and closed if it does not answer as long again.
const HTTP2_PING: Duration = Duration::from_secs(20);

/// A socket that listens. Print [`Bound::address`] as the first line of stdout before [`Bound::serve`].
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

/// What surrounds a router.
#[derive(Clone)]
pub struct Shell {
    /// Largest body an extractor (`Bytes`, `Json`) reads, after decompression; larger ones get 413. Routes that stream a
    /// body see all of it and keep their own limit.
    pub body_limit_bytes: usize,
    /// How long open requests may go on after the signal to stop.
    pub drain: Duration,
    /// Who may ask; everybody unless told.
    pub access: Option<Access>,
    /// The certificate; plain HTTP unless told.
    pub tls: Option<Tls>,
    /// The body of what is refused before a route is reached.
    pub error_shape: ErrorShape,
    /// Adds to the headers of every response, also of what is refused before a route is reached.
    pub headers: Option<fn(&mut HeaderMap)>,
}

impl Default for Shell {
    /// 8 MiB bodies, 20 seconds to drain, everybody over plain HTTP, errors as `{"error": "…"}`.
    fn default() -> Self {
        Self {
            body_limit_bytes: 8 << 20,
            drain: Duration::from_secs(20),
            access: None,
            tls: None,
            error_shape: |_path, problem| json!({ "error": problem.message }),
            headers: None,
        }
    }
}

/// The id of this request, a request extension and the response header `x-request-id`.
///
/// The client's own if it sent a sane one (1 to 128 of `A-Z a-z 0-9 . _ -`), else a new UUIDv7.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(pub String);

tokio::task_local! {
    static UNIQUE_ID: Option<String>;
}

impl RequestId {
    /// This server's own id of the request that this task answers, a new UUIDv7, where [`RequestId`] is the client's, which may come again.
    pub fn unique() -> Option<String> {
        UNIQUE_ID.try_with(Clone::clone).ok().flatten()
    }
}

impl Bound {
    /// Listens on `HOST:PORT`; port 0 takes a free one.
    pub async fn bind(address: &str) -> Result<Self, ServiceError> {
        let fail = |source| ServiceError::Bind { address: address.to_owned(), source };
        let listener = listen(address).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        Ok(Self { listener, address })
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `SCHEME://HOST:PORT`
    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.address)
    }

    /// Serves until `stop` resolves and open requests have drained, or the time to drain is over.
    ///
    /// Slow and silent peers are let go: heads, bodies, handshakes and HTTP/2 pings have limits of time and size.
    pub async fn serve(
        self,
        router: Router,
        shell: Shell,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ServiceError> {
        let Self { listener, address } = self;
        raise_file_limit();
        let handle = Handle::new();
        let app = shell.wrap(router, address).into_make_service();
        let mut server = axum_server::Server::<SocketAddr>::from_listener(listener).handle(handle.clone());
        limit_connections(server.http_builder());
        let background = [
            tokio::spawn(upkeep()),
            tokio::spawn(reload(shell.access.clone(), shell.tls.clone())),
            tokio::spawn(drain(handle, address, shell.drain, stop)),
        ];
        // Small answers must not wait for the peer's acknowledgement of the previous packet.
        let result = match shell.tls {
            None => server.acceptor(NoDelayAcceptor::new()).serve(app).await,
            Some(tls) => {
                let acceptor = RustlsAcceptor::new(tls.config).acceptor(NoDelayAcceptor::new());
                server.acceptor(acceptor).serve(app).await
            }
        };
        background.iter().for_each(|task| task.abort());
        result.map_err(|source| ServiceError::Serve { address, source })
    }
}

/// Connections are open files, and shells begin with few of them (1024) though more are allowed.
#[cfg(unix)]
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused the server runs with what it has.
    let _kept = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

#[cfg(not(unix))]
fn raise_file_limit() {}

/// As `TcpListener::bind` does, with a queue of connections that a burst of clients fits in: a connection that does not waits a second
/// for its client to try again.
async fn listen(address: &str) -> io::Result<TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "it names no address");
    for address in tokio::net::lookup_host(address).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A server that starts again takes the port while connections of the last one are still closing.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn limit_connections(builder: &mut Builder<TokioExecutor>) {
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEAD_BYTES as u32)
        .max_concurrent_streams(HTTP2_STREAMS)
        .keep_alive_interval(HTTP2_PING)
        .keep_alive_timeout(HTTP2_PING);
}

async fn drain(handle: Handle<SocketAddr>, address: SocketAddr, drain: Duration, stop: impl Future<Output = ()>) {
    stop.await;
    tracing::info!(server.address = %address, "Draining {address}");
    handle.graceful_shutdown(Some(drain));
    tokio::time::sleep(drain).await;
    tracing::warn!(server.address = %address, "Stopped {address} with requests still open after {drain:?}");
}

async fn reload(access: Option<Access>, tls: Option<Tls>) {
    let mut ticks = tokio::time::interval(RELOAD_EVERY);
    loop {
        ticks.tick().await;
        let (access, tls) = (access.clone(), tls.clone());
        // Files are read where waiting for a disk holds up no request.
        let _done = tokio::task::spawn_blocking(move || {
            if let Some(access) = access {
                access.reload();
            }
            if let Some(tls) = tls {
                tls.reload();
            }
        })
        .await;
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
            .layer(RequestBodyTimeoutLayer::new(BODY_TIMEOUT))
            .layer(RequestDecompressionLayer::new())
            .map_request(|request: Request<_>| request.map(Body::new));
        let mut app = router
            .layer(DefaultBodyLimit::max(self.body_limit_bytes))
            .layer(inner)
            .layer(middleware::from_fn_with_state(self.error_shape, refuse_encodings));
        if let Some(access) = &self.access {
            let guard = access::Guard { access: access.clone(), shape: self.error_shape };
            // Pages ask leave before they bring a key, so that is answered outside of the guard.
            app = app.layer(middleware::from_fn_with_state(guard, access::guard)).layer(cors(access.clone()));
        }
        let pages = Pages { address, access: self.access.clone() };
        app.layer(middleware::from_fn_with_state(pages, refuse_foreign_pages))
            .layer(middleware::from_fn_with_state(self.headers, observe))
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

/// Asked by machines all the time, or by exporters of traces themselves.
const UNTRACED: [&str; 4] = ["/health", "/ready", "/metrics", "/v1/traces"];

/// Outermost: the request's id, its span, its log line and its metrics, and headers that every response has.
async fn observe(State(headers): State<Option<fn(&mut HeaderMap)>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let (id, unique) = request_id(request.headers());
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched".to_owned(), |m| m.as_str().to_owned());
    request.extensions_mut().insert(RequestId(id.clone()));

    let label = method_label(&method);
    let span = match UNTRACED.contains(&route.as_str()) {
        true => Span::default(),
        false => Span::of_request(request.headers(), || format!("{label} {route}")),
    };

    let mut response = span.scope(UNIQUE_ID.scope(unique.clone(), next.run(request))).await;

    let seconds = started.elapsed().as_secs_f64();
    let status = response.status();
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(X_REQUEST_ID, value);
    }
    if let Some(value) = unique.and_then(|unique| HeaderValue::try_from(unique).ok()) {
        response.headers_mut().insert(UNIQUE_REQUEST_ID, value);
    }
    if let Some(add) = headers {
        add(response.headers_mut());
    }
    let trace_id = span.ids().map(|(trace, _)| trace);
    span.set(|| {
        [
            KeyValue::new("http.request.method", label),
            KeyValue::new("http.route", route.clone()),
            KeyValue::new("url.path", path.clone()),
            KeyValue::new("http.response.status_code", i64::from(status.as_u16())),
            KeyValue::new("highroad.request_id", id.clone()),
        ]
    });
    if status.is_server_error() {
        span.failed(status.as_str());
    }
    let labels = [("method", label), ("route", route.as_str())];
    crate::metrics::exemplar(HTTP_DURATION, &labels, seconds, &id, trace_id.clone());
    metrics::histogram!(HTTP_DURATION, "method" => label, "route" => route.clone()).record(seconds);
    metrics::counter!(HTTP_REQUESTS, "method" => label, "route" => route, "status" => status.as_u16().to_string())
        .increment(1);
    tracing::info!(
        request.id = %id, trace.id = trace_id, http.status = status.as_u16(), duration.ms = seconds * 1e3,
        "{method} {path} {} in {:.1} ms", status.as_u16(), seconds * 1e3
    );
    response
}

/// The id of a request, and one of this server's own where that is the client's.
fn request_id(headers: &HeaderMap) -> (String, Option<String>) {
    let sane = |id: &&str| {
        (1..=MAX_REQUEST_ID_BYTES).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    match headers.get(X_REQUEST_ID).and_then(|value| value.to_str().ok()).filter(sane) {
        Some(id) => (id.to_owned(), Some(uuid::Uuid::now_v7().to_string())),
        None => (uuid::Uuid::now_v7().to_string(), None),
    }
}

/// The encodings of bodies that are read, as RFC 9110 wants them told to who sends another.
const ENCODINGS: &str = "gzip, identity";

/// Refuses bodies in other encodings with 415, in the shape of the path's protocol; names of encodings have no case.
async fn refuse_encodings(State(shape): State<ErrorShape>, mut request: Request, next: Next) -> Response {
    let Some(named) = request.headers().get(header::CONTENT_ENCODING) else { return next.run(request).await };
    let plain = match named.as_bytes().trim_ascii().to_ascii_lowercase().as_slice() {
        b"gzip" | b"x-gzip" => HeaderValue::from_static("gzip"),
        b"identity" | b"" => HeaderValue::from_static("identity"),
        _ => {
            let problem = Problem::new(
                Kind::UnsupportedMedia,
                format!("the body's `content-encoding` is not read here; known are {ENCODINGS}"),
            );
            let mut response = problem.respond(|problem| shape(request.uri().path(), problem));
            response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static(ENCODINGS));
            return response;
        }
    };
    request.headers_mut().insert(header::CONTENT_ENCODING, plain);
    next.run(request).await
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

/// Pages of the origins that the access file names may call, with any of our methods and headers, and read what they need.
fn cors(access: Access) -> CorsLayer {
    let allowed = move |origin: &HeaderValue, _: &axum::http::request::Parts| {
        origin.to_str().is_ok_and(|origin| access.allows_origin(origin))
    };
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(allowed))
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers(tower_http::cors::AllowHeaders::mirror_request())
        .expose_headers(tower_http::cors::ExposeHeaders::any())
        .max_age(Duration::from_secs(600))
}

#[derive(Clone)]
struct Pages {
    address: SocketAddr,
    access: Option<Access>,
}

/// Refuses what only a hostile web page sends: a write whose `Origin` is another site, and, on a loopback address, a
/// `Host` that is not a loopback name (DNS rebinding). Without keys a browser must not lend the server its place in the network, and
/// with them not the key it remembers.
async fn refuse_foreign_pages(State(pages): State<Pages>, request: Request, next: Next) -> Response {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .or_else(|| request.uri().authority().map(|authority| authority.as_str()));
    if pages.address.ip().is_loopback() && host.is_some_and(|host| !is_loopback_name(host)) {
        let message = "this server listens on a loopback address and answers only to `localhost`";
        return Problem::new(Kind::Forbidden, message).into_response();
    }
    let origin = request.headers().get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let same = |origin: &str| origin.split_once("://").map(|(_, authority)| authority) == host;
    let named = |origin: &str| pages.access.as_ref().is_some_and(|access| access.allows_origin(origin));
    if !reads && origin.is_some_and(|origin| !same(origin) && !named(origin)) {
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
        let unique = kept.headers()["x-highroad-request-id"].to_str().unwrap();
        assert_eq!(uuid::Uuid::parse_str(unique).unwrap().get_version_num(), 7);
        let long = "a".repeat(129);
        for hostile in ["../../etc", "a b", "", long.as_str()] {
            let made = ask(request("GET", "/id").header("x-request-id", hostile).body(Body::empty()).unwrap()).await;
            let id = made.headers()["x-request-id"].to_str().unwrap();
            assert_eq!(uuid::Uuid::parse_str(id).unwrap().get_version_num(), 7);
            assert!(!made.headers().contains_key("x-highroad-request-id"));
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
    async fn a_body_in_another_encoding_is_415_and_told_which_are_read() {
        let encoded =
            |name: &str| request("POST", "/length").header("content-encoding", name).body(Body::from("{}")).unwrap();
        for unread in ["br", "deflate", "zstd", "gzip, gzip"] {
            let refused = ask(encoded(unread)).await;
            assert_eq!(
                (refused.status().as_u16(), &refused.headers()["accept-encoding"]),
                (415, &HeaderValue::from_static("gzip, identity"))
            );
            let told = axum::body::to_bytes(refused.into_body(), 1 << 10).await.unwrap();
            assert!(String::from_utf8_lossy(&told).contains("known are gzip, identity"), "{told:?}");
        }
        assert_eq!(ask(encoded("Identity")).await.status(), StatusCode::OK);
        // What is no gzip cannot be read, whatever the letters' case.
        assert_eq!(ask(encoded("GZIP")).await.status(), StatusCode::BAD_REQUEST);
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

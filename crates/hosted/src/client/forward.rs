//! One request passed through as it is: what a server does that stands between its clients and a host.

use std::time::Duration;

use reqwest::Response;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use serde::Deserialize;

use super::{
    Client, Failed, MAX_ERROR_BYTES, MAX_REPLY_BYTES, Wrong, backoff, headed, json_bytes_of, message, retry_after,
};

const MAX_LOOK_BYTES: usize = 1 << 20;

/// How one request to a host went wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// In which way.
    pub kind: FaultKind,
    /// In words, without the key and without the address.
    pub message: String,
    /// What the host said it is, where it refused in OpenAI's shape.
    pub refusal: Refusal,
    /// How long the host asks to wait.
    pub retry_after: Option<Duration>,
}

/// In which way a request went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// There was no connection: the host has not seen the request.
    NoConnection,
    /// Nothing came for as long as the description waits.
    Timeout,
    /// The connection broke.
    Broken,
    /// Another status than 2xx.
    Status(u16),
    /// An answer that is none.
    Malformed,
    /// More bytes than are read.
    TooLarge,
}

/// The parts of OpenAI's error object beside its message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Refusal {
    /// The parameter it is about.
    pub param: Option<String>,
    /// A word for programs.
    pub code: Option<String>,
}

/// An answer that is coming in.
#[derive(Debug)]
pub struct Incoming {
    response: Response,
    n_bytes: usize,
    idle: Duration,
    redacted: Client,
}

impl Fault {
    /// An answer that is none, for `reason`.
    pub fn malformed(reason: impl Into<String>) -> Self {
        Self { kind: FaultKind::Malformed, message: reason.into(), refusal: Refusal::default(), retry_after: None }
    }

    /// Whether another try, here or elsewhere, may go better.
    pub fn is_passing(&self) -> bool {
        match self.kind {
            FaultKind::NoConnection | FaultKind::Timeout | FaultKind::Broken | FaultKind::Malformed => true,
            FaultKind::Status(status) => matches!(status, 408 | 409 | 425 | 429 | 500..),
            FaultKind::TooLarge => false,
        }
    }

    /// Whether the host may have worked, and charge for it.
    pub fn may_have_cost(&self) -> bool {
        !matches!(self.kind, FaultKind::NoConnection | FaultKind::Status(_))
    }
}

/// How long to wait before try `n_tries` + 1 where the host does not say: doubled each time, half of it drawn.
pub fn pause_before_retry(n_tries: u32) -> Duration {
    backoff(n_tries.max(1))
}

impl Client {
    /// Posts `body` (JSON, or of tensors `json_bytes` of it and then binary data) to `path` below the base URL and gives the answer as soon as its head is there. Errors where the status is
    /// none of success, and where no head came within the description's `timeout_s`.
    /// `headers` go with it, as those that name a trace.
    pub async fn forward(
        &self,
        path: &str,
        headers: HeaderMap,
        body: Vec<u8>,
        json_bytes: Option<usize>,
    ) -> Result<Incoming, Fault> {
        let mut request = headed(self.http.post(self.url(path)).headers(headers), json_bytes);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key.expose());
        }
        let idle = self.hosted.limits.timeout();
        let response = match tokio::time::timeout(idle, request.body(body).send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(self.fault(&error)),
            Err(_) => return Err(self.too_late()),
        };
        if response.status().is_success() {
            return Ok(Incoming { response, n_bytes: 0, idle, redacted: self.clone() });
        }
        Err(self.refusal(response).await)
    }

    /// What `GET path` below the base URL answers within `within`, at most 1 MiB of it. Errors where the status is none of success.
    pub async fn look(&self, path: &str, within: Duration) -> Result<Vec<u8>, Fault> {
        let mut request = self.http.get(self.url(path)).timeout(within);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key.expose());
        }
        let response = request.send().await.map_err(|error| self.fault(&error))?;
        if !response.status().is_success() {
            return Err(self.refusal(response).await);
        }
        let body = self.body(response, MAX_LOOK_BYTES).await;
        body.map_err(|_| Fault::malformed("its answer breaks off or is too long"))
    }

    /// Text of the host as it may be told: short, on one line and without the key.
    pub fn told(&self, text: &str) -> String {
        self.safe(text)
    }

    async fn refusal(&self, response: Response) -> Fault {
        let (status, wait) = (response.status(), retry_after(response.headers()));
        let reading = self.body(response, MAX_ERROR_BYTES);
        // Of an error page that is too long, late or cut off the status says enough.
        let body = tokio::time::timeout(self.hosted.limits.timeout(), reading).await;
        let body = body.ok().and_then(Result::ok).unwrap_or_default();
        let refusal = Refusal::read(&body, |text| self.safe(text));
        Fault {
            kind: FaultKind::Status(status.as_u16()),
            message: self.safe(&message(&body)),
            refusal,
            retry_after: wait,
        }
    }

    fn fault(&self, error: &reqwest::Error) -> Fault {
        let Failed { error: wrong, wait } = self.unreachable(error);
        let (kind, message) = match wrong {
            _ if error.is_timeout() && !error.is_connect() => return self.too_late(),
            Wrong::Unreachable { reason, may_have_answered: false } => (FaultKind::NoConnection, reason),
            Wrong::Unreachable { reason, .. } | Wrong::Malformed(reason) => (FaultKind::Broken, reason),
            Wrong::Status(status, reason) => (FaultKind::Status(status.as_u16()), reason),
            Wrong::TooLarge(_) => (FaultKind::TooLarge, "it is too large".to_owned()),
        };
        Fault { kind, message, refusal: Refusal::default(), retry_after: wait }
    }

    fn too_late(&self) -> Fault {
        let message = format!("nothing came within {} s", self.hosted.limits.timeout_s);
        Fault { kind: FaultKind::Timeout, message, refusal: Refusal::default(), retry_after: None }
    }
}

impl Refusal {
    fn read(body: &[u8], told: impl Fn(&str) -> String) -> Self {
        let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |place: &str| value.pointer(place).and_then(serde_json::Value::as_str).map(&told);
        Self { param: text("/error/param"), code: text("/error/code") }
    }
}

impl Incoming {
    /// Whether the answer is a stream of events.
    pub fn is_event_stream(&self) -> bool {
        let kind = self.response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        kind.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/event-stream"))
    }

    /// How many bytes of it are JSON, where binary data follows.
    pub fn json_bytes(&self) -> Option<usize> {
        json_bytes_of(self.response.headers())
    }

    /// The next bytes, `None` at the end. Errors where none come for the description's `timeout_s`, where the connection breaks and
    /// past 32 MiB.
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        let bytes = match tokio::time::timeout(self.idle, self.response.chunk()).await {
            Ok(Ok(Some(bytes))) => bytes,
            Ok(Ok(None)) => return Ok(None),
            Ok(Err(error)) => return Err(self.redacted.fault(&error)),
            Err(_) => return Err(self.redacted.too_late()),
        };
        self.n_bytes += bytes.len();
        if self.n_bytes > MAX_REPLY_BYTES {
            let message = format!("it answered with more than {MAX_REPLY_BYTES} bytes");
            return Err(Fault { kind: FaultKind::TooLarge, ..Fault::malformed(message) });
        }
        Ok(Some(bytes.into()))
    }

    /// All of it. Errors as [`Incoming::chunk`], and where the end does not come within the description's `timeout_s`.
    pub async fn whole(mut self) -> Result<Vec<u8>, Fault> {
        let (late, timeout) = (self.redacted.too_late(), self.redacted.hosted.limits.timeout());
        let reading = async {
            let mut body = Vec::new();
            while let Some(bytes) = self.chunk().await? {
                body.extend_from_slice(&bytes);
            }
            Ok(body)
        };
        tokio::time::timeout(timeout, reading).await.unwrap_or(Err(late))
    }
}

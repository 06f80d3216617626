//! Asking a live `highroad serve`.

use anyhow::{Context as _, bail};
use reqwest::{Client, Method, Url};
use serde_json::Value;

/// The variable that holds a key; sent as a bearer token.
const KEY: &str = "HIGHROAD_API_KEY";
/// Largest body that is read.
const MAX_BODY_BYTES: usize = 64 << 20;
/// How much of an error's text is told.
const ERROR_CHARS: usize = 300;

/// What the server at `address` answers below `/v1/highroad`.
pub fn ask(address: &str, method: Method, path: &[&str], body: Option<&Value>) -> anyhow::Result<Value> {
    let mut url: Url = address.parse().with_context(|| format!("`{address}` is no URL"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some() {
        bail!("`{address}` is no address of a server: expected such as `http://127.0.0.1:8080`, and a key in ${KEY}");
    }
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(["v1", "highroad"]).extend(path);
    }
    // A key goes to the server that it was meant for and to no other.
    let client = Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
    let mut request = client.request(method, url);
    if let Some(key) = std::env::var(KEY).ok().filter(|key| !key.is_empty()) {
        request = request.bearer_auth(key);
    }
    if let Some(body) = body {
        request = request.json(body);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (status, content) = runtime.block_on(async {
        let mut response = request.send().await.with_context(|| format!("`{address}` does not answer"))?;
        let mut content = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if content.len() + chunk.len() > MAX_BODY_BYTES {
                bail!("the answer of `{address}` is over {MAX_BODY_BYTES} bytes");
            }
            content.extend_from_slice(&chunk);
        }
        anyhow::Ok((response.status(), content))
    })?;
    if !status.is_success() {
        let text: String = String::from_utf8_lossy(&content).chars().take(ERROR_CHARS).collect();
        bail!("`{address}` answered {status}: {text}");
    }
    serde_json::from_slice(&content).with_context(|| format!("`{address}` does not answer as `highroad serve` does"))
}

//! Spans to a collector: OTLP over HTTP as protobuf, by the variables of the OTLP exporter specification.

use std::sync::RwLock;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use prost::Message as _;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

/// Where to, and how.
#[derive(Clone, PartialEq)]
pub(super) struct Settings {
    endpoint: reqwest::Url,
    /// They may hold a key, so nothing shows them.
    headers: HeaderMap,
    timeout: Duration,
}

const USUAL_TIMEOUT_MS: u64 = 10_000;
/// Tries of a batch that may go better; the SDK drops spans while it waits.
const TRIES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

impl Settings {
    /// What the variables say; `None` where no collector is named or traces are switched off.
    pub(super) fn from_env(var: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, String> {
        let set = |name: &str| var(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        // What is said of traces goes before what is said of every signal.
        let told = |name: &str| {
            set(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}")).or_else(|| set(&format!("OTEL_EXPORTER_OTLP_{name}")))
        };
        let is_off = set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
            || set("OTEL_TRACES_EXPORTER").is_some_and(|exporter| exporter == "none");
        let own = set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        let base = set("OTEL_EXPORTER_OTLP_ENDPOINT").map(|base| format!("{}/v1/traces", base.trim_end_matches('/')));
        let Some(endpoint) = own.or(base).filter(|_| !is_off) else { return Ok(None) };
        if let Some(other) = set("OTEL_TRACES_EXPORTER").filter(|exporter| exporter != "otlp") {
            return Err(format!("`OTEL_TRACES_EXPORTER` is `{other}`; only `otlp` and `none` are known"));
        }
        if let Some(other) = told("PROTOCOL").filter(|protocol| protocol != "http/protobuf") {
            return Err(format!(
                "the protocol `{other}` is not spoken, `http/protobuf` is (port 4318 of most collectors)"
            ));
        }
        let endpoint =
            reqwest::Url::parse(&endpoint).map_err(|error| format!("the collector's address is no URL: {error}"))?;
        let timeout_ms = told("TIMEOUT").map_or(Ok(USUAL_TIMEOUT_MS), |text| text.parse());
        let timeout_ms =
            timeout_ms.map_err(|_| "`OTEL_EXPORTER_OTLP_TIMEOUT` is no number of milliseconds".to_owned())?;
        let headers = told("HEADERS").map_or(Ok(HeaderMap::new()), |text| headers(&text))?;
        Ok(Some(Self { endpoint, headers, timeout: Duration::from_millis(timeout_ms) }))
    }
}

/// `key=value,key=value`, values percent-encoded. Errors hold no value.
fn headers(text: &str) -> Result<HeaderMap, String> {
    let wrong = || "`OTEL_EXPORTER_OTLP_HEADERS` must be `key=value,key=value`".to_owned();
    let mut headers = HeaderMap::new();
    for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(wrong)?;
        let value = percent_decoded(value.trim()).ok_or_else(wrong)?;
        let name: HeaderName = name.trim().parse().map_err(|_| wrong())?;
        let mut value = HeaderValue::from_bytes(&value).map_err(|_| wrong())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut out) = (text.bytes(), Vec::new());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = [bytes.next()?, bytes.next()?];
        out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    Some(out)
}

pub(super) struct Otlp {
    http: reqwest::Client,
    settings: Settings,
    resource: RwLock<ResourceAttributesWithSchema>,
    /// The SDK's thread drives its exporter without one.
    runtime: tokio::runtime::Runtime,
}

impl std::fmt::Debug for Otlp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Otlp").finish_non_exhaustive()
    }
}

impl Otlp {
    pub(super) fn new(settings: Settings) -> Result<Self, String> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("otlp").enable_all().build();
        let http = reqwest::Client::builder()
            .timeout(settings.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("highroad/", env!("CARGO_PKG_VERSION")))
            .build();
        let (runtime, http) = (runtime.map_err(|error| error.to_string())?, http.map_err(|error| error.to_string())?);
        Ok(Self { http, settings, resource: RwLock::default(), runtime })
    }
}

impl SpanExporter for Otlp {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let resource_spans = match self.resource.read() {
            Ok(resource) => group_spans_by_resource_and_scope(batch, &resource),
            Err(_) => return Err(OTelSdkError::InternalFailure("its resource was lost to a panic".to_owned())),
        };
        let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        let (http, settings) = (self.http.clone(), self.settings.clone());
        let sent = self.runtime.spawn(send(http, settings, body)).await;
        let result = sent.unwrap_or_else(|error| Err(error.to_string()));
        result.map_err(|reason| {
            tracing::warn!("Traces are lost: {reason}");
            OTelSdkError::InternalFailure(reason)
        })
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = RwLock::new(resource.into());
    }
}

async fn send(http: reqwest::Client, settings: Settings, body: Vec<u8>) -> Result<(), String> {
    let mut pause = FIRST_PAUSE;
    for n in 1.. {
        let request = http.post(settings.endpoint.clone()).headers(settings.headers.clone());
        let sent = request.header(CONTENT_TYPE, "application/x-protobuf").body(body.clone()).send().await;
        let (reason, is_passing) = match sent {
            Ok(response) if response.status().is_success() => return Ok(()),
            Ok(response) => {
                let status = response.status().as_u16();
                (format!("the collector answers {status}"), matches!(status, 429 | 502 | 503 | 504))
            }
            Err(error) => (error.without_url().to_string(), true),
        };
        if !is_passing || n >= TRIES {
            return Err(reason);
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(told: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        Settings::from_env(|name| told.iter().find(|(told, _)| *told == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_environment_says_where_to() {
        assert!(settings(&[]).unwrap().is_none());
        let base = settings(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/")]).unwrap().unwrap();
        assert_eq!((base.endpoint.as_str(), base.timeout.as_secs()), ("http://c:4318/v1/traces", 10));
        let own = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://t/in"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20b, other=1"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "250"),
        ];
        let own = settings(&own).unwrap().unwrap();
        assert_eq!((own.endpoint.as_str(), own.timeout.as_millis()), ("https://t/in", 250));
        assert_eq!((own.headers["x-key"].as_bytes(), own.headers["other"].as_bytes()), (&b"a b"[..], &b"1"[..]));
    }

    #[test]
    fn what_is_off_or_not_spoken_is_told() {
        let with = |name, value| settings(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"), (name, value)]);
        assert!(with("OTEL_SDK_DISABLED", "true").unwrap().is_none());
        assert!(with("OTEL_TRACES_EXPORTER", "none").unwrap().is_none());
        assert!(with("OTEL_TRACES_EXPORTER", "zipkin").is_err_and(|told| told.contains("zipkin")));
        assert!(with("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc").is_err_and(|told| told.contains("http/protobuf")));
        assert!(with("OTEL_EXPORTER_OTLP_TIMEOUT", "soon").is_err());
        for hostile in ["secret", "a=%zz", "a=%é", "ä=b", "a=b\n"] {
            let told = with("OTEL_EXPORTER_OTLP_HEADERS", hostile).err();
            assert!(told.is_none_or(|told| !told.contains("secret")), "{hostile}");
        }
    }
}

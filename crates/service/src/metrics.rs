//! Prometheus metrics: one recorder a process and the `/metrics` route.
//!
//! Names are `highroad_*` with base units last (`_seconds`, `_bytes`, `_total`), durations are histograms, labels are
//! bounded, and every metric is described, so that `promtool check metrics` has nothing to say. Record with the `metrics`
//! macros; call [`install`] before the first one.

mod openmetrics;

use std::sync::OnceLock;

use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;
use axum::{Router, routing};
use metrics::Unit;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Requests answered, by `method`, `route` (the pattern, never the path) and `status`.
pub const HTTP_REQUESTS: &str = "highroad_http_requests_total";
/// Time from the request's head to the response's head, by `method` and `route`.
pub const HTTP_DURATION: &str = "highroad_http_request_duration_seconds";

/// Bucket bounds of every `_seconds` histogram: 100 microseconds to a minute, about three a decade.
const SECONDS: [f64; 18] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Bucket bounds of every other histogram (tokens, rows): powers of two.
const COUNTS: [f64; 16] =
    [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 65536.0];

/// Starts recording for this process; later calls change nothing.
pub fn install() {
    handle();
}

/// What `/metrics` answers now.
pub fn render() -> String {
    let handle = handle();
    handle.run_upkeep();
    handle.render()
}

/// `GET` and `HEAD /metrics`.
pub fn route<S: Clone + Send + Sync + 'static>() -> Router<S> {
    install();
    Router::new().route("/metrics", routing::get(metrics_page))
}

/// Exemplars are only in OpenMetrics, which Prometheus and its like ask for.
async fn metrics_page(headers: HeaderMap) -> impl IntoResponse {
    let accepts = headers.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
    if accepts.into_iter().any(|accept| accept.contains("application/openmetrics-text")) {
        let page = openmetrics::converted(&render(), &EXEMPLARS, &SECONDS);
        return ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], page);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], render())
}

static EXEMPLARS: openmetrics::Exemplars = openmetrics::Exemplars::new();

/// Remembers a request as the last of its bucket in the histogram of seconds `name` with `labels`, beside recording it there.
pub fn exemplar(name: &str, labels: &[(&str, &str)], seconds: f64, request_id: &str, trace_id: Option<String>) {
    let at_s = jiff::Timestamp::now().as_millisecond() as f64 / 1e3;
    EXEMPLARS.put(name, labels, &SECONDS, seconds, (request_id, trace_id, at_s));
}

/// Moves recorded samples into their buckets; without it a server that nobody scrapes would keep every sample.
pub(crate) fn upkeep() {
    handle().run_upkeep();
}

fn handle() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)
            .and_then(|builder| builder.set_buckets(&COUNTS))
            .expect("the bucket bounds are not empty")
            .build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("Another metrics recorder is installed in this process; `/metrics` stays empty");
        }
        describe();
        handle
    })
}

fn describe() {
    metrics::describe_counter!(HTTP_REQUESTS, Unit::Count, "Requests answered.");
    metrics::describe_histogram!(HTTP_DURATION, Unit::Seconds, "Time from request head to response head.");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_histograms_with_help() {
        install();
        metrics::histogram!(HTTP_DURATION, "method" => "GET", "route" => "/metrics").record(0.002);
        metrics::counter!(HTTP_REQUESTS, "method" => "GET", "route" => "/metrics", "status" => "200").increment(1);
        let page = render();
        assert!(page.contains("# HELP highroad_http_request_duration_seconds "), "{page}");
        assert!(page.contains("# TYPE highroad_http_request_duration_seconds histogram"), "{page}");
        assert!(page.contains("# TYPE highroad_http_requests_total counter"), "{page}");
    }
}

//! The names of serving's Prometheus metrics, in one table, and the handles that hot paths keep.
//!
//! Base units, `_total` for counters, labels bounded by the portfolio: member, route, status, and the versions promoted
//! while the process lives.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics::{SharedString, histogram};

pub(crate) const REQUESTS: &str = "highroad_inference_requests_total";
pub(crate) const REQUEST_SECONDS: &str = "highroad_inference_duration_seconds";
pub(crate) const TOKENS: &str = "highroad_tokens_total";
pub(crate) const QUEUE_SECONDS: &str = "highroad_queue_duration_seconds";
pub(crate) const COMPUTE_SECONDS: &str = "highroad_compute_duration_seconds";
pub(crate) const BATCH_ROWS: &str = "highroad_batch_rows";
pub(crate) const BATCH_TOKENS: &str = "highroad_batch_tokens";
pub(crate) const QUEUE_ROWS: &str = "highroad_queue_rows";
pub(crate) const REJECTED: &str = "highroad_inference_rejected_total";
pub(crate) const CANCELLED: &str = "highroad_rows_cancelled_total";
pub(crate) const EXPIRED: &str = "highroad_rows_expired_total";
pub(crate) const PANICS: &str = "highroad_worker_panics_total";
pub(crate) const MEMBER_READY: &str = "highroad_member_ready";
pub(crate) const MEMBER_INFO: &str = "highroad_member_info";
pub(crate) const OVERRIDE_EXPIRES: &str = "highroad_member_override_expires_timestamp_seconds";
pub(crate) const SWAPS: &str = "highroad_member_swaps_total";
pub(crate) const LOAD_FAILURES: &str = "highroad_member_load_failures_total";
pub(crate) const HOSTED_TRIES: &str = "highroad_hosted_tries_total";
pub(crate) const HOSTED_FALLBACKS: &str = "highroad_hosted_fallbacks_total";
pub(crate) const HOSTED_TOKENS: &str = "highroad_hosted_tokens_total";
pub(crate) const HOSTED_COST: &str = "highroad_hosted_cost_millionths_total";
pub(crate) const HOSTED_IN_FLIGHT: &str = "highroad_hosted_in_flight";
pub(crate) const HOSTED_FIRST_BYTE_SECONDS: &str = "highroad_hosted_first_byte_seconds";
pub(crate) const HOSTED_BREAKER_STATE: &str = "highroad_hosted_breaker_state";
pub(crate) const HOSTED_BREAKER_OPENED: &str = "highroad_hosted_breaker_opened_total";
pub(crate) const BUDGET_REFUSED: &str = "highroad_budget_refused_total";
pub(crate) const BUDGET_LOST: &str = "highroad_budget_unwritten_total";
pub(crate) const LOG_DROPPED: &str = "highroad_request_log_dropped_total";

/// Gives every metric its help text; call once the recorder is installed.
pub fn describe() {
    describe_counter!(REQUESTS, "Requests a model was asked to answer, by member and outcome.");
    describe_histogram!(REQUEST_SECONDS, Unit::Seconds, "Time from a parsed request to its answer.");
    describe_counter!(TOKENS, "Tokens read from inputs, after truncation.");
    describe_histogram!(QUEUE_SECONDS, Unit::Seconds, "Time a row waited for its batch to start.");
    describe_histogram!(COMPUTE_SECONDS, Unit::Seconds, "Time a batch took in the model.");
    describe_histogram!(BATCH_ROWS, "Rows in a batch.");
    describe_histogram!(BATCH_TOKENS, "Tokens in a batch, padding included.");
    describe_gauge!(QUEUE_ROWS, "Rows waiting for a worker.");
    describe_counter!(REJECTED, "Requests refused with 429 because the queue was full.");
    describe_counter!(CANCELLED, "Rows dropped before any work because their client had left.");
    describe_counter!(EXPIRED, "Rows given up because their deadline passed in the queue.");
    describe_counter!(PANICS, "Batches lost to a panic in a worker.");
    describe_gauge!(MEMBER_READY, "1 while the member answers, 0 otherwise.");
    describe_gauge!(MEMBER_INFO, "1 for the version a member serves now, 0 for those it served before.");
    describe_gauge!(
        OVERRIDE_EXPIRES,
        Unit::Seconds,
        "End of the override that the member serves by, in seconds since 1970; 0 where a verdict admits it."
    );
    describe_counter!(SWAPS, "Versions switched to after the first.");
    describe_counter!(LOAD_FAILURES, "Versions that did not load, verify or reproduce their parity cases.");
    describe_counter!(LOG_DROPPED, "Request records lost because the log's writer could not keep up.");
    describe_counter!(HOSTED_TRIES, "Requests sent to a host, by how they went.");
    describe_counter!(HOSTED_FALLBACKS, "Requests that another member was asked to answer in place of a hosted one.");
    describe_counter!(HOSTED_TOKENS, "Tokens of hosted members, as their hosts count them.");
    describe_counter!(
        HOSTED_COST,
        "Cost of hosted members' answers in millionths of the currency, by its declared price."
    );
    describe_gauge!(HOSTED_IN_FLIGHT, "Requests to a host under way.");
    describe_histogram!(
        HOSTED_FIRST_BYTE_SECONDS,
        Unit::Seconds,
        "Time from a request to the first byte of the answer that is passed on."
    );
    describe_gauge!(
        HOSTED_BREAKER_STATE,
        "0 while a hosted member is asked, 1 while one request tries it, 2 while it is left alone."
    );
    describe_counter!(
        HOSTED_BREAKER_OPENED,
        "Times that a hosted member was left alone because its host failed again and again."
    );
    describe_counter!(BUDGET_REFUSED, "Requests refused because a budget was used up or a price is not known.");
    describe_counter!(BUDGET_LOST, "Entries of the budgets' journal that could not be written at once.");
    counter!(BUDGET_LOST).increment(0);
    counter!(LOG_DROPPED).increment(0);
}

/// The metrics of one batcher.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct BatchMetrics {
    pub(crate) queue_rows: Gauge,
    pub(crate) rejected: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) expired: Counter,
    pub(crate) panics: Counter,
    pub(crate) queued: Histogram,
    computed: Histogram,
    rows: Histogram,
    tokens: Histogram,
}

impl BatchMetrics {
    /// The metrics labelled with a member's name.
    pub fn of_member(member: &str) -> Self {
        let member = || SharedString::from(member.to_owned());
        Self {
            queue_rows: gauge!(QUEUE_ROWS, "member" => member()),
            rejected: counter!(REJECTED, "member" => member()),
            cancelled: counter!(CANCELLED, "member" => member()),
            expired: counter!(EXPIRED, "member" => member()),
            panics: counter!(PANICS, "member" => member()),
            queued: histogram!(QUEUE_SECONDS, "member" => member()),
            computed: histogram!(COMPUTE_SECONDS, "member" => member()),
            rows: histogram!(BATCH_ROWS, "member" => member()),
            tokens: histogram!(BATCH_TOKENS, "member" => member()),
        }
    }

    pub(crate) fn batch(&self, n_rows: usize, n_tokens: usize, computed: Duration) {
        self.computed.record(computed.as_secs_f64());
        self.rows.record(n_rows as f64);
        self.tokens.record(n_tokens as f64);
    }
}

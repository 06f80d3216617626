//! The names of serving's Prometheus metrics, in one table, and the handles that hot paths keep.
//!
//! Base units, `_total` for counters, labels bounded by the portfolio: member, route, status, and the versions promoted
//! while the process lives.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics::{SharedString, histogram};

pub(crate) const REQUESTS: &str = "highroad_inference_requests_total";
pub(crate) const REQUEST_SECONDS: &str = "highroad_inference_duration_seconds";
pub(crate) const TOKENS: &str = "highroad_tokens_total";
pub(crate) const TRUNCATED: &str = "highroad_truncated_inputs_total";
pub(crate) const QUEUE_SECONDS: &str = "highroad_queue_duration_seconds";
pub(crate) const COMPUTE_SECONDS: &str = "highroad_compute_duration_seconds";
pub(crate) const BATCH_ROWS: &str = "highroad_batch_rows";
pub(crate) const BATCH_TOKENS: &str = "highroad_batch_tokens";
pub(crate) const QUEUE_ROWS: &str = "highroad_queue_rows";
pub(crate) const REJECTED: &str = "highroad_inference_rejected_total";
pub(crate) const CANCELLED: &str = "highroad_rows_cancelled_total";
pub(crate) const EXPIRED: &str = "highroad_rows_expired_total";
pub(crate) const SHED: &str = "highroad_rows_shed_total";
pub(crate) const CACHE_HITS: &str = "highroad_cache_hits_total";
pub(crate) const CACHE_MISSES: &str = "highroad_cache_misses_total";
pub(crate) const CACHE_COALESCED: &str = "highroad_cache_coalesced_total";
pub(crate) const CACHE_BYTES: &str = "highroad_cache_bytes";
pub(crate) const PANICS: &str = "highroad_worker_panics_total";
pub(crate) const MEMBER_READY: &str = "highroad_member_ready";
pub(crate) const MEMBER_INFO: &str = "highroad_member_info";
pub(crate) const OVERRIDE_EXPIRES: &str = "highroad_member_override_expires_timestamp_seconds";
pub(crate) const WAY_BACK: &str = "highroad_member_way_back_attested";
pub(crate) const SWAPS: &str = "highroad_member_swaps_total";
pub(crate) const LOAD_FAILURES: &str = "highroad_member_load_failures_total";
pub(crate) const TORCH_WORKERS: &str = "highroad_torch_workers";
pub(crate) const TORCH_ENDS: &str = "highroad_torch_worker_ends_total";
pub(crate) const INDEX_WORKERS: &str = "highroad_index_workers";
pub(crate) const INDEX_ENDS: &str = "highroad_index_worker_ends_total";
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
/// Named by OpenTelemetry's conventions.
pub(crate) const GENAI_SECONDS: &str = "gen_ai_client_operation_duration_seconds";
pub(crate) const GENAI_TOKENS: &str = "gen_ai_client_token_usage";
pub(crate) const OBJECTIVE_BURN: &str = "highroad_objective_burn_rate";
pub(crate) const OBJECTIVE_LEFT: &str = "highroad_objective_budget_left_ratio";
pub(crate) const ALERTS_FIRING: &str = "highroad_alerts_firing";
pub(crate) const ALERT_EVENTS: &str = "highroad_alert_events_total";
pub(crate) const WEBHOOK_TRIES: &str = "highroad_webhook_tries_total";
pub(crate) const WEBHOOK_QUEUE: &str = "highroad_webhook_queue";
pub(crate) const RELOADS: &str = "highroad_portfolio_reloads_total";
pub(crate) const RELOAD_SUCCESS: &str = "highroad_portfolio_last_reload_success";
pub(crate) const RELOAD_TIME: &str = "highroad_portfolio_loaded_timestamp_seconds";
pub(crate) const LOG_DROPPED: &str = "highroad_request_log_dropped_total";
pub(crate) const MONITOR_DROPPED: &str = "highroad_monitor_dropped_total";
pub(crate) const MONITOR_VIOLATIONS: &str = "highroad_monitor_violations_total";
pub(crate) const MONITOR_LABELS: &str = "highroad_monitor_labels_total";
pub(crate) const MONITOR_EFFECT: &str = "highroad_monitor_effect_ratio";
pub(crate) const MONITOR_DRIFTED: &str = "highroad_monitor_drifted";
pub(crate) const MONITOR_ACCURACY: &str = "highroad_monitor_accuracy_ratio";
pub(crate) const PIPELINE_REQUESTS: &str = "highroad_pipeline_requests_total";
pub(crate) const PIPELINE_SECONDS: &str = "highroad_pipeline_duration_seconds";
pub(crate) const PIPELINE_STEP_SECONDS: &str = "highroad_pipeline_step_duration_seconds";

pub(crate) const ROLLOUT_SHARE: &str = "highroad_rollout_traffic_ratio";
pub(crate) const ROLLOUT_ASKED: &str = "highroad_rollout_asked_total";
pub(crate) const ROLLOUT_ERRORS: &str = "highroad_rollout_errors_total";
pub(crate) const ROLLOUT_RETRIED: &str = "highroad_rollout_retried_total";
pub(crate) const ROLLOUT_COMPARED: &str = "highroad_rollout_compared_total";
pub(crate) const ROLLOUT_DIFFER: &str = "highroad_rollout_differ_total";
pub(crate) const ROLLOUT_ENDED: &str = "highroad_rollout_ended_total";
pub(crate) const ROLLOUT_SWITCH: &str = "highroad_rollout_switch_seconds";
pub(crate) const ROLLED_BACK: &str = "highroad_member_rolled_back_total";
pub(crate) const SHADOW_QUEUE: &str = "highroad_shadow_queue_requests";
pub(crate) const SHADOW_DROPPED: &str = "highroad_shadow_dropped_total";
pub(crate) const SHADOW_SECONDS: &str = "highroad_shadow_cpu_seconds";
pub(crate) const SHADOW_TOKENS: &str = "highroad_shadow_tokens_total";

/// Keeps in `gauge` how many processes of a pool live, beside those of another pool: while an edit is taken up there are two.
pub(crate) fn live(gauge: Gauge) -> impl Fn(usize) + Send + Sync {
    let before = AtomicUsize::new(0);
    gauge.increment(0.0);
    move |n_live: usize| gauge.increment(n_live as f64 - before.swap(n_live, Ordering::Relaxed) as f64)
}

/// Gives every metric its help text; call once the recorder is installed.
pub fn describe() {
    describe_counter!(REQUESTS, "Requests a model was asked to answer, by member and outcome.");
    describe_histogram!(REQUEST_SECONDS, Unit::Seconds, "Time from a parsed request to its answer.");
    describe_counter!(TOKENS, "Tokens read from inputs, after truncation.");
    describe_counter!(TRUNCATED, "Inputs that were longer than the model takes and were cut.");
    describe_histogram!(QUEUE_SECONDS, Unit::Seconds, "Time a row waited for its batch to start.");
    describe_histogram!(COMPUTE_SECONDS, Unit::Seconds, "Time a batch took in the model.");
    describe_histogram!(BATCH_ROWS, "Rows in a batch.");
    describe_histogram!(BATCH_TOKENS, "Tokens in a batch, padding included.");
    describe_gauge!(QUEUE_ROWS, "Rows waiting for a worker.");
    describe_counter!(REJECTED, "Requests refused with 429 because the queue was full.");
    describe_counter!(CANCELLED, "Rows dropped before any work because their client had left.");
    describe_counter!(EXPIRED, "Rows given up because their deadline passed in the queue.");
    describe_counter!(
        SHED,
        "Rows that made room in a full queue for what was more urgent, or for tenants with less waiting."
    );
    describe_counter!(CACHE_HITS, "Rows whose answer was kept.");
    describe_counter!(CACHE_MISSES, "Rows whose answer was neither kept nor being computed.");
    describe_counter!(CACHE_COALESCED, "Rows whose answer another request computed at the time.");
    describe_gauge!(CACHE_BYTES, Unit::Bytes, "Memory of the answers that a member keeps.");
    describe_counter!(PANICS, "Batches lost to a panic in a worker.");
    describe_gauge!(MEMBER_READY, "1 while the member answers, 0 otherwise.");
    describe_gauge!(MEMBER_INFO, "1 for the version a member serves now, 0 for those it served before.");
    describe_gauge!(
        OVERRIDE_EXPIRES,
        Unit::Seconds,
        "End of the override that the member serves by, in seconds since 1970; 0 where a verdict admits it."
    );
    describe_gauge!(WAY_BACK, "1 if the version that a rollback leads to was brought, verified and attested here.");
    describe_counter!(SWAPS, "Versions switched to after the first.");
    describe_counter!(LOAD_FAILURES, "Versions that did not load, verify or reproduce their parity cases.");
    describe_counter!(PIPELINE_REQUESTS, "Requests to a pipeline: answered, stopped by a label, or failed.");
    describe_histogram!(PIPELINE_SECONDS, Unit::Seconds, "Time from a parsed request to a pipeline's answer.");
    describe_histogram!(PIPELINE_STEP_SECONDS, Unit::Seconds, "Time of a pipeline's step, waits for others left out.");
    describe_gauge!(ROLLOUT_SHARE, "Share of the traffic that takes part in a rollout, 0 to 1; 0 without one.");
    describe_counter!(ROLLOUT_ASKED, "Requests that a candidate was asked, by canary or shadow.");
    describe_counter!(ROLLOUT_ERRORS, "Requests that a candidate failed.");
    describe_counter!(ROLLOUT_RETRIED, "Requests that a canary failed and the stable version answered.");
    describe_counter!(ROLLOUT_COMPARED, "Requests that both versions answered.");
    describe_counter!(ROLLOUT_DIFFER, "Requests that they answered differently.");
    describe_counter!(ROLLOUT_ENDED, "Rollouts that ended, by outcome.");
    describe_histogram!(ROLLOUT_SWITCH, Unit::Seconds, "Time from a decision until the traffic went elsewhere.");
    describe_counter!(ROLLED_BACK, "Versions that gave their place back by themselves.");
    describe_gauge!(SHADOW_QUEUE, "Requests that wait for their second answer.");
    describe_counter!(SHADOW_DROPPED, "Requests without a second answer because there was no room.");
    describe_histogram!(SHADOW_SECONDS, Unit::Seconds, "Processor time of a second answer.");
    describe_counter!(SHADOW_TOKENS, "Tokens read for second answers; no part of highroad_tokens_total.");
    describe_counter!(RELOADS, "Edits of the portfolio's file, by what became of them: ok, failed.");
    describe_gauge!(RELOAD_SUCCESS, "0 while the newest text of the portfolio's file is not what serves, 1 otherwise.");
    describe_gauge!(
        RELOAD_TIME,
        Unit::Seconds,
        "When the text of the portfolio's file that serves was taken up, in seconds since 1970."
    );
    describe_counter!(LOG_DROPPED, "Request records lost because the log's writer could not keep up.");
    describe_gauge!(INDEX_WORKERS, "LanceDB processes of an index that run.");
    describe_counter!(
        INDEX_ENDS,
        "LanceDB processes of an index that ended, hung, took too much memory or did not start, by `reason`."
    );
    describe_gauge!(TORCH_WORKERS, "PyTorch processes of a member that run.");
    describe_counter!(
        TORCH_ENDS,
        "PyTorch processes that ended, by reason: ended, hung (ended for it), memory (ended for it), start (did not start)."
    );
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
    describe_histogram!(GENAI_SECONDS, Unit::Seconds, "Time of a call of a host, to the end of its answer.");
    describe_histogram!(GENAI_TOKENS, "Tokens of a call of a host, as it counts them.");
    describe_gauge!(
        OBJECTIVE_BURN,
        "How many times as fast as allowed an objective's error budget is used, over a window."
    );
    describe_gauge!(OBJECTIVE_LEFT, "Share of an objective's error budget that is left; negative where more was bad.");
    describe_gauge!(ALERTS_FIRING, "Alerts that fire.");
    describe_counter!(ALERT_EVENTS, "Alerts that began or ended, rollouts that ended, versions that were sent back.");
    describe_counter!(WEBHOOK_TRIES, "Tries to tell a webhook: delivered, failed and tried again, or given up.");
    describe_gauge!(WEBHOOK_QUEUE, "Events that a webhook is still to be told.");
    describe_counter!(BUDGET_REFUSED, "Requests refused because a budget was used up or a price is not known.");
    describe_counter!(BUDGET_LOST, "Entries of the budgets' journal that could not be written at once.");
    counter!(BUDGET_LOST).increment(0);
    describe_counter!(MONITOR_DROPPED, "Requests that monitoring did not look at because too many waited.");
    describe_counter!(MONITOR_VIOLATIONS, "Requests that were refused for what they asked, by kind.");
    describe_counter!(MONITOR_LABELS, "Right answers that came later, by what became of them.");
    describe_gauge!(
        MONITOR_EFFECT,
        "Stability index of a signal against its baseline, without what chance contributes."
    );
    describe_gauge!(MONITOR_DRIFTED, "1 while a signal differs from its baseline, else 0.");
    describe_gauge!(MONITOR_ACCURACY, "Share of right answers among those whose right answer is known.");
    counter!(LOG_DROPPED).increment(0);
    counter!(MONITOR_DROPPED).increment(0);
}

/// The metrics of one batcher.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct BatchMetrics {
    pub(crate) queue_rows: Gauge,
    pub(crate) rejected: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) expired: Counter,
    pub(crate) shed: Counter,
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
            shed: counter!(SHED, "member" => member()),
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

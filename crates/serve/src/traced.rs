//! What the spans of a request say, in the words of OpenTelemetry's conventions for generative AI, where they have any.
//!
//! Who answered, how long each part took and how many tokens it read; never what was asked or answered.

use std::time::{Duration, Instant};

use highroad_hosted::{Hosted, HostedTask};
use highroad_package::TaskKind;
use highroad_service::trace::{Current, KeyValue, Side, Span};
use highroad_task::Answer;
use metrics::histogram;

use crate::error::AskError;
use crate::hosted::HostedRecord;
use crate::revision::{Asked, Revision};
use crate::telemetry::{GENAI_SECONDS, GENAI_TOKENS};

/// What our own models are called as a provider.
const OWN: &str = "highroad";

fn operation(kind: &TaskKind) -> &'static str {
    match kind {
        TaskKind::Embed { .. } => "embeddings",
        TaskKind::Rerank => "rerank",
        _ => "classify",
    }
}

/// Records that `revision` answered, or failed to, since `begun`: the whole, and its parts one after the other.
pub(crate) fn own(revision: &Revision, begun: Instant, result: &Result<Asked<Vec<Answer>>, AskError>) {
    if !highroad_service::trace::is_on() {
        return;
    }
    let (facts, kind) = (revision.facts(), &revision.manifest().task.kind);
    let operation = operation(kind);
    let attributes = || {
        let mut told = vec![
            KeyValue::new("gen_ai.operation.name", operation),
            KeyValue::new("gen_ai.provider.name", OWN),
            KeyValue::new("gen_ai.request.model", facts.member.clone()),
            KeyValue::new("gen_ai.response.model", facts.version.clone()),
            KeyValue::new("highroad.package", facts.package.to_string()),
            KeyValue::new("highroad.version", facts.version.clone()),
            KeyValue::new("highroad.evidence", facts.evidence),
        ];
        match result {
            Ok(asked) => {
                let n_tokens: usize = asked.n_tokens.iter().sum();
                told.push(KeyValue::new("gen_ai.usage.input_tokens", whole(n_tokens)));
                told.push(KeyValue::new("highroad.inputs", whole(asked.answers.len())));
                if let (TaskKind::Embed { .. }, Some(answer)) = (kind, asked.answers.first()) {
                    told.push(KeyValue::new("gen_ai.embeddings.dimension.count", whole(answer.values().len())));
                }
            }
            Err(error) => told.push(KeyValue::new("error.type", error.outcome())),
        }
        told
    };
    let span = Span::current().past(|| format!("{operation} {}", facts.member), begun, begun.elapsed(), attributes);
    if let Ok(asked) = result {
        span.part("tokenise", begun, asked.prepared);
        span.part("queue", begun + asked.prepared, asked.queued);
        span.part("inference", begun + asked.prepared + asked.queued, asked.computed);
    }
}

fn whole(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Begins the call of a host.
pub(crate) fn hosted(hosted: &Hosted, path: &str) -> Span {
    let span = Span::within(|| format!("{} {}", hosted_operation(hosted, path), hosted.model), Side::Client);
    span.set(|| {
        [
            KeyValue::new("gen_ai.operation.name", hosted_operation(hosted, path)),
            KeyValue::new("gen_ai.provider.name", provider(hosted)),
            KeyValue::new("gen_ai.request.model", hosted.model.clone()),
            KeyValue::new("server.address", host(hosted)),
        ]
    });
    span
}

/// Ends it, with what came of it, and counts it in the conventions' own metrics.
pub(crate) fn ended(
    span: &Span,
    hosted: &Hosted,
    facts: &crate::Facts,
    record: &HostedRecord,
    finish_reasons: &[String],
    took: Duration,
) {
    let labels = [
        ("gen_ai_operation_name", hosted_operation(hosted, "").to_owned()),
        ("gen_ai_provider_name", provider(hosted).to_owned()),
        ("gen_ai_request_model", hosted.model.clone()),
    ];
    histogram!(GENAI_SECONDS, &labels).record(took.as_secs_f64());
    if let Some(usage) = record.usage {
        let of = |kind: &str| [&labels[..], &[("gen_ai_token_type", kind.to_owned())]].concat();
        histogram!(GENAI_TOKENS, &of("input")).record(usage.input as f64);
        histogram!(GENAI_TOKENS, &of("output")).record(usage.output as f64);
        let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        span.set(|| {
            [
                KeyValue::new("gen_ai.usage.input_tokens", count(usage.input)),
                KeyValue::new("gen_ai.usage.output_tokens", count(usage.output)),
            ]
        });
    }
    if !finish_reasons.is_empty() {
        let reasons = finish_reasons.iter().map(|reason| reason.clone().into()).collect::<Vec<_>>();
        span.set(|| [KeyValue::new("gen_ai.response.finish_reasons", highroad_service::trace::texts(reasons))]);
    }
    span.set(|| {
        let served_by = record.served_by.clone().unwrap_or_else(|| record.model.clone());
        [
            KeyValue::new("gen_ai.response.model", served_by),
            KeyValue::new("highroad.member", facts.member.clone()),
            KeyValue::new("highroad.package", facts.package.to_string()),
            KeyValue::new("highroad.version", facts.version.clone()),
            KeyValue::new("highroad.evidence", facts.evidence),
            KeyValue::new("highroad.tries", i64::from(record.n_tries)),
        ]
    });
    match record.ended {
        crate::hosted::Ended::Complete => {}
        crate::hosted::Ended::ClientLeft => span.failed("client_left"),
        crate::hosted::Ended::Broken => span.failed("broken"),
    }
}

fn hosted_operation(hosted: &Hosted, path: &str) -> &'static str {
    match hosted.task {
        HostedTask::Generate if path == "completions" => "text_completion",
        HostedTask::Generate => "chat",
        HostedTask::Embed => "embeddings",
        HostedTask::Rerank => "rerank",
        HostedTask::Classify | HostedTask::Moderate => "classify",
        HostedTask::Infer => "infer",
    }
}

fn host(hosted: &Hosted) -> String {
    let rest = hosted.base_url.split_once("://").map_or(hosted.base_url.as_str(), |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    authority.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(authority, |(host, _)| host).to_owned()
}

/// The conventions' name of whose host it is; of others it is only known what protocol they speak.
fn provider(hosted: &Hosted) -> &'static str {
    const KNOWN: [(&str, &str); 10] = [
        ("api.openai.com", "openai"),
        ("openai.azure.com", "azure.ai.openai"),
        ("api.anthropic.com", "anthropic"),
        ("api.mistral.ai", "mistral_ai"),
        ("api.cohere.com", "cohere"),
        ("api.groq.com", "groq"),
        ("api.deepseek.com", "deepseek"),
        ("api.x.ai", "x_ai"),
        ("api.perplexity.ai", "perplexity"),
        ("generativelanguage.googleapis.com", "gcp.gemini"),
    ];
    let host = host(hosted);
    KNOWN.iter().find(|(end, _)| host.ends_with(end)).map_or("openai_compatible", |(_, name)| name)
}

/// Records a second answer, which is no part of its request.
pub(crate) fn shadow(cause: &Current, member: &str, other: &Revision, request_id: &str, begun: Instant) {
    let facts = other.facts();
    cause.linked(
        || format!("shadow {member}"),
        begun,
        begun.elapsed(),
        || {
            vec![
                KeyValue::new("gen_ai.operation.name", operation(&other.manifest().task.kind)),
                KeyValue::new("gen_ai.provider.name", OWN),
                KeyValue::new("gen_ai.request.model", member.to_owned()),
                KeyValue::new("gen_ai.response.model", facts.version.clone()),
                KeyValue::new("highroad.package", facts.package.to_string()),
                KeyValue::new("highroad.request_id", request_id.to_owned()),
            ]
        },
    );
}

//! Hosted members asked for vectors, labels, relevances or tensors, in no protocol's words.

use std::sync::Arc;

use axum::http::HeaderMap;
use futures_util::future::try_join_all;
use highroad_hosted::{Hosted, HostedTask, NO_LABEL, Protocol};
use highroad_package::{Digest, TaskKind};
use highroad_service::Problem;
use highroad_task::{Answer, CutSide, Glimpse, Input, Truncate};
use serde_json::Value;

use super::ask::{Declined, Received, Wanted};
use super::exchange::Exchange;
use super::routes::{Answer as Answered, App, InOrder, Load, fits, origin};
use super::tasks::{self, Read};
use super::{HostedMember, Passed};
use crate::protocol::chat::Tally;
use crate::protocol::openai;
use crate::protocol::rerank::RerankRequest;
use crate::revision::Facts;

/// Most texts that one request has a chat label, each by a request of its own to the host.
const MAX_CHATS: usize = 64;

/// Who asks, and where.
#[derive(Clone, Copy)]
pub(super) struct Asker<'a> {
    /// The request's.
    pub id: &'a str,
    /// Which part of it asks, where several do.
    pub part: Option<&'a str>,
    pub route: &'static str,
}

/// What a host answered.
pub(super) struct Told {
    pub answers: Vec<Answer>,
    /// Results in the host's own shape.
    pub results: Vec<Value>,
    /// What the answers are of.
    pub task: TaskKind,
    pub n_tokens: usize,
    pub facts: Facts,
    /// Where they come from.
    pub headers: HeaderMap,
}

/// The model of our own that answers instead, and the members that could not.
pub(super) type Instead = (String, Vec<String>);

/// Tensors as the host sent them, and how many bytes of them are JSON where binary data follows.
pub(super) struct Tensors {
    pub body: Vec<u8>,
    pub json_bytes: Option<usize>,
    pub facts: Facts,
    pub headers: HeaderMap,
}

impl App {
    /// A vector for each of `inputs`.
    pub(super) async fn vectors(
        &self,
        asker: Asker<'_>,
        member: &Arc<HostedMember>,
        inputs: &[Input],
        dimensions: Option<u64>,
    ) -> Result<Result<Told, Instead>, Declined> {
        fits(member, &[HostedTask::Embed], "embeddings")?;
        tasks::no_prompts(inputs)?;
        let prepare = |hosted: &Hosted| match hosted.protocol {
            Protocol::Openai => Ok(tasks::embeddings(hosted, inputs, dimensions)),
            _ => tasks::texts(hosted, inputs, dimensions),
        };
        let read = |hosted: &Hosted, received| match hosted.protocol {
            Protocol::Openai => tasks::read_embeddings(received, inputs.len()),
            _ => tasks::read_texts(hosted, received, inputs.len()),
        };
        let order = self.ask_in_order(member, Load::of(inputs), prepare, read).await?;
        Ok(self.told(asker, order, |at| inputs.get(at).map(Glimpse::of)))
    }

    /// A label and its scores for each of `inputs`, by a classifier or a moderation.
    pub(super) async fn labels(
        &self,
        asker: Asker<'_>,
        member: &Arc<HostedMember>,
        inputs: &[Input],
    ) -> Result<Result<Told, Instead>, Declined> {
        fits(member, &[HostedTask::Classify, HostedTask::Moderate], "classification")?;
        let load = Load::of(inputs);
        let chats = |hosted: &Hosted| hosted.protocol == Protocol::Openai && hosted.task == HostedTask::Classify;
        // Who stands in may be another kind of host: one that is asked text by text sets how all are.
        let mut fallbacks = member.config.fallback.iter().filter_map(|name| self.portfolio.hosted().get(name).cloned());
        if !chats(member.hosted()) && !fallbacks.any(|other| chats(other.hosted())) {
            return self.labels_together(asker, member, load, inputs).await;
        }
        if inputs.len() > MAX_CHATS {
            let message =
                format!("{} texts, and a model that is asked by chat labels {MAX_CHATS} at once", inputs.len());
            return Err(Problem::invalid(message).into());
        }
        let parts: Vec<String> = (0..inputs.len()).map(|idx| idx.to_string()).collect();
        let alone = parts.iter().zip(inputs).map(|(part, input)| {
            let part = (inputs.len() > 1).then_some(part.as_str());
            self.labels_together(Asker { part, ..asker }, member, load, std::slice::from_ref(input))
        });
        let told = try_join_all(alone).await?;
        Ok(told.into_iter().collect::<Result<Vec<_>, _>>().map(|parts| joined(parts, member.hosted())))
    }

    async fn labels_together(
        &self,
        asker: Asker<'_>,
        member: &Arc<HostedMember>,
        load: Load,
        inputs: &[Input],
    ) -> Result<Result<Told, Instead>, Declined> {
        let prepare = |hosted: &Hosted| match (hosted.protocol, hosted.task) {
            (_, HostedTask::Moderate) => Ok(tasks::moderations(hosted, inputs)),
            (Protocol::Openai, _) => tasks::chat(hosted, inputs),
            _ => tasks::texts(hosted, inputs, None),
        };
        let read = |hosted: &Hosted, received| match (hosted.protocol, hosted.task) {
            (_, HostedTask::Moderate) => tasks::read_moderations(hosted, received, inputs.len()),
            (Protocol::Openai, _) => tasks::read_chat(hosted, received),
            _ => tasks::read_texts(hosted, received, inputs.len()),
        };
        let order = self.ask_in_order(member, load, prepare, read).await?;
        Ok(self.told(asker, order, |at| inputs.get(at).map(Glimpse::of)))
    }

    /// The relevance of each document.
    pub(super) async fn relevances(
        &self,
        asker: Asker<'_>,
        member: &Arc<HostedMember>,
        request: &RerankRequest,
    ) -> Result<Result<Told, Instead>, Declined> {
        fits(member, &[HostedTask::Rerank], "reranking")?;
        let RerankRequest { query, documents, document_tokens, .. } = request;
        let prepare = |hosted: &Hosted| match hosted.protocol {
            Protocol::Openai => Ok(tasks::rerank(hosted, request)),
            // It has no word for it.
            _ if document_tokens.is_some() => Err(unaskable(
                "`max_tokens_per_doc`: the host of this model decides how much of a document it reads".to_owned(),
            )),
            _ => tasks::documents(hosted, query, documents),
        };
        let read = |hosted: &Hosted, received| match hosted.protocol {
            Protocol::Openai => tasks::read_rerank(received, documents.len()),
            _ => tasks::read_documents(hosted, received, documents.len()),
        };
        let order = self.ask_in_order(member, Load::of_reranking(query, documents), prepare, read).await?;
        let glimpse = |at| documents.get(at).map(|document: &String| Glimpse::of_pair(query, document));
        Ok(self.told(asker, order, glimpse))
    }

    /// Tensors passed on as they are, to a host that speaks the Open Inference Protocol. What stands in must too.
    pub(super) async fn tensors(
        &self,
        asker: Asker<'_>,
        member: &Arc<HostedMember>,
        body: &[u8],
        json_bytes: Option<usize>,
    ) -> Result<Result<Tensors, Instead>, Declined> {
        if member.hosted().protocol != Protocol::Oip {
            let message = format!("`{}` takes no tensors: give the one input `text`", member.name());
            return Err(Problem::invalid(message).into());
        }
        let prepare = |hosted: &Hosted| tasks::tensors(hosted, body, json_bytes);
        // Tensors have no texts to count; the body's limit holds.
        let order = self.ask_in_order(member, Load::default(), prepare, |_, received| Ok(received)).await?;
        let InOrder { answer, passed } = order;
        let began = match answer {
            Answered::Hosted(began) => began,
            Answered::Own(name) => return Ok(Err((name, passed))),
        };
        let (facts, headers) = (began.serving.facts.clone(), origin(&began, &passed));
        let (member, asked) = (Arc::clone(&began.member), Passed { body, json_bytes });
        let (exchange, received) = Exchange::new(began, self.asked(asker, passed));
        let (body, json_bytes) = match received {
            Received::Whole(body) => (body, None),
            Received::Tensors(body, json_bytes) => (body, Some(json_bytes)),
            Received::Events(..) => return Err(Problem::internal(&"tensors came as events").into()),
        };
        exchange.whole(Tally::of(None, None), vec![Digest::of(&body)]);
        member.passed_on(asked, Passed { body: &body, json_bytes });
        Ok(Ok(Tensors { body, json_bytes, facts, headers }))
    }

    /// What a host answered, of which monitoring looks at one, and at its input with `glimpse`.
    fn told(
        &self,
        asker: Asker<'_>,
        InOrder { answer, passed }: InOrder<Read>,
        glimpse: impl FnOnce(usize) -> Option<Glimpse>,
    ) -> Result<Told, Instead> {
        let began = match answer {
            Answered::Hosted(began) => began,
            Answered::Own(name) => return Err((name, passed)),
        };
        let (facts, headers) = (began.serving.facts.clone(), origin(&began, &passed));
        let member = Arc::clone(&began.member);
        let (exchange, read) = Exchange::new(began, self.asked(asker, passed));
        let n_tokens = read.tally.usage.map_or(0, |usage| usage.input as usize);
        let Read { answers, digests, tally, results } = read;
        exchange.whole(tally, digests);
        let (task, answers) = of_task(member.hosted(), answers);
        member.seen(&answers, glimpse);
        Ok(Told { answers, results, task, n_tokens, facts, headers })
    }
}

/// One request's answers that came by several.
fn joined(parts: Vec<Told>, hosted: &Hosted) -> Told {
    let n_tokens = parts.iter().map(|part| part.n_tokens).sum();
    let mut parts = parts.into_iter();
    let mut all = parts.next().expect("a request has an input");
    let rest: Vec<Told> = parts.collect();
    all.answers.extend(rest.into_iter().flat_map(|part| part.answers));
    let (task, answers) = of_task(hosted, all.answers);
    Told { answers, task, n_tokens, ..all }
}

/// What the answers are of. Where a text named no label, that is one of the labels.
fn of_task(hosted: &Hosted, mut answers: Vec<Answer>) -> (TaskKind, Vec<Answer>) {
    let mut labels = hosted.labels.clone();
    if answers.iter().any(|answer| matches!(answer, Answer::Class { label, .. } if label == NO_LABEL)) {
        labels.push(NO_LABEL.to_owned());
    }
    for answer in &mut answers {
        if let Answer::Class { label, scores } = answer {
            let named_none = label == NO_LABEL;
            scores.resize(labels.len(), if named_none { 1.0 } else { 0.0 });
        }
    }
    let task = match hosted.task {
        HostedTask::Embed => TaskKind::Embed {
            dimensions: answers.first().map_or(0, |answer| answer.values().len() as u32),
            normalized: false,
            matryoshka_dimensions: Vec::new(),
        },
        HostedTask::Rerank => TaskKind::Rerank,
        HostedTask::Moderate => {
            TaskKind::Classify { flagged: labels.get(1).cloned(), labels, pairs: false, thresholds: Vec::new() }
        }
        _ => TaskKind::Classify { flagged: hosted.flagged.clone(), labels, pairs: false, thresholds: Vec::new() },
    };
    (task, answers)
}

/// Whether a text that is too long loses its end is its host's to say: a client that asks for anything else is refused.
pub(super) fn only_end(cut: Truncate) -> Result<(), Problem> {
    match (cut.allowed, cut.side) {
        (None | Some(true), None | Some(CutSide::End)) => Ok(()),
        _ => Err(Problem::invalid("the host of this model decides what happens to texts that are too long")),
    }
}

/// Of a request that was prepared wrongly.
pub(super) fn unaskable(reason: String) -> openai::Refused {
    Problem::invalid(reason).into()
}

/// What goes out.
pub(super) fn wanted(question: &highroad_hosted::Question) -> Wanted {
    let (body, json_bytes) = question.body();
    Wanted { path: question.path().to_owned(), body, json_bytes, most: question.worst(), events: false }
}

//! A golden set asked of a pipeline that a live `highroad serve` runs: what it finds, as a whole.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use highroad_assess::{CaseAnswer, Checked, GoldenInput, GoldenSet, Results, Speed, Value, answers_digest};
use highroad_eval::{Evidence, PipelineEvidence, Rankings};
use highroad_package::Digest;
use indicatif::ProgressBar;
use reqwest::{Client, Url};
use serde::Deserialize;
use serde_json::json;
use tokio::runtime::Runtime;

use super::through::{at, authorised, client, key};
use crate::progress;

/// Largest answer that is read.
const MAX_BODY_BYTES: usize = 64 << 20;
/// How much of an error's text is told.
const ERROR_CHARS: usize = 300;
/// Times that a server with a full queue is asked again, and how long it is left alone in between.
const N_RETRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);

/// A pipeline of a live server, and of what it was made when it was found.
pub struct Pipeline {
    name: String,
    composition: Composition,
    runtime: Runtime,
    client: Client,
    url: Url,
    key: Option<String>,
}

#[derive(Deserialize)]
struct List {
    data: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    id: String,
    composition: Option<Composition>,
}

/// Of what a pipeline is made.
#[derive(Clone, Debug, Deserialize)]
pub struct Composition {
    pub digest: Digest,
    pub members: BTreeMap<String, Part>,
    pub indexes: BTreeMap<String, Digest>,
    pub feeds: BTreeMap<String, Vec<String>>,
}

/// A member of a pipeline.
#[derive(Clone, Debug, Deserialize)]
pub struct Part {
    pub source: String,
    pub package: Digest,
    numerics_id: String,
    evidence: String,
}

#[derive(Deserialize)]
struct Reply {
    #[serde(default)]
    output: serde_json::Value,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    name: String,
    by: Option<By>,
    index: Option<Digest>,
    skipped: Option<String>,
}

#[derive(Deserialize)]
struct By {
    member: String,
    package: Digest,
}

#[derive(Debug, Deserialize)]
struct Document {
    id: String,
    text: String,
}

impl Pipeline {
    /// Finds the pipeline `name` of the server at `url`. Errors if it has none, or a member of it serves nothing.
    pub fn connect(url: &str, name: &str) -> anyhow::Result<Self> {
        let (base, client, key) = (super::through::address(url)?, client()?, key());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let request = authorised(client.get(at(&base, &["v1", "pipelines"])?), key.as_deref());
        let list: List = runtime
            .block_on(async { request.send().await?.error_for_status()?.json().await })
            .with_context(|| format!("`{base}` does not answer as `highroad serve` does"))?;
        let known = list.data.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>().join(", ");
        let Some(entry) = list.data.into_iter().find(|entry| entry.id == name) else {
            bail!("`{base}` has no pipeline `{name}`; it has: {known}");
        };
        let composition = entry.composition.with_context(|| format!("a member of pipeline `{name}` serves nothing"))?;
        let url = at(&base, &["v1", "pipelines", name])?;
        Ok(Self { name: name.to_owned(), composition, runtime, client, url, key })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Of what it is made.
    pub fn composition(&self) -> &Composition {
        &self.composition
    }

    /// The same for a verdict.
    pub fn evidence(&self) -> PipelineEvidence {
        let Composition { members, indexes, .. } = &self.composition;
        PipelineEvidence {
            name: self.name.clone(),
            members: members.iter().map(|(name, part)| (name.clone(), part.package.to_string())).collect(),
            indexes: indexes.iter().map(|(name, digest)| (name.clone(), digest.to_string())).collect(),
        }
    }

    /// Asks every query of a golden set of rankings, one after the other, timed, and compares what comes back with the documents
    /// that the case names, by their text or their id.
    ///
    /// Errors if the pipeline gives no documents, or a part of it is another than when it was found.
    pub fn answer(&self, golden: &GoldenSet, who: &str) -> anyhow::Result<Results> {
        let bar = progress::bar_of_inputs(who);
        let answered = self.answer_all(golden, &bar, who);
        bar.finish_and_clear();
        let (cases, digests, single_ms) = answered?;
        let seconds = single_ms.iter().sum::<f64>() / 1e3;
        let n = cases.len();
        Ok(Results {
            highroad_results: 1,
            package: self.composition.digest,
            golden_set: highroad_eval::GoldenSet {
                name: golden.name.clone(),
                digest: golden.digest.to_string(),
                n_cases: n,
            },
            numerics_id: self.numerics_id(),
            evidence: self.level(),
            labels: Vec::new(),
            cases,
            answers: answers_digest(digests),
            batch_invariant: true,
            checked: Checked { n_inputs: n, n_kept: 0, n_alone: n },
            speed: Speed {
                single_ms,
                inputs_per_s: if seconds > 0.0 { n as f64 / seconds } else { 0.0 },
                gpu_s_per_1000: None,
                measured: format!(
                    "pipeline `{}` through a server, by its client, one query after the other",
                    self.name
                ),
            },
            hosted: None,
        })
    }

    fn answer_all(
        &self,
        golden: &GoldenSet,
        bar: &ProgressBar,
        who: &str,
    ) -> anyhow::Result<(Vec<CaseAnswer>, Vec<Digest>, Vec<f64>)> {
        let (mut cases, mut digests, mut single_ms) = (Vec::new(), Vec::new(), Vec::new());
        for (idx, case) in golden.cases.iter().enumerate() {
            let input = golden.input(idx)?;
            let GoldenInput::Ranking { query, documents } = &*input else {
                bail!(
                    "a pipeline is judged by rankings of documents, and this golden set asks for {}",
                    case.kind.in_words()
                );
            };
            let begun = Instant::now();
            let reply = self.runtime.block_on(self.ask(query)).with_context(|| format!("case `{}`", case.case.id))?;
            single_ms.push(begun.elapsed().as_secs_f64() * 1e3);
            self.check(&reply).with_context(|| format!("case `{}`", case.case.id))?;
            digests.push(Digest::of(reply.output.to_string().as_bytes()));
            let found = found(reply.output)?;
            let value = Value::Scores(scores(documents, &found));
            cases.push(CaseAnswer { id: case.case.id.clone(), value, truncated: false });
            progress::show(bar, format!("{who}: asking"), [idx + 1, golden.cases.len()]);
        }
        Ok((cases, digests, single_ms))
    }

    async fn ask(&self, query: &str) -> anyhow::Result<Reply> {
        for attempt in 0.. {
            let request = self.client.post(self.url.clone()).json(&json!({ "input": query }));
            let mut response = authorised(request, self.key.as_deref()).send().await?;
            let status = response.status();
            if status.as_u16() == 429 && attempt < N_RETRIES {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            let mut content = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                if content.len() + chunk.len() > MAX_BODY_BYTES {
                    bail!("the server's answer is over {MAX_BODY_BYTES} bytes");
                }
                content.extend_from_slice(&chunk);
            }
            if !status.is_success() {
                let text: String = String::from_utf8_lossy(&content).chars().take(ERROR_CHARS).collect();
                bail!("the server answered {status}: {text}");
            }
            return serde_json::from_slice(&content).context("the server's answer is in an unknown form");
        }
        bail!("the server's queue stays full")
    }

    /// An answer counts only if what was found answered it: a verdict on a mixture would be about nothing.
    fn check(&self, reply: &Reply) -> anyhow::Result<()> {
        for Step { name, by, index, skipped } in &reply.steps {
            if let Some(reason) = skipped {
                bail!("step `{name}` was skipped: {reason}");
            }
            if let Some(By { member, package }) = by {
                let known = self.composition.members.get(member).map(|part| part.package);
                if known != Some(*package) {
                    bail!(
                        "step `{name}` was answered by package {package}, which is not what was found: the pipeline has changed"
                    );
                }
            }
            if let Some(index) = index
                && !self.composition.indexes.values().any(|known| known == index)
            {
                bail!(
                    "step `{name}` searched the index {index}, which is not what was found: the pipeline has changed"
                );
            }
        }
        Ok(())
    }

    fn numerics_id(&self) -> String {
        let mut ids: Vec<&str> = self.composition.members.values().map(|part| part.numerics_id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.join(" + ")
    }

    /// A pipeline is worth what its weakest member is.
    fn level(&self) -> Evidence {
        let level = |part: &Part| match part.evidence.as_str() {
            "bit-exact" => Evidence::BitExact,
            "same-engine" => Evidence::SameEngine,
            _ => Evidence::Observed,
        };
        let levels: Vec<Evidence> = self.composition.members.values().map(level).collect();
        let weakest = [Evidence::Observed, Evidence::SameEngine].into_iter().find(|level| levels.contains(level));
        weakest.unwrap_or(Evidence::BitExact)
    }
}

/// The documents of an answer; none where a label ended the request.
fn found(output: serde_json::Value) -> anyhow::Result<Vec<Document>> {
    #[derive(Deserialize)]
    struct Output {
        documents: Vec<Document>,
    }
    if output.is_null() {
        return Ok(Vec::new());
    }
    let output: Output = serde_json::from_value(output).context("the pipeline's answer is not documents")?;
    Ok(output.documents)
}

/// For each document that a case names its rank with a minus; then the same of those that it does not name.
fn scores(named: &[String], found: &[Document]) -> Vec<f64> {
    let mut place: HashMap<&str, usize> = HashMap::new();
    for (idx, document) in named.iter().enumerate() {
        place.entry(document).or_insert(idx);
    }
    let mut scores = vec![Rankings::NOT_FOUND; named.len()];
    for (idx, document) in found.iter().enumerate() {
        let rank = -(idx as f64 + 1.0);
        let place = place.get(document.text.as_str()).or_else(|| place.get(document.id.as_str()));
        match place {
            Some(&place) if scores[place] == Rankings::NOT_FOUND => scores[place] = rank,
            _ => scores.push(rank),
        }
    }
    scores
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_a_case_names_has_its_rank_and_what_it_does_not_name_takes_one() {
        let named = ["b".to_owned(), "7".to_owned(), "absent".to_owned()];
        let output = json!({ "documents": [{"id": "1", "text": "x"}, {"id": "7", "text": "a"}, {"id": "3", "text": "b", "score": 1}] });
        assert_eq!(scores(&named, &found(output).unwrap()), [-3.0, -2.0, Rankings::NOT_FOUND, -1.0]);
        assert!(found(serde_json::Value::Null).unwrap().is_empty());
        assert!(found(json!({ "text": "a" })).unwrap_err().to_string().contains("not documents"));
    }
}

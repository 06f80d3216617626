//! Whole requests to pipelines: every step once more, from the packages and indexes that answered, compared digest by digest.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use highroad_package::{Digest, Reference, VerifiedPackage};
use highroad_serve::hosted::{Question, Said};
use highroad_serve::index::Index;
use highroad_serve::pipeline::{Action, Definition, Replay, Value, Wants};
use highroad_serve::request_log::{PipelineRecord, Record, StepRecord};
use highroad_task::{Answer, Input, Predictor, PredictorOptions};
use serde_json::{Value as Json, json};

use super::MISMATCH;
use super::chain::Chain;
use super::hosted::{Asking, PROMISE, asked_the_same};
use super::sources::{Sources, model_name};
use crate::commands::eval::print_json;
use crate::outln;

pub use super::hosted::Asked;

/// How a step came out.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    /// The packages gave the served bits, or others.
    Bits { same: bool, why: Option<String> },
    /// A host was asked the same, or something else, and if it was asked again said the same or not.
    Host { asked_same: Option<bool>, said_same: Option<bool> },
    /// It reads a step that gave nothing here.
    NotReached { reads: String },
}

/// A step's replay.
struct StepOutcome {
    name: String,
    by: String,
    outcome: Outcome,
    value: Option<Value>,
    /// Steps above it that came out otherwise, and that it reads.
    after: Vec<String>,
}

/// Replays a request.
pub async fn replay(
    sources: &Sources,
    record: &Record,
    asked: &Asked<'_>,
    asking: &Asking,
    is_json: bool,
) -> anyhow::Result<ExitCode> {
    let Some(pipeline) = &record.pipeline else { bail!("`{}` is no request to a pipeline", record.request_id) };
    let input = input(asked.case)?;
    let definition = sources.definition(pipeline).await?;
    let mut parts = Parts { sources, packages: BTreeMap::new(), indexes: BTreeMap::new() };
    let served =
        asked.served.map(serde_json::from_slice::<Json>).transpose().context("the file of `--answer` is no reply")?;
    let walk = Walk { record, pipeline, definition: &definition, input: &input, asking, served: served.as_ref() };
    let steps = walk.replay(&mut parts, None).await?;
    let with = match asked.with {
        None => None,
        Some(with) => {
            let instead = Instead::find(sources, pipeline, with).await?;
            Some((with, walk.replay(&mut parts, Some(&instead)).await?))
        }
    };
    let chains = chains(sources, record, pipeline, &parts).await;
    let found = Found {
        record,
        steps: &steps,
        with: with.as_ref().map(|(with, steps)| (*with, steps.as_slice())),
        chains: &chains,
    };
    if is_json {
        print_json(&found.json(asking))?
    } else {
        found.print(asking)
    }
    Ok(if found.is_same() { ExitCode::SUCCESS } else { ExitCode::from(MISMATCH) })
}

/// The text of a case: the body that was sent, or a golden case.
fn input(case: &[u8]) -> anyhow::Result<String> {
    let case: Json = serde_json::from_slice(case).context("the case is not JSON")?;
    let places = ["/input/text", "/input", "/text"];
    let text = places.iter().find_map(|place| case.pointer(place).and_then(Json::as_str));
    text.map(str::to_owned).context("the case of a pipeline is `{\"input\": \"…\"}` or `{\"text\": \"…\"}`")
}

/// Loaded packages and indexes, by digest.
struct Parts<'a> {
    sources: &'a Sources,
    packages: BTreeMap<Digest, (VerifiedPackage, Predictor)>,
    indexes: BTreeMap<Digest, Index>,
}

impl Parts<'_> {
    async fn predictor(&mut self, version: &str, digest: Digest) -> anyhow::Result<&Predictor> {
        if !self.packages.contains_key(&digest) {
            let package = self.sources.of_version(version, digest).await?;
            self.load(package)?;
        }
        Ok(&self.packages[&digest].1)
    }

    fn load(&mut self, package: VerifiedPackage) -> anyhow::Result<()> {
        let digest = package.digest();
        let predictor = Predictor::open(&package, &PredictorOptions::default())
            .with_context(|| format!("package {digest} does not load"))?;
        self.packages.insert(digest, (package, predictor));
        Ok(())
    }

    fn index(&mut self, digest: Digest) -> anyhow::Result<&Index> {
        if !self.indexes.contains_key(&digest) {
            let index = self.sources.index(&digest)?;
            self.indexes.insert(digest, index);
        }
        Ok(&self.indexes[&digest])
    }
}

/// A package in place of others.
struct Instead {
    /// Whose: a model's versions, a member or a step.
    name: String,
    package: VerifiedPackage,
}

impl Instead {
    async fn find(sources: &Sources, pipeline: &PipelineRecord, with: &str) -> anyhow::Result<Self> {
        let (named, reference) = match with.split_once('=') {
            Some((name, reference)) => (Some(name.to_owned()), reference),
            None => (None, with),
        };
        let package = sources.package(reference).await?;
        let model = reference.parse::<Reference>().ok().filter(|_| !std::path::Path::new(reference).is_dir());
        let model = model.map_or_else(|| package.manifest().name.clone(), |reference| reference.name);
        let instead = Self { name: named.unwrap_or(model), package };
        if !pipeline.steps.iter().any(|step| instead.stands_for(step)) {
            let told = |step: &StepRecord| Some(format!("{} by {}", step.name, step.version.as_deref()?));
            let steps: Vec<String> = pipeline.steps.iter().filter_map(told).collect();
            bail!(
                "`--with {with}`: no package answered for `{}`; the steps were {}\nhint: `--with STEP={reference}` names a step",
                instead.name,
                steps.join(", ")
            );
        }
        Ok(instead)
    }

    fn stands_for(&self, step: &StepRecord) -> bool {
        let is_own = step.numerics_id.is_some();
        let model = step.version.as_deref().map(model_name);
        is_own && [Some(step.name.as_str()), step.member.as_deref(), model].contains(&Some(self.name.as_str()))
    }
}

/// A way through the steps.
struct Walk<'a> {
    record: &'a Record,
    pipeline: &'a PipelineRecord,
    definition: &'a Definition,
    input: &'a str,
    asking: &'a Asking,
    served: Option<&'a Json>,
}

impl Walk<'_> {
    async fn replay(&self, parts: &mut Parts<'_>, instead: Option<&Instead>) -> anyhow::Result<Vec<StepOutcome>> {
        let (mut replay, mut outcomes) = (Replay::new(self.definition, self.input), Vec::<StepOutcome>::new());
        let steps = &self.definition.pipeline.steps;
        for (step_idx, step) in steps.iter().enumerate() {
            let kept = self.pipeline.steps.iter().find(|kept| kept.name == step.name);
            let is_streamed = self.pipeline.streamed && step_idx == self.definition.pipeline.output;
            if kept.is_none() && !is_streamed {
                continue;
            }
            let at = At { walk: self, step_idx, kept, instead };
            let mut outcome = at.replay(parts, &mut replay).await?;
            let above =
                |read: &usize| outcomes.iter().find(|above| above.name == steps[*read].name && above.is_other());
            outcome.after = replay.reads(step_idx).iter().filter_map(above).map(|above| above.name.clone()).collect();
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// The text of a step in the reply that the client got, if it is what the record says.
    fn served_text(&self, name: &str, digest: Option<Digest>) -> Option<Value> {
        let reply = self.served?;
        let steps = reply["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
        let of_step = steps.iter().find(|step| step["name"] == name).and_then(|step| step["value"]["text"].as_str());
        let is_last = self.definition.pipeline.steps[self.definition.pipeline.output].name == name;
        let text = of_step.or_else(|| reply["output"]["text"].as_str().filter(|_| is_last))?;
        let value = Value::Text(text.to_owned());
        (Some(value.digest()) == digest).then_some(value)
    }
}

/// One step of a way.
struct At<'a> {
    walk: &'a Walk<'a>,
    step_idx: usize,
    kept: Option<&'a StepRecord>,
    instead: Option<&'a Instead>,
}

impl At<'_> {
    fn name(&self) -> &str {
        &self.walk.definition.pipeline.steps[self.step_idx].name
    }

    async fn replay(&self, parts: &mut Parts<'_>, replay: &mut Replay<'_>) -> anyhow::Result<StepOutcome> {
        let (outcome, value) = match replay.wants(self.step_idx) {
            Wants::Missing(reads) => (Outcome::NotReached { reads }, None),
            Wants::Text { system, prompt, max_tokens } => {
                self.host(parts.sources, system.as_deref(), &prompt, max_tokens).await?
            }
            wants => {
                let value = match self.kept.filter(|kept| kept.skipped) {
                    Some(_) => replay.skipped(self.step_idx),
                    None => self.own(parts, replay, wants).await?,
                };
                (self.bits(parts, value.as_ref()), value)
            }
        };
        if let Some(value) = &value {
            replay.put(self.step_idx, value.clone());
        }
        let by = self.kept.and_then(|kept| kept.version.clone());
        let by = match self.instead.filter(|instead| self.kept.is_some_and(|kept| instead.stands_for(kept))) {
            Some(instead) => format!("{}@{}", instead.package.manifest().name, instead.package.digest().short()),
            None => by.unwrap_or_else(|| match &self.walk.definition.pipeline.steps[self.step_idx].action {
                // A vector is sought by nobody but the index, and who writes a stream is told by its own record.
                Action::Search { index, .. } => format!("index {index}"),
                Action::Generate { member, .. } => member.clone(),
                _ => "nobody".to_owned(),
            }),
        };
        Ok(StepOutcome { name: self.name().to_owned(), by, outcome, value, after: Vec::new() })
    }

    /// What packages and indexes give.
    async fn own(&self, parts: &mut Parts<'_>, replay: &Replay<'_>, wants: Wants) -> anyhow::Result<Option<Value>> {
        let wants = match wants {
            Wants::Answers(inputs) => match replay.answered(self.step_idx, &self.answers(parts, &inputs).await?) {
                Ok(value) => return Ok(Some(value)),
                Err(wants) => wants,
            },
            wants => wants,
        };
        match wants {
            Wants::Found { index, vector } => {
                let digest = self.walk.definition.indexes[&index].digest;
                let found = replay.found(self.step_idx, parts.index(digest)?, &vector);
                found
                    .with_context(|| format!("step `{}`: the index `{index}` was not searched", self.name()))?
                    .map(Some)
                    .with_context(|| format!("step `{}`: its vector does not fit the index `{index}`", self.name()))
            }
            // Where nothing was found there is nothing to order.
            Wants::Nothing => Ok(Some(Value::Documents(Vec::new()))),
            _ => Ok(None),
        }
    }

    async fn answers(&self, parts: &mut Parts<'_>, inputs: &[Input]) -> anyhow::Result<Vec<Answer>> {
        let kept = self.kept.context("the record lacks a step")?;
        if let Some(instead) = self.instead.filter(|instead| instead.stands_for(kept)) {
            if kept.index.is_some() {
                bail!(
                    "step `{}` searches an index of another package's vectors: `--with` cannot stand for its embedder",
                    self.name()
                );
            }
            parts.load(instead.package.clone())?;
            return predict(&parts.packages[&instead.package.digest()].1, inputs);
        }
        let (version, package) = kept
            .version
            .as_deref()
            .zip(kept.package)
            .with_context(|| format!("the record does not say who answered step `{}`", self.name()))?;
        predict(parts.predictor(version, package).await?, inputs)
    }

    fn bits(&self, parts: &Parts<'_>, value: Option<&Value>) -> Outcome {
        let Some(kept) = self.kept else { return Outcome::Bits { same: false, why: None } };
        let same = value.is_some_and(|value| value.digest() == kept.value);
        let here = kept.package.and_then(|package| Some(parts.packages.get(&package)?.1.numerics_id()));
        let why = match (here, &kept.numerics_id) {
            (Some(here), Some(there)) if !same && here != *there => {
                Some(format!("this machine computes on `{here}`, the server on `{there}`"))
            }
            _ => None,
        };
        Outcome::Bits { same, why }
    }

    /// What a host says, where it may be asked; else what it said, where that is known.
    async fn host(
        &self,
        sources: &Sources,
        system: Option<&str>,
        prompt: &str,
        max_tokens: Option<u64>,
    ) -> anyhow::Result<(Outcome, Option<Value>)> {
        let id = format!("{}.{}", self.walk.record.own_id(), self.name());
        let kept = sources.find_record(&id).await?;
        let (asked, digest) = match &kept {
            Some(record) => (record.hosted.clone(), record.outputs.first().copied()),
            None => (None, self.kept.map(|kept| kept.value)),
        };
        let package = kept.as_ref().map(|record| record.package).or_else(|| self.kept.and_then(|kept| kept.package));
        let package = package.with_context(|| format!("the request log has no `{id}`"))?;
        let hosted = sources.hosted(&package).await?;
        let question = Question::of_step(&hosted, system, prompt, max_tokens)?;
        let asked_same = asked.as_ref().and_then(|asked| asked_the_same(asked, &question));
        let is_other = self.instead.is_some() && asked_same == Some(false);
        // Nobody pays for a question that can tell nothing about the answer that was served.
        if asked_same == Some(false) && self.instead.is_none() {
            return Ok((Outcome::Host { asked_same, said_same: None }, None));
        }
        if !self.walk.asking.allowed {
            let served = self.walk.served_text(self.name(), digest).filter(|_| !is_other);
            return Ok((Outcome::Host { asked_same, said_same: None }, served));
        }
        let heard = self.walk.asking.ask(&hosted, &question).await?;
        let said_same = heard.digests.first().copied() == digest;
        let value = heard.said.into_iter().next().and_then(|said| match said {
            Said::Text(text) => Some(Value::Text(text)),
            _ => None,
        });
        Ok((Outcome::Host { asked_same, said_same: Some(said_same) }, value))
    }
}

/// One input at a time, as a batch has no part in the bits.
fn predict(predictor: &Predictor, inputs: &[Input]) -> anyhow::Result<Vec<Answer>> {
    let one = |input: &Input| predictor.predict(std::slice::from_ref(input));
    Ok(inputs.iter().map(one).collect::<Result<Vec<_>, _>>()?.concat())
}

impl StepOutcome {
    /// Whether it came out otherwise than it was served.
    fn is_other(&self) -> bool {
        match &self.outcome {
            Outcome::Bits { same, .. } => !same,
            Outcome::Host { asked_same, said_same } => *asked_same == Some(false) || *said_same == Some(false),
            Outcome::NotReached { .. } => false,
        }
    }

    fn why(&self) -> String {
        let why = match &self.outcome {
            Outcome::Bits { same: true, .. } => "the same bits".to_owned(),
            Outcome::Bits { why: Some(why), .. } => format!("other bits: {why}"),
            Outcome::Bits { .. } => "other bits".to_owned(),
            Outcome::Host { asked_same, said_same } => {
                let asked = match asked_same {
                    Some(true) => "asked the same",
                    Some(false) => "asked something else",
                    None => "not known what it was asked",
                };
                match said_same {
                    Some(true) => format!("{asked}, the same answer; {PROMISE}"),
                    Some(false) => format!("{asked}, another answer; {PROMISE}"),
                    None if *asked_same == Some(false) => format!("{asked}, so the host was not asked again"),
                    None => format!("{asked}; the host was not asked again (`--ask-host`)"),
                }
            }
            Outcome::NotReached { reads } => format!("not replayed: it reads `{reads}`, which gave nothing here"),
        };
        match self.after.as_slice() {
            [] => why,
            after => format!("{why}, after {}", after.join(", ")),
        }
    }

    fn json(&self) -> Json {
        let promise = matches!(self.outcome, Outcome::Host { .. }).then_some(PROMISE);
        let (asked_same, said_same) = match self.outcome {
            Outcome::Host { asked_same, said_same } => (asked_same, said_same),
            _ => (None, None),
        };
        json!({
            "name": self.name,
            "by": self.by,
            "same_bits": match self.outcome { Outcome::Bits { same, .. } => Some(same), _ => None },
            "asked_the_same": asked_same,
            "same_answer": said_same,
            "promise": promise,
            "why": self.why(),
            "value": self.value,
            "digest": self.value.as_ref().map(Value::digest),
        })
    }
}

/// The chain behind each package that answered a step.
async fn chains(
    sources: &Sources,
    record: &Record,
    pipeline: &PipelineRecord,
    parts: &Parts<'_>,
) -> Vec<(Record, Chain)> {
    let mut chains = Vec::new();
    for step in &pipeline.steps {
        let Some((package, _)) = step.package.and_then(|package| parts.packages.get(&package)) else { continue };
        let of_step = sources.find_record(&format!("{}.{}", record.own_id(), step.name)).await;
        if let Ok(Some(of_step)) = of_step {
            let chain = Chain::find(sources, &of_step, package.manifest()).await;
            chains.push((of_step, chain));
        }
    }
    chains
}

/// What a replay of a request found.
struct Found<'a> {
    record: &'a Record,
    steps: &'a [StepOutcome],
    with: Option<(&'a str, &'a [StepOutcome])>,
    chains: &'a [(Record, Chain)],
}

impl Found<'_> {
    fn is_same(&self) -> bool {
        !self.steps.iter().any(StepOutcome::is_other)
    }

    fn first_other(&self) -> Option<&StepOutcome> {
        self.steps.iter().find(|step| step.is_other())
    }

    fn why(&self) -> String {
        let is_host = |step: &&StepOutcome| matches!(step.outcome, Outcome::Host { .. });
        let hosts = self.steps.iter().filter(is_host).count();
        let unheard = |step: &&StepOutcome| matches!(step.outcome, Outcome::Host { said_same: None, .. });
        let unheard = self.steps.iter().filter(unheard).count();
        let own = if self.steps.len() > hosts { "the same bits; " } else { "" };
        let left = self.steps.iter().filter(|step| matches!(step.outcome, Outcome::NotReached { .. })).count();
        match self.first_other() {
            Some(step) => format!("step `{}` is the first that differs: {}", step.name, step.why()),
            None if left > 0 => {
                format!("the same bits up to what a host said; {left} step(s) read that and were not replayed")
            }
            None if unheard > 0 => {
                format!(
                    "{own}what a host said was not compared at {unheard} step(s): it was not asked again (`--ask-host`)"
                )
            }
            None if hosts > 0 => format!("{own}what a host said is {PROMISE}"),
            None => "the same bits".to_owned(),
        }
    }

    fn json(&self, asking: &Asking) -> Json {
        let steps = |steps: &[StepOutcome]| steps.iter().map(StepOutcome::json).collect::<Vec<_>>();
        json!({
            "request": self.record,
            "same_bits": self.is_same(),
            "why": self.why(),
            "first_other": self.first_other().map(|step| &step.name),
            "steps": steps(self.steps),
            "with": self.with.map(|(reference, with)| json!({ "reference": reference, "steps": steps(with) })),
            "chains": self.chains.iter().map(|(record, chain)| chain.json(record)).collect::<Vec<_>>(),
            "spent": asking.cost(),
        })
    }

    fn print(&self, asking: &Asking) {
        outln!("{}", self.why());
        for step in self.steps {
            outln!("  {:<10} {:<16} {}  {}", step.name, step.by, brief(step.value.as_ref()), step.why());
            let beside = self.with.and_then(|(_, with)| with.iter().find(|other| other.name == step.name));
            if let Some(other) = beside.filter(|other| changed(step, other)) {
                outln!("  {:<10} {:<16} {}", "", other.by, brief(other.value.as_ref()));
            }
        }
        for (record, chain) in self.chains {
            outln!();
            chain.lines(record).iter().for_each(|(name, line)| outln!("{name:>8}  {line}"));
        }
        if let Some(line) = asking.cost_line() {
            outln!("    cost  {line}");
        }
    }
}

fn changed(step: &StepOutcome, other: &StepOutcome) -> bool {
    step.by != other.by || step.value.as_ref().map(Value::digest) != other.value.as_ref().map(Value::digest)
}

/// What a step gave, on one line.
fn brief(value: Option<&Value>) -> String {
    const MAX_CHARS: usize = 60;
    match value {
        None => "-".to_owned(),
        Some(Value::Text(text)) => format!("{:?}", highroad_assess::report::one_line(text, MAX_CHARS)),
        Some(Value::Label { label, score }) => format!("{label} {score:.6}"),
        Some(Value::Vector(vector)) => format!("a vector of {} values", vector.len()),
        Some(Value::Documents(documents)) => {
            let best = documents.iter().take(3).map(|found| format!("{} {:.4}", found.id(), found.score));
            let rest = if documents.len() > 3 { format!(", … {} documents", documents.len()) } else { String::new() };
            format!("[{}{rest}]", best.collect::<Vec<_>>().join(", "))
        }
    }
}

//! Of what a pipeline is made at a moment: the steps as they are written, the packages of its members and the indexes they search.
//! A verdict on a pipeline is about one such composition; another package anywhere in it makes another.

use std::collections::{BTreeMap, BTreeSet};

use highroad_package::Digest;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::{Action, PipelineConfig, Pipelines, Step};
use crate::portfolio::Portfolio;

/// A pipeline by content.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Composition {
    /// Digest of all of it.
    pub digest: Digest,
    /// Every member that is asked.
    pub members: BTreeMap<String, Part>,
    /// Every index that is searched.
    pub indexes: BTreeMap<String, Digest>,
    /// For each member those that read what it gives.
    pub feeds: BTreeMap<String, BTreeSet<String>>,
}

/// A member of a pipeline.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "CompositionPart")]
pub struct Part {
    /// What it follows.
    pub source: String,
    /// What it serves.
    pub version: String,
    /// Its package.
    pub package: Digest,
    /// What decides its bits.
    pub numerics_id: String,
    /// The evidence behind it.
    pub evidence: &'static str,
}

impl Pipelines {
    /// Of what `pipeline` is made now; `None` if there is none of that name, or a member of it serves nothing.
    pub fn composition(&self, pipeline: &str, portfolio: &Portfolio) -> Option<Composition> {
        let config = self.get(pipeline)?;
        let statuses = portfolio.statuses();
        let part = |member: &str| {
            let status = statuses.iter().find(|status| status.member == member)?;
            let facts = status.serving.clone()?;
            let (version, package, numerics_id) = (facts.version, facts.package, facts.numerics_id);
            Some(Part { source: status.source.clone(), version, package, numerics_id, evidence: facts.evidence })
        };
        let asked: BTreeSet<&str> = config.steps.iter().flat_map(|step| self.asked(step)).collect();
        let members = asked.iter().map(|&member| Some((member.to_owned(), part(member)?))).collect::<Option<_>>()?;
        let indexes = config.steps.iter().filter_map(|step| match &step.action {
            Action::Search { index, .. } => Some(index),
            _ => None,
        });
        let digest_of = |index: &String| {
            let revision = portfolio.embedded_by(self.embedder(index))?;
            Some((index.clone(), revision.indexes().get(index)?.digest()))
        };
        let indexes = indexes.map(digest_of).collect::<Option<_>>()?;
        let feeds = asked.iter().map(|&member| (member.to_owned(), self.readers(&config.steps, member))).collect();
        Some(Composition { digest: digest(config, &members, &indexes), members, indexes, feeds })
    }

    /// The members that a step asks.
    fn asked<'a>(&'a self, step: &'a Step) -> Vec<&'a str> {
        let member = match &step.action {
            Action::Search { index, .. } => self.embedder(index),
            Action::Generate { member, .. } => member,
            Action::Classify { member, .. } | Action::Embed { member, .. } | Action::Rerank { member, .. } => member,
        };
        [member].into_iter().chain(step.fallback.as_deref()).collect()
    }

    /// The members whose steps read, over however many steps, what `member` gives.
    fn readers(&self, steps: &[Step], member: &str) -> BTreeSet<String> {
        let mut reached = vec![false; steps.len()];
        let mut readers = BTreeSet::new();
        for (step_idx, step) in steps.iter().enumerate() {
            let reads = step.action.reads().into_iter().any(|earlier| reached[earlier]);
            let asked = self.asked(step);
            reached[step_idx] = reads || asked.contains(&member);
            if reads {
                readers.extend(asked.into_iter().filter(|&reader| reader != member).map(str::to_owned));
            }
        }
        readers
    }
}

fn digest(pipeline: &PipelineConfig, members: &BTreeMap<String, Part>, indexes: &BTreeMap<String, Digest>) -> Digest {
    let packages: BTreeMap<&String, &Digest> = members.iter().map(|(name, part)| (name, &part.package)).collect();
    let all = json!({ "highroad_composition": 1, "pipeline": pipeline, "members": packages, "indexes": indexes });
    Digest::of(&serde_json_canonicalizer::to_vec(&all).expect("texts, numbers and digests are JSON"))
}

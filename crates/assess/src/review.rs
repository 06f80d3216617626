//! The model review: what a reviewer asks, answered from evidence. What there is no evidence for says so.

use std::collections::BTreeMap;

use highroad_eval::{GoldenSet, Outcome, Override, Verdict};
use highroad_package::{Digest, Manifest};
use serde::{Deserialize, Serialize};

use crate::Rehearsal;

mod questions;
mod sources;
mod test_score;

pub use sources::Source;
pub use test_score::{MlTestScore, SectionScore, can_be_attested};

/// Everything a review rests on, gathered beforehand; what could not be found is absent.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The package under review.
    pub package: Artifact<'a>,
    /// The package it would replace; `None` for a first version.
    pub baseline: Option<Artifact<'a>>,
    /// The gate's verdict on it, against that baseline.
    pub verdict: Option<Kept<'a>>,
    /// What lets an alias name it where no verdict admits it.
    pub overrides: &'a [Override],
    /// Its verdict against the trivial baseline.
    pub against_trivial: Option<Kept<'a>>,
    /// Earlier packages that were judged on the same golden set: digest of the package, digest of the verdict.
    pub history: &'a [(String, Digest)],
    /// What replaying the parity cases showed just now, or why it did not come to that.
    pub parity: Result<ParityFact, String>,
    /// What answering the golden set anew showed.
    pub rerun: Option<Rerun>,
    /// The way back, walked just now, or why it could not be.
    pub rehearsal: Result<Rehearsal, String>,
    /// Golden cases whose text is in the training data too, where those files are at hand.
    pub leaks: Option<Leaks>,
    /// The commit of the training code.
    pub commit: Option<CommitFact>,
    /// The training run.
    pub run: Option<RunFact>,
    /// Files that were attached to the run as evidence for an item: `review/D2…` belongs to `D2`.
    pub attached: &'a BTreeMap<String, Vec<String>>,
    /// What the package met where it served, as its monitoring tells.
    pub monitored: Option<Monitored>,
    /// How it did on live traffic before it served, as the registry tells.
    pub canary: Option<Canary>,
    /// What named persons attested, by item.
    pub attested: &'a BTreeMap<String, Attestation>,
    /// Oldest training that the standard accepts.
    pub max_age_days: Option<u32>,
    /// RFC 3339 in UTC, whole seconds.
    pub created_at: String,
    /// Who asked for the review.
    pub created_by: String,
}

/// A rollout of a package: a shadow or canary beside what served.
#[derive(Clone, Debug)]
pub struct Canary {
    /// Its id.
    pub rollout: String,
    /// Version and alias, such as ``router:7 for `champion` ``.
    pub version: String,
    /// Whether its rules held: inconclusive where it goes on, or where a person ended it before they could tell.
    pub outcome: Outcome,
    /// In a sentence.
    pub told: String,
    /// When it ended, or began where it goes on, RFC 3339 in UTC.
    pub at: String,
    /// Each rule and how it went, in words.
    pub checks: Vec<String>,
}

/// What a package met in production.
#[derive(Clone, Debug)]
pub struct Monitored {
    /// Member and version, such as `router (router:7)`.
    pub version: String,
    /// Digest of the baseline; `None` where there is none.
    pub baseline: Option<String>,
    /// Since when, RFC 3339 in UTC.
    pub since: String,
    /// Requests that were looked at.
    pub n_requests: u64,
    /// Whether there were enough to judge.
    pub judged: bool,
    /// Sentences about signals that differ.
    pub findings: Vec<String>,
    /// Where right answers are known.
    pub live: Option<LiveQuality>,
}

/// How often a package was right in production.
#[derive(Clone, Debug)]
pub struct LiveQuality {
    /// Answers whose right one is known.
    pub n: u64,
    /// Share of right ones.
    pub accuracy: f64,
    /// Bounds that are ever wrong with probability at most 5 %.
    pub bounds: [f64; 2],
    /// The baseline's share.
    pub baseline: Option<f64>,
    /// Whether it is worse than there for certain.
    pub is_worse: bool,
}

/// A package by content.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Artifact<'a> {
    pub digest: Digest,
    pub manifest: &'a Manifest,
}

/// A verdict and the digest it is kept by.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Kept<'a> {
    pub digest: Digest,
    pub verdict: &'a Verdict,
}

/// How far the program is from what PyTorch computed at export.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct ParityFact {
    pub n_cases: u32,
    pub worst_relative_rms: f64,
    pub limit: f64,
    pub passed: bool,
}

/// The golden set answered again.
#[derive(Clone, Debug)]
pub struct Rerun {
    /// Which set.
    pub golden_set: GoldenSet,
    /// See [`answers_digest`](crate::answers_digest).
    pub answers: Digest,
    /// What decided the bits.
    pub numerics_id: String,
    /// Whether batches gave the bits that single inputs gave.
    pub batch_invariant: bool,
    /// Share of the time from text to answer that went into preprocessing.
    pub preprocessing_share: f64,
}

/// Golden cases that training has seen.
#[derive(Clone, Debug)]
pub struct Leaks {
    /// Data files of the manifest that were compared.
    pub files: Vec<String>,
    /// Those that were not.
    pub missing: Vec<String>,
    /// Those that were held out by their role, so that they need not be.
    pub held_out: Vec<String>,
    /// Ids of golden cases whose text occurs there.
    pub cases: Vec<String>,
}

/// The commit that trained the package.
#[derive(Clone, Debug)]
pub struct CommitFact {
    /// Its hash.
    pub id: String,
    /// Whether files were changed that the commit does not hold.
    pub dirty: bool,
    /// Who wrote it.
    pub author: String,
    /// Who else signed it off: `Reviewed-by` trailers, or who merged it.
    pub reviewers: Vec<String>,
}

/// The run that trained the package.
#[derive(Clone, Debug)]
pub struct RunFact {
    /// Its id.
    pub id: String,
    /// When it ended, RFC 3339 in UTC.
    pub ended_at: Option<String>,
    /// Days from then to the review.
    pub age_days: Option<f64>,
    /// What `highroad reproduce` wrote on it: the run that repeated it, and how alike they are.
    pub reproduced: Option<String>,
    /// Parameters that other runs of the same experiment tried with other values, and how many runs those are.
    pub tuned: (Vec<String>, usize),
    /// Unit tests that ran on the training code: passed and failed, from a JUnit file.
    pub unit_tests: Option<(usize, usize)>,
    /// Where the pipeline ran whole.
    pub pipeline: Option<String>,
}

/// A named person's word on an item that no machine decides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Attestation {
    pub by: String,
    pub why: String,
}

/// The review: the content of `review.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Review {
    /// Format version, 1.
    pub highroad_review: u32,
    /// Digest of the package.
    pub package: String,
    /// Its name, owner and licence, as the manifest says.
    pub model: String,
    /// Who answers for it.
    pub owner: String,
    /// SPDX expression of the weights' licence.
    pub licence: String,
    /// What it would replace.
    pub baseline: Option<String>,
    /// The gate's decision; absent where no verdict was found.
    pub outcome: Option<Outcome>,
    /// Digest of the verdict.
    pub verdict: Option<String>,
    /// Whether everything the standard asks for is there and passed.
    pub questions: Vec<Line>,
    /// Google's "ML Test Score" (Breck et al. 2017).
    pub ml_test_score: MlTestScore,
    /// What the lines cite, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
    /// When it was written.
    pub created_at: String,
    /// Who asked for it.
    pub created_by: String,
}

/// One question or test and its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Short name: `rollback`, `M6`.
    pub id: String,
    /// The question.
    pub title: String,
    /// The answer.
    pub status: Status,
    /// In one sentence.
    pub summary: String,
    /// More of it, one fact a line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
    /// Where to look: digests, run ids, files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<String>,
}

/// How a line stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Decided from artifacts: it holds.
    Pass,
    /// Decided from artifacts: it does not.
    Fail,
    /// Evidence is attached; a person decides.
    Evidence,
    /// A named person attested it.
    Attested,
    /// There is nothing to decide it by.
    NotEvidenced,
}

impl Status {
    /// In words.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "FAIL",
            Self::Evidence => "evidence",
            Self::Attested => "attested",
            Self::NotEvidenced => "not evidenced",
        }
    }

    /// Whether a release that requires the line may go on.
    pub fn is_settled(self) -> bool {
        matches!(self, Self::Pass | Self::Evidence | Self::Attested)
    }
}

/// A line's answer before it has a name.
struct Finding {
    status: Status,
    summary: String,
    details: Vec<String>,
    evidence: Vec<String>,
}

impl Finding {
    fn new(status: Status, summary: impl Into<String>) -> Self {
        Self { status, summary: summary.into(), details: Vec::new(), evidence: Vec::new() }
    }

    fn pass_if(holds: bool, summary: impl Into<String>) -> Self {
        Self::new(if holds { Status::Pass } else { Status::Fail }, summary)
    }

    fn none(summary: impl Into<String>) -> Self {
        Self::new(Status::NotEvidenced, summary)
    }

    fn details(mut self, details: impl IntoIterator<Item = String>) -> Self {
        self.details.extend(details);
        self
    }

    fn see(mut self, evidence: impl IntoIterator<Item = String>) -> Self {
        self.evidence.extend(evidence);
        self
    }

    fn into_line(self, id: &str, title: &str) -> Line {
        let Self { status, summary, details, evidence } = self;
        Line { id: id.to_owned(), title: title.to_owned(), status, summary, details, evidence }
    }
}

impl Review {
    /// Answers every question from the facts.
    pub fn of(facts: &Facts<'_>) -> Self {
        let manifest = facts.package.manifest;
        let (questions, ml_test_score) = (questions::answer(facts), test_score::score(facts));
        let tests = ml_test_score.sections.iter().flat_map(|section| &section.tests);
        let sources = sources::cited(facts, questions.iter().chain(tests));
        Self {
            highroad_review: 1,
            package: facts.package.digest.to_string(),
            model: manifest.name.clone(),
            owner: manifest.owner.clone(),
            licence: manifest.licence.clone(),
            baseline: facts.baseline.map(|baseline| baseline.digest.to_string()),
            outcome: facts.verdict.map(|kept| kept.verdict.outcome),
            verdict: facts.verdict.map(|kept| kept.digest.to_string()),
            questions,
            ml_test_score,
            sources,
            created_at: facts.created_at.clone(),
            created_by: facts.created_by.clone(),
        }
    }

    /// The decision and the open lines, in one sentence.
    pub fn headline(&self) -> String {
        let count = |status| self.questions.iter().filter(|line| line.status == status).count();
        let gate = match self.outcome {
            None => "no verdict of the gate",
            Some(Outcome::Pass) => "the gate passed",
            Some(Outcome::Fail) => "the gate FAILED",
            Some(Outcome::Inconclusive) => "the gate is inconclusive",
        };
        let (failed, open) = (count(Status::Fail), count(Status::NotEvidenced));
        format!("{gate}; of the {} questions {failed} failed, {open} are not evidenced", self.questions.len())
    }

    /// What was reviewed, name by name.
    pub fn facts(&self) -> impl Iterator<Item = (&'static str, String)> {
        let some = |name, value: &Option<String>| value.clone().map(|value| (name, value));
        [
            Some(("package", self.package.clone())),
            some("baseline", &self.baseline),
            some("verdict", &self.verdict),
            Some(("owner", self.owner.clone())),
            Some(("licence", self.licence.clone())),
            Some(("reviewed", format!("{} by {}", self.created_at, self.created_by))),
        ]
        .into_iter()
        .flatten()
    }

    /// Every line, the questions first.
    pub fn lines(&self) -> impl Iterator<Item = &Line> {
        self.questions.iter().chain(self.ml_test_score.sections.iter().flat_map(|section| &section.tests))
    }

    /// The line called `id`.
    pub fn line(&self, id: &str) -> Option<&Line> {
        self.lines().find(|line| line.id == id)
    }
}

impl Facts<'_> {
    /// Where the verdict is, as evidence.
    fn see_verdict(&self) -> Vec<String> {
        self.verdict.map(|kept| format!("verdict {}", kept.digest)).into_iter().collect()
    }

    /// What was answered just now, as evidence.
    fn see_rerun(&self, rerun: &Rerun) -> [String; 2] {
        [format!("package {}", self.package.digest), format!("golden set {}", rerun.golden_set.digest)]
    }
}

#[cfg(test)]
mod tests;

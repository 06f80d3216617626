use std::num::NonZeroUsize;
use std::time::Instant;

use highroad_package::{Digest, VerifiedPackage};
use highroad_task::{Predictor, PredictorOptions};

use crate::{AssessError, GoldenSet, KeptAnswers, RunOptions, run};

/// The way back, walked: the package that would answer again was loaded and asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Rehearsal {
    /// Digest of the package that was loaded.
    pub package: Digest,
    /// What going back means.
    pub way: WayBack,
    /// From nothing to a predictor that is ready: reading, checking, planning.
    pub load_ms: f64,
    /// The first answer after that.
    pub first_answer_ms: f64,
    /// What was replayed, and whether it came out.
    pub replayed: Replayed,
}

/// What going back means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WayBack {
    /// The version that answered before answers again.
    Previous,
    /// There is none: the new version is taken away.
    Undeploy,
}

/// What the rehearsed package was asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Replayed {
    /// The golden set of its own verdict, on the kind of machine of that verdict.
    Goldens {
        /// How many cases.
        n_cases: usize,
        /// Whether every answer has the verdict's bits.
        same_bits: bool,
    },
    /// Its parity cases only, as no verdict of its own is about this golden set and this kind of machine.
    Parity {
        /// How many cases.
        n_cases: u32,
        /// Whether they agree with PyTorch.
        agrees: bool,
    },
}

/// Loads `package`, asks it its first question, then replays its goldens, if `judged` gives the answers digest that its own
/// verdict holds for this golden set and a numerics id, else its parity cases.
pub fn rehearse(
    package: &VerifiedPackage,
    way: WayBack,
    golden: &GoldenSet,
    judged: impl Fn(&str) -> Option<Digest>,
    options: &PredictorOptions,
) -> Result<Rehearsal, AssessError> {
    let name = |source| AssessError::Task { case: "rehearsal".to_owned(), source };
    let start = Instant::now();
    let predictor = Predictor::open(package, options).map_err(name)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let start = Instant::now();
    predictor.warm_up().map_err(name)?;
    let first_answer_ms = start.elapsed().as_secs_f64() * 1e3;
    let replayed = match judged(&predictor.numerics_id()) {
        Some(answers) => {
            // Asked anew: answers that were kept prove nothing about what was just loaded.
            let run_options = RunOptions { threads: options.threads, n_alone: NonZeroUsize::MIN };
            let results = run(&predictor, golden, &run_options, &mut KeptAnswers::none(), |_, _, _| ())?;
            Replayed::Goldens { n_cases: golden.cases.len(), same_bits: results.answers == answers }
        }
        None => {
            let report = predictor.parity().map_err(name)?;
            Replayed::Parity { n_cases: package.manifest().parity.n_cases, agrees: report.passed() }
        }
    };
    Ok(Rehearsal { package: package.digest(), way, load_ms, first_answer_ms, replayed })
}

impl Rehearsal {
    /// Whether the way back is open.
    pub fn passed(&self) -> bool {
        matches!(self.replayed, Replayed::Goldens { same_bits: true, .. } | Replayed::Parity { agrees: true, .. })
    }

    /// In one sentence.
    pub fn in_words(&self) -> String {
        let who = match self.way {
            WayBack::Previous => "the previous package was loaded",
            WayBack::Undeploy => "a first version goes back by being taken away; it was loaded and dropped",
        };
        let replayed = match self.replayed {
            Replayed::Goldens { n_cases, same_bits: true } => {
                format!("all {n_cases} golden answers came out with the bits of its verdict")
            }
            Replayed::Goldens { n_cases, same_bits: false } => {
                format!("its {n_cases} golden answers differ in their bits from its verdict")
            }
            Replayed::Parity { n_cases, agrees: true } => {
                format!("its {n_cases} parity cases agree (it has no verdict on this golden set and kind of machine)")
            }
            Replayed::Parity { n_cases, agrees: false } => format!("its {n_cases} parity cases do not agree"),
        };
        format!("rehearsed just now: {who}, {replayed}; ready in {:.0} ms", self.load_ms + self.first_answer_ms)
    }

    /// Each step and its time.
    pub fn timings(&self) -> [String; 2] {
        [format!("load and check: {:.0} ms", self.load_ms), format!("first answer: {:.0} ms", self.first_answer_ms)]
    }
}

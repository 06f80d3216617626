//! What answers a golden set: a package in this process, a model that somebody else hosts, or a pipeline of a live server.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use highroad_assess::{GoldenSet, HostedJudge, HostedModel, KeptReplies, Results, give, run_hosted};
use highroad_eval::{CustomEvidence, Gates, Given, JudgeEvidence};
use highroad_hosted::Budget;
use highroad_package::{Digest, VerifiedPackage};

use crate::commands::eval::{AnswerArgs, EngineArgs, Pipeline};
use crate::progress;
use crate::repo::Python;
use crate::resolve::{Home, Resolved, Target};

/// One side of a comparison.
pub enum Side {
    Package(Box<Resolved>),
    Hosted(Box<HostedModel>),
    Pipeline(Box<Pipeline>),
}

/// How a side is asked.
#[derive(Clone, Copy)]
pub struct How<'a> {
    pub answers: &'a AnswerArgs,
    /// What runs a package's program.
    pub engine: &'a EngineArgs,
    /// Files of all shards, whose answers are taken; none to ask here.
    pub shards: &'a [PathBuf],
}

/// What asking hosted models may cost.
#[derive(Clone, Debug, clap::Args)]
pub struct CostArgs {
    /// Stop before asking hosted models costs more than this, in the currency of their prices; what was answered is kept.
    #[arg(long, value_name = "AMOUNT", value_parser = parse_amount)]
    max_cost: Option<f64>,
}

impl CostArgs {
    /// The budget of one command.
    pub fn budget(&self) -> Budget {
        Budget::new(self.max_cost)
    }
}

fn parse_amount(text: &str) -> Result<f64, String> {
    let amount: f64 = text.parse().map_err(|_| "expected an amount, such as 0.50")?;
    if (0.0..=1e9).contains(&amount) { Ok(amount) } else { Err("expected 0 or more".to_owned()) }
}

impl Side {
    /// The description that `target` names as a TOML file, else its package.
    pub fn find(target: &Target, home: &Home) -> anyhow::Result<Self> {
        let text = target.to_string();
        let path = Path::new(&text);
        let is_description = path.extension().is_some_and(|suffix| suffix == "toml") && !path.is_dir();
        if is_description { open(path).map(Self::Hosted) } else { Ok(Self::Package(Box::new(target.resolve(home)?))) }
    }

    /// The package, where it is one.
    pub fn package(&self) -> Option<&VerifiedPackage> {
        if let Self::Package(resolved) = self { Some(&resolved.package) } else { None }
    }

    /// The model, where somebody else hosts it.
    pub fn hosted(&self) -> Option<&HostedModel> {
        if let Self::Hosted(model) = self { Some(model) } else { None }
    }

    /// The pipeline, where it is one.
    pub fn pipeline(&self) -> Option<&Pipeline> {
        if let Self::Pipeline(pipeline) = self { Some(pipeline) } else { None }
    }

    /// Digest of what answers; of a pipeline it is known once it was asked.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Self::Package(resolved) => Some(resolved.package.digest()),
            Self::Hosted(model) => Some(model.digest()),
            Self::Pipeline(_) => None,
        }
    }

    /// The reference it was found by.
    pub fn reference(&self) -> Option<String> {
        if let Self::Package(resolved) = self { resolved.reference.as_ref().map(ToString::to_string) } else { None }
    }

    /// Answers the golden set, with a progress bar on a terminal; of a package `n_alone` inputs are timed.
    pub fn answer(
        &self,
        how: &How<'_>,
        golden: &GoldenSet,
        n_alone: NonZeroUsize,
        who: &str,
        budget: &Budget,
    ) -> anyhow::Result<Results> {
        match self {
            Self::Package(resolved) if how.shards.is_empty() => {
                how.answers.assess_on(how.engine, &resolved.package, golden, n_alone, who)
            }
            Self::Package(_) if !how.engine.is_native()? => {
                bail!("shards are answered by the native engine: leave out --engine")
            }
            Self::Package(resolved) => how.answers.assess_joined(&resolved.package, golden, how.shards, n_alone, who),
            Self::Pipeline(_) if !how.engine.is_native()? || !how.shards.is_empty() => {
                bail!("engines and shards are about a package, and this is a pipeline")
            }
            Self::Pipeline(pipeline) => pipeline.answer(golden, who),
            Self::Hosted(_) if !how.engine.is_native()? || !how.shards.is_empty() => {
                bail!("engines and shards are about a package, and this model is hosted by somebody else")
            }
            Self::Hosted(model) => {
                let mut kept = kept_replies(model, how.answers);
                let bar = progress::bar_of_inputs(who);
                let results = run_hosted(model, golden, &mut kept, budget, |n_done, n_all| {
                    progress::show(&bar, format!("{who}: asking"), [n_done, n_all]);
                });
                bar.finish_and_clear();
                Ok(results?)
            }
        }
    }
}

/// The hosted model that a file describes.
pub fn open(path: &Path) -> anyhow::Result<Box<HostedModel>> {
    HostedModel::open(path).map(Box::new).with_context(|| format!("cannot ask the model of `{}`", path.display()))
}

/// The replies of earlier runs; none where they cannot be read, as nothing but time and money is lost.
pub fn kept_replies(model: &HostedModel, args: &AnswerArgs) -> KeptReplies {
    if args.no_cache {
        return KeptReplies::none();
    }
    KeptReplies::open(&Home::find().path().join("answers"), &model.digest()).unwrap_or_else(|error| {
        eprintln!("warning: no answers are kept: {error}");
        KeptReplies::none()
    })
}

/// Asks every judge of `gates`, which lies at `path`, about the answers of both sides and writes the scores beside them.
pub fn ask_judges(
    gates: &Gates,
    path: &Path,
    args: &AnswerArgs,
    golden: &GoldenSet,
    [candidate, baseline]: [Option<&mut Results>; 2],
    budget: &Budget,
) -> anyhow::Result<Vec<JudgeEvidence>> {
    let (Some(candidate), mut baseline) = (candidate, baseline) else { return Ok(Vec::new()) };
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut evidence = Vec::new();
    for (name, rule) in &gates.judges {
        let context = || format!("cannot ask judge `{name}` of `{}`", path.display());
        let judge = HostedJudge::open(name, rule, folder).with_context(context)?;
        let mut kept = kept_replies(judge.model(), args);
        let bar = progress::bar_of_inputs(name);
        let judged = judge.judge(golden, candidate, baseline.as_deref_mut(), &mut kept, budget, |n_done, n_all| {
            progress::show(&bar, format!("judge {name}"), [n_done, n_all]);
        });
        bar.finish_and_clear();
        evidence.push(judged?);
    }
    Ok(evidence)
}

/// Runs every program of `gates`, which lies at `path`, on the answers of both sides.
pub fn run_custom(
    gates: &Gates,
    path: &Path,
    golden: &GoldenSet,
    [candidate, baseline]: [Option<&Results>; 2],
) -> anyhow::Result<(BTreeMap<String, Given>, Vec<CustomEvidence>)> {
    let (mut given, mut evidence) = (BTreeMap::new(), Vec::new());
    let Some(candidate) = candidate.filter(|_| !gates.custom.is_empty()) else { return Ok((given, evidence)) };
    let folder = path.parent().unwrap_or(Path::new(""));
    let python = Python::find(Path::new("."))?;
    for (name, rule) in &gates.custom {
        let bar = progress::bar(&format!("metric {name}"));
        let of = |results| give((name, rule), folder, python.path(), golden, results);
        let (values, told) = of(candidate)?;
        let baseline = baseline.map(of).transpose()?.map(|(values, _)| values);
        bar.finish_and_clear();
        given.insert(name.clone(), Given { candidate: values, baseline });
        evidence.push(told);
    }
    Ok((given, evidence))
}

/// Errors where rules need a package in this process and a side is hosted.
pub fn check_traffic(has_traffic: bool, sides: [Option<&Side>; 2]) -> anyhow::Result<()> {
    let is_elsewhere = sides.into_iter().flatten().any(|side| side.package().is_none());
    if has_traffic && is_elsewhere {
        bail!(
            "[traffic] loads packages in this process, and a server or a hosted model is loaded by others as well\nhint: gate it by rules \
             without [traffic]; a [[latency]] rule judges the times of single requests"
        );
    }
    Ok(())
}

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use highroad_eval::Plan;
use highroad_package::registry::{RegistryClient, ResolvedVersion};
use highroad_package::{Reference, Selector};
use highroad_serve::admission;
use highroad_serve::config::{ModelSource, PortfolioConfig, RolloutPlan};
use highroad_serve::rollout::{Book, End, Ended, Release, Rollout, end_tag, new_id, rollout_tag, seen_tags};
use jiff::Timestamp;

use super::eval::print_json;
use super::gate::{REQUIRED, whole_seconds};
use super::promote::{MoverArgs, rehearse};
use super::push::print;
use crate::serving::PORTFOLIO;
use crate::tracking::{self, Tracking};

mod status;

pub(super) use status::plan_in_words;

/// Refused by the gate, or nothing to end.
const REFUSED: u8 = 1;
/// Longest reason and name that are kept: a tag of MLflow has to hold the whole rollout.
const MAX_WORDS: usize = 500;

/// Try a version on live traffic, or see or end what is tried.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Command {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    begin: Args,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Show where the rollout of a model stands, or how the last one ended. Exit code 0: promoted or passed, 1: aborted, 3: it
    /// goes on.
    Status(status::Args),
    /// End the rollout of a model: the candidate takes no more traffic.
    Abort(Named),
    /// Move the alias to a candidate that passed and waits for a person.
    Promote(Named),
}

/// Try a version on live traffic beside what the alias names now: every `highroad serve` that follows the alias does so.
///
/// What is not told here is as `[members.NAME.rollout]` of portfolio.toml declares it for the member that follows the alias.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("plan").args(["shadow", "canary"]))]
pub struct Args {
    /// Registered model.
    #[arg(required = true)]
    name: Option<String>,
    /// Number of the version to try.
    #[arg(id = "model_version", value_name = "VERSION", required = true)]
    version: Option<u64>,
    /// Let it answer this share of the requests a second time, unseen by clients.
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    shadow: Option<f64>,
    /// Let it answer these shares of the requests, one after the other.
    #[arg(long, value_name = "PERCENT,…", value_parser = parse_percent, value_delimiter = ',')]
    canary: Option<Vec<f64>>,
    /// The chance of ever aborting a candidate within all limits, and of ever passing one beyond one of them; 0.05 unless told.
    #[arg(long, value_name = "SHARE")]
    alpha: Option<f64>,
    /// Largest share of requests that it may answer differently; 5% unless told.
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    max_differ: Option<f64>,
    /// Largest share of requests that it may fail; 1% unless told.
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    max_errors: Option<f64>,
    /// Milliseconds that an answer of it may take.
    #[arg(long, value_name = "MS")]
    latency_budget: Option<f64>,
    /// Largest share of requests that may take it longer; 1% unless told.
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    max_slow: Option<f64>,
    /// Judge its right answers too: it may have so many fewer. They are given to `/v1/highroad/rollouts/NAME/labels`.
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    margin: Option<f64>,
    /// Embeddings differ below this cosine; 0.95 unless told.
    #[arg(long, value_name = "COSINE", allow_negative_numbers = true)]
    min_cosine: Option<f64>,
    /// Rankings differ below this overlap; 0.8 unless told.
    #[arg(long, value_name = "SHARE")]
    min_overlap: Option<f64>,
    /// Tensors differ above this relative difference: the length of the difference over that of the longer of both; 0.1 unless told.
    #[arg(long, value_name = "SHARE")]
    max_relative: Option<f64>,
    /// Requests that a canary is asked at each share, the last included, before it goes on; 100 unless told.
    #[arg(long, value_name = "N")]
    step_requests: Option<u64>,
    /// Seconds that each share of a canary lasts at least, the last included; 60 unless told.
    #[arg(long, value_name = "S")]
    step_seconds: Option<f64>,
    /// Leave the promotion to a person: `highroad deploy promote`.
    #[arg(long, conflicts_with = "no_hold")]
    hold: bool,
    /// Promote it once it has passed, though the portfolio declares otherwise.
    #[arg(long)]
    no_hold: bool,
    /// Where a plan is declared; `portfolio.toml` here, if there is one, unless told.
    #[arg(long, value_name = "FILE")]
    portfolio: Option<PathBuf>,
    #[command(flatten)]
    mover: MoverArgs,
}

/// The rollout of a model.
#[derive(clap::Args)]
struct Named {
    /// Registered model.
    name: String,
    #[command(flatten)]
    mover: MoverArgs,
}

/// `20%` or `20`.
fn parse_percent(text: &str) -> Result<f64, String> {
    let number: f64 =
        text.trim().trim_end_matches('%').trim().parse().map_err(|_| "expected such as `20%`".to_owned())?;
    if number > 0.0 && number <= 100.0 { Ok(number) } else { Err("expected above 0 % and up to 100 %".to_owned()) }
}

impl Command {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.action {
            Some(Action::Status(args)) => args.run(),
            Some(Action::Abort(named)) => named.abort(),
            Some(Action::Promote(named)) => named.promote(),
            None => self.begin.run(),
        }
    }
}

impl Args {
    fn run(self) -> anyhow::Result<ExitCode> {
        let (name, number) = (self.name.clone().expect(REQUIRED), self.version.expect(REQUIRED));
        let asked = self.asked(&name)?;
        let plan = asked.plan().with_context(|| {
            format!("a rollout is a shadow or a canary\nhint: --shadow 20%, --canary 5%,25%,100%, or `[members.{name}.rollout]` in {PORTFOLIO}")
        })?;
        let tracking = tracking::client(&self.mover.tracking)?;
        if tracking.is_embedded() {
            eprintln!("warning: no tracking server is named; only servers over the same local state see this");
        }
        let client = tracking.client();
        let reference = |selector| Reference { name: name.clone(), selector };
        let alias = self.mover.alias.clone();
        let stable = tracking.block_on(client.resolve(&reference(Selector::Alias(alias.clone()))));
        let stable = stable.with_context(|| {
            format!("nothing serves beside which `{name}:{number}` could be tried: `highroad promote` moves `{name}@{alias}` to a first version")
        })?;
        let candidate = tracking.block_on(client.resolve(&reference(Selector::Version(number))))?;
        if stable.version == candidate.version {
            bail!("`{name}@{alias}` names version {number} already");
        }
        if let Plan::Canary { .. } = plan
            && let Err(missing) = admitted(&tracking, &candidate)?
        {
            eprintln!(
                "refused: `{}` may not answer clients: {missing}\nhint: --shadow tries it unseen",
                candidate.label()
            );
            return Ok(ExitCode::from(REFUSED));
        }
        let tags = tracking.block_on(client.model_tags(&name))?;
        if let Some(running) = Book::read(&tags, &alias).running() {
            bail!(
                "rollout {} of `{name}:{}` goes on for `{name}@{alias}`\nhint: `highroad deploy abort {name}` ends it",
                running.id,
                running.candidate.version
            );
        }
        let package = Some(&candidate.package);
        if let Some(reason) = tracking.block_on(admission::forbidden(client, [&name, &alias], number, package))? {
            eprintln!("warning: it is tried, but {reason}");
        }
        rehearse(&tracking, &name, number, &alias)?;
        let rollout = self.rollout(&asked, plan, &stable, &candidate)?;
        for key in seen_tags(&tags, &alias) {
            tracking.block_on(client.delete_model_tag(&name, &key))?;
        }
        tracking.block_on(client.set_model_tag(&name, &rollout_tag(&alias), &serde_json::to_string(&rollout)?))?;
        self.report(&rollout)
    }

    /// What is told here and, of what is not, what a member declares that follows the alias. Errors if that cannot be kept.
    fn asked(&self, name: &str) -> anyhow::Result<RolloutPlan> {
        let share = |percent: Option<f64>| percent.map(|percent| percent / 100.0);
        let told = RolloutPlan {
            shadow: self.shadow,
            canary: self.canary.clone(),
            alpha: self.alpha,
            max_differ: share(self.max_differ),
            max_errors: share(self.max_errors),
            latency_ms: self.latency_budget,
            max_slow: share(self.max_slow),
            margin: share(self.margin),
            min_cosine: self.min_cosine,
            min_overlap: self.min_overlap,
            max_relative: self.max_relative,
            step_requests: self.step_requests,
            step_seconds: self.step_seconds,
            hold: (self.hold || self.no_hold).then_some(self.hold),
        };
        let asked = match self.declared(name)? {
            Some(declared) => told.over(&declared),
            None => told,
        };
        asked.check().map_err(anyhow::Error::msg)?;
        Ok(asked)
    }

    /// What the portfolio declares for members that follow the alias. One that was not named and cannot be read is passed over where
    /// the plan is told here.
    fn declared(&self, name: &str) -> anyhow::Result<Option<RolloutPlan>> {
        let path = self.portfolio.clone().unwrap_or_else(|| PORTFOLIO.into());
        if self.portfolio.is_none() && !path.is_file() {
            return Ok(None);
        }
        let config = match read_portfolio(&path) {
            Ok(config) => config,
            Err(error) if self.portfolio.is_none() && (self.shadow.is_some() || self.canary.is_some()) => {
                eprintln!("warning: nothing is taken of what `{}` may declare: {error:#}", path.display());
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let alias = Selector::Alias(self.mover.alias.clone());
        let follows = |member: &str| match &config.members[member].source {
            ModelSource::Registry(reference) => reference.name == name && reference.selector == alias,
            ModelSource::Directory(_) => false,
        };
        let mut declared = config.plans.iter().filter(|(member, _)| follows(member));
        let Some((member, plan)) = declared.next() else { return Ok(None) };
        if let Some((other, _)) = declared.find(|(_, other)| *other != plan) {
            bail!("`{member}` and `{other}` of `{}` declare different plans for `{name}`", path.display());
        }
        eprintln!("plan: `[members.{member}.rollout]` of `{}`", path.display());
        Ok(Some(plan.clone()))
    }

    fn rollout(
        &self,
        asked: &RolloutPlan,
        plan: Plan,
        stable: &ResolvedVersion,
        candidate: &ResolvedVersion,
    ) -> anyhow::Result<Rollout> {
        let release = |version: &ResolvedVersion| Release { version: version.version, package: version.package };
        let (by, why) = (self.mover.by(), self.mover.why_or("tried on live traffic"));
        if by.len() > MAX_WORDS || why.len() > MAX_WORDS {
            bail!("--by and --why take {MAX_WORDS} bytes each");
        }
        Ok(Rollout {
            highroad_rollout: 1,
            id: new_id(),
            stable: release(stable),
            candidate: release(candidate),
            plan,
            rules: asked.rules(),
            pace: asked.pace(),
            limits: asked.limits(),
            on_pass: asked.on_pass(),
            by,
            why,
            begun_at: whole_seconds(Timestamp::now()),
        })
    }

    fn report(&self, rollout: &Rollout) -> anyhow::Result<ExitCode> {
        if self.mover.json {
            print_json(rollout)?;
            return Ok(ExitCode::SUCCESS);
        }
        let name = self.name.as_deref().unwrap_or_default();
        print(&rollout.id);
        eprintln!(
            "trying `{name}:{}` beside `{name}:{}`; it can pass after {} compared requests\nhint: `highroad deploy status {name}` shows where it stands",
            rollout.candidate.version,
            rollout.stable.version,
            rollout.rules.fewest_to_pass()
        );
        Ok(ExitCode::SUCCESS)
    }
}

fn read_portfolio(path: &Path) -> anyhow::Result<PortfolioConfig> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let base = path.parent().unwrap_or(Path::new(""));
    PortfolioConfig::parse(&text, base).with_context(|| format!("cannot use `{}`", path.display()))
}

/// Whether a verdict admits a version now, or what it lacks.
fn admitted(tracking: &Tracking, version: &ResolvedVersion) -> anyhow::Result<Result<(), String>> {
    let now = whole_seconds(Timestamp::now());
    let verdict = tracking.block_on(admission::verdict(tracking.client(), version, &now))?;
    Ok(verdict.map(drop).map_err(|missing| missing.reason))
}

impl Named {
    fn abort(self) -> anyhow::Result<ExitCode> {
        let Self { name, mover } = self;
        let tracking = tracking::client(&mover.tracking)?;
        let (by, why) = (mover.by(), mover.why_or("ended by hand"));
        let aborted = tracking.block_on(abort(tracking.client(), [&name, &mover.alias], [&by, &why]))?;
        let Some(end) = aborted else { return nothing_runs(&name, &mover.alias) };
        if mover.json {
            print_json(&end)?;
        } else {
            print(&format!("{} aborted", end.rollout));
            eprintln!("`{name}:{}` takes no more traffic of `{name}@{}`", end.candidate, mover.alias);
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The alias moves as by `highroad promote`, with the rollout as the reason.
    fn promote(self) -> anyhow::Result<ExitCode> {
        let Self { name, mover } = self;
        let tracking = tracking::client(&mover.tracking)?;
        let tags = tracking.block_on(tracking.client().model_tags(&name))?;
        let book = Book::read(&tags, &mover.alias);
        let Some(rollout) = book.running() else { return nothing_runs(&name, &mover.alias) };
        if book.step.passed.is_none() {
            eprintln!(
                "refused: rollout {} of `{name}:{}` has not passed\nhint: `highroad promote {name} {1}` moves the alias without it",
                rollout.id, rollout.candidate.version
            );
            return Ok(ExitCode::from(REFUSED));
        }
        let why = format!("rollout {} passed: {}", rollout.id, mover.why_or(&rollout.why));
        super::promote::promote(&tracking, name, rollout.candidate.version, mover, why)
    }
}

fn nothing_runs(name: &str, alias: &str) -> anyhow::Result<ExitCode> {
    eprintln!("no rollout of `{name}@{alias}` goes on");
    Ok(ExitCode::from(REFUSED))
}

/// Ends the rollout of an alias, if one goes on: how it ended.
pub(super) async fn abort(
    client: &RegistryClient,
    [name, alias]: [&str; 2],
    [by, why]: [&str; 2],
) -> anyhow::Result<Option<End>> {
    let tags: BTreeMap<String, String> = client.model_tags(name).await?;
    let book = Book::read(&tags, alias);
    let Some(rollout) = book.running() else { return Ok(None) };
    let end = End {
        rollout: rollout.id.clone(),
        outcome: Ended::Aborted,
        candidate: rollout.candidate.version,
        reason: why.to_owned(),
        by: by.to_owned(),
        at: Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        counts: book.counts(),
        checks: highroad_eval::judge_rollout(&rollout.rules, &book.counts())?.checks,
    };
    client.set_model_tag(name, &end_tag(&rollout.id, alias), &serde_json::to_string(&end)?).await?;
    Ok(Some(end))
}

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, bail};
use highroad_eval::{Aliased, MAX_OVERRIDE_DAYS, Override};
use highroad_package::registry::dependents;
use highroad_package::registry::{AliasMove, Promotion, RegistryClient, RegistryError, ResolvedVersion};
use highroad_package::{Reference, Selector};
use highroad_serve::admission;
use highroad_task::{Predictor, PredictorOptions};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::gate::{days_up_to, whole_seconds};
use super::push::print;
use crate::resolve::Home;
use crate::tracking::{self, Tracking, TrackingArgs};

/// Refused by the gate.
const REFUSED: u8 = 1;

/// `highroad promote NAME VERSION`
#[derive(clap::Args)]
pub struct Args {
    /// Registered model.
    name: String,
    /// Version number.
    // `version` is the id of the flag that every command has.
    #[arg(id = "model_version", value_name = "VERSION")]
    version: u64,
    /// Move the alias although no verdict admits the version: recorded with who and why, and void after --expires. Bytes,
    /// signatures and parity are checked as ever.
    #[arg(long = "override", requires_all = ["by", "why", "expires"])]
    overriding: bool,
    /// For how many days the override holds, such as `7d`; at most 30.
    #[arg(long, value_name = "DAYS", requires = "overriding", value_parser = parse_days)]
    expires: Option<u32>,
    #[command(flatten)]
    mover: MoverArgs,
}

fn parse_days(text: &str) -> Result<u32, String> {
    days_up_to(MAX_OVERRIDE_DAYS, text)
}

/// What every move of an alias takes.
#[derive(clap::Args)]
pub(super) struct MoverArgs {
    /// Alias to move.
    #[arg(long, default_value = "champion")]
    pub alias: String,
    /// Who moves it; git's user if left out.
    #[arg(long)]
    by: Option<String>,
    /// Why; `moved by hand` if left out.
    #[arg(long)]
    why: Option<String>,
    /// Print the record as JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub tracking: TrackingArgs,
}

impl MoverArgs {
    pub fn by(&self) -> String {
        self.by.clone().unwrap_or_else(tracking::whoami)
    }

    pub fn why(&self) -> String {
        self.why_or("moved by hand")
    }

    /// Why, or this if it is left out.
    pub fn why_or(&self, otherwise: &str) -> String {
        self.why.clone().unwrap_or_else(|| otherwise.to_owned())
    }
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let Self { name, version, overriding, expires, mover } = self;
        let tracking = tracking::client(&mover.tracking)?;
        let days = expires.filter(|_| overriding);
        let overridden = days.map(|days| overrule(&tracking, &name, version, days, &mover)).transpose()?;
        let rehearsal = rehearse(&tracking, &name, version, &mover.alias)?;
        if let Some((version, given)) = &overridden {
            let bytes = serde_json::to_vec_pretty(given)?;
            tracking.block_on(tracking.client().push_override(version, &mover.alias, bytes))?;
            eprintln!("{}\ninstead of a verdict: {}", given.in_words(), given.missing.reason);
        }
        let why = mover.why();
        move_to(&tracking, name, version, mover, why, rehearsal)
    }
}

/// Promotes a version for the reason `why`, once the way back was walked.
pub(super) fn promote(
    tracking: &Tracking,
    name: String,
    version: u64,
    mover: MoverArgs,
    why: String,
) -> anyhow::Result<ExitCode> {
    let rehearsal = rehearse(tracking, &name, version, &mover.alias)?;
    move_to(tracking, name, version, mover, why, rehearsal)
}

fn move_to(
    tracking: &Tracking,
    name: String,
    version: u64,
    mover: MoverArgs,
    why: String,
    rehearsal: Value,
) -> anyhow::Result<ExitCode> {
    let by = mover.by();
    let promotion = Promotion { name, version, alias: mover.alias, by, why, rehearsal };
    let client = tracking.client();
    let moved = match tracking.block_on(client.promote(&promotion)) {
        Err(RegistryError::NoGate(_)) => tracking.block_on(admission::promote(client, &promotion))?,
        Err(RegistryError::Refused { status: 403, message, .. }) => Err(message),
        moved => Ok(moved?),
    };
    match moved {
        Ok(moved) => {
            if let Some(caution) = &moved.caution {
                eprintln!("warning: {caution}; the record says so");
            }
            tell_due(tracking, &moved);
            report(&moved, mover.json)
        }
        Err(reason) => {
            eprintln!("refused: {reason}");
            Ok(ExitCode::from(REFUSED))
        }
    }
}

/// Tells which verdicts on pipelines the new version makes due. What cannot be asked is left untold: the alias has moved.
fn tell_due(tracking: &Tracking, moved: &AliasMove) {
    let Some(package) = moved.package else { return };
    let Ok(tags) = tracking.block_on(tracking.client().model_tags(&moved.model)) else { return };
    let tags = tags.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    for due in dependents::due(tags, &moved.alias, &package) {
        eprintln!("due: {due}");
    }
}

/// The override of the gate for a version, which must lack an admitting verdict and nothing else: it is fetched under this
/// machine's rules for signatures, loaded, and answers its parity cases.
fn overrule(
    tracking: &Tracking,
    name: &str,
    number: u64,
    days: u32,
    mover: &MoverArgs,
) -> anyhow::Result<(ResolvedVersion, Override)> {
    let reference = Reference { name: name.to_owned(), selector: Selector::Version(number) };
    let now = whole_seconds(Timestamp::now());
    let version = tracking.block_on(tracking.client().resolve(&reference))?;
    let missing = match tracking.block_on(admission::verdict(tracking.client(), &version, &now))? {
        Ok(verdict) => bail!(
            "verdict {} admits `{reference}`, so there is nothing to override\nhint: promote it without --override",
            verdict.short()
        ),
        Err(missing) => missing,
    };
    load_and_answer(tracking, tracking.client(), &version)
        .with_context(|| format!("`{reference}` cannot be overridden into production"))?;
    let asked = Aliased { package: &version.package.to_string(), model: name, alias: &mover.alias };
    let given = Override::new(asked, [&mover.by(), &mover.why()], missing, &now, days)?;
    Ok((version, given))
}

/// Tells what moved: `name@alias -> name:7`, or `name@alias -> none`.
pub(super) fn report(moved: &AliasMove, as_json: bool) -> anyhow::Result<ExitCode> {
    if as_json {
        print(&serde_json::to_string(moved)?);
        return Ok(ExitCode::SUCCESS);
    }
    let name = |version: Option<u64>| version.map_or("none".to_owned(), |n| format!("{}:{n}", moved.model));
    print(&format!("{}@{} -> {}", moved.model, moved.alias, name(moved.to)));
    eprintln!("was {}; recorded as move {} by {}: {}", name(moved.from), moved.move_id, moved.by, moved.why);
    Ok(ExitCode::SUCCESS)
}

/// Proves the way back before going forward: what the alias names now must load here and answer its parity cases. Where it
/// names nothing, the way back is to undeploy, so the new version is loaded, answers and is dropped.
pub(super) fn rehearse(tracking: &Tracking, name: &str, version: u64, alias: &str) -> anyhow::Result<Value> {
    let client = tracking.client();
    let now = Reference { name: name.to_owned(), selector: Selector::Alias(alias.to_owned()) };
    let (kind, target) = match tracking.block_on(client.resolve(&now)) {
        Ok(champion) => ("previous", champion),
        Err(RegistryError::NotFound(_)) => {
            let first = Reference { name: name.to_owned(), selector: Selector::Version(version) };
            match tracking.block_on(client.resolve(&first)) {
                Ok(version) => ("undeploy", version),
                Err(RegistryError::NotAPackage(_)) => return Ok(not_ours("the new version")),
                Err(error) => return Err(error.into()),
            }
        }
        Err(RegistryError::NotAPackage(_)) => return Ok(not_ours("the version to go back to")),
        Err(error) => return Err(error.into()),
    };
    let started = Instant::now();
    let parity = load_and_answer(tracking, client, &target)
        .with_context(|| format!("the rollback of `{now}` was rehearsed with {} and failed", target.label()))?;
    eprintln!(
        "rehearsed the way back ({kind}): {} loaded and answered its parity cases in {:.1} s",
        target.label(),
        started.elapsed().as_secs_f64()
    );
    Ok(json!({
        "kind": kind,
        "version": target.version,
        "package": target.package,
        "parity": parity,
        "passed": true,
        "took_ms": u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    }))
}

fn not_ours(what: &str) -> Value {
    json!({ "kind": "none", "passed": Value::Null, "reason": format!("{what} is no Highroad package") })
}

fn load_and_answer(tracking: &Tracking, client: &RegistryClient, target: &ResolvedVersion) -> anyhow::Result<Value> {
    let store = Home::find().store()?;
    let bar = crate::progress::bar("fetching");
    let package = tracking.block_on(client.fetch(target, &store, &|n| bar.inc(n)))?;
    bar.finish_and_clear();
    let predictor = Predictor::open(&package, &PredictorOptions::default())?;
    let report = predictor.check_parity()?;
    let n_cases = package.manifest().parity.n_cases;
    let worst = report.worst().relative_rms;
    Ok(json!({ "n_cases": n_cases, "worst_relative_rms": worst, "numerics_id": report.numerics_id }))
}

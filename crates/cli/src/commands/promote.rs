use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use highroad_package::registry::{AliasMove, Promotion, RegistryClient, RegistryError, ResolvedVersion};
use highroad_package::{Reference, Selector};
use highroad_task::{Predictor, PredictorOptions};
use serde_json::{Value, json};

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
    #[command(flatten)]
    mover: MoverArgs,
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
    /// Why.
    #[arg(long, default_value = "moved by hand")]
    pub why: String,
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
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let Self { name, version, mover } = self;
        let tracking = tracking::client(&mover.tracking)?;
        let rehearsal = rehearse(&tracking, &name, version, &mover.alias)?;
        let by = mover.by();
        let promotion = Promotion { name, version, alias: mover.alias, by, why: mover.why, rehearsal };
        match tracking.block_on(tracking.client().promote(&promotion)) {
            Ok(moved) => report(&moved, mover.json),
            Err(RegistryError::Refused { status: 403, message, .. }) => {
                eprintln!("refused: {message}");
                Ok(ExitCode::from(REFUSED))
            }
            Err(error) => Err(error.into()),
        }
    }
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
fn rehearse(tracking: &Tracking, name: &str, version: u64, alias: &str) -> anyhow::Result<Value> {
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

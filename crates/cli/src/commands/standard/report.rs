//! Every registered model of a tracking server, held to the standard.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use comfy_table::{ContentArrangement, Table, presets};
use futures_util::{StreamExt as _, TryStreamExt as _};
use highroad_eval::{Aliased, Override, Refusal, Verdict};
use highroad_package::registry::{ModelVersion, RegisteredModel, RegistryClient, RegistryError, ResolvedVersion};
use highroad_package::{Digest, Manifest};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

use crate::rules::{self, Broken, Level};
use crate::standard::effective::{BREACHES_TAG, Chain, EXTENDS_TAG, P99_TAG, STANDARD_TAG};
use crate::tracking::{self, TrackingArgs};

/// Models that are asked about at a time.
const AT_ONCE: usize = 16;
/// Exit code where a rule of the level given to `--fail-on` is broken.
const BROKEN: u8 = 1;
/// Tags of a registered model that name its owner, for models that are no packages.
const OWNER_TAGS: [&str; 2] = ["highroad.owner", "owner"];

/// `highroad standard report`
#[derive(clap::Args)]
pub struct Args {
    /// The organisation's standard: its owners, licences and budget hold for every model, and repos that extend an older one are told
    #[arg(long, value_name = "FILE")]
    standard: Option<PathBuf>,
    /// Alias that production follows; a model without it is judged by its newest version
    #[arg(long, default_value = "champion")]
    alias: String,
    /// Exit with 1 where a rule of this level, or of a worse one, is broken
    #[arg(long, value_enum)]
    fail_on: Option<Level>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tracking: TrackingArgs,
}

/// What the organisation's file demands of every model.
#[derive(Default)]
struct Demands {
    digest: Option<Digest>,
    owners: Vec<String>,
    licences: Vec<String>,
    p99_ms: Option<f64>,
}

/// One registered model.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    owner: Option<String>,
    /// The version that is judged.
    version: Option<u64>,
    /// Whether production follows that version.
    is_champion: bool,
    package: Option<Digest>,
    /// `pass`, `fail` or `inconclusive`.
    outcome: Option<String>,
    licence: Option<String>,
    broken: Vec<BrokenRule>,
}

#[derive(Debug, Serialize)]
struct BrokenRule {
    rule: &'static str,
    #[serde(flatten)]
    what: Broken,
}

/// All that is known about a version that holds a package.
struct Evidence<'a> {
    version: &'a ModelVersion,
    resolved: &'a ResolvedVersion,
    manifest: Manifest,
    verdict: Option<Result<Verdict, String>>,
    /// What lets it be in production where no verdict does: for the alias that is reported.
    overridden: Option<Result<Override, String>>,
    alias: &'a str,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let demands = self.standard.as_deref().map(Demands::read).transpose()?.unwrap_or_default();
        let tracking = tracking::client(&self.tracking)?;
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let rows = tracking.block_on(self.examine(tracking.client(), &demands, &now))?;
        let worst = rows.iter().flat_map(|row| &row.broken).map(|broken| broken.what.level).max();
        if self.json {
            let report = json!({ "server": tracking.client().uri(), "at": now, "models": rows });
            writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&report)?)?;
        } else {
            print(&rows)?;
        }
        let n_broken = rows.iter().filter(|row| !row.broken.is_empty()).count();
        eprintln!("{} registered model(s), {n_broken} of them break a rule", rows.len());
        let fails = self.fail_on.is_some_and(|limit| worst.is_some_and(|worst| worst >= limit));
        Ok(if fails { ExitCode::from(BROKEN) } else { ExitCode::SUCCESS })
    }

    async fn examine(&self, client: &RegistryClient, demands: &Demands, now: &str) -> anyhow::Result<Vec<Row>> {
        let models = client.models().await?;
        let bar = crate::progress::bar("models");
        bar.set_length(models.len() as u64);
        let rows = futures_util::stream::iter(models).map(|model| {
            let bar = bar.clone();
            async move {
                let row = self.row(client, model, demands, now).await;
                bar.inc(1);
                row
            }
        });
        let rows: Result<Vec<Row>, RegistryError> = rows.buffered(AT_ONCE).try_collect().await;
        bar.finish_and_clear();
        Ok(rows?)
    }

    async fn row(
        &self,
        client: &RegistryClient,
        model: RegisteredModel,
        demands: &Demands,
        now: &str,
    ) -> Result<Row, RegistryError> {
        let champion = model.aliases.get(&self.alias).copied();
        let owner = OWNER_TAGS.iter().find_map(|tag| model.tags.get(*tag).cloned());
        let mut row = Row {
            name: model.name,
            owner,
            version: champion.or(model.newest),
            is_champion: champion.is_some(),
            package: None,
            outcome: None,
            licence: None,
            broken: Vec::new(),
        };
        if champion.is_none() {
            let help = "highroad promote, or delete the model";
            row.breaks("champion", Broken::new(Level::Warning, format!("no version is `{}`", self.alias), help));
        }
        let Some(number) = row.version else { return Ok(row) };
        let version = client.model_version(&row.name, number).await?;
        match version.package.clone() {
            Some(resolved) => row.judge_package(client, &version, &resolved, &self.alias, demands, now).await?,
            None => {
                let help = "export it with `highroad export`, then push the package";
                row.breaks("package", Broken::new(Level::Error, "it is no Highroad package", help));
                row.judge_owner(demands);
            }
        }
        Ok(row)
    }
}

impl Demands {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let chain = Chain::read(path)?;
        chain.check()?;
        let merged = chain.merged();
        let list = |key: &str| -> Vec<String> {
            let items = merged.get(key).and_then(toml::Value::as_array).into_iter().flatten();
            items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
        };
        let budget = merged.get("serving.budgets.p99_ms");
        Ok(Self {
            digest: Some(chain.0.first().context("a chain has a file")?.digest),
            owners: list("owners.known"),
            licences: list("packaging.licences"),
            p99_ms: budget.and_then(|value| value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64))),
        })
    }
}

impl Row {
    fn breaks(&mut self, rule: &'static str, what: Broken) {
        self.broken.push(BrokenRule { rule, what });
    }

    fn judge_owner(&mut self, demands: &Demands) {
        if let Some(what) = rules::owner(self.owner.as_deref().unwrap_or_default(), &demands.owners) {
            self.breaks("owner", what);
        }
    }

    async fn judge_package(
        &mut self,
        client: &RegistryClient,
        version: &ModelVersion,
        resolved: &ResolvedVersion,
        alias: &str,
        demands: &Demands,
        now: &str,
    ) -> Result<(), RegistryError> {
        self.package = Some(resolved.package);
        self.outcome.clone_from(&resolved.outcome);
        let manifest = match client.manifest(&resolved.package).await {
            Ok(manifest) => manifest,
            Err(error @ RegistryError::Unreachable { .. }) => return Err(error),
            Err(error) => {
                let help = "push the package again from where it was made";
                self.breaks("package", Broken::new(Level::Error, error.to_string(), help));
                return Ok(());
            }
        };
        let verdict = match client.fetch_verdict(resolved).await {
            Ok(bytes) => bytes.map(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string())),
            Err(error @ RegistryError::Unreachable { .. }) => return Err(error),
            Err(error) => Some(Err(error.to_string())),
        };
        let overridden = match client.fetch_override(resolved, alias).await {
            Ok(bytes) => bytes.map(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string())),
            Err(error @ RegistryError::Unreachable { .. }) => return Err(error),
            Err(error) => Some(Err(error.to_string())),
        };
        let overridden = overridden.filter(|_| self.is_champion);
        let evidence = Evidence { version, resolved, manifest, verdict, overridden, alias };
        self.owner = Some(evidence.manifest.owner.clone());
        self.licence = Some(evidence.manifest.licence.clone());
        self.judge_owner(demands);
        for (rule, what) in evidence.broken(demands, now) {
            self.breaks(rule, what);
        }
        Ok(())
    }
}

impl Evidence<'_> {
    /// The rules it breaks, whoever owns it.
    fn broken(&self, demands: &Demands, now: &str) -> Vec<(&'static str, Broken)> {
        let licence = rules::licence(&self.manifest.licence, &demands.licences).map(|what| ("licence", what));
        let mut broken: Vec<_> = licence.into_iter().collect();
        broken.extend(self.verdict_broken(now).map(|broken| self.override_broken(now).unwrap_or(broken)));
        broken.extend(self.budget_broken(demands));
        broken.extend(self.provenance_broken());
        broken.extend(self.standard_broken(demands));
        broken
    }

    fn verdict_broken(&self, now: &str) -> Option<(&'static str, Broken)> {
        let gate = "highroad gate, then push again";
        match &self.verdict {
            None => Some(("verdict", Broken::new(Level::Error, "no verdict admits it", gate))),
            Some(Err(error)) => Some(("verdict", Broken::new(Level::Error, error, gate))),
            Some(Ok(verdict)) => match verdict.admits(&self.resolved.package.to_string(), now) {
                Ok(()) => None,
                Err(refusal @ Refusal::WaiverExpired { .. }) => {
                    let help = "judge it on more cases, or have the flip accepted anew";
                    Some(("waiver", Broken::new(Level::Error, refusal.to_string(), help)))
                }
                Err(refusal) => Some(("verdict", Broken::new(Level::Error, refusal.to_string(), gate))),
            },
        }
    }

    /// What is to be said instead of a missing verdict where somebody overrode the gate.
    fn override_broken(&self, now: &str) -> Option<(&'static str, Broken)> {
        let help = "gate it and push it again, or roll it back";
        let broken = match self.overridden.as_ref()? {
            Err(error) => Broken::new(Level::Error, format!("its override cannot be read: {error}"), help),
            Ok(given) => {
                let package = self.resolved.package.to_string();
                let asked = Aliased { package: &package, model: &self.resolved.name, alias: self.alias };
                match given.admits(asked, now) {
                    Ok(()) => Broken::new(Level::Warning, given.in_words(), help),
                    Err(refusal) => Broken::new(Level::Error, refusal.to_string(), help),
                }
            }
        };
        Some(("override", broken))
    }

    fn budget_broken(&self, demands: &Demands) -> Option<(&'static str, Broken)> {
        let own = self.version.tags.get(P99_TAG).and_then(|text| text.parse::<f64>().ok());
        let budget = own.into_iter().chain(demands.p99_ms).reduce(f64::min)?;
        let Some(Ok(Verdict { latency: Some(latency), .. })) = &self.verdict else {
            let help = "add [[latency]] to gates.toml and gate it again";
            return Some(("budget", Broken::new(Level::Warning, "its latency was not measured", help)));
        };
        (latency.p99_ms > budget).then(|| {
            let found = format!("p99 was {} ms, and the budget is {budget} ms", latency.p99_ms);
            ("budget", Broken::new(Level::Error, found, "a smaller model, fewer tokens or a larger budget"))
        })
    }

    fn provenance_broken(&self) -> Vec<(&'static str, Broken)> {
        let provenance = &self.manifest.provenance;
        let mut broken = Vec::new();
        if provenance.environment.is_none() {
            let found = "no lock file pins the environment that made it";
            broken.push((
                "environment",
                Broken::new(Level::Error, found, "train and export with `environment.lock` there"),
            ));
        }
        match &provenance.git_commit {
            None => {
                broken.push(("code", Broken::new(Level::Warning, "its code is not known", "train from a git commit")))
            }
            Some(commit) if commit.ends_with("-dirty") => {
                let found = "its code had changes that were not committed";
                broken.push(("code", Broken::new(Level::Warning, found, "commit, then train again")));
            }
            Some(_) => {}
        }
        if provenance.run_id.is_none() {
            broken.push(("run", Broken::new(Level::Warning, "its run is not known", "train with `highroad train`")));
        }
        if provenance.data.is_empty() {
            let help = "record the data's digests, as the starter does";
            broken.push(("data", Broken::new(Level::Warning, "its data is not known", help)));
        }
        broken
    }

    fn standard_broken(&self, demands: &Demands) -> Vec<(&'static str, Broken)> {
        let tags = &self.version.tags;
        let mut broken = Vec::new();
        if !tags.contains_key(STANDARD_TAG) {
            let found = "the standard it was made under is not known";
            broken.push(("standard", Broken::new(Level::Warning, found, "run `highroad push` inside its repo")));
        }
        if let Some(keys) = tags.get(BREACHES_TAG) {
            let found = format!("its repo departs from the extended standard: {keys}");
            broken.push(("locked", Broken::new(Level::Error, found, "`highroad doctor` in its repo says more")));
        }
        match (demands.digest.map(|digest| digest.to_string()), tags.get(EXTENDS_TAG)) {
            (Some(current), Some(extended)) if current != *extended => {
                let found =
                    format!("its repo extends {}, not today's standard", extended.get(..19).unwrap_or(extended));
                broken.push(("extends", Broken::new(Level::Warning, found, "highroad standard update")));
            }
            (Some(_), None) if tags.contains_key(STANDARD_TAG) => {
                let found = "its repo does not extend the standard";
                broken.push(("extends", Broken::new(Level::Warning, found, "name it as `extends` in highroad.toml")));
            }
            _ => {}
        }
        broken
    }
}

fn print(rows: &[Row]) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["model", "owner", "version", "package", "verdict", "licence", "breaks"]);
    for row in rows {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let version = match (row.version, row.is_champion) {
            (Some(number), true) => number.to_string(),
            (Some(number), false) => format!("{number}, not in production"),
            (None, _) => "-".to_owned(),
        };
        let breaks = row.broken.iter().map(|broken| format!("{}: {}", broken.rule, broken.what.found));
        table.add_row([
            row.name.clone(),
            or_dash(&row.owner),
            version,
            row.package.map_or("-".to_owned(), |package| package.short()),
            or_dash(&row.outcome),
            or_dash(&row.licence),
            breaks.collect::<Vec<_>>().join("\n"),
        ]);
    }
    writeln!(std::io::stdout(), "{table}")?;
    Ok(())
}

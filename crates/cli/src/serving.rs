//! What `highroad serve` and `highroad up` share: which members, and the parts of a serving process.

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use highroad_package::registry::RegistryClient;
use highroad_package::{Package, Verdicts};
use highroad_serve::alerts::Alerts;
use highroad_serve::budget::keeper::Budgets;
use highroad_serve::config::{ModelSource, PortfolioConfig};
use highroad_serve::request_log::{LogLimits, RequestLog};
use highroad_serve::{LocalState, Portfolio, Registry, RemoteRegistry, Unverified};
use highroad_service::telemetry::LogFormat;

use crate::access::Guard;
use crate::resolve::Home;

/// File that lists the members of a portfolio.
pub const PORTFOLIO: &str = "portfolio.toml";

/// Which models to serve, and how.
#[derive(clap::Args)]
pub struct Members {
    /// What to serve: `name@champion`, `name:7`, `name` (its champion) or a package directory. None means `portfolio.toml`.
    #[arg(value_name = "MODEL")]
    models: Vec<String>,
    /// Members, their threads, queues and limits.
    #[arg(long, value_name = "FILE", conflicts_with = "models")]
    portfolio: Option<PathBuf>,
    /// Serve packages that no verdict admits, and say so in every answer.
    #[arg(long)]
    development: bool,
    /// Threads of one model run; all cores unless told.
    #[arg(long, value_name = "N", conflicts_with = "portfolio")]
    threads: Option<NonZeroUsize>,
}

impl Members {
    /// The members asked for; `None` where neither the command line nor a file names any.
    pub fn config(&self) -> anyhow::Result<Option<PortfolioConfig>> {
        if let Some(path) = &self.portfolio {
            return read(path).map(Some);
        }
        if self.models.is_empty() {
            let default = Path::new(PORTFOLIO);
            return if default.exists() { read(default).map(Some) } else { Ok(None) };
        }
        let named = self.models.iter().map(|model| named(model)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut config = PortfolioConfig::of_models(named.iter().cloned());
        if config.members.len() < named.len() {
            bail!("two models have one name; give them names of their own in `{PORTFOLIO}`");
        }
        for member in config.members.values_mut() {
            member.threads = self.threads.unwrap_or(member.threads);
        }
        Ok(Some(config))
    }

    pub fn unverified(&self) -> Unverified {
        if self.development { Unverified::ServeAsDevelopment } else { Unverified::Refuse }
    }
}

fn read(path: &Path) -> anyhow::Result<PortfolioConfig> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let base = path.parent().unwrap_or(Path::new(""));
    PortfolioConfig::parse(&text, base).with_context(|| format!("`{}` is not a portfolio", path.display()))
}

/// The member's name beside its source: the registered model's, or the one the package's manifest suggests.
fn named(model: &str) -> anyhow::Result<(String, ModelSource)> {
    let path = Path::new(model);
    if path.is_file() {
        bail!("`{model}` is a file; `highroad export` and `highroad pack` make a package directory of a program");
    }
    let source = if path.is_dir() { ModelSource::Directory(path.to_owned()) } else { model.parse()? };
    let name = match &source {
        ModelSource::Registry(reference) => reference.name.clone(),
        ModelSource::Directory(dir) => {
            let package = Package::open(dir).with_context(|| format!("`{}` is not a package", dir.display()))?;
            package.manifest().name.clone()
        }
    };
    if !highroad_serve::config::is_member_name(&name) {
        bail!("`{name}` cannot be a member's name; give it one in `{PORTFOLIO}`");
    }
    Ok((name, source))
}

/// Refuses budgets that nobody would be held to.
pub fn check_budgets(config: &PortfolioConfig, guard: &Guard) -> anyhow::Result<()> {
    if config.budgets.needs_keys() && !guard.asks_for_keys() {
        bail!("budgets of tenants and keys need keys: `--access FILE` asks for them, `highroad access add` makes them");
    }
    if config.alerts.needs_keys() && !guard.asks_for_keys() {
        bail!(
            "objectives of tenants and keys need keys: `--access FILE` asks for them, `highroad access add` makes them"
        );
    }
    Ok(())
}

/// Where serving keeps packages, verdicts and attestations.
pub fn local_state(home: &Home) -> anyhow::Result<LocalState> {
    let verdicts = Verdicts::open(home.verdicts())?;
    Ok(LocalState::under(home.path(), home.store()?, verdicts))
}

/// The directory of the request log.
pub fn requests_dir(home: &Home) -> PathBuf {
    home.path().join("requests")
}

/// The portfolio and the log of a serving process.
pub fn open(
    home: &Home,
    config: PortfolioConfig,
    unverified: Unverified,
    registry: Option<Arc<dyn Registry>>,
) -> anyhow::Result<(Arc<Portfolio>, RequestLog)> {
    let dir = requests_dir(home);
    let log = RequestLog::open(&dir, LogLimits::default())
        .with_context(|| format!("cannot write the request log in `{}`", dir.display()))?;
    let limited = !config.budgets.is_empty();
    let budgets = limited.then(|| Budgets::open(&home.path().join("budgets"), config.budgets.clone())).transpose()?;
    let alerts = Alerts::open(&config.alerts, Some(home.path().join("alerts")));
    let portfolio = Portfolio::new(config, unverified, registry, local_state(home)?);
    let portfolio = portfolio.with_budgets(budgets).with_alerts(alerts);
    Ok((Arc::new(portfolio), log))
}

/// The registry behind `client`, with what it brings kept in `home`.
pub fn registry(client: &RegistryClient, home: &Home) -> anyhow::Result<Arc<dyn Registry>> {
    Ok(Arc::new(RemoteRegistry::new(client.clone(), local_state(home)?)))
}

/// Starts logging and metrics.
pub fn start_telemetry() -> anyhow::Result<()> {
    highroad_service::telemetry::init(LogFormat::from_env(), "info")?;
    highroad_service::trace::init();
    highroad_service::metrics::install();
    highroad_serve::telemetry::describe();
    Ok(())
}

/// Writes down what is still to be written.
pub fn close(portfolio: &Portfolio, log: &RequestLog) {
    highroad_service::trace::flush();
    log.flush();
    portfolio.alerts().flush();
    if let Some(budgets) = portfolio.budgets() {
        budgets.flush();
    }
}

/// The first line of stdout, for programs; then one for people.
pub fn announce(url: &str, portfolio: &Portfolio) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{url}")?;
    stdout.flush()?;
    eprintln!("listening on {url}");
    for status in portfolio.statuses() {
        match status.serving {
            Some(facts) => eprintln!("  {} serves {} ({})", status.member, facts.version, facts.evidence),
            None => eprintln!("  {} waits for {}", status.member, status.source),
        }
    }
    Ok(())
}

//! What `highroad serve` and `highroad up` share: which members, and the parts of a serving process.

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use highroad_package::registry::{RegistryClient, RegistryError};
use highroad_package::{Package, Verdicts};
use highroad_serve::alerts::Alerts;
use highroad_serve::budget::keeper::Budgets;
use highroad_serve::budget::shared::{LOOK_EVERY, Leases};
use highroad_serve::config::{ModelSource, PortfolioConfig};
use highroad_serve::reload::{PortfolioFile, Read};
use highroad_serve::request_log::{LogLimits, RequestLog};
use highroad_serve::{LocalState, Portfolio, Registry, RemoteRegistry, Unverified, is_bare_program};
use highroad_service::telemetry::LogFormat;
use tokio::sync::Notify;

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
    /// What is asked for, on the command line or in a file.
    pub fn asked(&self, guard: &Guard) -> anyhow::Result<Asked> {
        let default = || self.models.is_empty().then(|| PathBuf::from(PORTFOLIO));
        let Some(path) = self.portfolio.clone().or_else(default) else {
            return Ok(Asked { config: Some(self.named()?), ..Asked::default() });
        };
        let file = portfolio_file(path, guard);
        if self.portfolio.is_none() && !file.path().exists() {
            return Ok(Asked { file: Some(file), ..Asked::default() });
        }
        let first = read(&file)?;
        Ok(Asked { config: Some(first.config.clone()), file: Some(file), first: Some(first), hangups: None })
    }

    fn named(&self) -> anyhow::Result<PortfolioConfig> {
        let named = self.models.iter().map(|model| named(model)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut config = PortfolioConfig::of_models(named.iter().cloned());
        if config.members.len() < named.len() {
            bail!("two models have one name; give them names of their own in `{PORTFOLIO}`");
        }
        for member in config.members.values_mut() {
            member.threads = self.threads.unwrap_or(member.threads);
        }
        Ok(config)
    }

    pub fn unverified(&self) -> Unverified {
        if self.development { Unverified::ServeAsDevelopment } else { Unverified::Refuse }
    }
}

/// What a serving process is asked to serve.
#[derive(Default)]
pub struct Asked {
    /// `None` where neither the command line nor a file names any member.
    pub config: Option<PortfolioConfig>,
    /// The file that is followed; it may not be there yet.
    file: Option<PortfolioFile>,
    first: Option<Read>,
    hangups: Option<Hangups>,
}

impl Asked {
    /// Takes SIGHUP for a file from here on, before members load: what comes meanwhile is not lost. Needs a runtime.
    pub fn listen(&mut self) {
        self.hangups = self.file.as_ref().and_then(|_| Hangups::listen());
    }

    /// Follows the file for as long as the future is polled: edits are taken up as they come, and at once on SIGHUP. Pending for ever
    /// where members come from the command line; then SIGHUP ends the process, as it does others. The status tells of the file once this
    /// returns.
    pub fn follow(self, portfolio: &Portfolio) -> impl Future<Output = ()> {
        let now = Arc::new(Notify::new());
        let following = self.file.map(|file| file.follow(portfolio, self.first, Arc::clone(&now)));
        async move {
            let Some(following) = following else { return std::future::pending().await };
            tokio::select! {
                () = following => {}
                () = Hangups::notify(self.hangups, &now) => {}
            }
        }
    }
}

/// Gives the memory of bursts back, for as long as the future is polled.
pub async fn release_memory() {
    // Buffers are given back when unused for one to two of these; filling them again costs a small part of the batch that needs them.
    let mut ticks = tokio::time::interval(Duration::from_secs(2));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        highroad_tensor::release_unused();
    }
}

/// SIGHUPs since this was made.
struct Hangups(#[cfg(unix)] tokio::signal::unix::Signal);

impl Hangups {
    fn listen() -> Option<Self> {
        #[cfg(unix)]
        return tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).ok().map(Self);
        #[cfg(not(unix))]
        None
    }

    /// Passes each on, for as long as the future is polled.
    async fn notify(hangups: Option<Self>, now: &Notify) {
        #[cfg(unix)]
        if let Some(Self(mut hangups)) = hangups {
            while hangups.recv().await.is_some() {
                now.notify_one();
            }
        }
        std::future::pending().await
    }
}

/// A file of members, with what must hold of it under `guard`.
pub fn portfolio_file(path: PathBuf, guard: &Guard) -> PortfolioFile {
    let keys = guard.asks_for_keys();
    PortfolioFile::new(path, Box::new(move |config| check_budgets(config, keys)))
}

/// Reads a file of members, or tells everything that is wrong with it.
fn read(file: &PortfolioFile) -> anyhow::Result<Read> {
    file.read().map_err(|problems| {
        anyhow!("`{}` is not a portfolio\n  {}", file.path().display(), file.told(&problems).replace('\n', "\n  "))
    })
}

/// The member's name beside its source: the registered model's, or the one the package's manifest suggests.
fn named(model: &str) -> anyhow::Result<(String, ModelSource)> {
    let path = Path::new(model);
    if path.is_file() && !is_bare_program(path) {
        bail!(
            "`{model}` is a file and no `.pt2`; `highroad export` and `highroad pack` make a package directory of a program"
        );
    }
    if !path.exists() && (model.contains('/') || path.extension().is_some_and(|extension| extension == "pt2")) {
        bail!("there is no `{model}`");
    }
    let source = if path.exists() { ModelSource::Directory(path.to_owned()) } else { model.parse()? };
    let name = match &source {
        ModelSource::Registry(reference) => reference.name.clone(),
        ModelSource::Directory(file) if is_bare_program(file) => {
            file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
        }
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
fn check_budgets(config: &PortfolioConfig, asks_for_keys: bool) -> Result<(), String> {
    if config.budgets.needs_keys() && !asks_for_keys {
        let reason = "of tenants and keys need keys: `--access FILE` asks for them, `highroad access add` makes them";
        return Err(format!("[budgets] budgets {reason}"));
    }
    if config.alerts.needs_keys() && !asks_for_keys {
        let reason = "of tenants and keys need keys: `--access FILE` asks for them, `highroad access add` makes them";
        return Err(format!("[objectives] objectives {reason}"));
    }
    Ok(())
}

/// Refuses budgets and rates, by their pools, that are shared and that the tracking server cannot keep: without a lease nothing may be spent.
pub async fn check_keeper(pools: [(&str, Option<&str>); 2], client: Option<&RegistryClient>) -> anyhow::Result<()> {
    let shared = pools.into_iter().find_map(|(section, pool)| Some((section, pool?)));
    let Some(((section, pool), client)) = shared.zip(client) else { return Ok(()) };
    let nothing = serde_json::json!({ "pool": pool, "replica": "a look", "leases": [] });
    match client.lease_budgets(&nothing).await {
        Err(RegistryError::Refused { status: 404 | 405, .. }) => {
            bail!("{section} `shared` needs a `highroad track`: this tracking server keeps no budgets")
        }
        // An outage is no reason not to start: what is held from before may be spent.
        Err(error) => tracing::warn!("What is shared goes on with what is held here: {error}"),
        Ok(_) => {}
    }
    Ok(())
}

/// Of a thread that answers requests. A request to a pipeline goes through many layers, and a stack that overflows ends the process; what is
/// not touched takes no memory.
const STACK_BYTES: usize = 8 << 20;

/// What requests are answered on: a thread for each core, and others for what blocks.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let n_cores = std::thread::available_parallelism()?.get();
    let n_named = AtomicUsize::new(0);
    // The threads that answer are started first, with the runtime itself.
    let name = move || match n_named.fetch_add(1, Ordering::Relaxed) {
        n if n < n_cores => format!("http-{n}"),
        n => format!("blocking-{}", n - n_cores),
    };
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(n_cores)
        .thread_name_fn(name)
        .thread_stack_size(STACK_BYTES)
        .build()
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
    client: Option<&RegistryClient>,
) -> anyhow::Result<(Arc<Portfolio>, RequestLog)> {
    let dir = requests_dir(home);
    let log = RequestLog::open(&dir, LogLimits::default())
        .with_context(|| format!("cannot write the request log in `{}`", dir.display()))?;
    let limited = !config.budgets.is_empty();
    let local = local_state(home)?;
    let keeper = client.map(|client| Arc::new(client.clone()) as Arc<dyn Leases>);
    let open = || Budgets::open_shared(&local.budgets, config.budgets.clone(), keeper.clone());
    let budgets = limited.then(open).transpose()?;
    let alerts = Alerts::open(&config.alerts, Some(home.path().join("alerts")));
    let portfolio = Portfolio::new(config, unverified, registry, local);
    let portfolio = portfolio.with_budgets(budgets).with_keeper(keeper).with_alerts(alerts);
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

/// Keeps what this server holds of shared budgets near what it uses; without any it waits for ever.
pub async fn keep_leases(portfolio: &Portfolio) {
    loop {
        // An edit of the file may have opened them.
        if let Some(budgets) = portfolio.budgets() {
            budgets.tend_leases().await;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Writes down what is still to be written.
pub fn close(portfolio: &Portfolio, log: &RequestLog) {
    highroad_service::trace::flush();
    log.flush();
    portfolio.monitor().flush();
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

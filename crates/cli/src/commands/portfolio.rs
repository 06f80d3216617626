use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use highroad_package::registry::RegistryClient;
use highroad_serve::config::ModelSource;
use highroad_serve::reload::{Change, ConfigProblem, differences, settings};
use highroad_serve::{Portfolio, Registry, Unverified};
use serde::Serialize;
use serde_json::Value;

use super::eval::print_json;
use crate::access::Guard;
use crate::outln;
use crate::resolve::Home;
use crate::serving::{self, PORTFOLIO};
use crate::tracking::{self, TrackingArgs};

/// `highroad portfolio check`
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Check a portfolio as a server would before it takes it up: every key, package, verdict, description, pipeline and index; exit code 2
    /// where a server would refuse it.
    Check(Check),
}

#[derive(clap::Args)]
struct Check {
    /// The file.
    #[arg(default_value = PORTFOLIO)]
    file: PathBuf,
    /// Let packages pass that no verdict admits, as `serve --development` does.
    #[arg(long)]
    development: bool,
    /// The access file of the server; without it budgets of tenants and keys are refused.
    #[arg(long, value_name = "FILE", env = "HIGHROAD_ACCESS")]
    access: Option<PathBuf>,
    /// Show what would change on this server. The key to ask it with is MLFLOW_TRACKING_TOKEN.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tracking: TrackingArgs,
}

/// What a check found.
#[derive(Serialize)]
struct Report {
    file: String,
    ok: bool,
    problems: Vec<ConfigProblem>,
    /// Of the server that was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<Vec<Change>>,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.what {
            What::Check(args) => args.run(),
        }
    }
}

/// Longest that the server may take to say what it serves.
const SERVER_TIMEOUT: Duration = Duration::from_secs(30);

impl Check {
    fn run(self) -> anyhow::Result<ExitCode> {
        let file = serving::portfolio_file(self.file.clone(), &Guard::with_access(self.access.clone()));
        let (problems, changes) = match file.read() {
            Err(problems) => (problems, None),
            Ok(read) => {
                let follows = |source: &ModelSource| matches!(source, ModelSource::Registry(_));
                let config = read.config;
                if config.members.values().any(|member| follows(&member.source)) {
                    let tracking = tracking::client(&self.tracking)?;
                    tracking.block_on(self.prepare(config, Some(tracking.client())))?
                } else {
                    tokio::runtime::Runtime::new()?.block_on(self.prepare(config, None))?
                }
            }
        };
        let problems = file.located(problems);
        let report = Report { file: self.file.display().to_string(), ok: problems.is_empty(), problems, changes };
        if self.json {
            print_json(&report)?;
        } else {
            report.print();
        }
        if report.ok {
            return Ok(ExitCode::SUCCESS);
        }
        bail!("a server would not take up `{}`\n  {}", report.file, file.told(&report.problems).replace('\n', "\n  "))
    }

    /// Loads what the file names, beside nothing and for nobody, and asks the server what it serves.
    async fn prepare(
        &self,
        config: highroad_serve::config::PortfolioConfig,
        client: Option<&RegistryClient>,
    ) -> anyhow::Result<(Vec<ConfigProblem>, Option<Vec<Change>>)> {
        let home = Home::find();
        let told = settings(&config);
        let registry: Option<std::sync::Arc<dyn Registry>> =
            client.map(|client| serving::registry(client, &home)).transpose()?;
        let unverified = if self.development { Unverified::ServeAsDevelopment } else { Unverified::Refuse };
        let empty = highroad_serve::config::PortfolioConfig::default();
        let portfolio = Portfolio::new(empty, unverified, registry, serving::local_state(&home)?);
        let problems = match portfolio.prepare(config).await {
            Ok(_prepared) => Vec::new(),
            Err(problems) => problems.into_iter().map(|reason| ConfigProblem { line: None, reason }).collect(),
        };
        let changes = match &self.server {
            Some(server) => Some(differences(&serves(server).await?, &told)),
            None => None,
        };
        Ok((problems, changes))
    }
}

/// The settings that a server has now.
async fn serves(server: &str) -> anyhow::Result<Value> {
    let mut url = reqwest::Url::parse(server).with_context(|| format!("`{server}` is no URL"))?;
    let mut path = url.path_segments_mut().map_err(|()| anyhow::anyhow!("`{server}` is no URL of a server"))?;
    path.pop_if_empty().extend(["v1", "highroad", "status"]);
    drop(path);
    let client = reqwest::Client::builder().timeout(SERVER_TIMEOUT).build()?;
    let request = tracking::login(client.get(url));
    let response = request.send().await.with_context(|| format!("`{server}` does not answer"))?;
    let mut status: Value = response.error_for_status()?.json().await?;
    match status["portfolio"]["settings"].take() {
        Value::Null => bail!("`{server}` does not say what it serves: it is older, or no server of models"),
        settings => Ok(settings),
    }
}

impl Report {
    fn print(&self) {
        if !self.ok {
            return;
        }
        match &self.changes {
            None => outln!("{} can be served", self.file),
            Some(changes) if changes.is_empty() => outln!("{} changes nothing", self.file),
            Some(changes) => {
                outln!("{} changes", self.file);
                for Change { path, before, after } in changes {
                    match (before, after) {
                        (None, Some(after)) => outln!("  + {path}: {after}"),
                        (Some(_), None) => outln!("  - {path}"),
                        (before, after) => outln!("  ~ {path}: {} -> {}", told(before), told(after)),
                    }
                }
            }
        }
    }
}

fn told(value: &Option<Value>) -> String {
    value.as_ref().map(Value::to_string).unwrap_or_default()
}

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use highroad_assess::report::{MonitorReport, monitor_html};
use highroad_package::Baselines;
use highroad_serve::config::PortfolioConfig;
use highroad_serve::monitor::{Monitor, MonitorConfig};
use reqwest::Method;
use serde_json::{Value, json};

use super::{page, server};
use crate::commands::eval::print_json;
use crate::reports::{mark, new_table};
use crate::resolve::Home;
use crate::serving::PORTFOLIO;

#[derive(clap::Args)]
pub struct Args {
    /// The member; all unless told.
    member: Option<String>,
    /// A live server, such as `http://127.0.0.1:8080`; a key in `$HIGHROAD_API_KEY` is sent along.
    #[arg(long, value_name = "URL", conflicts_with = "state")]
    server: Option<String>,
    /// The state of a server on this machine, as it was last written down; `.highroad` unless told.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Write a page with tables and plots that needs nothing but itself.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Exit code 1 while something differs from its baseline.
    #[arg(long)]
    fail_on_drift: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let members = match &self.server {
            Some(server) => self.ask(server)?,
            None => self.read()?,
        };
        let report = page::report(&members)?;
        if self.json {
            let findings: Vec<&Value> =
                members.iter().filter_map(|member| member["findings"].as_array()).flatten().collect();
            print_json(&json!({ "members": members, "findings": findings }))?;
        } else {
            print(&report);
        }
        if let Some(path) = &self.html {
            std::fs::write(path, monitor_html(&report)?)
                .with_context(|| format!("cannot write `{}`", path.display()))?;
        }
        let drifted = report.members.iter().any(|member| !member.findings.is_empty());
        Ok(if self.fail_on_drift && drifted { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn ask(&self, server: &str) -> anyhow::Result<Vec<Value>> {
        let one = |member: &str| server::ask(server, Method::GET, &["monitor", member], None);
        if let Some(member) = &self.member {
            return Ok(vec![one(member)?]);
        }
        let mut all = server::ask(server, Method::GET, &["monitor"], None)?;
        let Value::Array(members) = all["members"].take() else {
            bail!("`{server}` does not answer as `highroad serve` does")
        };
        match self.html {
            // A page has charts, which only the report of one member has.
            Some(_) => members.iter().filter_map(|member| member["member"].as_str()).map(one).collect(),
            None => Ok(members),
        }
    }

    fn read(&self) -> anyhow::Result<Vec<Value>> {
        let home = self.state.clone().unwrap_or_else(|| Home::find().path().to_owned());
        let dir = home.join("monitor");
        if !dir.is_dir() {
            bail!("nothing was watched in `{}`\nhint: `--server URL` asks a live server", home.display());
        }
        let monitor = Monitor::left_in(dir, Baselines::at(home.join("baselines")), &config());
        let wanted = |member: &str| self.member.as_ref().is_none_or(|wanted| wanted == member);
        let reports = monitor.reports(wanted);
        if let Some(member) = self.member.as_ref().filter(|_| reports.is_empty()) {
            bail!("`{member}` was not watched in `{}`", home.display());
        }
        reports.iter().map(|report| Ok(serde_json::to_value(report)?)).collect()
    }
}

/// The rules of the portfolio here, where there is one.
fn config() -> MonitorConfig {
    let text = std::fs::read_to_string(PORTFOLIO).unwrap_or_default();
    PortfolioConfig::parse(&text, std::path::Path::new("")).map(|config| config.monitor).unwrap_or_default()
}

fn print(report: &MonitorReport) {
    crate::outln!("{}", report.headline);
    for member in &report.members {
        crate::outln!("\n{}: {}", member.name, member.message);
        member.findings.iter().for_each(|finding| crate::outln!("  {finding}"));
        if !member.signals.is_empty() {
            let mut table = new_table(["", "signal", "requests", "statistic", "p", "effect", "evidence"]);
            for row in &member.signals {
                table.add_row([
                    mark(row.outcome),
                    &row.signal,
                    &row.n,
                    &row.statistic,
                    &row.p,
                    &row.effect,
                    &row.evidence,
                ]);
            }
            crate::outln!("{table}");
        }
        member.facts.iter().for_each(|fact| crate::outln!("{:<12} {}", fact.name, fact.value));
    }
}

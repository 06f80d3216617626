//! The record of alias moves, for people at a terminal.

use std::io::Write as _;
use std::process::ExitCode;

use comfy_table::{ContentArrangement, Table, presets};
use highroad_eval::Override;
use highroad_package::registry::AliasMove;
use jiff::Timestamp;

use super::eval::print_json;
use crate::tracking::{self, TrackingArgs};

/// `highroad audit [NAME]`
#[derive(clap::Args)]
pub struct Args {
    /// Registered model; every model of the server if left out.
    name: Option<String>,
    /// Print the moves as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tracking: TrackingArgs,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let tracking = tracking::client(&self.tracking)?;
        let moves = tracking.block_on(tracking.client().audit(self.name.as_deref().unwrap_or_default()))?;
        if self.json {
            print_json(&moves)?;
        } else if moves.is_empty() {
            writeln!(std::io::stdout(), "no alias was ever moved here")?;
        } else {
            writeln!(std::io::stdout(), "{}", table(&moves))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn table(moves: &[AliasMove]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["when", "what", "alias", "from → to", "who", "why", "evidence"]);
    for moved in moves {
        let version = |number: Option<u64>| number.map_or("none".to_owned(), |number| number.to_string());
        table.add_row([
            Timestamp::from_millisecond(moved.at).map(|at| at.strftime("%F %TZ").to_string()).unwrap_or_default(),
            moved.action.clone(),
            if moved.alias.is_empty() { moved.model.clone() } else { format!("{}@{}", moved.model, moved.alias) },
            format!("{} → {}", version(moved.from), version(moved.to)),
            moved.by.clone(),
            moved.why.clone(),
            evidence(moved),
        ]);
    }
    table
}

/// On what a move rests: a verdict, or who overrode the gate and until when.
fn evidence(moved: &AliasMove) -> String {
    let given = moved.overridden.as_ref().map(|given| serde_json::from_value::<Override>(given.clone()));
    match (given, moved.verdict) {
        (Some(Ok(given)), _) => format!("{}; instead of a verdict: {}", given.in_words(), given.missing.reason),
        (Some(Err(error)), _) => format!("an override that cannot be read: {error}"),
        (None, Some(verdict)) => match &moved.caution {
            Some(caution) => format!("verdict {}; {caution}", verdict.short()),
            None => format!("verdict {}", verdict.short()),
        },
        (None, None) => "-".to_owned(),
    }
}

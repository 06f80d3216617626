use std::path::PathBuf;
use std::process::ExitCode;

use highroad_assess::{ASSUMED_DISCORDANCE, Coverage, GoldenSet, can_be_right, coverage};
use serde::Serialize;

use super::{declared_gates, path_or_declared};
use crate::commands::eval::print_json;
use crate::outln;
use crate::reports::new_table;

/// Show how many cases each slice and label has, and the drop a gate on it could detect.
#[derive(clap::Args)]
pub struct Args {
    /// The golden set; the one of highroad.toml unless told.
    golden: Option<PathBuf>,
    /// The rules, for their slice expressions, alpha and power; those of highroad.toml unless told.
    #[arg(long, value_name = "FILE")]
    gates: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Without rules, what rules default to.
const ALPHA: f64 = 0.05;
const POWER: f64 = 0.8;

#[derive(Serialize)]
struct Report<'a> {
    golden_set: String,
    digest: String,
    alpha: f64,
    power: f64,
    assumed_discordance: [f64; 3],
    coverage: &'a [Coverage],
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let path = path_or_declared(self.golden.as_deref())?;
        let golden = GoldenSet::read(&path)?;
        let gates = declared_gates(self.gates.as_deref())?;
        let (alpha, power) = gates.as_ref().map_or((ALPHA, POWER), |gates| (gates.alpha, gates.power));
        let slices = gates.map(|gates| gates.slices).unwrap_or_default();
        let golden = golden.with_slices(&slices)?;
        let rows = coverage(&golden, alpha, power);
        if self.json {
            print_json(&Report {
                golden_set: path.display().to_string(),
                digest: golden.digest.to_string(),
                alpha,
                power,
                assumed_discordance: ASSUMED_DISCORDANCE,
                coverage: &rows,
            })?;
        } else {
            outln!("{}", table(&rows));
            outln!("{}", explanation(&golden, alpha, power));
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn table(rows: &[Coverage]) -> comfy_table::Table {
    let [few, some, many] = ASSUMED_DISCORDANCE.map(|share| format!("{:.0} % differ", 100.0 * share));
    let mut table = new_table(["cases", "label", "n", "sources", "count as", "must pass", &few, &some, &many]);
    for row in rows {
        let place = if row.label.is_some() { "" } else { row.slice.as_deref().unwrap_or("all") };
        let drop = |drop: &Option<f64>| drop.map_or_else(|| "cannot".to_owned(), |drop| format!("{:.1}", 100.0 * drop));
        let mut cells = vec![
            place.to_owned(),
            row.label.clone().unwrap_or_default(),
            row.n_cases.to_string(),
            row.n_sources.to_string(),
            row.n_effective.map_or_else(|| row.n_cases.to_string(), |n| format!("{n:.0}")),
            row.n_must_pass.to_string(),
        ];
        cells.extend(row.detectable.iter().map(drop));
        table.add_row(cells);
    }
    table
}

fn explanation(golden: &GoldenSet, alpha: f64, power: f64) -> String {
    if !golden.cases.iter().all(|case| can_be_right(&case.case.expected)) {
        return "No drop is told for numbers, and tensors without a tolerance, which are never just right or wrong: `highroad gate` \
                tells it of each rule's metric."
            .to_owned();
    }
    format!(
        "The smallest true drop of right answers, in points, that exact McNemar finds with {:.0} % power (one-sided alpha \
         {alpha}), by the share of cases on which two models differ.",
        100.0 * power
    )
}

//! `highroad ops`: which operators run.

use std::io::Write as _;
use std::process::ExitCode;

use comfy_table::{Table, presets};
use highroad_runtime::op::{self, OpDef, Samples};

/// List the operators that programs may use.
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Row<'a> {
    name: &'a str,
    schema: &'a str,
    family: &'a str,
    dtypes: Vec<&'a str>,
    /// For an in-place form, the operator that runs instead.
    runs_as: Option<&'a str>,
    samples: &'a str,
    absolute: f64,
    relative: f64,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let rows: Vec<Row<'_>> = op::all().map(row).collect();
        let mut out = std::io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, &rows)?;
            writeln!(out)?;
        } else {
            writeln!(out, "{}", table(&rows))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn row(op: &'static OpDef) -> Row<'static> {
    let declaration = op.declaration();
    Row {
        name: op.name(),
        schema: declaration.schema,
        family: op.family(),
        dtypes: declaration.dtypes.iter().map(|dtype| dtype.name()).collect(),
        runs_as: op.functional().map(OpDef::name),
        samples: match declaration.samples {
            Samples::OpInfo => "OpInfo",
            Samples::Handwritten => "handwritten",
        },
        absolute: declaration.tolerance.absolute,
        relative: declaration.tolerance.relative,
    }
}

fn table(rows: &[Row<'_>]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["operator", "family", "dtypes"]);
    for row in rows {
        let name =
            row.runs_as.map_or_else(|| row.name.to_owned(), |functional| format!("{} (as {functional})", row.name));
        table.add_row([name, row.family.to_owned(), row.dtypes.join(" ")]);
    }
    table
}

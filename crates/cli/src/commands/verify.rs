//! `highroad verify`: does the runtime compute what eager PyTorch computed?

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use comfy_table::{Table, presets};
use highroad_package::Check;
use highroad_runtime::{Program, RunOptions};
use highroad_task::{ParityReport, check_cases};
use serde::Serialize;

use super::inspect::package_at;
use super::run::all_cores;
use crate::progress;

/// Compare a program with what eager PyTorch computed; exit code 1 where they differ.
#[derive(clap::Args)]
pub struct Args {
    /// A program that `torch.export.save` wrote, or a package: its directory, or one file.
    path: PathBuf,
    /// Safetensors file with `i.input.j` and `i.output.j` for each case `i` [default: the package's own cases].
    #[arg(long, value_name = "FILE")]
    cases: Option<PathBuf>,
    /// Largest accepted relative root mean square [default: the package's own, 1e-5 for a program].
    #[arg(long, value_name = "RMS")]
    relative_rms: Option<f64>,
    /// Threads to use [default: all cores]. The result does not depend on it.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Accepted for a bare program, which names no limit of its own.
const RELATIVE_RMS: f64 = 1e-5;
/// Exit code for a mismatch.
const MISMATCH: u8 = 1;

#[derive(Serialize)]
struct Json {
    passed: bool,
    relative_rms_limit: f64,
    numerics_id: String,
    cases: Vec<JsonCase>,
}

#[derive(Serialize)]
struct JsonCase {
    case: u32,
    output: usize,
    /// Absent where shapes, dtypes or integers differ.
    relative_rms: Option<f64>,
    max_abs_difference: Option<f64>,
    passed: bool,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let (program, cases, check) = self.subject()?;
        let bar = progress::bar("comparing with PyTorch");
        bar.enable_steady_tick(Duration::from_millis(100));
        let options = RunOptions::with_threads(self.threads.unwrap_or_else(all_cores));
        let source = self.cases.as_ref().unwrap_or(&self.path).display();
        let report = Program::open(&program).with_context(|| format!("cannot load `{}`", program.display())).and_then(
            |program| {
                check_cases(&program, &cases, check, &options)
                    .with_context(|| format!("cannot run the cases of `{source}`"))
            },
        );
        bar.finish_and_clear();
        let report = report?;
        self.print(&report)?;
        Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::from(MISMATCH) })
    }

    /// The program's file, the bytes of the cases, and what agreement means.
    fn subject(&self) -> anyhow::Result<(PathBuf, Vec<u8>, Check)> {
        let given = self.cases.as_deref().map(read).transpose()?;
        let check = |default: f64| Check { relative_rms: self.relative_rms.unwrap_or(default) };
        let package = package_at(&self.path);
        let Some(package) = package.with_context(|| format!("`{}` is no intact package", self.path.display()))? else {
            let Some(cases) = given else { bail!("a bare program brings no cases: name them with `--cases FILE`") };
            return Ok((self.path.clone(), cases, check(RELATIVE_RMS)));
        };
        let parity = &package.manifest().parity;
        let cases = given.map_or_else(|| package.read(&parity.file), Ok)?;
        Ok((package.path(highroad_package::PROGRAM)?, cases, check(parity.check.relative_rms)))
    }

    fn print(&self, report: &ParityReport) -> anyhow::Result<()> {
        let json = json(report);
        let mut out = std::io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, &json)?;
            writeln!(out)?;
            return Ok(());
        }
        writeln!(out, "{}", table(&json))?;
        let verdict = if json.passed { "agree with" } else { "differ from" };
        let limit = report.limit;
        writeln!(out, "{} outputs {verdict} PyTorch (limit {limit:.0e}, {})", json.cases.len(), report.numerics_id)?;
        Ok(())
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))
}

fn json(report: &ParityReport) -> Json {
    let finite = |value: f64| value.is_finite().then_some(value);
    let case = |case: &highroad_task::ParityCase| JsonCase {
        case: case.case,
        output: case.output,
        relative_rms: finite(case.relative_rms),
        max_abs_difference: finite(case.max_abs_difference),
        passed: case.relative_rms <= report.limit,
    };
    Json {
        passed: report.passed(),
        relative_rms_limit: report.limit,
        numerics_id: report.numerics_id.clone(),
        cases: report.cases.iter().map(case).collect(),
    }
}

fn table(report: &Json) -> Table {
    let number = |value: Option<f64>| value.map_or_else(|| "apart".to_owned(), |value| format!("{value:.1e}"));
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["case", "output", "relative rms", "largest difference", ""]);
    for case in &report.cases {
        let verdict = if case.passed { "ok" } else { "differs" };
        table.add_row([
            case.case.to_string(),
            case.output.to_string(),
            number(case.relative_rms),
            number(case.max_abs_difference),
            verdict.to_owned(),
        ]);
    }
    table
}

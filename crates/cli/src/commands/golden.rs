use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use highroad_assess::{GoldenSet, LockError};
use highroad_eval::Gates;

use crate::standard::Standard;

mod add;
mod bless;
mod coverage;
mod diff;
mod edit;
mod lint;

/// Keep golden sets: bless what a person answers for, find duplicates and leaks, add, edit and compare cases.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer for the cases as they are: gates take a golden set only as a person blessed it.
    Bless(bless::Args),
    /// Find what makes a golden set lie: copies, contradictions, cases that were trained on, slices that are too small.
    Lint(lint::Args),
    /// Show how many cases each slice and label has, and the drop a gate on it could detect.
    Coverage(coverage::Args),
    /// Show how a golden set differs from another, from itself at a git revision, or from what was blessed.
    Diff(diff::Args),
    /// Append cases.
    Add(Box<add::Args>),
    /// Change a case where it stands.
    Edit(edit::Args),
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Bless(args) => args.run(),
            Command::Lint(args) => args.run(),
            Command::Coverage(args) => args.run(),
            Command::Diff(args) => args.run(),
            Command::Add(args) => args.run(),
            Command::Edit(args) => args.run(),
        }
    }
}

/// What to do with a golden set that nobody blessed as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unblessed {
    /// It is an error.
    Refuse,
    /// Say so on stderr and go on.
    Warn,
}

/// The golden set at `path`, else the one that `highroad.toml` of this directory names.
pub fn read(path: Option<&Path>, unblessed: Unblessed) -> anyhow::Result<GoldenSet> {
    let path = path_or_declared(path)?;
    let golden = GoldenSet::read(&path)?;
    match (golden.check_blessed(&path), unblessed) {
        (Ok(_), _) => {}
        (Err(error), Unblessed::Refuse) => return Err(with_way_out(error, &path)),
        (Err(error), Unblessed::Warn) => eprintln!("warning: {error}; gates refuse it"),
    }
    Ok(golden)
}

/// `path`, else the golden set that `highroad.toml` of this directory names.
pub fn path_or_declared(path: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = path {
        return Ok(path.to_owned());
    }
    let standard = Standard::find(Path::new("."))?.context("name the golden set, as there is no highroad.toml here")?;
    Ok(standard.evaluation.golden.into())
}

/// The rules at `path`, else those that `highroad.toml` of this directory names, else `gates.toml`; `None` where no path was
/// told and there is no such file.
fn declared_gates(path: Option<&Path>) -> anyhow::Result<Option<Gates>> {
    let declared = match path {
        Some(_) => None,
        None => Standard::find(Path::new("."))?.map(|standard| PathBuf::from(standard.evaluation.gates)),
    };
    let found = path.map(Path::to_owned).unwrap_or_else(|| declared.unwrap_or_else(|| "gates.toml".into()));
    if path.is_none() && !found.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&found).with_context(|| format!("cannot read `{}`", found.display()))?;
    Ok(Some(Gates::parse(&text).with_context(|| format!("cannot use `{}`", found.display()))?))
}

/// `golden` with the slices that the rules define by expressions.
pub fn with_declared_slices(golden: GoldenSet, gates: Option<&Path>) -> anyhow::Result<GoldenSet> {
    let slices = declared_gates(gates)?.map(|gates| gates.slices).unwrap_or_default();
    Ok(golden.with_slices(&slices)?)
}

fn with_way_out(error: LockError, path: &Path) -> anyhow::Error {
    let bless = bless_command(path);
    match error {
        LockError::Never { .. } => {
            anyhow::anyhow!("{error}\nhint: look at the cases, then answer for them: {bless}")
        }
        LockError::Differs { .. } => anyhow::anyhow!(
            "{error}\nhint: look at what changed (`highroad golden diff {}`), then answer for it: {bless}",
            shown(path)
        ),
        LockError::Inconsistent(ref lock) | LockError::Syntax { path: ref lock, .. } => {
            anyhow::anyhow!(
                "{error}\nhint: take the lock file of one side of a merge, or remove `{}`; then {bless}",
                lock.display()
            )
        }
        error => error.into(),
    }
}

/// What a person types to answer for the golden set at `path`.
fn bless_command(path: &Path) -> String {
    format!("highroad golden bless {} --by NAME --why TEXT", shown(path))
}

/// A path as a shell takes it.
fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    shlex::try_quote(&text).map(|quoted| quoted.into_owned()).unwrap_or(text)
}

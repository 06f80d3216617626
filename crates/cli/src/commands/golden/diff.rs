use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};
use highroad_assess::report::one_line;
use highroad_assess::{Changes, Difference, GoldenSet, Lock, diff};

use super::path_or_declared;
use crate::commands::eval::print_json;
use crate::outln;
use crate::reports::new_table;

/// Show how a golden set differs from another, from itself at a git revision (`FILE@REV`), or from what was blessed. Exit
/// code 1: they differ.
#[derive(clap::Args)]
pub struct Args {
    /// The old set, or the only one, which is then held against its lock file; the one of highroad.toml unless told.
    old: Option<String>,
    /// The new set.
    new: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let differs = match (&self.old, &self.new) {
            (Some(old), Some(new)) => self.two(&diff(&read(old)?, &read(new)?)?)?,
            (old, None) => self.blessed(&path_or_declared(old.as_deref().map(Path::new))?)?,
            (None, Some(_)) => unreachable!("clap fills positions from the left"),
        };
        Ok(if differs { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn two(&self, difference: &Difference) -> anyhow::Result<bool> {
        if self.json {
            print_json(difference)?
        } else {
            print_difference(difference)
        }
        Ok(!difference.is_empty())
    }

    fn blessed(&self, path: &Path) -> anyhow::Result<bool> {
        let golden = GoldenSet::read(path)?;
        let lock = Lock::read(path).map_err(|error| super::with_way_out(error, path))?;
        let changes = match lock {
            Some(lock) => lock.changes(&golden),
            None => Changes { added: golden.ids(), ..Changes::default() },
        };
        if self.json {
            print_json(&changes)?
        } else {
            print_changes(&changes, path)
        }
        Ok(!changes.is_empty())
    }
}

/// The golden set in a file, or in a file as it was at a git revision: `golden/test.jsonl@main~3`.
fn read(named: &str) -> anyhow::Result<GoldenSet> {
    let path = PathBuf::from(named);
    let Some((file, revision)) = named.rsplit_once('@').filter(|_| !path.exists()) else {
        return Ok(GoldenSet::read(&path)?);
    };
    Ok(GoldenSet::parse_without_files(&at_revision(Path::new(file), revision)?, Path::new(file))?)
}

fn at_revision(file: &Path, revision: &str) -> anyhow::Result<Vec<u8>> {
    let name = file
        .file_name()
        .and_then(|name| name.to_str())
        .with_context(|| format!("`{}` names no file", file.display()))?;
    if revision.is_empty() || revision.starts_with('-') {
        bail!("`{revision}` is no git revision");
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let object = format!("{revision}:./{name}");
    let output = Command::new("git").arg("-C").arg(folder).args(["show", "--no-textconv", &object]).output();
    let output = output.context("cannot start git")?;
    if !output.status.success() {
        bail!("git has no `{}` at `{revision}`: {}", file.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

fn print_changes(changes: &Changes, path: &Path) {
    if changes.is_empty() {
        outln!("{} is what was blessed", path.display());
    }
    for (what, ids) in [("missing", &changes.missing), ("added", &changes.added), ("edited", &changes.edited)] {
        ids.iter().for_each(|id| outln!("{what:<8} {id}"));
    }
}

fn print_difference(difference: &Difference) {
    let Difference { added, removed, edited, n_same, slices } = difference;
    removed.iter().for_each(|id| outln!("removed  {id}"));
    added.iter().for_each(|id| outln!("added    {id}"));
    if !edited.is_empty() {
        let mut table = new_table(["edited", "what", "expected", "slices"]);
        for case in edited {
            let expected =
                case.expected.as_ref().map(|[old, new]| format!("{} -> {}", one_line(old, 40), one_line(new, 40)));
            let joined = case.slices_joined.iter().map(|slice| format!("+{slice}"));
            let moved: Vec<String> = joined.chain(case.slices_left.iter().map(|slice| format!("-{slice}"))).collect();
            table.add_row([
                one_line(&case.id, 60),
                case.changed.join(", "),
                expected.unwrap_or_default(),
                moved.join(" "),
            ]);
        }
        outln!("{table}");
    }
    for (slice, [before, after]) in slices {
        outln!("slice    {slice}: {before} -> {after} cases");
    }
    outln!(
        "{} added, {} removed, {} edited ({} with another right answer), {n_same} the same",
        added.len(),
        removed.len(),
        edited.len(),
        difference.label_flips().count()
    );
}

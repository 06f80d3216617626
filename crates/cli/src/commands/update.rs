use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use serde_json::json;

use crate::repo::GitState;
use crate::template::merge::{self, Outcome, Step};
use crate::template::{FOLDER, Files, Record, write_file};

/// Exit code where a person must decide.
const CONFLICTS: u8 = 1;

/// `highroad update`
#[derive(clap::Args)]
pub struct Args {
    /// What to do where the starter and this repo changed the same lines
    #[arg(long, value_enum, default_value = "stop")]
    conflicts: Conflicts,
    /// Print the changes as a diff and make none
    #[arg(long)]
    dry_run: bool,
    /// Print what becomes of each file as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Conflicts {
    /// Change nothing at all and list the conflicts
    Stop,
    /// Write both sides into the file, between conflict markers
    Markers,
    /// Leave the file as it is and put the starter's change beside it, as FILE.rej
    Reject,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let root = Path::new(".");
        let (record, base) = Record::read(root)?.with_context(|| {
            format!("there is no {FOLDER} here: `highroad new` of this version writes it, and without it the starter that this \
                     repo began with is not known")
        })?;
        let theirs = record.values.render()?;
        let now = Record::of(&theirs, record.values.clone());
        let ours = merge::read_files(root, base.keys().chain(theirs.keys()))?;
        let steps = merge::plan(&base, &ours, &theirs)?;
        let n_conflicts = steps.iter().filter(|step| step.outcome.is_conflict()).count();
        let stops = n_conflicts > 0 && self.conflicts == Conflicts::Stop;
        let writes = !self.dry_run && !stops && now.digest != record.digest;
        if writes {
            ensure_clean(root)?;
            let beside = if self.conflicts == Conflicts::Reject {
                beside(&steps, &base, &theirs)?
            } else {
                binary(&steps, &theirs)
            };
            apply(root, &steps, &beside, self.conflicts)?;
            now.write(&theirs, root)?;
        }
        if self.json {
            let changed = json!({ "from": record.highroad, "to": now.highroad, "applied": writes, "files": steps });
            writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&changed)?)?;
        } else if self.dry_run {
            std::io::stdout().write_all(&diff(&ours, &steps)?)?;
        } else {
            print(&steps)?;
        }
        tell(&now, &record, n_conflicts, writes);
        if stops && !self.dry_run {
            eprintln!(
                "Nothing was changed. `--conflicts markers` writes both sides into these files, `--conflicts reject` beside them."
            );
        }
        Ok(if n_conflicts > 0 { ExitCode::from(CONFLICTS) } else { ExitCode::SUCCESS })
    }
}

fn tell(now: &Record, before: &Record, n_conflicts: usize, writes: bool) {
    if now.digest == before.digest {
        eprintln!("The starter has not changed since this repo was made or updated.");
    } else if writes {
        eprintln!(
            "The starter of {} is merged, {n_conflicts} conflict(s): look at `git diff`, then commit.",
            now.highroad
        );
    }
}

/// A merge into changes that are not committed could not be taken back.
fn ensure_clean(root: &Path) -> anyhow::Result<()> {
    match GitState::of(root) {
        None => bail!("this is no git repository, so the merge could not be taken back: `git init`, then commit"),
        Some(GitState { commit: None, .. }) => {
            bail!("nothing is committed, so the merge could not be taken back: commit first")
        }
        Some(state) => {
            ensure!(!state.is_dirty, "there are changes that are not committed: commit or stash them first");
            Ok(())
        }
    }
}

/// What `--conflicts reject` puts beside each conflict.
fn beside(steps: &[Step], base: &Files, theirs: &Files) -> anyhow::Result<Files> {
    let mut files = binary(steps, theirs);
    for step in steps.iter().filter(|step| step.outcome == Outcome::Conflict) {
        let old = step.renamed_from.as_ref().unwrap_or(&step.path);
        let side = |files: &Files, path: &String| -> Files {
            files.get(path).map(|bytes| (step.path.clone(), bytes.clone())).into_iter().collect()
        };
        let change = merge::compare(&side(base, old), &side(theirs, &step.path), &[])?;
        files.insert(format!("{}.rej", step.path), change);
    }
    Ok(files)
}

/// The starter's side of files that are not text, as FILE.template.
fn binary(steps: &[Step], theirs: &Files) -> Files {
    let conflicts = steps.iter().filter(|step| step.outcome == Outcome::BinaryConflict);
    conflicts.filter_map(|step| Some((format!("{}.template", step.path), theirs.get(&step.path)?.clone()))).collect()
}

fn apply(root: &Path, steps: &[Step], beside: &Files, conflicts: Conflicts) -> anyhow::Result<()> {
    if let Some(taken) = beside.keys().find(|path| root.join(path).exists()) {
        bail!("`{taken}` is there already: move it away first");
    }
    for step in steps {
        let stays = step.outcome == Outcome::Conflict && conflicts == Conflicts::Reject;
        if stays && step.renamed_from.is_none() {
            continue;
        }
        if stays {
            let old = step.renamed_from.as_ref().unwrap_or(&step.path);
            let own = std::fs::read(root.join(old)).with_context(|| format!("cannot read {old}"))?;
            write_file(root, &step.path, &own)?;
        } else if let Some(content) = &step.content {
            write_file(root, &step.path, content)?;
        }
        let gone = match (&step.renamed_from, step.outcome) {
            (Some(old), _) => Some(old),
            (None, Outcome::Deleted) => Some(&step.path),
            _ => None,
        };
        if let Some(gone) = gone {
            std::fs::remove_file(root.join(gone)).with_context(|| format!("cannot remove {gone}"))?;
        }
    }
    beside.iter().try_for_each(|(path, bytes)| write_file(root, path, bytes))
}

/// The changes as `git diff` shows them.
fn diff(ours: &Files, steps: &[Step]) -> anyhow::Result<Vec<u8>> {
    let paths = || steps.iter().flat_map(|step| [Some(&step.path), step.renamed_from.as_ref()]).flatten();
    let before: Files = paths().filter_map(|path| Some((path.clone(), ours.get(path)?.clone()))).collect();
    let after = steps.iter().filter_map(|step| Some((step.path.clone(), step.content.clone()?))).collect();
    merge::compare(&before, &after, &["--find-renames"])
}

fn print(steps: &[Step]) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    for Step { path, renamed_from, outcome, .. } in steps {
        let what = match outcome {
            Outcome::Added => "added",
            Outcome::Updated => "updated",
            Outcome::Merged => "merged",
            Outcome::Deleted => "deleted",
            Outcome::KeptChanged => "kept: changed here, gone from the starter",
            Outcome::KeptDeleted => "stays deleted, changed in the starter",
            Outcome::Conflict => "CONFLICT: both changed the same lines",
            Outcome::BinaryConflict => "CONFLICT: both changed it, and it is not text",
        };
        let from = renamed_from.as_ref().map(|old| format!(" (was {old})")).unwrap_or_default();
        writeln!(stdout, "{path}{from}: {what}")?;
    }
    Ok(())
}

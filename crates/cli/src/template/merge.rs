//! The three-way merge: what the template was, what the repo is, what the template is now.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::{Files, write_file};

/// As git does: a NUL this early makes a file binary.
const BINARY_PROBE_BYTES: usize = 8000;

/// What becomes of one file.
#[derive(Debug, PartialEq, Serialize)]
pub struct Step {
    /// Its path from now on.
    pub path: String,
    /// Its path before, where the template renamed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renamed_from: Option<String>,
    /// What is done.
    pub outcome: Outcome,
    /// What the file holds afterwards; `None` if it is not there.
    #[serde(skip)]
    pub content: Option<Vec<u8>>,
}

/// What is done with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// New in the template.
    Added,
    /// The template's new text replaces its old one, which nobody had changed here.
    Updated,
    /// Both sides changed it, in different places.
    Merged,
    /// The template gave it up, and nobody had changed it here.
    Deleted,
    /// The template gave it up; it was changed here and stays.
    KeptChanged,
    /// It was deleted here and stays away, though the template changed it.
    KeptDeleted,
    /// Both sides changed the same lines; the content has markers.
    Conflict,
    /// Both sides changed it and it is not text; the content is this repo's.
    BinaryConflict,
}

impl Outcome {
    /// Whether a person must decide.
    pub fn is_conflict(self) -> bool {
        matches!(self, Self::Conflict | Self::BinaryConflict)
    }
}

/// What to do so that the repo follows the template from `base` to `theirs`; files that need nothing are left out.
///
/// `ours` holds the repo's files at every path of the other two that exists.
pub fn plan(base: &Files, ours: &Files, theirs: &Files) -> anyhow::Result<Vec<Step>> {
    let renames = renames(base, theirs)?;
    let renamed_away = |path: &String| renames.values().any(|old| old == path);
    let gone = base.keys().filter(|path| !theirs.contains_key(*path) && !renamed_away(path));
    let paths = theirs.keys().chain(gone);
    let mut steps = Vec::new();
    for path in paths {
        // A file that is at the new place already, or no longer at the old one, is no rename to follow.
        let old = renames.get(path).filter(|old| !ours.contains_key(path) && ours.contains_key(*old));
        let before = renames.get(path).unwrap_or(path);
        let own = ours.get(old.unwrap_or(path));
        let decided =
            decide(base.get(before).map(Vec::as_slice), own.map(Vec::as_slice), theirs.get(path).map(Vec::as_slice))?;
        let (outcome, content) = match (decided, old) {
            (Some(decided), _) => decided,
            (None, Some(_)) => (Outcome::Updated, own.cloned()),
            (None, None) => continue,
        };
        steps.push(Step { path: path.clone(), renamed_from: old.cloned(), outcome, content });
    }
    steps.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(steps)
}

type Decision = (Outcome, Option<Vec<u8>>);

fn decide(base: Option<&[u8]>, ours: Option<&[u8]>, theirs: Option<&[u8]>) -> anyhow::Result<Option<Decision>> {
    if base == theirs || ours == theirs {
        return Ok(None);
    }
    let own = || ours.map(<[u8]>::to_vec);
    Ok(Some(match (base, ours, theirs) {
        (None, None, Some(theirs)) => (Outcome::Added, Some(theirs.to_vec())),
        (Some(_), None, _) => (Outcome::KeptDeleted, None),
        (Some(base), Some(ours), theirs) if base == ours => match theirs {
            Some(theirs) => (Outcome::Updated, Some(theirs.to_vec())),
            None => (Outcome::Deleted, None),
        },
        (_, Some(_), None) => (Outcome::KeptChanged, own()),
        (_, Some(ours), Some(theirs))
            if [base.unwrap_or_default(), ours, theirs].iter().any(|bytes| is_binary(bytes)) =>
        {
            (Outcome::BinaryConflict, own())
        }
        (_, Some(ours), Some(theirs)) => {
            let (text, n_conflicts) = merge_text(base.unwrap_or_default(), ours, theirs)?;
            (if n_conflicts == 0 { Outcome::Merged } else { Outcome::Conflict }, Some(text))
        }
        (None, None, None) => return Ok(None),
    }))
}

pub fn is_binary(bytes: &[u8]) -> bool {
    bytes[..bytes.len().min(BINARY_PROBE_BYTES)].contains(&0)
}

/// Merges with `git merge-file`; gives the text, with markers where both sides differ, and how many such places it has.
fn merge_text(base: &[u8], ours: &[u8], theirs: &[u8]) -> anyhow::Result<(Vec<u8>, i32)> {
    let work = tempfile::tempdir()?;
    for (name, bytes) in [("ours", ours), ("base", base), ("theirs", theirs)] {
        std::fs::write(work.path().join(name), bytes)?;
    }
    let labels = ["-L", "this repo", "-L", "the template before", "-L", "the template now"];
    let mut command = Command::new("git");
    command.arg("merge-file").args(["-p", "--diff3"]).args(labels).args(["ours", "base", "theirs"]);
    let output = command.current_dir(work.path()).output().context("cannot start git: is it installed?")?;
    // 128 and more are errors, less is the number of conflicts.
    let n_conflicts = output.status.code().filter(|code| *code < 128);
    let n_conflicts =
        n_conflicts.with_context(|| format!("git merge-file: {}", String::from_utf8_lossy(&output.stderr).trim()))?;
    Ok((output.stdout, n_conflicts))
}

/// Old path by new path of files that the template moved, as git sees renames.
fn renames(base: &Files, theirs: &Files) -> anyhow::Result<BTreeMap<String, String>> {
    let only = |a: &Files, b: &Files| -> Files {
        a.iter().filter(|(path, _)| !b.contains_key(*path)).map(|(path, bytes)| (path.clone(), bytes.clone())).collect()
    };
    let (gone, new) = (only(base, theirs), only(theirs, base));
    if gone.is_empty() || new.is_empty() {
        return Ok(BTreeMap::new());
    }
    let output = compare(&gone, &new, &["--name-status", "--find-renames", "--diff-filter=R", "-z"])?;
    let fields = String::from_utf8(output).context("git's list of renames is not UTF-8")?;
    let fields: Vec<&str> = fields.split_terminator('\0').collect();
    let below = |path: &str, side: &str| path.strip_prefix(side).map(|path| path.trim_start_matches('/').to_owned());
    Ok(fields.chunks_exact(3).filter_map(|entry| Some((below(entry[2], "b")?, below(entry[1], "a")?))).collect())
}

/// `git diff` between two sets of files.
pub fn compare(before: &Files, after: &Files, options: &[&str]) -> anyhow::Result<Vec<u8>> {
    let work = tempfile::tempdir()?;
    for (side, files) in [("a", before), ("b", after)] {
        std::fs::create_dir(work.path().join(side))?;
        files.iter().try_for_each(|(path, bytes)| write_file(&work.path().join(side), path, bytes))?;
    }
    let mut command = Command::new("git");
    command
        .args(["-c", "core.quotePath=false", "diff", "--no-index", "--no-prefix", "--no-ext-diff"])
        .args(options)
        .args(["a", "b"]);
    let output =
        command.current_dir(work.path()).stdin(Stdio::null()).output().context("cannot start git: is it installed?")?;
    let is_sound = matches!(output.status.code(), Some(0 | 1));
    ensure!(is_sound, "git diff: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(output.stdout)
}

/// The files of the repo at `root` that `paths` name and that exist.
///
/// Errors if one of them, or a folder above it, is a link or no file: it is not followed.
pub fn read_files<'a>(root: &Path, paths: impl Iterator<Item = &'a String>) -> anyhow::Result<Files> {
    let mut files = Files::new();
    for path in paths {
        let target = root.join(path);
        let above = target.ancestors().take_while(|folder| *folder != root);
        for part in above {
            let is_link = part.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
            ensure!(!is_link, "`{}` is a link, which is not followed", part.display());
        }
        match std::fs::read(&target) {
            Ok(bytes) => _ = files.insert(path.clone(), bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", target.display())),
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(entries: &[(&str, &str)]) -> Files {
        entries.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())).collect()
    }

    fn planned(
        base: &[(&str, &str)],
        ours: &[(&str, &str)],
        theirs: &[(&str, &str)],
    ) -> Vec<(String, Outcome, Option<String>)> {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        let steps = plan(&files(base), &files(ours), &files(theirs)).expect("planned");
        steps.into_iter().map(|step| (step.path, step.outcome, step.content.map(text))).collect()
    }

    fn step(path: &str, outcome: Outcome, content: Option<&str>) -> (String, Outcome, Option<String>) {
        (path.to_owned(), outcome, content.map(str::to_owned))
    }

    #[test]
    fn each_side_keeps_what_only_it_changed() {
        let base = [("mine", "1"), ("theirs", "1"), ("both", "a\nb\nc\nd\ne\n"), ("same", "1"), ("left", "1")];
        let ours = [("mine", "2"), ("theirs", "1"), ("both", "A\nb\nc\nd\ne\n"), ("same", "2"), ("left", "1")];
        let theirs = [("mine", "1"), ("theirs", "2"), ("both", "a\nb\nc\nd\nE\n"), ("same", "2"), ("left", "1")];
        assert_eq!(
            planned(&base, &ours, &theirs),
            [step("both", Outcome::Merged, Some("A\nb\nc\nd\nE\n")), step("theirs", Outcome::Updated, Some("2"))]
        );
    }

    #[test]
    fn files_that_come_and_go_lose_nothing() {
        let base = [("gone", "1"), ("gone-changed", "1"), ("deleted-here", "1")];
        let ours = [("gone", "1"), ("gone-changed", "2"), ("taken", "mine")];
        let theirs = [("deleted-here", "2"), ("new", "unlike any other"), ("taken", "theirs")];
        let steps = planned(&base, &ours, &theirs);
        let taken = steps.iter().find(|step| step.0 == "taken").expect("planned").2.clone().expect("there");
        assert!(taken.contains("mine") && taken.contains("theirs") && taken.contains("<<<<<<< this repo"), "{taken}");
        assert_eq!(
            steps.into_iter().filter(|step| step.0 != "taken").collect::<Vec<_>>(),
            [
                step("deleted-here", Outcome::KeptDeleted, None),
                step("gone", Outcome::Deleted, None),
                step("gone-changed", Outcome::KeptChanged, Some("2")),
                step("new", Outcome::Added, Some("unlike any other")),
            ]
        );
    }

    #[test]
    fn changes_follow_a_file_that_the_template_renames() {
        let text = "one\ntwo\nthree\nfour\nfive\nsix\nseven\neight\n";
        let (own, new) = (text.replace("one", "ONE"), text.replace("eight", "EIGHT"));
        let steps = plan(&files(&[("old.py", text)]), &files(&[("old.py", &own)]), &files(&[("new.py", &new)]))
            .expect("planned");
        assert_eq!(steps.len(), 1);
        assert_eq!((steps[0].path.as_str(), steps[0].renamed_from.as_deref()), ("new.py", Some("old.py")));
        let content = String::from_utf8(steps[0].content.clone().expect("there")).expect("text");
        assert!(
            steps[0].outcome == Outcome::Merged && content.contains("ONE") && content.contains("EIGHT"),
            "{content}"
        );
        let untouched = plan(&files(&[("old.py", text)]), &files(&[("old.py", text)]), &files(&[("new.py", text)]))
            .expect("planned");
        assert_eq!((untouched[0].outcome, untouched[0].renamed_from.as_deref()), (Outcome::Updated, Some("old.py")));
    }

    #[test]
    fn what_is_not_text_is_not_merged() {
        let steps = planned(&[("x", "\0a")], &[("x", "\0b")], &[("x", "\0c")]);
        assert_eq!(steps, [step("x", Outcome::BinaryConflict, Some("\0b"))]);
    }
}

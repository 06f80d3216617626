//! What `doctor --fix` does: only what loses nothing and asks nothing.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use serde::Serialize;

use crate::repo::Python;
use crate::standard::Standard;

/// The starter's script that makes the golden set.
pub const GOLDEN_SCRIPT: &str = "golden/build.py";
const ENVIRONMENT: &str = ".venv";

/// Something that is safe to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fix {
    Git,
    Gitignore,
    Environment,
    Golden,
}

impl Fix {
    /// What it does, after "`highroad doctor --fix` …".
    pub fn promise(self) -> &'static str {
        match self {
            Self::Git => "runs `git init`",
            Self::Gitignore => "adds the lines to .gitignore",
            Self::Environment => "installs the lock file into .venv",
            Self::Golden => "runs golden/build.py",
        }
    }

    fn apply(self, root: &Path) -> anyhow::Result<()> {
        match self {
            Self::Git => run(Command::new("git").arg("-C").arg(root).args(["init", "--quiet"])),
            Self::Gitignore => add_to_gitignore(root),
            Self::Environment => install(root),
            Self::Golden => run(Python::find(root)?.command().arg(GOLDEN_SCRIPT).current_dir(root)),
        }
    }
}

/// Does each of `fixes` once and says so; whether there was any.
pub fn apply(root: &Path, fixes: impl Iterator<Item = Fix>) -> bool {
    let fixes: BTreeSet<Fix> = fixes.collect();
    for fix in &fixes {
        eprintln!("fix: {}", fix.promise());
        if let Err(error) = fix.apply(root) {
            eprintln!("warning: it failed: {}", crate::describe(&error));
        }
    }
    !fixes.is_empty()
}

/// The repo's own environment may be filled; one that is named from outside belongs to somebody else.
pub fn environment(root: &Path) -> Option<Fix> {
    let is_named = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_own = root.join(ENVIRONMENT).is_dir() || !is_named("VIRTUAL_ENV");
    (is_own && !is_named("HIGHROAD_PYTHON")).then_some(Fix::Environment)
}

/// Folders made here that git would take: state, environment and training output.
pub fn not_ignored(root: &Path, standard: &Standard) -> Vec<String> {
    let output = Path::new(&standard.training.output)
        .components()
        .next()
        .map(|part| part.as_os_str().to_string_lossy().into_owned());
    let folders = [".highroad".to_owned(), ENVIRONMENT.to_owned()].into_iter().chain(output);
    // Paths outside the repo are no matter of its git.
    let is_taken = |folder: &String| {
        let probe = format!("{folder}/any");
        let status =
            Command::new("git").arg("-C").arg(root).args(["check-ignore", "--quiet", "--no-index", &probe]).output();
        status.is_ok_and(|output| output.status.code() == Some(1))
    };
    folders.filter(is_taken).collect()
}

fn add_to_gitignore(root: &Path) -> anyhow::Result<()> {
    let missing = not_ignored(root, &Standard::load(root)?);
    let path = root.join(".gitignore");
    let has_open_line = std::fs::read(&path).is_ok_and(|text| text.last().is_some_and(|&last| last != b'\n'));
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path)?;
    let lines: String = missing.iter().map(|folder| format!("/{folder}/\n")).collect();
    let newline = if has_open_line { "\n" } else { "" };
    file.write_all(format!("{newline}{lines}").as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

/// With uv where it is on the path, else with venv and pip.
fn install(root: &Path) -> anyhow::Result<()> {
    let standard = Standard::load(root)?;
    let has_uv = Command::new("uv").arg("--version").output().is_ok_and(|output| output.status.success());
    let environment = root.join(ENVIRONMENT);
    if !environment.is_dir() {
        let wanted = &standard.environment.python;
        let make = if has_uv {
            run(Command::new("uv").args(["venv", "--quiet", "--python", wanted]).arg(&environment))
        } else {
            run(Command::new("python3").args(["-m", "venv"]).arg(&environment))
        };
        make.context("cannot make .venv")?;
    }
    let python = environment.join("bin/python");
    let lock = root.join(&standard.environment.lock);
    let mut pip = if has_uv {
        let mut uv = Command::new("uv");
        uv.args(["pip", "install", "--python"]).arg(&python);
        uv
    } else {
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install"]);
        pip
    };
    run(pip.args(["--quiet", "--no-deps", "--require-hashes", "-r"]).arg(lock))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    // stdout belongs to the findings.
    let status = command.stdin(Stdio::null()).stdout(std::io::stderr()).status();
    let program = command.get_program().to_string_lossy().into_owned();
    let status = status.with_context(|| format!("cannot start {program}"))?;
    ensure!(status.success(), "{program} ended with {status}");
    Ok(())
}

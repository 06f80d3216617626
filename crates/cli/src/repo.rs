//! The model repo a command runs in: its Python, its commit, its lock file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use highroad_package::Digest;
use serde::{Deserialize, Serialize};

/// Name of the file beside a run's weights that says where they come from.
pub const PROVENANCE: &str = "provenance.json";

/// The interpreter of a repo's environment.
#[derive(Clone, Debug)]
pub struct Python(PathBuf);

/// What is installed for an interpreter.
#[derive(Debug, Serialize, Deserialize)]
pub struct Installed {
    /// Version of Python.
    pub python: String,
    /// Version of each distribution, by normalised name.
    pub packages: BTreeMap<String, String>,
    /// Which build of torch it would import.
    pub torch: Option<TorchBuild>,
}

/// A build of torch, as its `version.py` tells.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TorchBuild {
    version: String,
    git_version: Option<String>,
    /// The CUDA it was built for, if any.
    pub cuda: Option<String>,
    hip: Option<String>,
}

impl TorchBuild {
    /// On one line: `2.15.0+cu132, git 1a2b3c4d5e6f, CUDA 13.2`.
    pub fn described(&self) -> String {
        let git = self.git_version.as_ref().map(|git| format!("git {}", git.get(..12).unwrap_or(git)));
        let cuda = self.cuda.as_ref().map(|version| format!("CUDA {version}"));
        let hip = self.hip.as_ref().map(|version| format!("HIP {version}"));
        [Some(self.version.clone()), git, cuda, hip].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

impl Python {
    /// `$HIGHROAD_PYTHON`, else `.venv` of the repo, else the active environment, else `python3` on the path.
    pub fn find(root: &Path) -> anyhow::Result<Self> {
        highroad_torch::find_python(root)
            .map(Self)
            .context("no Python found: make an environment with `python3 -m venv .venv`, or set HIGHROAD_PYTHON")
    }

    /// The interpreter at `path`.
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A command that starts it.
    pub fn command(&self) -> Command {
        Command::new(&self.0)
    }

    /// Its version and every distribution it would import, without importing any.
    pub fn installed(&self) -> anyhow::Result<Installed> {
        const LIST: &str = include_str!("installed.py");
        let output = self.command().args(["-c", LIST]).output();
        let output = output.with_context(|| format!("cannot start {}", self.0.display()))?;
        if !output.status.success() {
            bail!("{} does not run: {}", self.0.display(), String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).with_context(|| format!("{} printed no JSON", self.0.display()))
    }
}

/// What git says about a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitState {
    /// The commit that is checked out; `None` before the first one.
    pub commit: Option<String>,
    /// The branch, where there is one.
    pub branch: Option<String>,
    /// Whether tracked files differ from the commit.
    pub is_dirty: bool,
    /// Files that are neither tracked nor ignored.
    pub untracked: Vec<String>,
    /// Where the directory lies below the top of the work tree, ending in `/`; empty at the top.
    pub prefix: String,
}

impl GitState {
    /// The state of the work tree around `root`; `None` outside a work tree or without git.
    pub fn of(root: &Path) -> Option<Self> {
        git(root, &["rev-parse", "--is-inside-work-tree"]).ok()?;
        let commit = git(root, &["rev-parse", "--verify", "HEAD"]).ok();
        let branch = git(root, &["symbolic-ref", "--short", "HEAD"]).ok();
        let is_dirty = git(root, &["status", "--porcelain", "--untracked-files=no"]).is_ok_and(|text| !text.is_empty());
        let untracked = git(root, &["ls-files", "--others", "--exclude-standard"]).unwrap_or_default();
        let untracked = untracked.lines().map(str::to_owned).collect();
        let prefix = git(root, &["rev-parse", "--show-prefix"]).unwrap_or_default();
        Some(Self { commit, branch, is_dirty, untracked, prefix })
    }

    /// What tracked files of the whole work tree have that the commit has not, as a patch for `git apply`.
    pub fn diff(root: &Path) -> Option<Vec<u8>> {
        let arguments = ["diff", "--binary", "--full-index", "--no-color", "--no-ext-diff", "--no-textconv", "HEAD"];
        let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
        output.status.success().then_some(output.stdout)
    }

    /// The commit as provenance records it: `-dirty` appended if tracked files differ.
    pub fn described(&self) -> Option<String> {
        let suffix = if self.is_dirty { "-dirty" } else { "" };
        self.commit.as_ref().map(|commit| format!("{commit}{suffix}"))
    }
}

/// What `git ARGUMENTS` prints in the work tree around `root`, trimmed.
pub fn git(root: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("git").arg("-C").arg(root).args(arguments).output().context("cannot start git")?;
    if !output.status.success() {
        bail!("`git {}` failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Digest of the file at `path`; `None` if there is none.
pub fn file_digest(path: &Path) -> anyhow::Result<Option<Digest>> {
    match std::fs::File::open(path).and_then(Digest::of_reader) {
        Ok(digest) => Ok(Some(digest)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

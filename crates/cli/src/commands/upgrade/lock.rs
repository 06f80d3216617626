//! The lock file that is upgraded to, and what it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use anyhow::{Context as _, bail, ensure};
use highroad_assess::report::PackageChange;
use pep440_rs::Version;

use crate::commands::doctor::{normalised, pins};
use crate::environment::uv;
use crate::repo::Python;
use crate::standard::Standard;

/// Packages that a repo installs without their dependencies.
const ASSETS: &str = "requirements-assets.in";

/// One package in one version: `torch==2.15.0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    name: String,
    version: String,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("`{text}` is no package and version: expected such as `torch==2.15.0`");
        let (name, version) = text.split_once("==").ok_or_else(expected)?;
        let is_name = name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        let version: Version = version.parse().map_err(|_| expected())?;
        if !is_name {
            return Err(expected());
        }
        Ok(Self { name: normalised(name), version: version.to_string() })
    }
}

/// The lock file of the repo with `wanted` in it, written to `path`: what the repo requires, resolved by uv, with as few other
/// changes as that takes.
pub fn resolve(
    root: &Path,
    standard: &Standard,
    wanted: &[Wanted],
    python: &Python,
    path: &Path,
) -> anyhow::Result<()> {
    let lock = root.join(&standard.environment.lock);
    let requirements = lock.with_extension("in");
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()));
    let (old, required) = (read(&lock)?, read(&requirements)?);
    let uv = uv(python)
        .context("uv resolves the new lock file and is not here\nhint: `pip install uv`, or give --lock FILE")?;
    let folder = tempfile::tempdir()?;
    let input = folder.path().join("requirements.in");
    std::fs::write(&input, repinned(&required, wanted))?;
    let assets = std::fs::read_to_string(lock.with_file_name(ASSETS)).unwrap_or_default();
    let assets: BTreeSet<String> = assets.lines().filter_map(required_name).collect();
    let (of_assets, resolved): (Vec<_>, Vec<_>) =
        entries(&old).into_iter().partition(|(name, _)| assets.contains(name));
    // uv keeps what its output pins already, where that still fits.
    let stays = |(name, _): &&(String, String)| wanted.iter().all(|wanted| wanted.name != *name);
    std::fs::write(path, resolved.iter().filter(stays).map(|(_, text)| text.as_str()).collect::<String>())?;
    let options = ["--quiet", "--generate-hashes", "--no-emit-index-url", "--no-header", "--no-annotate"];
    let mut command = Command::new(uv);
    command.args(["pip", "compile"]).args(options).arg("--python").arg(python.path()).arg(&input).arg("-o").arg(path);
    let output = command.stdin(Stdio::null()).output().context("cannot start uv")?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("uv finds no versions that fit {} with this change: {}", requirements.display(), why.trim());
    }
    let lock = std::fs::read_to_string(path)? + &of_assets.iter().map(|(_, text)| text.as_str()).collect::<String>();
    std::fs::write(path, &lock)?;
    check(&lock, wanted)
}

/// Whether a lock file pins what was asked for, with hashes.
fn check(lock: &str, wanted: &[Wanted]) -> anyhow::Result<()> {
    let pins = pins(lock);
    for Wanted { name, version } in wanted {
        let pinned = pins.iter().find(|pin| pin.name == *name).map(|pin| pin.version.as_str());
        ensure!(
            pinned == Some(version),
            "the new lock file pins {name} at {}, not {version}",
            pinned.unwrap_or("nothing")
        );
    }
    Ok(())
}

/// The requirements with `wanted` instead of what they say about these packages; extras and markers stay.
fn repinned(requirements: &str, wanted: &[Wanted]) -> String {
    let mut named = BTreeSet::new();
    let mut lines: Vec<String> = Vec::new();
    for line in requirements.lines() {
        let found = required_name(line).and_then(|name| wanted.iter().find(|wanted| wanted.name == name));
        lines.push(match found {
            Some(Wanted { name, version }) => {
                named.insert(name);
                let head = line.split(['<', '>', '=', '!', '~', ';', '#', ' ']).next().unwrap_or_default();
                let marker = line.split('#').next().and_then(|line| line.split_once(';'));
                let marker = marker.map(|(_, marker)| format!(" ;{marker}")).unwrap_or_default();
                format!("{head}=={version}{marker}")
            }
            None => line.to_owned(),
        });
    }
    let more = wanted.iter().filter(|wanted| !named.contains(&wanted.name));
    lines.extend(more.map(|Wanted { name, version }| format!("{name}=={version}")));
    lines.join("\n") + "\n"
}

/// The package that a line of requirements is about.
fn required_name(line: &str) -> Option<String> {
    let end = line.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '.')).unwrap_or(line.len());
    (end > 0 && !line.starts_with('-')).then(|| normalised(&line[..end]))
}

/// Each pin of a lock file with its lines, hashes included.
fn entries(lock: &str) -> Vec<(String, String)> {
    let mut entries: Vec<(String, String)> = Vec::new();
    for line in lock.lines().filter(|line| !line.trim_start().starts_with('#')) {
        match (line.starts_with([' ', '\t']), required_name(line), entries.last_mut()) {
            (true, _, Some((_, text))) => *text += &format!("{line}\n"),
            (false, Some(name), _) => entries.push((name, format!("{line}\n"))),
            _ => {}
        }
    }
    entries
}

/// What each interpreter's packages declare as their licence, by name.
pub fn licences(python: &Python) -> anyhow::Result<BTreeMap<String, String>> {
    const LIST: &str = include_str!("licences.py");
    let output = python.command().args(["-P", "-c", LIST]).output();
    let output = output.with_context(|| format!("cannot start {}", python.path().display()))?;
    if !output.status.success() {
        bail!("{} does not run: {}", python.path().display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("{} printed no JSON", python.path().display()))
}

/// Every package that the new lock adds, drops or pins in another version, with the licences that are declared where it is installed.
pub fn changes(locks: [&str; 2], licences: &[BTreeMap<String, String>; 2]) -> Vec<PackageChange> {
    let pinned =
        locks.map(|lock| pins(lock).into_iter().map(|pin| (pin.name, pin.version)).collect::<BTreeMap<_, _>>());
    let names: BTreeSet<&String> = pinned.iter().flat_map(BTreeMap::keys).collect();
    let change = |name: &String| {
        let [before, after] = [0, 1].map(|side| pinned[side].get(name).cloned());
        let licence = |side: usize, version: &Option<String>| {
            version.as_ref().and_then(|_| licences[side].get(name)).filter(|text| !text.is_empty()).cloned()
        };
        let (licence_before, licence_after) = (licence(0, &before), licence(1, &after));
        let differs = before != after;
        differs.then(|| PackageChange { name: name.clone(), before, after, licence_before, licence_after })
    };
    names.into_iter().filter_map(change).collect()
}

/// Where a lock file that a person gives lies, as an absolute path.
pub fn given(path: &Path) -> anyhow::Result<PathBuf> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let pins = pins(&text);
    ensure!(!pins.is_empty(), "`{}` pins no package", path.display());
    if let Some(pin) = pins.iter().find(|pin| !pin.is_hashed) {
        bail!("{}: {}=={} has no hash\nhint: lock with --generate-hashes", path.display(), pin.name, pin.version);
    }
    Ok(std::path::absolute(path)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn wanted(text: &str) -> Wanted {
        text.parse().unwrap()
    }

    #[test]
    fn a_requirement_is_pinned_where_it_stands() {
        let requirements =
            "# what we import\ntorch>=2.9,<2.16  # the framework\nray[default] ; python_version > '3'\n-c other.txt\n";
        let text = repinned(requirements, &[wanted("Torch==2.13.0"), wanted("ray==2.0"), wanted("numpy==2.3.1")]);
        assert_eq!(
            text,
            "# what we import\ntorch==2.13.0\nray[default]==2.0 ; python_version > '3'\n-c other.txt\nnumpy==2.3.1\n"
        );
    }

    #[test]
    fn only_a_name_and_a_version_are_wanted() {
        for text in ["torch", "torch>=2", "torch==", "--index-url==1", "a b==1", "torch==two"] {
            assert!(text.parse::<Wanted>().unwrap_err().contains("is no package and version"), "{text}");
        }
    }

    #[test]
    fn packages_that_change_are_told_with_their_licences() {
        let old = "numpy==2.3.1 \\\n    --hash=sha256:00\ntorch==2.15.0 \\\n    --hash=sha256:01\n";
        let new = "numpy==2.3.1 \\\n    --hash=sha256:00\ntorch==2.13.0 \\\n    --hash=sha256:02\ntriton==3.1\n";
        let licence = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let licences = [licence(&[("torch", "BSD-3-Clause"), ("triton", "MIT")]), licence(&[("torch", "Other")])];
        let changes = changes([old, new], &licences);
        let told: Vec<_> = changes.iter().map(|c| (c.name.as_str(), c.before.as_deref(), c.after.as_deref())).collect();
        assert_eq!(told, [("torch", Some("2.15.0"), Some("2.13.0")), ("triton", None, Some("3.1"))]);
        assert_eq!(changes[0].licence_before.as_deref(), Some("BSD-3-Clause"));
        assert!(changes[0].changes_licence() && changes[1].licence_before.is_none());
        assert_eq!(entries(old)[1], ("torch".to_owned(), "torch==2.15.0 \\\n    --hash=sha256:01\n".to_owned()));
    }
}

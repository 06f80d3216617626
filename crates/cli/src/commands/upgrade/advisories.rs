//! What an advisory service knows about the packages that change. pip-audit asks it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::str::FromStr;

use highroad_assess::report::{AdvisoryChange, AdvisoryKind, PackageChange, UpgradeCheck};
use highroad_eval::Outcome;
use serde::Deserialize;

use crate::environment::uv;
use crate::repo::Python;

/// The release that uv runs where pip-audit is not installed.
const PIP_AUDIT: &str = "pip-audit==2.10.1";

/// What is checked, and what it says where all is well.
const RULE: &str = "no package that changes brings a known vulnerability";

/// Who is asked about known vulnerabilities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// Nobody.
    Nobody,
    /// The package index's own records.
    Pypi,
    /// osv.dev.
    Osv,
    /// The query address of a server that answers as osv.dev does.
    OsvAt(String),
}

impl FromStr for Service {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::Nobody),
            "pypi" => Ok(Self::Pypi),
            "osv" => Ok(Self::Osv),
            url if url.starts_with("https://") || url.starts_with("http://") => Ok(Self::OsvAt(url.to_owned())),
            _ => Err(format!("`{text}` is no advisory service: expected pypi, osv, none or an address")),
        }
    }
}

/// What was asked of whom.
pub struct Question<'a> {
    /// `None` where nobody said, so that a service out of reach is told and decides nothing.
    pub service: Option<&'a Service>,
    /// Advisories that a person has looked at.
    pub accepted: &'a [String],
}

/// What the service says, as checks and facts of a report.
pub struct Answered {
    /// What differs between both sides, and what both have.
    pub changes: Vec<AdvisoryChange>,
    /// None where nobody was asked.
    pub check: Option<UpgradeCheck>,
    /// In a sentence.
    pub in_words: String,
}

impl Question<'_> {
    /// Asks about the packages that change, in both versions.
    pub fn ask(&self, packages: &[PackageChange], python: &Python) -> Answered {
        let service = self.service.unwrap_or(&Service::Pypi);
        if *service == Service::Nobody {
            return Answered {
                changes: Vec::new(),
                check: None,
                in_words: "not checked: nobody was to be asked".to_owned(),
            };
        }
        let found = [before, after].map(|version| known(packages, version, service, python));
        let answered = match found {
            [Ok(before), Ok(after)] => self.compare(packages, &before, &after),
            [Err(reason), _] | [_, Err(reason)] => Err(reason),
        };
        answered.unwrap_or_else(|reason| {
            let told = || UpgradeCheck::new(RULE, Outcome::Inconclusive, format!("not checked: {reason}"));
            let check = self.service.is_some().then(told);
            Answered { changes: Vec::new(), check, in_words: format!("not checked: {reason}") }
        })
    }

    fn compare(&self, packages: &[PackageChange], before: &Known, after: &Known) -> Result<Answered, String> {
        let n_asked = packages.len();
        let unknown: Vec<&str> = packages
            .iter()
            .map(|package| package.name.as_str())
            .filter(|name| before.is_unknown(name) || after.is_unknown(name))
            .collect();
        if n_asked > 0 && unknown.len() == n_asked {
            return Err("the service knows none of the packages that change".to_owned());
        }
        let mut changes = Vec::new();
        for PackageChange { name, before: version_before, after: version_after, .. } in packages {
            let (old, new) = (before.of(name), after.of(name));
            let change = |(id, advisory): (&String, &Advisory), version: &Option<String>, kind| AdvisoryChange {
                package: name.clone(),
                version: version.clone().unwrap_or_default(),
                id: id.clone(),
                aliases: advisory.aliases.clone(),
                fixed_in: advisory.fix_versions.clone(),
                kind,
            };
            for found in new {
                let names = || std::iter::once(found.0).chain(&found.1.aliases);
                let is_accepted = names().any(|name| self.accepted.contains(name));
                let kind = match (old.contains_key(found.0), is_accepted) {
                    (true, _) => AdvisoryKind::Stays,
                    (false, true) => AdvisoryKind::Accepted,
                    (false, false) => AdvisoryKind::New,
                };
                changes.push(change(found, version_after, kind));
            }
            let gone = old.iter().filter(|(id, _)| !new.contains_key(*id));
            changes.extend(gone.map(|found| change(found, version_before, AdvisoryKind::Gone)));
        }
        let n_of = |kind| changes.iter().filter(|change| change.kind == kind).count();
        let [n_new, n_gone, n_stay, n_accepted] =
            [AdvisoryKind::New, AdvisoryKind::Gone, AdvisoryKind::Stays, AdvisoryKind::Accepted].map(n_of);
        let mut in_words = format!(
            "{n_new} new, {n_gone} gone, {n_stay} in both, {n_accepted} accepted, of {n_asked} package(s) that change"
        );
        if !unknown.is_empty() {
            in_words += &format!("; not known to the service: {}", unknown.join(", "));
        }
        let first = changes.iter().find(|change| change.kind == AdvisoryKind::New);
        let (outcome, reason) = match first {
            Some(change) => (Outcome::Fail, format!("{}: {}", change.in_words(), in_words)),
            None => (Outcome::Pass, in_words.clone()),
        };
        Ok(Answered { changes, check: Some(UpgradeCheck::new(RULE, outcome, reason)), in_words })
    }
}

fn before(package: &PackageChange) -> Option<&String> {
    package.before.as_ref()
}

fn after(package: &PackageChange) -> Option<&String> {
    package.after.as_ref()
}

/// What a service knows about one version of each package.
#[derive(Default)]
struct Known(BTreeMap<String, Option<BTreeMap<String, Advisory>>>);

impl Known {
    fn is_unknown(&self, name: &str) -> bool {
        matches!(self.0.get(name), Some(None))
    }

    fn of(&self, name: &str) -> &BTreeMap<String, Advisory> {
        static NOTHING: BTreeMap<String, Advisory> = BTreeMap::new();
        self.0.get(name).and_then(Option::as_ref).unwrap_or(&NOTHING)
    }
}

/// What pip-audit prints.
#[derive(Deserialize)]
struct Audit {
    dependencies: Vec<Audited>,
}

#[derive(Deserialize)]
struct Audited {
    name: String,
    skip_reason: Option<String>,
    #[serde(default)]
    vulns: Vec<Vulnerability>,
}

#[derive(Deserialize)]
struct Vulnerability {
    id: String,
    #[serde(flatten)]
    advisory: Advisory,
}

#[derive(Deserialize)]
struct Advisory {
    #[serde(default)]
    aliases: Vec<String>,
    #[serde(default)]
    fix_versions: Vec<String>,
}

impl From<Audit> for Known {
    fn from(audit: Audit) -> Self {
        let entry = |audited: Audited| {
            let advisories = audited.vulns.into_iter().map(|found| (found.id, found.advisory)).collect();
            (audited.name, audited.skip_reason.is_none().then_some(advisories))
        };
        Self(audit.dependencies.into_iter().map(entry).collect())
    }
}

fn known(
    packages: &[PackageChange],
    version: fn(&PackageChange) -> Option<&String>,
    service: &Service,
    python: &Python,
) -> Result<Known, String> {
    let pins = packages.iter().filter_map(|package| Some(format!("{}=={}\n", package.name, version(package)?)));
    let pins: String = pins.collect();
    if pins.is_empty() {
        return Ok(Known::default());
    }
    let file = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    std::fs::write(file.path(), pins).map_err(|error| error.to_string())?;
    let mut command = pip_audit(python).ok_or("neither pip-audit nor uv, which would run it, is here")?;
    command
        .args(["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json", "-r"])
        .arg(file.path());
    match service {
        Service::Nobody | Service::Pypi => command.args(["-s", "pypi"]),
        Service::Osv => command.args(["-s", "osv"]),
        Service::OsvAt(url) => command.args(["-s", "osv", "--osv-url", url]),
    };
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("pip-audit does not start: {error}"))?;
    let audit: Audit = serde_json::from_slice(&output.stdout).map_err(|_| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        format!("pip-audit ended with {}: {}", output.status, last.trim())
    })?;
    Ok(audit.into())
}

/// pip-audit, where it is installed beside the interpreter or on the path; else as uv brings it.
fn pip_audit(python: &Python) -> Option<Command> {
    let beside = python.path().parent().map(|folder| folder.join("pip-audit")).filter(|path| path.is_file());
    let candidates = beside.map(std::path::PathBuf::into_os_string).into_iter().chain([OsString::from("pip-audit")]);
    let runs = |program: &OsString| {
        Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
    };
    if let Some(program) = candidates.into_iter().find(runs) {
        return Some(Command::new(program));
    }
    let mut command = Command::new(uv(python)?);
    command.args(["tool", "run", "--quiet", "--from", PIP_AUDIT, "pip-audit"]);
    Some(command)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn known(json: &str) -> Known {
        serde_json::from_str::<Audit>(json).unwrap().into()
    }

    fn package(name: &str) -> PackageChange {
        let version = |version: &str| Some(version.to_owned());
        let (before, after) = (version("1.0"), version("2.0"));
        PackageChange { name: name.to_owned(), before, after, licence_before: None, licence_after: None }
    }

    const BEFORE: &str = r#"{"dependencies": [
        {"name": "torch", "version": "1.0", "vulns": [{"id": "OLD", "fix_versions": ["2.0"], "aliases": [], "description": ""},
                                                      {"id": "BOTH", "fix_versions": [], "aliases": [], "description": ""}]},
        {"name": "inner", "skip_reason": "Dependency not found on PyPI and could not be audited: inner (1.0)"}], "fixes": []}"#;
    const AFTER: &str = r#"{"dependencies": [
        {"name": "torch", "version": "2.0", "vulns": [{"id": "BOTH", "fix_versions": [], "aliases": [], "description": ""},
                                                      {"id": "NEW", "fix_versions": ["2.1"], "aliases": ["CVE-1"], "description": ""}]},
        {"name": "inner", "skip_reason": "Dependency not found on PyPI and could not be audited: inner (2.0)"}], "fixes": []}"#;

    #[test]
    fn a_new_advisory_fails_unless_somebody_accepted_it() {
        let packages = [package("inner"), package("torch")];
        let ask = |accepted: &[String]| {
            Question { service: None, accepted }.compare(&packages, &known(BEFORE), &known(AFTER)).unwrap()
        };
        let answered = ask(&[]);
        let check = answered.check.unwrap();
        assert_eq!(check.outcome, Outcome::Fail);
        assert_eq!(
            check.reason,
            "torch 2.0 has NEW (CVE-1), fixed in 2.1: 1 new, 1 gone, 1 in both, 0 accepted, of 2 package(s) that change; \
             not known to the service: inner"
        );
        let kinds: Vec<_> = answered.changes.iter().map(|change| (change.id.as_str(), change.kind)).collect();
        assert_eq!(kinds, [("BOTH", AdvisoryKind::Stays), ("NEW", AdvisoryKind::New), ("OLD", AdvisoryKind::Gone)]);
        for accepted in ["NEW", "CVE-1"] {
            assert_eq!(ask(&[accepted.to_owned()]).check.unwrap().outcome, Outcome::Pass);
        }
    }

    #[test]
    fn a_service_that_knows_nothing_has_not_answered() {
        let question = Question { service: None, accepted: &[] };
        let answered = question.compare(&[package("inner")], &known(BEFORE), &known(AFTER));
        assert_eq!(answered.err().as_deref(), Some("the service knows none of the packages that change"));
        let nothing = question.compare(&[], &Known::default(), &Known::default()).unwrap();
        assert_eq!(nothing.check.unwrap().outcome, Outcome::Pass);
    }

    #[test]
    fn a_service_is_named_or_an_address() {
        assert_eq!("osv".parse(), Ok(Service::Osv));
        assert_eq!("http://h/v1/query".parse(), Ok(Service::OsvAt("http://h/v1/query".to_owned())));
        assert!("ghsa".parse::<Service>().unwrap_err().contains("expected pypi, osv, none or an address"));
    }
}

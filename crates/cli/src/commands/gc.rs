use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use highroad_package::{Digest, Store, Verdicts};
use serde::Serialize;

use super::push::print;
use crate::resolve::Home;
use crate::serving::PORTFOLIO;
use crate::tracking::{self, TrackingArgs};

/// `highroad gc`
#[derive(clap::Args)]
pub struct Args {
    /// Tell what would go and take nothing away.
    #[arg(long)]
    dry_run: bool,
    /// Keep packages that came here within so many hours, since somebody may be about to use them.
    #[arg(long, value_name = "HOURS", default_value_t = 24)]
    keep_hours: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tracking: TrackingArgs,
}

/// What a collection found and did.
#[derive(Serialize)]
struct Report {
    dry_run: bool,
    kept: Vec<Kept>,
    removed: Vec<Removed>,
    freed_bytes: u64,
}

#[derive(Serialize)]
struct Kept {
    package: Digest,
    reasons: BTreeSet<String>,
}

#[derive(Serialize)]
struct Removed {
    package: Digest,
    size_bytes: u64,
}

/// Why packages stay.
type Reasons = BTreeMap<Digest, BTreeSet<String>>;

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let home = Home::find();
        let store = home.unguarded_store()?;
        let mut reasons = Reasons::new();
        self.note_registry(&mut reasons).context("nothing was taken away, since the registry may name any package")?;
        note_verdicts(&home, &mut reasons)?;
        note_deployments(&home, &mut reasons)?;
        let before = SystemTime::now() - Duration::from_secs(u64::from(self.keep_hours) * 3600);
        let report = self.sweep(&store, reasons, before)?;
        if self.json {
            print(&serde_json::to_string(&report)?)
        } else {
            tell(&report)
        }
        Ok(ExitCode::SUCCESS)
    }

    /// What the versions of the registry hold. Errors if it cannot be asked.
    fn note_registry(&self, reasons: &mut Reasons) -> anyhow::Result<()> {
        let tracking = tracking::client(&self.tracking)?;
        let (models, versions) = tracking.block_on(async {
            let models = tracking.client().models().await?;
            Ok::<_, highroad_package::registry::RegistryError>((models, tracking.client().packages().await?))
        })?;
        for version in versions {
            let label = version.label();
            let notes = reasons.entry(version.package).or_default();
            notes.insert(format!("version {label}"));
            let model = models.iter().find(|model| model.name == version.name);
            let aliases = model.into_iter().flat_map(|model| &model.aliases);
            let named = aliases.filter(|(_, number)| **number == version.version);
            notes.extend(named.map(|(alias, _)| format!("alias {}@{alias}", version.name)));
        }
        Ok(())
    }

    fn sweep(&self, store: &Store, mut reasons: Reasons, before: SystemTime) -> anyhow::Result<Report> {
        let mut report = Report { dry_run: self.dry_run, kept: Vec::new(), removed: Vec::new(), freed_bytes: 0 };
        for package in store.list()? {
            let mut named = reasons.remove(&package).unwrap_or_default();
            if named.is_empty() && store.added_at(&package).is_none_or(|at| at >= before) {
                named.insert(format!("came within {} hours", self.keep_hours));
            }
            if !named.is_empty() {
                report.kept.push(Kept { package, reasons: named });
                continue;
            }
            let size_bytes = store.size_bytes(&package);
            if !self.dry_run {
                store.forget(&package)?;
            }
            report.freed_bytes += size_bytes;
            report.removed.push(Removed { package, size_bytes });
        }
        if !self.dry_run {
            report.freed_bytes += store.clear_partial(before)?;
        }
        Ok(report)
    }
}

/// Packages that verdicts are about or name, as a candidate or as a baseline.
fn note_verdicts(home: &Home, reasons: &mut Reasons) -> anyhow::Result<()> {
    let verdicts = Verdicts::open(home.verdicts())?;
    for package in verdicts.packages()? {
        for verdict in verdicts.list(&package)? {
            let reason = format!("verdict {}", verdict.short());
            reasons.entry(package).or_default().insert(reason.clone());
            let text = verdicts.get(&package, &verdict)?;
            // Wherever in it a digest stands: what a later version of the format names is kept too.
            for named in digests_in(&String::from_utf8_lossy(&text)) {
                reasons.entry(named).or_default().insert(reason.clone());
            }
        }
    }
    Ok(())
}

fn digests_in(text: &str) -> impl Iterator<Item = Digest> {
    text.match_indices("sha256:").filter_map(|(at, _)| text.get(at..at + "sha256:".len() + 64)?.parse().ok())
}

/// Packages that servers of this home serve, and those that they have attested or that the portfolio pins.
fn note_deployments(home: &Home, reasons: &mut Reasons) -> anyhow::Result<()> {
    if Path::new(PORTFOLIO).exists() {
        let text = std::fs::read_to_string(PORTFOLIO).with_context(|| format!("cannot read `{PORTFOLIO}`"))?;
        for package in digests_in(&text) {
            reasons.entry(package).or_default().insert(PORTFOLIO.to_owned());
        }
    }
    // What members served last, and candidates that are tried: a server that starts while the registry is away goes on with them.
    let dir = home.path().join("serving");
    for name in names(&dir).with_context(|| format!("cannot read `{}`", dir.display()))? {
        let path = dir.join(name);
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        for package in digests_in(&text) {
            reasons.entry(package).or_default().insert("served here last".to_owned());
        }
    }
    let dir = home.path().join("attestations");
    for name in names(&dir).with_context(|| format!("cannot read `{}`", dir.display()))? {
        if let Ok(package) = format!("sha256:{name}").parse() {
            reasons.entry(package).or_default().insert("deployed here".to_owned());
        }
    }
    Ok(())
}

fn names(dir: &Path) -> std::io::Result<Vec<String>> {
    match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
    }
}

fn tell(report: &Report) {
    for kept in &report.kept {
        let reasons: Vec<&str> = kept.reasons.iter().map(String::as_str).collect();
        print(&format!("keep   {} {}", kept.package, reasons.join(", ")));
    }
    for removed in &report.removed {
        print(&format!("remove {} {}", removed.package, indicatif::HumanBytes(removed.size_bytes)));
    }
    let (n, freed) = (report.removed.len(), indicatif::HumanBytes(report.freed_bytes));
    match report.dry_run {
        true => eprintln!("{n} packages would go ({freed})"),
        false => eprintln!("{n} packages removed ({freed})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_digest_in_a_verdict_counts() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let text = format!("{{\"package\":\"{a}\",\"note\":\"sha256:short\",\"of\":[\"x@{b}\"]}} sha256:");
        assert_eq!(digests_in(&text).collect::<Vec<_>>(), [a, b]);
    }
}

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use highroad_package::registry::{RegistryError, ResolvedVersion, VerdictFile};
use highroad_package::remote::Remote;
use highroad_package::signing::Signature;
use highroad_package::{Digest, VerifiedPackage};
use jiff::Timestamp;

use super::gate::whole_seconds;
use crate::outln;
use crate::resolve::{Home, Target};
use crate::tracking::{self, Tracking, TrackingArgs};
use crate::verdicts::{self, KeptVerdict};

/// `highroad push PACKAGE [NAME|ADDRESS]`
#[derive(clap::Args)]
pub struct Args {
    /// The package: a directory, a digest (or its first digits) in the local store, or a reference.
    package: Target,
    /// Registered model that gets the new version; the package's own name if left out. Or another place for the package and
    /// its signatures: `oci://HOST/REPOSITORY:TAG`, `s3://BUCKET/PREFIX` or `file:///FOLDER`.
    #[arg(value_name = "NAME|ADDRESS")]
    to: Option<String>,
    /// Another verdict file than those kept locally; may be given more than once, the last counts.
    #[arg(long, value_name = "FILE")]
    verdict: Vec<PathBuf>,
    /// Print the version, or what was sent, as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tracking: TrackingArgs,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let home = Home::find();
        let package = self.package.resolve(&home)?.package;
        let signatures = signatures(&package, &home)?;
        if let Some(address) = self.to.as_deref().filter(|to| Remote::is_address(to)) {
            anyhow::ensure!(self.verdict.is_empty(), "verdicts go to the registry, not to `{address}`");
            return send(&package, &signatures, address, self.json);
        }
        let name = self.to.unwrap_or_else(|| package.manifest().name.clone());
        let verdicts: Vec<KeptVerdict> = if self.verdict.is_empty() {
            local_verdicts(&package.digest(), &home)?
        } else {
            let read = |path: &PathBuf| verdicts::read(path, &package.digest());
            self.verdict.iter().map(read).collect::<Result<_, _>>()?
        };
        let files: Vec<VerdictFile> = verdicts.iter().map(verdict_file).collect();
        let standard = crate::standard::effective::tags(Path::new("."))?;
        let tracking = tracking::client(&self.tracking)?;
        let total = package.manifest().files.iter().map(|file| file.size_bytes).sum();
        let bar = crate::progress::bar("uploading");
        bar.set_length(total);
        // Before the version: whoever asks for a signature finds it.
        tracking.block_on(tracking.client().push_signatures(&package.digest(), &signatures))?;
        let version = tracking.block_on(tracking.client().push(&package, &name, &files, &|n| bar.inc(n)))?;
        tracking.block_on(tracking.client().tag_version(&version, &standard))?;
        tracking.block_on(super::monitor::send_newest(tracking.client(), &home, &version))?;
        bar.finish_and_clear();
        if let Some(newest) = verdicts.last() {
            warn_of_refusal(&tracking, &version, newest)?;
        }
        if self.json {
            print(&serde_json::to_string(&version)?);
        } else {
            print(&version.label());
            let outcome = version.outcome.as_deref().unwrap_or("no verdict yet: run `highroad gate`, then push again");
            eprintln!("pushed {} as {}: {outcome}", package.digest().short(), version.label());
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn send(package: &VerifiedPackage, signatures: &[Signature], address: &str, json: bool) -> anyhow::Result<ExitCode> {
    let remote = Remote::destination(address)?;
    let (bar, progress) = crate::progress::transfer("uploading");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let pushed = runtime.block_on(remote.push(package, signatures, &progress));
    bar.finish_and_clear();
    let pushed = pushed?;
    if json {
        print(&serde_json::to_string(&pushed)?);
    } else {
        print(&pushed.address);
        let (sent, kept) = (pushed.sent.len(), pushed.already_there.len());
        eprintln!(
            "pushed {}: {sent} files sent ({}), {kept} already there, {} signatures",
            pushed.package.short(),
            indicatif::HumanBytes(pushed.sent_bytes),
            signatures.len()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The signatures of the package that lie beside its directory or in the local store.
fn signatures(package: &VerifiedPackage, home: &Home) -> anyhow::Result<Vec<Signature>> {
    let mut signatures = home.unguarded_store()?.signatures(&package.digest())?;
    signatures.extend(Signature::beside(package.dir())?);
    signatures.dedup();
    Ok(signatures)
}

/// One line of data.
pub(super) fn print(line: &str) {
    outln!("{line}");
}

/// Tells that the verdict that counts from now on does not admit the version, and which aliases name it all the same.
fn warn_of_refusal(tracking: &Tracking, version: &ResolvedVersion, newest: &KeptVerdict) -> anyhow::Result<()> {
    let now = whole_seconds(Timestamp::now());
    let Err(refusal) = newest.verdict.admits(&version.package.to_string(), &now) else { return Ok(()) };
    let label = version.label();
    eprintln!("warning: `{label}` may not be promoted: {refusal}");
    let models = match tracking.block_on(tracking.client().models()) {
        Err(RegistryError::NotFound(_)) => Vec::new(),
        found => found?,
    };
    let aliases = models.into_iter().filter(|model| model.name == version.name).flat_map(|model| model.aliases);
    for (alias, _) in aliases.filter(|(_, number)| *number == version.version) {
        let name = format!("{}@{alias}", version.name);
        eprintln!(
            "warning: `{name}` is `{label}` and goes on serving by what admitted it; `highroad rollback` leads back"
        );
    }
    Ok(())
}

/// Verdicts kept on this machine, oldest first: the newest is the one that counts, so that none may be unreadable.
fn local_verdicts(package: &Digest, home: &Home) -> anyhow::Result<Vec<KeptVerdict>> {
    let found = verdicts::of(home, package)?;
    if let Some(damaged) = found.damaged.first() {
        bail!(
            "{damaged}\nhint: name the one that counts with --verdict FILE, or run `highroad gate` anew and take the file away"
        );
    }
    Ok(found.verdicts)
}

fn verdict_file(kept: &KeptVerdict) -> VerdictFile {
    VerdictFile { bytes: kept.bytes.clone(), outcome: kept.verdict.outcome.to_string() }
}

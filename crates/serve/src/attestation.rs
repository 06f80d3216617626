//! What is recorded when a package serves on other numerics than its verdict's: its parity cases, replayed here.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use highroad_package::{Digest, VerifiedPackage};
use highroad_task::{ParityReport, TaskError};
use serde::{Deserialize, Serialize};

use crate::error::DeployError;

/// The proof that a package's parity cases were replayed on a numerics id before it served there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attestation {
    /// Format version, 1.
    pub highroad_attestation: u32,
    /// The package.
    pub package: Digest,
    /// The verdict that admitted it on other numerics, or the override that did without one.
    pub verdict: Digest,
    /// The numerics the cases were replayed on.
    pub numerics_id: String,
    /// Number of parity cases.
    pub n_cases: u32,
    /// Largest relative root mean square of a case.
    pub worst_relative_rms: f64,
    /// What was accepted.
    pub limit_relative_rms: f64,
    /// When, RFC 3339 in UTC.
    pub replayed_at: String,
    /// Version of the program that replayed them.
    pub highroad: String,
}

/// Replays the parity cases of `package` by `parity` and records it in `dir`, unless that was done before for these numerics.
///
/// Errors if a case does not reproduce within the package's own tolerance.
pub(crate) fn attest(
    dir: &Path,
    package: &VerifiedPackage,
    (numerics_id, parity): (&str, impl FnOnce() -> Result<ParityReport, TaskError>),
    verdict: &Digest,
    now: &str,
) -> Result<(), DeployError> {
    let numerics_id = numerics_id.to_owned();
    let path = path(dir, &package.digest(), &numerics_id);
    if read(&path).is_some_and(|known| known.package == package.digest() && known.numerics_id == numerics_id) {
        return Ok(());
    }
    let parity = parity()
        .map_err(|error| DeployError::Parity { numerics_id: numerics_id.clone(), reason: error.to_string() })?;
    let attestation = Attestation {
        highroad_attestation: 1,
        package: package.digest(),
        verdict: *verdict,
        numerics_id: numerics_id.clone(),
        n_cases: package.manifest().parity.n_cases,
        worst_relative_rms: parity.worst().relative_rms,
        limit_relative_rms: package.manifest().parity.check.relative_rms,
        replayed_at: now.to_owned(),
        highroad: env!("CARGO_PKG_VERSION").to_owned(),
    };
    write(&path, &attestation).map_err(|source| DeployError::Io { path: path.display().to_string(), source })?;
    tracing::info!(
        package.digest = %attestation.package, numerics.id = %numerics_id,
        "Replayed {} parity cases of package {} on `{numerics_id}`", attestation.n_cases, attestation.package
    );
    Ok(())
}

/// Where the attestation of a package on a numerics id lies: `dir/<package hex>/<numerics id, / as ->.json`.
pub fn path(dir: &Path, package: &Digest, numerics_id: &str) -> PathBuf {
    dir.join(package.hex()).join(format!("{}.json", numerics_id.replace('/', "-")))
}

fn read(path: &Path) -> Option<Attestation> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn write(path: &Path, attestation: &Attestation) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(&serde_json::to_vec_pretty(attestation)?)?;
    file.persist(path)?;
    Ok(())
}

//! The verdicts kept on this machine, as every command reads them.

use std::fmt;
use std::path::Path;

use anyhow::Context as _;
use highroad_eval::Verdict;
use highroad_package::{Digest, PackageError, Verdicts};

use crate::resolve::Home;

/// A verdict, its bytes and their digest.
#[derive(Clone, Debug)]
pub struct KeptVerdict {
    pub digest: Digest,
    pub package: Digest,
    pub verdict: Verdict,
    pub bytes: Vec<u8>,
}

/// A kept file that is no verdict on its package any more.
#[derive(Debug)]
pub struct Damaged {
    digest: Digest,
    package: Digest,
    why: String,
}

/// What was found: verdicts, oldest first, and what cannot be read. The caller knows what damage means to it: a list can do
/// without, but which verdict is the newest nobody can tell.
#[derive(Debug, Default)]
pub struct Found {
    pub verdicts: Vec<KeptVerdict>,
    pub damaged: Vec<Damaged>,
}

/// Every verdict kept on this machine.
pub fn all(home: &Home) -> anyhow::Result<Found> {
    let kept = Verdicts::open(home.verdicts())?;
    let packages = kept.packages()?;
    Ok(find(&kept, &packages)?)
}

/// The verdicts on `package` kept on this machine.
pub fn of(home: &Home, package: &Digest) -> anyhow::Result<Found> {
    Ok(find(&Verdicts::open(home.verdicts())?, &[*package])?)
}

/// The verdict in a file, which must be about `package`.
pub fn read(path: &Path, package: &Digest) -> anyhow::Result<KeptVerdict> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let verdict = serde_json::from_slice(&bytes).with_context(|| format!("`{}` is no verdict", path.display()))?;
    about(package, Digest::of(&bytes), verdict, bytes).with_context(|| format!("`{}`", path.display()))
}

fn find(kept: &Verdicts, packages: &[Digest]) -> Result<Found, PackageError> {
    let mut found = Found::default();
    for package in packages {
        for digest in kept.list(package)? {
            let read = || {
                let bytes = kept.get(package, &digest)?;
                about(package, digest, serde_json::from_slice(&bytes)?, bytes)
            };
            match read() {
                Ok(verdict) => found.verdicts.push(verdict),
                Err(error) => {
                    found.damaged.push(Damaged { digest, package: *package, why: crate::describe(&error) });
                }
            }
        }
    }
    found.verdicts.sort_by_key(|kept| kept.verdict.recency());
    Ok(found)
}

fn about(package: &Digest, digest: Digest, verdict: Verdict, bytes: Vec<u8>) -> anyhow::Result<KeptVerdict> {
    let judged = &verdict.package;
    anyhow::ensure!(*judged == package.to_string(), "the verdict is about package {judged}, not {package}");
    Ok(KeptVerdict { digest, package: *package, verdict, bytes })
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { digest, package, why } = self;
        write!(f, "verdict {} on package {} cannot be used: {why}", digest.short(), package.short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_told_beside_what_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Verdicts::open(dir.path()).unwrap();
        let [package, other] = [Digest::of(b"a"), Digest::of(b"b")];
        let verdict = |at: &str| {
            serde_json::json!({
                "highroad_verdict": 1, "outcome": "pass", "package": package,
                "baseline": { "kind": "trivial", "name": "majority" },
                "golden_set": { "name": "cases", "digest": package, "n_cases": 3 }, "gates": package,
                "numerics_id": "highroad-1", "evidence": "bit-exact", "answers": package, "checks": [], "flips": [],
                "created_at": at, "created_by": "ann",
            })
            .to_string()
        };
        let [later, earlier] = ["2026-11-23T10:00:00Z", "2026-11-22T10:00:00Z"].map(verdict);
        let failed = later.replace("\"pass\"", "\"fail\"");
        for text in [&failed, &later, &earlier] {
            kept.put(&package, text.as_bytes()).unwrap();
        }
        kept.put(&package, b"{}").unwrap();
        kept.put(&other, later.as_bytes()).unwrap();
        let found = find(&kept, &kept.packages().unwrap()).unwrap();
        let bytes: Vec<&[u8]> = found.verdicts.iter().map(|kept| kept.bytes.as_slice()).collect();
        assert_eq!(
            bytes,
            [&earlier, &later, &failed].map(String::as_bytes),
            "the oldest first, and of one time the worst last"
        );
        let told = found.damaged.iter().map(Damaged::to_string).collect::<Vec<_>>().join("\n");
        assert!(told.contains("missing field") && told.contains("is about package"), "{told}");
        assert_eq!(found.damaged.len(), 2);
    }
}

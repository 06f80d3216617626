//! Verdicts kept on this machine, and which of them a review is about.

use std::path::Path;

use anyhow::Context as _;
use highroad_assess::GoldenSet;
use highroad_eval::{Baseline, Verdict};
use highroad_package::{Digest, Verdicts};

use crate::resolve::Home;

/// A verdict and the digest of its bytes.
#[derive(Clone, Debug)]
pub struct KeptVerdict {
    pub digest: Digest,
    pub package: Digest,
    pub verdict: Verdict,
}

/// Every verdict kept on this machine that can be read, oldest first; damaged ones are named on stderr and left out.
pub fn all(home: &Home) -> anyhow::Result<Vec<KeptVerdict>> {
    let root = home.verdicts();
    let verdicts = Verdicts::open(&root)?;
    let mut kept = Vec::new();
    for entry in std::fs::read_dir(&root).with_context(|| format!("cannot list `{}`", root.display()))? {
        let name = entry?.file_name();
        let Ok(package) = format!("sha256:{}", name.to_string_lossy()).parse::<Digest>() else { continue };
        for digest in verdicts.list(&package)? {
            match verdicts.get(&package, &digest).map(|bytes| serde_json::from_slice(&bytes)) {
                Ok(Ok(verdict)) => kept.push(KeptVerdict { digest, package, verdict }),
                Ok(Err(error)) => eprintln!("warning: verdict {digest} cannot be read: {error}"),
                Err(error) => eprintln!("warning: {error}"),
            }
        }
    }
    kept.sort_by(|left, right| left.verdict.created_at.cmp(&right.verdict.created_at));
    Ok(kept)
}

/// The verdict in a file, which must be about `package`.
pub fn read(path: &Path, package: &Digest) -> anyhow::Result<KeptVerdict> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let verdict = super::parse(&bytes, path)?;
    anyhow::ensure!(
        verdict.package == package.to_string(),
        "`{}` is about package {}, not {package}",
        path.display(),
        verdict.package
    );
    Ok(KeptVerdict { digest: Digest::of(&bytes), package: *package, verdict })
}

/// The newest verdict on `package` against `baseline`, or against the trivial one, on this golden set.
pub fn newest<'a>(
    kept: &'a [KeptVerdict],
    package: &Digest,
    baseline: Option<&Digest>,
    golden: &GoldenSet,
) -> Option<&'a KeptVerdict> {
    let fits = |verdict: &Verdict| match (&verdict.baseline, baseline) {
        (Baseline::Package { package, .. }, Some(baseline)) => *package == baseline.to_string(),
        (Baseline::Trivial { .. }, None) => true,
        _ => false,
    };
    let about = |kept: &&KeptVerdict| kept.package == *package && is_of(kept, golden) && fits(&kept.verdict);
    kept.iter().rev().find(about)
}

/// Other packages that answered this golden set, each with its newest verdict.
pub fn of_others(kept: &[KeptVerdict], package: &Digest, golden: &GoldenSet) -> Vec<(String, Digest)> {
    let mut others: Vec<(String, Digest)> = Vec::new();
    for kept in kept.iter().rev().filter(|kept| kept.package != *package && is_of(kept, golden)) {
        let name = kept.package.to_string();
        if !others.iter().any(|(known, _)| *known == name) {
            others.push((name, kept.digest));
        }
    }
    others
}

/// What `package` answered to this golden set on a kind of machine, as its own newest verdict says.
pub fn answers_of(kept: &[KeptVerdict], package: &Digest, golden: &GoldenSet, numerics_id: &str) -> Option<Digest> {
    let is_its_own = |kept: &&KeptVerdict| {
        kept.package == *package && is_of(kept, golden) && kept.verdict.numerics_id == numerics_id
    };
    kept.iter().rev().find(is_its_own).and_then(|kept| kept.verdict.answers.parse().ok())
}

fn is_of(kept: &KeptVerdict, golden: &GoldenSet) -> bool {
    kept.verdict.golden_set.digest == golden.digest.to_string()
}

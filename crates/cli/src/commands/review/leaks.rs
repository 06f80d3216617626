//! Whether training has seen the golden cases, where its files are at hand.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use highroad_assess::review::Leaks;
use highroad_assess::{GoldenSet, LintOptions, Training, leaks};
use highroad_package::{Digest, Provenance};

use crate::progress;
use crate::repo::file_digest;

/// Golden cases that are in the training data, as they are or nearly, in the files that are here with the bytes that trained the
/// package (or chose its checkpoint; files whose role is `test` did neither); `None`, with the reason on stderr, if there are none.
pub fn find(
    golden: &GoldenSet,
    provenance: &Provenance,
    told: &[PathBuf],
    columns: &[String],
    threads: NonZeroUsize,
) -> Option<Leaks> {
    let (mut files, mut places, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    let (trained, held_out): (Vec<_>, Vec<_>) =
        provenance.data.iter().partition(|(name, _)| provenance.may_have_trained(name));
    for (name, digest) in trained {
        match place(name, digest, told) {
            Some(found) => {
                files.push(name.clone());
                places.push(found);
            }
            None => missing.push(name.clone()),
        }
    }
    if !missing.is_empty() {
        eprintln!("warning: not here, so not compared with the golden set: {} (--training FILE)", missing.join(", "));
    }
    if places.is_empty() {
        return None;
    }
    match search(golden, &places, columns, threads) {
        Ok(cases) => {
            let held_out = held_out.into_iter().map(|(name, _)| name.clone()).collect();
            Some(Leaks { files, missing, held_out, cases })
        }
        Err(error) => {
            eprintln!("warning: the training data cannot be compared with the golden set: {error:#}");
            None
        }
    }
}

/// Where the training file with these bytes lies: among those that were told, else under its name here or in `data/`.
fn place(name: &str, digest: &Digest, told: &[PathBuf]) -> Option<PathBuf> {
    let named = [PathBuf::from(name), Path::new("data").join(name)];
    let candidates = if told.is_empty() { &named[..] } else { told };
    candidates.iter().find(|path| file_digest(path).is_ok_and(|found| found.as_ref() == Some(digest))).cloned()
}

fn search(
    golden: &GoldenSet,
    files: &[PathBuf],
    columns: &[String],
    threads: NonZeroUsize,
) -> anyhow::Result<Vec<String>> {
    let files: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
    let training = Training::open(&files, columns, threads)?;
    anyhow::ensure!(!training.is_empty(), "no record has a text in {}", columns.join(", "));
    let bar = progress::bar("comparing with training");
    bar.set_length(training.len() as u64);
    let found = leaks(golden, &training, LintOptions::default().near, threads, |n| bar.inc(n as u64));
    bar.finish_and_clear();
    Ok(found?.into_iter().flat_map(|finding| finding.cases).collect())
}

//! Whether training has seen the golden cases, where its files are at hand.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use highroad_assess::review::Leaks;
use highroad_assess::{GoldenSet, LintOptions, Training, leaks};
use highroad_package::Provenance;

use crate::progress;
use crate::repo::file_digest;

/// Golden cases that are in the training data, as they are or nearly; `None`, with the reason on stderr, unless every file that
/// the package names is here with the bytes that trained it.
pub fn find(
    golden: &GoldenSet,
    provenance: &Provenance,
    told: &[PathBuf],
    columns: &[String],
    threads: NonZeroUsize,
) -> Option<Leaks> {
    let files = here(provenance, told)?;
    match search(golden, &files, columns, threads) {
        Ok(cases) => Some(Leaks { files: provenance.data.keys().cloned().collect(), cases }),
        Err(error) => {
            eprintln!("warning: the training data cannot be compared with the golden set: {error:#}");
            None
        }
    }
}

/// Where each training file of the package lies.
fn here(provenance: &Provenance, told: &[PathBuf]) -> Option<Vec<PathBuf>> {
    let found = |(name, digest)| {
        let named = [PathBuf::from(name), Path::new("data").join(name)];
        let candidates = if told.is_empty() { &named[..] } else { told };
        let place = candidates.iter().find(|path| file_digest(path).is_ok_and(|found| found.as_ref() == Some(digest)));
        if place.is_none() {
            eprintln!("warning: training file `{name}` ({digest}) is not here: name it with --training FILE");
        }
        place.cloned()
    };
    let files: Vec<PathBuf> = provenance.data.iter().map(found).collect::<Option<_>>()?;
    (!files.is_empty()).then_some(files)
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

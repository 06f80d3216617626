//! Shards of a golden set as tasks of a Ray cluster.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use highroad_package::VerifiedPackage;

use crate::repo::Python;

/// Files of all shards; they go with this.
pub struct Shards {
    _folder: tempfile::TempDir,
    files: Vec<PathBuf>,
}

impl Shards {
    /// One of each shard.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

/// Has the workers of the Ray cluster at `address` answer the golden set at `golden` in `n_shards`, each with this very binary.
///
/// Binary, package and golden set are handed to the workers, so these need nothing but Ray and the same kind of machine.
pub fn on_ray(
    address: &str,
    n_shards: NonZeroU32,
    package: &VerifiedPackage,
    golden: &Path,
    threads: Option<NonZeroUsize>,
) -> anyhow::Result<Shards> {
    let folder = tempfile::tempdir().context("cannot make a folder for the shards")?;
    let python = Python::find(Path::new("."))?;
    let binary = std::env::current_exe().context("cannot find this binary")?;
    let mut command = Command::new(python.path());
    command.args(["-m", "highroad._ray_eval", "--address", address, "--shards", &n_shards.to_string()]);
    command.arg("--binary").arg(binary).arg("--package").arg(package.dir()).arg("--golden").arg(golden);
    command.arg("--out").arg(folder.path());
    if let Some(threads) = threads {
        command.args(["--threads", &threads.to_string()]);
    }
    // stdout is the evaluation's own.
    let status = command.stdout(std::io::stderr()).status().context("cannot start Python for Ray")?;
    if !status.success() {
        bail!(
            "the Ray job failed\nhint: see above; it needs the packages `ray` and `highroad` in {}",
            python.path().display()
        );
    }
    let files = (1..=n_shards.get()).map(|number| folder.path().join(format!("{number}.json"))).collect();
    Ok(Shards { _folder: folder, files })
}

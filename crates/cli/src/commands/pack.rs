use crate::outln;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use highroad_package::{MANIFEST, Package, TRAINING, write_archive};

use super::push::print;

/// `highroad pack DIR [-o OUT]`
#[derive(clap::Args)]
pub struct Args {
    /// Package source: `package.toml`, `program.pt2`, `tokenizer.json`, `parity.safetensors`, as `highroad.export` writes it. Of
    /// `training.safetensors` the baseline is made that monitoring compares traffic with; it is not in the package.
    dir: PathBuf,
    /// Where the package goes; beside the source as `DIR.package` unless told. Absent, empty or the same package. A name that
    /// ends with `.tar` makes one file of it, a source or a package; the same package is the same file on any machine.
    #[arg(short, long)]
    out: Option<PathBuf>,
    /// Print digest, directory and manifest as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let out = self.out.unwrap_or_else(|| beside(&self.dir));
        if out.extension().is_some_and(|extension| extension == "tar") {
            return one_file(&self.dir, &out, self.json);
        }
        let digest = highroad_package::pack(&self.dir, &out)?;
        keep_baseline(&self.dir, &out)?;
        if self.json {
            let manifest = Package::open(&out)?.manifest().clone();
            outln!("{}", serde_json::json!({ "digest": digest, "dir": out, "manifest": manifest }));
        } else {
            outln!("{digest}");
            eprintln!("packed {} into {}", self.dir.display(), out.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Makes one file of a package, or of a package source.
fn one_file(dir: &Path, out: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let scratch = tempfile::tempdir()?;
    let package = if dir.join(MANIFEST).exists() {
        dir.to_owned()
    } else {
        let packed = scratch.path().join("package");
        highroad_package::pack(dir, &packed)?;
        keep_baseline(dir, &packed)?;
        packed
    };
    let package = Package::open(&package)?.verify()?;
    write_archive(&package, out)?;
    let digest = package.digest();
    if json {
        print(&serde_json::json!({ "digest": digest, "file": out, "manifest": package.manifest() }).to_string());
    } else {
        print(&digest.to_string());
        eprintln!("packed {} into {}", dir.display(), out.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the baseline of the training rows beside a source, where there are any.
fn keep_baseline(source: &Path, package: &Path) -> anyhow::Result<()> {
    let training = source.join(TRAINING);
    if training.is_file() {
        super::monitor::keep_of_training(&Package::open(package)?.verify()?, &training)?;
    }
    Ok(())
}

/// `models/moderation` becomes `models/moderation.package`.
fn beside(dir: &Path) -> PathBuf {
    // `.` and `..` have no name of their own.
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let mut name = dir.into_os_string();
    name.push(".package");
    name.into()
}

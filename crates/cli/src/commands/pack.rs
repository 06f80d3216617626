use std::path::{Path, PathBuf};
use std::process::ExitCode;

use highroad_package::Package;

/// `highroad pack DIR [-o OUT]`
#[derive(clap::Args)]
pub struct Args {
    /// Package source: `package.toml`, `program.pt2`, `tokenizer.json`, `parity.safetensors`, as `highroad.export` writes it.
    dir: PathBuf,
    /// Where the package goes; beside the source as `DIR.package` unless told. Absent, empty or the same package.
    #[arg(short, long)]
    out: Option<PathBuf>,
    /// Print digest, directory and manifest as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    #[allow(clippy::print_stdout)]
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let out = self.out.unwrap_or_else(|| beside(&self.dir));
        let digest = highroad_package::pack(&self.dir, &out)?;
        if self.json {
            let manifest = Package::open(&out)?.manifest().clone();
            println!("{}", serde_json::json!({ "digest": digest, "dir": out, "manifest": manifest }));
        } else {
            println!("{digest}");
            eprintln!("packed {} into {}", self.dir.display(), out.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// `models/moderation` becomes `models/moderation.package`.
fn beside(dir: &Path) -> PathBuf {
    // `.` and `..` have no name of their own.
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let mut name = dir.into_os_string();
    name.push(".package");
    name.into()
}

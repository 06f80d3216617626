use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use highroad_package::signing::{Signature, SigningKey};
use serde_json::json;

use super::push::print;
use crate::resolve::{Home, Origin, Target};

/// `highroad sign PACKAGE --key FILE`
#[derive(clap::Args)]
pub struct Args {
    /// The package: a directory, one file, a digest (or its first digits) in the local store, or a reference.
    package: Target,
    /// Private key: PKCS#8 PEM as `highroad keys generate` or OpenSSL writes it, Ed25519 or ECDSA P-256.
    #[arg(long, value_name = "FILE", env = "HIGHROAD_SIGNING_KEY")]
    key: PathBuf,
    /// Where the signature goes [default: `PACKAGE.sig` beside a directory or file, else the local store].
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let home = Home::find();
        let key = SigningKey::read(&self.key)?;
        let resolved = self.package.find(&home)?;
        let (package, digest) = (&resolved.package, resolved.package.digest());
        let signature = Signature::sign(package, &key)?;
        let file = match (self.out, resolved.origin) {
            (Some(out), _) => Some(out),
            (None, Origin::Directory) => Some(Signature::path_beside(package.dir())),
            (None, Origin::Archive) => Some(Signature::path_beside(Path::new(&self.package.to_string()))),
            (None, Origin::Store) => None,
        };
        let place = match &file {
            Some(path) => {
                std::fs::write(path, signature.bytes())
                    .with_context(|| format!("cannot write `{}`", path.display()))?;
                path.display().to_string()
            }
            None => {
                home.unguarded_store()?.add_signature(&digest, &signature)?;
                "the local store".to_owned()
            }
        };
        let key = key.public();
        if self.json {
            print(
                &json!({ "package": digest, "signature": signature.digest(), "file": file, "key": key.id() })
                    .to_string(),
            );
        } else {
            print(&signature.digest().to_string());
            eprintln!("signed {} with key {}: the signature is in {place}", digest.short(), key.id().short());
        }
        Ok(ExitCode::SUCCESS)
    }
}

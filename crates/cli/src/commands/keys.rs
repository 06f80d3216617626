use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use highroad_package::PackageError;
use highroad_package::signing::{Algorithm, PublicKey, Signature, SigningKey};
use serde_json::json;

use super::push::print;
use crate::resolve::{Home, Origin, Target};
use crate::trust;

/// Exit code where nobody who is trusted signed the package.
const NOT_SIGNED: u8 = 1;

/// `highroad keys generate|show|verify`
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Make a key pair: the private key in FILE, which only you may read, the public one in FILE.pub.
    Generate(Generate),
    /// Print a public key as `trusted_keys` takes it.
    Show(Show),
    /// Tell which trusted key signed a package; exit code 1 where none did.
    Verify(Verify),
}

#[derive(clap::Args)]
struct Generate {
    /// The private key's file; neither it nor FILE.pub may exist.
    #[arg(default_value = "highroad.key")]
    file: PathBuf,
    /// `ed25519`, or `ecdsa-p256`, which the OpenSSF's `model_signing verify key` can check too.
    #[arg(long, default_value = "ed25519")]
    algorithm: Algorithm,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Show {
    /// A private or public key, PEM.
    file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Verify {
    /// The package: a directory, a digest (or its first digits) in the local store, or a reference.
    package: Target,
    /// A public key (PEM file, or the text that `highroad keys show` prints) that counts; may be given more than once
    /// [default: the trusted keys of highroad.toml and HIGHROAD_TRUSTED_KEYS].
    #[arg(long, value_name = "KEY")]
    key: Vec<String>,
    /// A signature file [default: `PACKAGE.sig` beside a directory, and those in the local store].
    #[arg(long, value_name = "FILE")]
    signature: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.what {
            What::Generate(args) => args.run(),
            What::Show(args) => args.run(),
            What::Verify(args) => args.run(),
        }
    }
}

impl Generate {
    fn run(self) -> anyhow::Result<ExitCode> {
        let public = PathBuf::from(format!("{}.pub", self.file.display()));
        anyhow::ensure!(!public.exists(), "`{}` exists", public.display());
        let key = SigningKey::generate(self.algorithm)?;
        key.write_new(&self.file)?;
        std::fs::write(&public, key.public().to_pem())
            .with_context(|| format!("cannot write `{}`", public.display()))?;
        show(&key.public(), self.json);
        eprintln!("private key in {}, public key in {}", self.file.display(), public.display());
        Ok(ExitCode::SUCCESS)
    }
}

impl Show {
    fn run(self) -> anyhow::Result<ExitCode> {
        show(&PublicKey::read(&self.file)?, self.json);
        Ok(ExitCode::SUCCESS)
    }
}

fn show(key: &PublicKey, as_json: bool) {
    if as_json {
        let json = json!({ "key": key.to_string(), "id": key.id(), "algorithm": key.algorithm(), "pem": key.to_pem() });
        print(&json.to_string());
    } else {
        print(&key.to_string());
    }
}

impl Verify {
    fn run(self) -> anyhow::Result<ExitCode> {
        let home = Home::find();
        let keys = match self.key.as_slice() {
            [] => trust::trusted_keys(Path::new("."))?,
            given => given.iter().map(|key| public_key(key)).collect::<Result<_, _>>()?,
        };
        anyhow::ensure!(!keys.is_empty(), "no key is trusted: name one with `--key KEY`");
        let resolved = self.package.find(&home)?;
        let (package, digest) = (&resolved.package, resolved.package.digest());
        let mut signatures = self.signature.iter().map(|path| Signature::read(path)).collect::<Result<Vec<_>, _>>()?;
        if signatures.is_empty() {
            signatures.extend(home.unguarded_store()?.signatures(&digest)?);
            if resolved.origin == Origin::Directory {
                signatures.extend(Signature::beside(package.dir())?);
            }
        }
        anyhow::ensure!(!signatures.is_empty(), "package {digest} has no signature");
        let results: Vec<_> = signatures
            .iter()
            .map(|signature| (signature, signature.verify(&digest, package.manifest(), &keys)))
            .collect();
        if self.json {
            let results: Vec<_> = results.iter().map(|(signature, result)| row(signature, result)).collect();
            print(&json!({ "package": digest, "signatures": results }).to_string());
        } else {
            for (signature, result) in &results {
                match result {
                    Ok(key) => print(&format!("{digest} is signed by {} ({})", key.label(), key.id())),
                    Err(error) => eprintln!("signature {}: {error}", signature.digest().short()),
                }
            }
        }
        let signed = results.iter().any(|(_, result)| result.is_ok());
        Ok(if signed { ExitCode::SUCCESS } else { ExitCode::from(NOT_SIGNED) })
    }
}

fn row(signature: &Signature, result: &Result<&PublicKey, PackageError>) -> serde_json::Value {
    let (key, problem) = match result {
        Ok(key) => (Some(key.id()), None),
        Err(error) => (None, Some(error.to_string())),
    };
    json!({ "signature": signature.digest(), "claimed_key": signature.claimed_key(), "key": key, "problem": problem })
}

/// A key's text, or the PEM file of one.
pub(super) fn public_key(text: &str) -> anyhow::Result<PublicKey> {
    Ok(if Path::new(text).is_file() { PublicKey::read(Path::new(text))? } else { text.parse()? })
}

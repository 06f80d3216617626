//! Where a review is kept, and who signed it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use highroad_assess::review::Review;
use highroad_package::Digest;
use highroad_package::signing::{Attestation, PublicKey, SigningKey};
use serde_json::json;

use crate::commands::push::print;
use crate::resolve::Home;
use crate::trust;

/// What a signed statement calls a review.
const PREDICATE: &str = "https://highroad.dev/review/v1";
/// What it calls its subjects.
const PACKAGE: &str = "package";
const FILE: &str = "review.json";
/// Exit code where nobody who is trusted signed the review.
const NOT_SIGNED: u8 = 1;

/// Tell who signed a review, and check that it is about this very file; exit code 1 where nobody trusted did.
#[derive(clap::Args)]
pub struct Args {
    /// The signature, `….sigstore.json`; the review lies beside it.
    signature: PathBuf,
    /// A public key (PEM file, or the text that `highroad keys show` prints) that counts; may be given more than once
    /// [default: the trusted keys of highroad.toml and HIGHROAD_TRUSTED_KEYS].
    #[arg(long, value_name = "KEY")]
    key: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let keys: Vec<PublicKey> = match self.key.as_slice() {
            [] => trust::trusted_keys(Path::new("."))?,
            given => given.iter().map(|key| crate::commands::keys::public_key(key)).collect::<Result<_, _>>()?,
        };
        anyhow::ensure!(!keys.is_empty(), "no key is trusted: name one with `--key KEY`");
        let review = reviewed(&self.signature)?;
        let bytes = std::fs::read(&review).with_context(|| format!("cannot read `{}`", review.display()))?;
        let signed =
            std::fs::read(&self.signature).with_context(|| format!("cannot read `{}`", self.signature.display()))?;
        let found = Attestation::verify(&signed, &keys).map_err(anyhow::Error::from).and_then(|(attestation, key)| {
            check(&attestation, &bytes)?;
            Ok((attestation, key))
        });
        match found {
            Ok((attestation, key)) => {
                let package = attestation.subjects[PACKAGE];
                if self.json {
                    print(&json!({ "package": package, "review": Digest::of(&bytes), "key": key.id() }).to_string());
                } else {
                    print(&format!("the review of {package} is signed by {} ({})", key.label(), key.id()));
                }
                Ok(ExitCode::SUCCESS)
            }
            Err(error) => {
                eprintln!("not signed: {error:#}");
                Ok(ExitCode::from(NOT_SIGNED))
            }
        }
    }
}

/// Keeps the review beside the verdicts, `reviews/<package hex>/<review hex>.json`, with its signature if there is a key.
pub fn keep(home: &Home, package: &Digest, review: &Review, key: Option<&SigningKey>) -> anyhow::Result<PathBuf> {
    let bytes = serde_json::to_vec_pretty(review)?;
    let digest = Digest::of(&bytes);
    let dir = home.path().join("reviews").join(package.hex());
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make `{}`", dir.display()))?;
    let path = dir.join(format!("{}.json", digest.hex()));
    super::write(&path, &bytes)?;
    if let Some(key) = key {
        let attestation = Attestation {
            subjects: [(PACKAGE.to_owned(), *package), (FILE.to_owned(), digest)].into(),
            predicate_type: PREDICATE.to_owned(),
            predicate: serde_json::to_value(review)?,
        };
        let signature = path.with_extension("sigstore.json");
        super::write(&signature, &attestation.sign(key)?)?;
        eprintln!("signed {}", signature.display());
    }
    Ok(path)
}

/// The review that a signature file lies beside.
fn reviewed(signature: &Path) -> anyhow::Result<PathBuf> {
    let name =
        signature.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".sigstore.json"));
    let name = name.with_context(|| format!("`{}` is not called ….sigstore.json", signature.display()))?;
    Ok(signature.with_file_name(format!("{name}.json")))
}

/// Errors unless the statement is a review with these bytes, about the package it names.
fn check(attestation: &Attestation, bytes: &[u8]) -> anyhow::Result<()> {
    anyhow::ensure!(attestation.predicate_type == PREDICATE, "it is no review but `{}`", attestation.predicate_type);
    let review: Review = serde_json::from_slice(bytes).context("the file beside it is no review")?;
    let names = |name: &str| attestation.subjects.get(name).map(ToString::to_string);
    anyhow::ensure!(names(FILE) == Some(Digest::of(bytes).to_string()), "the review was changed after it was signed");
    anyhow::ensure!(names(PACKAGE) == Some(review.package), "it is about another package than the review names");
    Ok(())
}

//! From what a person types to a verified package, and where this machine keeps things.

use std::convert::Infallible;
use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, bail};
use highroad_package::registry::{RegistryError, ResolvedVersion};
use highroad_package::{Digest, MANIFEST, Package, PackageError, Reference, Store, VerifiedPackage};

use crate::tracking::{self, TrackingArgs};
use crate::trust;

/// Where this machine keeps packages, verdicts and logs: `$HIGHROAD_HOME`, else `.highroad` in the current directory.
#[derive(Clone, Debug)]
pub struct Home(PathBuf);

impl Home {
    pub fn find() -> Self {
        let named = env::var_os("HIGHROAD_HOME").filter(|dir| !dir.is_empty());
        Self(named.map_or_else(|| PathBuf::from(".highroad"), PathBuf::from))
    }

    /// The local store, which gives only packages that this repo and this machine let through.
    pub fn store(&self) -> anyhow::Result<Store> {
        Ok(self.unguarded_store()?.with_policy(trust::policy(Path::new("."))?))
    }

    /// The local store for those that load nothing: it gives any intact package.
    pub fn unguarded_store(&self) -> anyhow::Result<Store> {
        let root = self.0.join("store");
        Store::open(&root).with_context(|| format!("cannot open the package store `{}`", root.display()))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn verdicts(&self) -> PathBuf {
        self.0.join("verdicts")
    }
}

/// A package as a person names it: a directory, one file (`highroad pack -o FILE.tar`), a digest (or the first 8 or more of its
/// digits) in the local store, or a reference of the registry (`name:7`, `name@champion`, `name@sha256:…`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target(String);

/// A verified package and how it was found.
pub struct Resolved {
    pub package: VerifiedPackage,
    /// The reference, where it came from a registry.
    pub reference: Option<Reference>,
    /// The version that the reference meant.
    pub version: Option<ResolvedVersion>,
    /// Where it lies.
    pub origin: Origin,
}

/// Where a package lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a directory of somebody's own.
    Directory,
    /// In one file, and since it was found in the local store too.
    Archive,
    /// In the local store.
    Store,
}

/// Fewest digits of a shortened digest.
const FEWEST_DIGITS: usize = 8;

impl FromStr for Target {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Target {
    /// Finds the package, reads every byte of it against its digest and, where signatures are asked for, checks who made it.
    pub fn resolve(&self, home: &Home) -> anyhow::Result<Resolved> {
        let store = home.store()?;
        let resolved = self.find_in(&store)?;
        if resolved.origin == Origin::Directory {
            store.admit_directory(&resolved.package)?;
        }
        Ok(resolved)
    }

    /// As [`Target::resolve`], whoever made the package: for those that do not load it.
    pub fn find(&self, home: &Home) -> anyhow::Result<Resolved> {
        self.find_in(&home.unguarded_store()?)
    }

    fn find_in(&self, store: &Store) -> anyhow::Result<Resolved> {
        let found = |package, origin| Resolved { package, reference: None, version: None, origin };
        if Path::new(&self.0).is_dir() {
            return Ok(found(open_directory(Path::new(&self.0))?, Origin::Directory));
        }
        if Path::new(&self.0).is_file() {
            return Ok(found(from_archive(Path::new(&self.0), store)?, Origin::Archive));
        }
        if let Some(digits) = self.digits() {
            return Ok(found(from_store(store, digits)?, Origin::Store));
        }
        match self.0.parse::<Reference>() {
            Ok(reference) => from_registry(store, reference),
            Err(_) => bail!(
                "`{self}` is no package: expected a package directory, `sha256:` and at least {FEWEST_DIGITS} digits, or a \
                 reference such as `name:7` or `name@champion`"
            ),
        }
    }

    /// The digits of a whole or shortened digest.
    fn digits(&self) -> Option<&str> {
        let digits = self.0.strip_prefix("sha256:").unwrap_or(&self.0);
        let is_hex = digits.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c));
        ((FEWEST_DIGITS..=64).contains(&digits.len()) && is_hex).then_some(digits)
    }
}

fn open_directory(dir: &Path) -> anyhow::Result<VerifiedPackage> {
    if !dir.join(MANIFEST).exists() && dir.join("package.toml").exists() {
        bail!("`{0}` is a package source\nhint: `highroad pack {0} -o PACKAGE` makes a package of it", dir.display());
    }
    let verified = Package::open(dir).and_then(Package::verify);
    verified.with_context(|| format!("`{}` is not a sound package", dir.display()))
}

/// The package in one file, taken into `store`; whatever else `path` may be is an error.
pub fn from_archive(path: &Path, store: &Store) -> anyhow::Result<VerifiedPackage> {
    let digest = store.add_archive(path)?;
    Ok(store.get(&digest)?)
}

fn from_store(store: &Store, digits: &str) -> anyhow::Result<VerifiedPackage> {
    let digests: Vec<Digest> = store.list()?.into_iter().filter(|digest| digest.hex().starts_with(digits)).collect();
    match digests.as_slice() {
        [] => bail!("no package `sha256:{digits}` in the local store"),
        [digest] => store.get(digest).map_err(|error| match error {
            refused @ (PackageError::Unsigned { .. } | PackageError::Refused { .. }) => refused.into(),
            damage => anyhow::Error::new(damage).context(format!("package {digest} is damaged in the local store")),
        }),
        _ => bail!("{} packages in the local store begin with `sha256:{digits}`", digests.len()),
    }
}

fn from_registry(store: &Store, reference: Reference) -> anyhow::Result<Resolved> {
    let tracking = tracking::client(&TrackingArgs::default())?;
    let client = tracking.client();
    let bar = crate::progress::bar("fetching");
    let found = tracking.block_on(async {
        let version = client.resolve(&reference).await?;
        let package = client.fetch(&version, store, &|n_bytes| bar.inc(n_bytes)).await?;
        Ok::<_, RegistryError>((package, version))
    });
    bar.finish_and_clear();
    let (package, version) = found?;
    Ok(Resolved { package, reference: Some(reference), version: Some(version), origin: Origin::Store })
}

use std::future::Future;
use std::pin::Pin;

use highroad_package::{Digest, Reference};

use crate::error::DeployError;
use crate::revision::Candidate;

/// A future behind a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where versions and their aliases are kept. Tests bring their own.
pub trait Registry: Send + Sync + 'static {
    /// The version that `reference` means now. Errors with [`DeployError::NotFound`] if it means none, and with
    /// [`DeployError::Registry`] if nobody knows.
    fn resolve<'a>(&'a self, reference: &'a Reference) -> BoxFuture<'a, Result<Resolved, DeployError>>;

    /// Brings the package and its verdict to this machine and verifies them; `reference` is what meant this version.
    fn fetch<'a>(
        &'a self,
        reference: &'a Reference,
        resolved: &'a Resolved,
    ) -> BoxFuture<'a, Result<Candidate, DeployError>>;
}

/// A version of a registered model, by what decides whether a member has to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Registered model name.
    pub name: String,
    /// Its version number.
    pub version: u64,
    /// Its package.
    pub package: Digest,
    /// The verdict on it, where it has one.
    pub verdict: Option<Digest>,
    /// The override for the alias it was asked by, where it has one.
    pub overridden: Option<Digest>,
}

impl Resolved {
    /// `name:7`
    pub fn label(&self) -> String {
        format!("{}:{}", self.name, self.version)
    }
}

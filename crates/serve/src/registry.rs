use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;

use highroad_package::registry::{Promotion, Rollback};
use highroad_package::{Digest, Reference};
use serde::{Deserialize, Serialize};

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

    /// The version that a rollback of the alias leads to, as the record of its moves has it; nothing where there is none or it is
    /// no package.
    fn way_back<'a>(&'a self, reference: &'a Reference) -> BoxFuture<'a, Result<Option<Promoted>, DeployError>>;

    /// Tags of the model called `name`, where rollouts are kept.
    fn tags<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<BTreeMap<String, String>, DeployError>>;

    /// Sets a tag of the model called `name`, or takes it away.
    fn set_tag<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        value: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), DeployError>>;

    /// Moves an alias, if the gate lets it; the inner error says why it does not.
    fn promote<'a>(&'a self, promotion: &'a Promotion) -> BoxFuture<'a, Result<Result<(), String>, DeployError>>;

    /// Puts an alias back to where it was before, if the gate lets it; the inner error says why it does not.
    fn roll_back<'a>(&'a self, rollback: &'a Rollback) -> BoxFuture<'a, Result<Result<(), String>, DeployError>>;
}

/// A version of a registered model, by what decides whether a member has to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// A version, and when it was promoted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promoted {
    /// The version.
    pub resolved: Resolved,
    /// When, RFC 3339 in UTC, where the record says so: a rollback asks whether it was admitted then.
    pub at: Option<String>,
}

impl Resolved {
    /// `name:7`
    pub fn label(&self) -> String {
        format!("{}:{}", self.name, self.version)
    }
}

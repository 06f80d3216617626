use highroad_package::registry::{RegistryClient, RegistryError, ResolvedVersion};
use highroad_package::{Reference, Selector};

use crate::deployment::{LocalState, read_verdict};
use crate::error::DeployError;
use crate::registry::{BoxFuture, Registry, Resolved};
use crate::revision::Candidate;

/// A registry that speaks MLflow, with what it brings kept in the local state.
pub struct RemoteRegistry {
    client: RegistryClient,
    local: LocalState,
}

impl RemoteRegistry {
    /// The registry behind `client`.
    pub fn new(client: RegistryClient, local: LocalState) -> Self {
        Self { client, local }
    }
}

impl Registry for RemoteRegistry {
    fn resolve<'a>(&'a self, reference: &'a Reference) -> BoxFuture<'a, Result<Resolved, DeployError>> {
        Box::pin(async move {
            let found = self.client.resolve(reference).await.map_err(|error| failed(reference, error))?;
            let ResolvedVersion { name, version, package, verdict, .. } = found;
            Ok(Resolved { name, version, package, verdict })
        })
    }

    fn fetch<'a>(
        &'a self,
        reference: &'a Reference,
        resolved: &'a Resolved,
    ) -> BoxFuture<'a, Result<Candidate, DeployError>> {
        Box::pin(async move {
            let Resolved { name, version, package, verdict } = resolved.clone();
            let wanted = ResolvedVersion { name, version, package, verdict, outcome: None, run_id: None };
            let failed = |error| failed(reference, error);
            let package = self.client.fetch(&wanted, &self.local.store, &|_bytes| {}).await.map_err(failed)?;
            let verdict = match (wanted.verdict, self.client.fetch_verdict(&wanted).await.map_err(failed)?) {
                (Some(digest), Some(bytes)) => {
                    self.local.verdicts.put(&wanted.package, &bytes)?;
                    Some((digest, read_verdict(&self.local.verdicts, &wanted.package, &digest)?))
                }
                _ => None,
            };
            let admitted_at = match &reference.selector {
                Selector::Alias(alias) => self.client.admitted_at(&wanted, alias).await.map_err(failed)?,
                Selector::Version(_) | Selector::Digest(_) => None,
            };
            Ok(Candidate { version: resolved.label(), package, verdict, admitted_at })
        })
    }
}

fn failed(reference: &Reference, error: RegistryError) -> DeployError {
    match error {
        RegistryError::NotFound(_) => DeployError::NotFound(reference.clone()),
        RegistryError::NotAPackage(_) => DeployError::NotAPackage(reference.to_string()),
        RegistryError::Package(error) => error.into(),
        other => DeployError::Registry(other.to_string()),
    }
}

use std::collections::BTreeMap;

use highroad_package::registry::trail::ways_back;
use highroad_package::registry::{AliasMove, Promotion, RegistryClient, RegistryError, ResolvedVersion, Rollback};
use highroad_package::{Digest, Reference, Selector};
use highroad_service::access::{METER, RateKeeper, WantedRate};
use serde_json::json;
use tracing::warn;

use crate::admission;
use crate::budget::shared::{Granted, Leases, Spent, Wanted};
use crate::deployment::{LocalState, read_verdict};
use crate::error::DeployError;
use crate::registry::{BoxFuture, Promoted, Registry, Resolved};
use crate::revision::{Candidate, Overridden};

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
            let overridden = alias_of(reference).and_then(|alias| found.overrides.get(alias).copied());
            let ResolvedVersion { name, version, package, verdict, .. } = found;
            Ok(Resolved { name, version, package, verdict, overridden })
        })
    }

    fn fetch<'a>(
        &'a self,
        reference: &'a Reference,
        resolved: &'a Resolved,
    ) -> BoxFuture<'a, Result<Candidate, DeployError>> {
        Box::pin(async move {
            let Resolved { name, version, package, verdict, overridden } = resolved.clone();
            let alias = alias_of(reference);
            let overrides =
                alias.zip(overridden).map(|(alias, digest)| (alias.to_owned(), digest)).into_iter().collect();
            let wanted = ResolvedVersion { name, version, package, verdict, outcome: None, run_id: None, overrides };
            let failed = |error| failed(reference, error);
            let package = self.client.fetch(&wanted, &self.local.store, &|_bytes| {}).await.map_err(failed)?;
            let promoted = match alias {
                Some(alias) => self.client.promoted(&wanted, alias).await.map_err(failed)?,
                None => None,
            };
            // What was judged after the promotion stops neither a restart nor the way back.
            let counts = promoted.as_ref().and_then(|moved| moved.verdict).or(wanted.verdict);
            let judged = ResolvedVersion { verdict: counts, ..wanted.clone() };
            let verdict = match (counts, self.client.fetch_verdict(&judged).await.map_err(failed)?) {
                (Some(digest), Some(bytes)) => {
                    self.local.verdicts.put(&wanted.package, &bytes)?;
                    Some((digest, read_verdict(&self.local.verdicts, &wanted.package, &digest)?))
                }
                _ => None,
            };
            self.bring_baselines(&wanted.package).await;
            let Some(alias) = alias else {
                return Ok(Candidate {
                    version: resolved.label(),
                    package,
                    verdict,
                    overridden: None,
                    admitted_at: None,
                });
            };
            let overridden = self.overridden(&wanted, alias).await.map_err(failed)?;
            let admitted_at = promoted.and_then(|moved| moved.at_rfc3339());
            Ok(Candidate { version: resolved.label(), package, verdict, overridden, admitted_at })
        })
    }

    fn way_back<'a>(&'a self, reference: &'a Reference) -> BoxFuture<'a, Result<Option<Promoted>, DeployError>> {
        Box::pin(async move { self.before(reference).await.map_err(|error| failed(reference, error)) })
    }

    fn tags<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<BTreeMap<String, String>, DeployError>> {
        Box::pin(async move { self.client.model_tags(name).await.map_err(|error| unanswered(&error)) })
    }

    fn set_tag<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        value: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), DeployError>> {
        Box::pin(async move {
            let done = match value {
                Some(value) => self.client.set_model_tag(name, key, value).await,
                None => self.client.delete_model_tag(name, key).await,
            };
            done.map_err(|error| unanswered(&error))
        })
    }

    fn promote<'a>(&'a self, promotion: &'a Promotion) -> BoxFuture<'a, Result<Result<(), String>, DeployError>> {
        Box::pin(async move {
            let moved = match self.client.promote(promotion).await {
                Err(RegistryError::NoGate(_)) => admission::promote(&self.client, promotion).await,
                Err(RegistryError::Refused { status: 403, message, .. }) => Ok(Err(message)),
                moved => moved.map(Ok),
            };
            moved.map(|moved| moved.map(drop)).map_err(|error| unanswered(&error))
        })
    }

    fn roll_back<'a>(&'a self, rollback: &'a Rollback) -> BoxFuture<'a, Result<Result<(), String>, DeployError>> {
        Box::pin(async move {
            let moved = match self.client.rollback(rollback).await {
                Err(RegistryError::NoGate(_)) => admission::roll_back(&self.client, rollback).await,
                Err(RegistryError::Refused { status: 403, message, .. }) => Ok(Err(message)),
                moved => moved.map(Ok),
            };
            moved.map(|moved| moved.map(drop)).map_err(|error| unanswered(&error))
        })
    }
}

impl Leases for RegistryClient {
    fn lease<'a>(
        &'a self,
        pool: &'a str,
        replica: &'a str,
        wanted: &'a [Wanted],
    ) -> BoxFuture<'a, Result<Vec<Granted>, String>> {
        Box::pin(async move {
            let asked = json!({ "pool": pool, "replica": replica, "leases": wanted });
            let granted = self.lease_budgets(&asked).await.map_err(|error| error.to_string())?;
            serde_json::from_value(granted).map_err(|error| format!("its leases cannot be read: {error}"))
        })
    }

    fn spent<'a>(
        &'a self,
        pool: &'a str,
        replica: &'a str,
        from: i64,
        spent: &'a [Spent],
    ) -> BoxFuture<'a, Result<Vec<Spent>, String>> {
        Box::pin(async move {
            let told = json!({ "pool": pool, "replica": replica, "from": from, "spent": spent });
            let all = self.budgets_spent(&told).await.map_err(|error| error.to_string())?;
            serde_json::from_value(all).map_err(|error| format!("what was spent cannot be read: {error}"))
        })
    }
}

/// A tracking server that keeps the whole of shared rates.
pub struct RemoteRates(RegistryClient);

impl RemoteRates {
    /// The server behind `client`.
    pub fn new(client: RegistryClient) -> Self {
        Self(client)
    }
}

impl RateKeeper for RemoteRates {
    fn lease<'a>(&'a self, wanted: &'a WantedRate) -> BoxFuture<'a, Result<u64, String>> {
        let WantedRate { pool, replica, account, since, most, used, wants } = wanted;
        Box::pin(async move {
            let lease = json!({
                "account": account, "meter": METER, "since": since, "most": most, "used": used, "wants": wants,
            });
            let asked = json!({ "pool": pool, "replica": replica, "leases": [lease] });
            let granted = self.0.lease_budgets(&asked).await.map_err(|error| error.to_string())?;
            granted[0]["granted"].as_u64().ok_or_else(|| "its lease cannot be read".to_owned())
        })
    }
}

fn unanswered(error: &RegistryError) -> DeployError {
    DeployError::Registry(error.to_string())
}

impl RemoteRegistry {
    /// Where a rollback of the alias leads, and when that version was promoted, RFC 3339 in UTC.
    async fn before(&self, reference: &Reference) -> Result<Option<Promoted>, RegistryError> {
        let Some(alias) = alias_of(reference) else { return Ok(None) };
        let current = self.client.aliased(&reference.name, alias).await?;
        let moves = self.client.audit(&reference.name).await?;
        for (version, moved) in ways_back(&moves, alias, current) {
            let Some(number) = version.filter(|version| Some(*version) != current) else { continue };
            let found = match self.client.model_version(&reference.name, number).await {
                Err(RegistryError::NotFound(_)) => continue,
                found => found?,
            };
            let Some(found) = found.package else { return Ok(None) };
            if moved.and_then(|moved| moved.package).is_some_and(|was| was != found.package) {
                continue;
            }
            let overridden = found.overrides.get(alias).copied();
            let at = moved.and_then(AliasMove::at_rfc3339);
            let ResolvedVersion { name, version, package, verdict, .. } = found;
            let verdict = moved.and_then(|moved| moved.verdict).or(verdict);
            return Ok(Some(Promoted { resolved: Resolved { name, version, package, verdict, overridden }, at }));
        }
        Ok(None)
    }

    /// Brings what monitoring compares the package with. A version serves without it.
    async fn bring_baselines(&self, package: &Digest) {
        let brought = self.client.baselines(package).await.unwrap_or_else(|error| {
            warn!("No baseline of {} is brought: {error}", package.short());
            Vec::new()
        });
        for bytes in brought {
            if let Err(error) = self.local.baselines.put(package, &bytes) {
                warn!("Cannot keep a baseline of {}: {error}", package.short());
            }
        }
    }

    /// The override for `alias`. One that cannot be read is none, since the verdict may do without it.
    async fn overridden(&self, version: &ResolvedVersion, alias: &str) -> Result<Option<Overridden>, RegistryError> {
        let Some(digest) = version.overrides.get(alias).copied() else { return Ok(None) };
        let read = match self.client.fetch_override(version, alias).await {
            Ok(bytes) => serde_json::from_slice(&bytes.unwrap_or_default()).map_err(|error| error.to_string()),
            Err(error @ RegistryError::Unreachable { .. }) => return Err(error),
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(given) => Ok(Some(Overridden { digest, given, model: version.name.clone(), alias: alias.to_owned() })),
            Err(error) => {
                warn!("Passing over the override of `{}` for `{alias}`: {error}", version.label());
                Ok(None)
            }
        }
    }
}

fn alias_of(reference: &Reference) -> Option<&str> {
    match &reference.selector {
        Selector::Alias(alias) => Some(alias),
        Selector::Version(_) | Selector::Digest(_) => None,
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

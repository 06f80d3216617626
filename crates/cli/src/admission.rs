//! What admits a version to an alias, decided on this machine, to say what an override stands in for.

use highroad_eval::{Missing, Verdict};
use highroad_package::Digest;
use highroad_package::registry::{RegistryClient, RegistryError, ResolvedVersion};

/// The verdict that admits a version at `at` (RFC 3339, UTC), or what it lacks.
///
/// Errors only if the registry cannot be asked.
pub async fn verdict(
    client: &RegistryClient,
    version: &ResolvedVersion,
    at: &str,
) -> Result<Result<Digest, Missing>, RegistryError> {
    let missing = |outcome, reason: String| {
        let verdict = version.verdict.map(|digest| digest.to_string());
        Ok(Err(Missing { verdict, outcome, reason }))
    };
    let bytes = match client.fetch_verdict(version).await {
        Ok(bytes) => bytes,
        Err(error @ RegistryError::Unreachable { .. }) => return Err(error),
        Err(error) => return missing(None, format!("its verdict cannot be had: {error}")),
    };
    let (Some(digest), Some(bytes)) = (version.verdict, bytes) else {
        return missing(None, "it has no verdict".to_owned());
    };
    let verdict: Verdict = match serde_json::from_slice(&bytes) {
        Ok(verdict) => verdict,
        Err(error) => return missing(None, format!("its verdict cannot be read: {error}")),
    };
    match verdict.admits(&version.package.to_string(), at) {
        Ok(()) => Ok(Ok(digest)),
        Err(refusal) => missing(Some(verdict.outcome), refusal.to_string()),
    }
}

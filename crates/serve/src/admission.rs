//! What admits a version to an alias, decided on this machine: for a team's MLflow server, which has no gate, and to say what
//! an override stands in for. Commands and rollouts ask it alike.

use highroad_eval::{Aliased, Baseline, Missing, Override, Refusal, Verdict};
use highroad_package::registry::dependents::forbids;
use highroad_package::registry::trail::ways_back;
use highroad_package::registry::{AliasMove, Promotion, RegistryClient, RegistryError, ResolvedVersion, Rollback};
use highroad_package::{Digest, Reference, Selector};
use jiff::Timestamp;
use serde_json::Value;

/// Why an alias may not name a version, in a sentence.
pub type Reason = String;

/// What an alias moves to and on what evidence; nothing for what is no Highroad package.
#[derive(Default)]
struct Target {
    version: Option<u64>,
    package: Option<Digest>,
    verdict: Option<Digest>,
    overridden: Option<Value>,
    /// What the verdict compared it with.
    baseline: Option<Baseline>,
}

/// Promotes on a server that has no gate: what the gate asks is asked here, then MLflow's own route moves the alias.
pub async fn promote(
    client: &RegistryClient,
    promotion: &Promotion,
) -> Result<Result<AliasMove, Reason>, RegistryError> {
    let Promotion { name, version, alias, by, why, rehearsal } = promotion.clone();
    let now = Timestamp::now();
    let reference = Reference { name: name.clone(), selector: Selector::Version(version) };
    let target = match client.resolve(&reference).await {
        Ok(resolved) => match admit(client, &resolved, &alias, [now, now]).await? {
            Ok(target) => target,
            Err(reason) => return Ok(Err(reason)),
        },
        Err(RegistryError::NotAPackage(_)) => Target { version: Some(version), ..Target::default() },
        Err(error) => return Err(error),
    };
    if let Some(reason) = forbidden(client, [&name, &alias], version, target.package.as_ref()).await? {
        return Ok(Err(reason));
    }
    let action = if target.overridden.is_some() { "override" } else { "promote" };
    let from = client.aliased(&name, &alias).await?;
    let rehearsal = Some(rehearsal).filter(|found| !found.is_null());
    let caution = match from {
        Some(from) => caution(client, &name, from, &target).await?,
        None => None,
    };
    let moved = target.into_move([name, alias, by, why], action, from, now);
    client.move_without_gate(AliasMove { rehearsal, caution, ..moved }).await.map(Ok)
}

/// What has to be told of a promotion: its verdict compares the version with something else than what the alias names.
async fn caution(
    client: &RegistryClient,
    name: &str,
    from: u64,
    target: &Target,
) -> Result<Option<String>, RegistryError> {
    let (Some(baseline), Some(package)) = (&target.baseline, &target.package) else { return Ok(None) };
    let champion = match client.model_version(name, from).await {
        Err(RegistryError::NotFound(_)) => return Ok(None),
        found => found?.package,
    };
    let caution = |champion: ResolvedVersion| {
        baseline.caution(&package.to_string(), &champion.label(), &champion.package.to_string())
    };
    Ok(champion.and_then(caution))
}

/// Why an index forbids that `[model, alias]` moves to a version: it was embedded by another package.
pub async fn forbidden(
    client: &RegistryClient,
    [name, alias]: [&str; 2],
    version: u64,
    package: Option<&Digest>,
) -> Result<Option<Reason>, RegistryError> {
    let tags = client.model_tags(name).await?;
    let tags = tags.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    Ok(forbids(tags, [name, alias], version, package).map(|dependence| dependence.to_string()))
}

/// Goes back to where an alias was before, by the recorded moves, on a server that has no gate. A verdict is asked about the
/// moment of that promotion, an override about now; versions that are gone, or hold another package now, are passed over.
pub async fn roll_back(
    client: &RegistryClient,
    rollback: &Rollback,
) -> Result<Result<AliasMove, Reason>, RegistryError> {
    let Rollback { name, alias, by, why } = rollback.clone();
    let now = Timestamp::now();
    let label = format!("{name}@{alias}");
    let Some(current) = client.aliased(&name, &alias).await? else { return Err(RegistryError::NotFound(label)) };
    let moves = client.audit(&name).await?;
    for (version, moved) in ways_back(&moves, &alias, Some(current)) {
        if version == Some(current) {
            continue;
        }
        let target = match way_back(client, &name, &alias, version, moved, now).await? {
            None => continue,
            Some(Err(reason)) => return Ok(Err(reason)),
            Some(Ok(target)) => target,
        };
        let moved = target.into_move([name, alias, by, why], "rollback", Some(current), now);
        return client.move_without_gate(moved).await.map(Ok);
    }
    Ok(Err(format!("nothing records where `{label}` was before; promote a version by its number")))
}

/// Whether `alias` may go back to where `moved` had put it; nothing if that version is gone or holds another package now.
async fn way_back(
    client: &RegistryClient,
    name: &str,
    alias: &str,
    version: Option<u64>,
    moved: Option<&AliasMove>,
    now: Timestamp,
) -> Result<Option<Result<Target, Reason>>, RegistryError> {
    let Some(number) = version else { return Ok(Some(Ok(Target::default()))) };
    let found = match client.model_version(name, number).await {
        Err(RegistryError::NotFound(_)) => return Ok(None),
        found => found?,
    };
    let Some(resolved) = found.package else { return Ok(Some(Ok(Target { version, ..Target::default() }))) };
    if moved.and_then(|moved| moved.package).is_some_and(|was| was != resolved.package) {
        return Ok(None);
    }
    let at = moved.and_then(|moved| Timestamp::from_millisecond(moved.at).ok()).unwrap_or(now);
    // What was judged since does not shut the way back.
    let verdict = moved.and_then(|moved| moved.verdict).or(resolved.verdict);
    let resolved = ResolvedVersion { verdict, ..resolved };
    admit(client, &resolved, alias, [at, now]).await.map(Some)
}

/// Whether `alias` may name a version: by its verdict at the first moment, or by an override at the second.
async fn admit(
    client: &RegistryClient,
    version: &ResolvedVersion,
    alias: &str,
    [verdict_at, now]: [Timestamp; 2],
) -> Result<Result<Target, Reason>, RegistryError> {
    let target = Target { version: Some(version.version), package: Some(version.package), ..Target::default() };
    let missing = match judged(client, version, &whole_seconds(verdict_at)).await? {
        // Of a way back the question was answered when it was promoted.
        Ok((_, verdict)) if verdict_at == now && verdict.compares().is_err() => Refusal::WithItself.to_string(),
        Ok((digest, verdict)) => {
            return Ok(Ok(Target { verdict: Some(digest), baseline: Some(verdict.baseline), ..target }));
        }
        Err(missing) => missing.reason,
    };
    let refuse = |reason: String| Ok(Err(format!("`{}` may not go to production: {reason}", version.label())));
    let bytes = match client.fetch_override(version, alias).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return refuse(missing),
        Err(error @ RegistryError::Unreachable { .. }) => return Err(error),
        Err(error) => return refuse(format!("{missing}; its override cannot be had: {error}")),
    };
    let given: Override = match serde_json::from_slice(&bytes) {
        Ok(given) => given,
        Err(error) => return refuse(format!("{missing}; its override cannot be read: {error}")),
    };
    let asked = Aliased { package: &version.package.to_string(), model: &version.name, alias };
    match given.admits(asked, &whole_seconds(now)) {
        Ok(()) => Ok(Ok(Target { overridden: serde_json::from_slice(&bytes).ok(), ..target })),
        Err(refusal) => refuse(format!("{missing}; its override does not let it through: {refusal}")),
    }
}

impl Target {
    fn into_move(
        self,
        [model, alias, by, why]: [String; 4],
        action: &str,
        from: Option<u64>,
        now: Timestamp,
    ) -> AliasMove {
        AliasMove {
            move_id: 0,
            at: now.as_millisecond(),
            model,
            alias,
            action: action.to_owned(),
            from,
            to: self.version,
            by,
            why,
            package: self.package,
            verdict: self.verdict,
            overridden: self.overridden,
            rehearsal: None,
            caution: None,
            renamed_from: None,
        }
    }
}

/// The verdict that admits a version to be promoted at `at` (RFC 3339, UTC), or what it lacks.
///
/// Errors only if the registry cannot be asked.
pub async fn verdict(
    client: &RegistryClient,
    version: &ResolvedVersion,
    at: &str,
) -> Result<Result<Digest, Missing>, RegistryError> {
    let judged = judged(client, version, at).await?;
    Ok(judged.and_then(|(digest, verdict)| match verdict.compares() {
        Ok(()) => Ok(digest),
        Err(refusal) => Err(Missing {
            verdict: Some(digest.to_string()),
            outcome: Some(verdict.outcome),
            reason: refusal.to_string(),
        }),
    }))
}

/// The verdict that admits a version at `at`, whatever it compares, and its digest.
async fn judged(
    client: &RegistryClient,
    version: &ResolvedVersion,
    at: &str,
) -> Result<Result<(Digest, Verdict), Missing>, RegistryError> {
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
        Ok(()) => Ok(Ok((digest, verdict))),
        Err(refusal) => missing(Some(verdict.outcome), refusal.to_string()),
    }
}

/// RFC 3339 in UTC, as verdicts write their times.
fn whole_seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

//! What each server that follows an alias tells the registry: the version that it serves, and the one that it refuses. So whoever moves the
//! alias can say which servers followed without knowing an address of one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use highroad_package::{Digest, Reference, Selector};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{MAX_REPLICAS, now, read, under};
use crate::config::ModelSource;
use crate::deployment::Deployment;
use crate::registry::Registry;

/// Tag of where one member of one server stands, followed by their id, a point and the alias.
const SERVING_TAG: &str = "highroad.serving.";
/// A server whose members stand where they stood says so again after this long.
const TELL_EVERY: Duration = Duration::from_secs(15);
/// After twice its own pause and this, a server that tells nothing has stopped.
const GRACE_S: u64 = 10;
/// What a server told that has stopped is taken away by the others.
const FORGOTTEN_AFTER_S: i64 = 3600;
/// Longest reason that is told: a tag of MLflow holds 5000 characters.
const MAX_REASON_CHARS: usize = 1000;
/// Longest wait for the registry when a server ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// A member of a server that follows an alias.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follower {
    /// Name of the machine.
    pub host: String,
    /// The process there.
    pub process: u32,
    /// The member.
    pub member: String,
    /// Version that it serves, where it serves any.
    pub serving: Option<u64>,
    /// Version that it should serve and does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedVersion>,
    /// When it said so, RFC 3339 in UTC by its own clock.
    pub at: String,
    /// Seconds after which it says so again.
    pub every_s: u64,
}

/// A version that a member refuses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedVersion {
    /// Its number.
    pub version: u64,
    /// Why, in words.
    pub reason: String,
}

impl Follower {
    /// Those of `alias`, by what the tags of its model say, in the order of their ids. Tags that somebody else wrote are passed over.
    pub fn all(tags: &BTreeMap<String, String>, alias: &str) -> Vec<Self> {
        under(tags, SERVING_TAG, alias).take(MAX_REPLICAS).filter_map(|(_, text)| read(text)).collect()
    }

    /// Whether it told lately enough to be running still.
    pub fn is_running(&self, now: Timestamp) -> bool {
        self.age_s(now) <= i64::try_from(self.every_s.saturating_mul(2).saturating_add(GRACE_S)).unwrap_or(i64::MAX)
    }

    /// Seconds since it told anything; the longest there are where it names no time.
    fn age_s(&self, now: Timestamp) -> i64 {
        self.at.parse::<Timestamp>().map_or(i64::MAX, |at| now.duration_since(at).as_secs())
    }
}

/// What was told of a member last.
pub(super) struct Told {
    serving: Option<u64>,
    refused: Option<RefusedVersion>,
    at: Instant,
}

impl Deployment {
    /// Tells the registry where this member stands: at once where that has changed, else now and then. A registry that takes no tag of this
    /// server's key goes without.
    pub(crate) async fn tell_standing(&self, reference: &Reference, registry: &dyn Registry) {
        let Selector::Alias(alias) = &reference.selector else { return };
        let (serving, refused) = (self.serving().map(|serving| serving.version), self.refused());
        let every = TELL_EVERY.max(self.rollouts.tell_every());
        if !self.rollouts.standing_is_due(serving, refused.as_ref(), every) {
            return;
        }
        let follower = Follower {
            host: sysinfo::System::host_name().unwrap_or_else(|_| "unnamed host".to_owned()),
            process: std::process::id(),
            member: self.name().to_owned(),
            serving,
            refused,
            at: now(),
            every_s: every.as_secs().max(1),
        };
        let text = serde_json::to_string(&follower).expect("names and numbers are JSON");
        if let Err(error) = registry.set_tag(&reference.name, &self.standing_tag(alias), Some(&text)).await {
            if self.rollouts.is_first_untold() {
                let name = self.name();
                warn!(member.name = %name, "Where `{name}` stands is not told to the registry: {error}");
            }
            return;
        }
        self.forget_stopped(&reference.name, alias, registry).await;
    }

    /// Takes away what servers told that have stopped long ago.
    async fn forget_stopped(&self, model: &str, alias: &str, registry: &dyn Registry) {
        let Ok(tags) = registry.tags(model).await else { return };
        let now = Timestamp::now();
        for (id, text) in under(&tags, SERVING_TAG, alias) {
            if read::<Follower>(text).is_some_and(|other| other.age_s(now) > FORGOTTEN_AFTER_S) {
                // Another may have done it in the same moment.
                let _gone = registry.set_tag(model, &standing_tag(id, alias), None).await;
            }
        }
    }

    /// Takes away what was told of a member that is one no more. Returns at once where it is not awaited.
    pub(crate) fn withdraw(&self) -> impl Future<Output = ()> + Send + use<> {
        let told = self.rollouts.was_told();
        let (source, registry) = (self.source().clone(), self.registry().map(Arc::clone));
        let tag = |alias: &str| self.standing_tag(alias);
        let known = match (source, registry) {
            (ModelSource::Registry(Reference { name, selector: Selector::Alias(alias) }), Some(registry)) if told => {
                Some((registry, name, tag(&alias)))
            }
            _ => None,
        };
        async move {
            let Some((registry, model, tag)) = known else { return };
            let _told = tokio::time::timeout(FAREWELL, registry.set_tag(&model, &tag, None)).await;
        }
    }

    // The same after an edit of the portfolio, so that nobody waits for what a member was before.
    fn standing_tag(&self, alias: &str) -> String {
        let whole = Digest::of(format!("{} {}", self.rollouts.process(), self.name()).as_bytes()).to_string();
        standing_tag(whole.trim_start_matches("sha256:").get(..16).unwrap_or_default(), alias)
    }
}

impl Told {
    pub(super) fn new(serving: Option<u64>, refused: Option<&RefusedVersion>) -> Self {
        Self { serving, refused: refused.cloned(), at: Instant::now() }
    }

    pub(super) fn is_current(&self, serving: Option<u64>, refused: Option<&RefusedVersion>, every: Duration) -> bool {
        self.serving == serving && self.refused.as_ref() == refused && self.at.elapsed() < every
    }
}

impl RefusedVersion {
    pub(crate) fn new(version: u64, reason: &str) -> Self {
        Self { version, reason: reason.chars().take(MAX_REASON_CHARS).collect() }
    }
}

fn standing_tag(id: &str, alias: &str) -> String {
    format!("{SERVING_TAG}{id}.{alias}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_has_told_nothing_for_long_has_stopped() {
        let follower = Follower {
            host: "web-1".to_owned(),
            process: 7,
            member: "router".to_owned(),
            serving: Some(1),
            refused: Some(RefusedVersion::new(2, &"x".repeat(5000))),
            at: "2026-11-29T09:00:00Z".to_owned(),
            every_s: 15,
        };
        let text = serde_json::to_string(&follower).unwrap();
        assert!(text.len() < 2000, "{}", text.len());
        let tags = [
            (standing_tag("aa", "champion"), text.clone()),
            (standing_tag("ab", "staging"), text),
            (standing_tag("ac", "champion"), "not ours".to_owned()),
        ];
        assert_eq!(Follower::all(&tags.into(), "champion"), std::slice::from_ref(&follower));
        let runs = |now: &str| follower.is_running(now.parse().unwrap());
        // A clock that is behind the server's is no reason to take it for gone.
        assert!(runs("2026-11-29T09:00:40Z") && runs("2026-11-29T08:59:00Z") && !runs("2026-11-29T09:00:41Z"));
        assert!(!Follower { at: "yesterday".to_owned(), ..follower }.is_running(Timestamp::now()));
    }
}

//! Rollouts: a candidate beside what serves, in the shadow or for a share of the requests, judged on the answers of both.
//!
//! A rollout is a set of tags of the registered model, so that any MLflow server holds it and replicas need nothing but the
//! registry: what is tried and how (written once, by who deploys), how far it has come, what each replica has seen, and how it
//! ended. Every replica reads them, adds its own counts, and comes to the same judgement; what decides is in
//! `highroad_eval`.

mod assign;
pub(crate) mod by_hand;
mod compare;
mod course;
mod follow;
pub(crate) mod pairs;
mod probation;
mod shadow;
mod standing;
mod status;
pub(crate) mod trial;

use std::collections::BTreeMap;

use highroad_eval::{CheckResult, Pace, Plan, RolloutCounts, RolloutRules};
use highroad_package::Digest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::warn;

pub use assign::{Assigned, Key, Served};
pub use compare::{Compared, Limits, compare, compare_texts};
pub(crate) use course::Course;
pub use course::{CourseShown, PointShown, RuleShown};
pub(crate) use follow::{RolloutSettings, Rollouts};
pub use pairs::{Pair, Side, Spent, Timed, Written, read_pairs};
pub(crate) use probation::{Probation, Promised, WaysBack};
pub use standing::{Follower, RefusedVersion};
pub use status::{Latencies, RolloutStatus};
pub(crate) use trial::Trial;

/// Tag of what is tried, followed by the alias.
const ROLLOUT_TAG: &str = "highroad.rollout.";
/// Tag of how far it has come, followed by the alias.
const STEP_TAG: &str = "highroad.rollout-step.";
/// Tag of how a rollout ended, followed by its id, a point and the alias. These stay, as the record.
const END_TAG: &str = "highroad.rollout-end.";
/// Tag of what one replica has seen, followed by its id, a point and the alias.
const SEEN_TAG: &str = "highroad.rollout-seen.";
/// Most replicas whose counts are added up: a registry that holds more was filled by somebody else.
const MAX_REPLICAS: usize = 10_000;

/// What is tried, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Format version, 1.
    pub highroad_rollout: u32,
    /// 16 hexadecimal digits.
    pub id: String,
    /// What the alias names.
    pub stable: Release,
    /// What is to take its place.
    pub candidate: Release,
    /// How the candidate meets traffic.
    pub plan: Plan,
    /// What it may do there.
    pub rules: RolloutRules,
    /// When a canary goes on.
    pub pace: Pace,
    /// Which answers count as different, and which as slow.
    pub limits: Limits,
    /// What follows a pass.
    pub on_pass: OnPass,
    /// Who deploys.
    pub by: String,
    /// Why.
    pub why: String,
    /// When, RFC 3339 in UTC.
    pub begun_at: String,
}

/// A version and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Release {
    pub version: u64,
    pub package: Digest,
}

/// What follows a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnPass {
    /// The alias moves to the candidate.
    Promote,
    /// A person decides.
    Hold,
}

/// How far a rollout has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RolloutStep")]
pub struct Step {
    /// Id of the rollout.
    pub rollout: String,
    /// Which of the plan's shares it is at.
    pub idx: u64,
    /// Since when, milliseconds since 1970, UTC.
    pub since_ms: i64,
    /// Requests that the candidate had been asked by then.
    pub n_asked: u64,
    /// What it passed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed: Option<Passed>,
}

/// A pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Passed {
    /// When, RFC 3339 in UTC.
    pub at: String,
    /// Each rule and how it went.
    pub checks: Vec<CheckResult>,
}

/// How a rollout ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RolloutEnd")]
pub struct End {
    /// Id of the rollout.
    pub rollout: String,
    /// What became of the candidate.
    pub outcome: Ended,
    /// Version of the candidate.
    pub candidate: u64,
    /// Why, in a sentence.
    pub reason: String,
    /// Who decided: a person, or `rollout` for the rules.
    pub by: String,
    /// When, RFC 3339 in UTC.
    pub at: String,
    /// What was seen by then.
    #[serde(default)]
    pub counts: RolloutCounts,
    /// Each rule and how it went; none where a person decided before anything was seen.
    #[serde(default)]
    pub checks: Vec<CheckResult>,
}

/// What became of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
#[schemars(rename = "RolloutOutcome")]
pub enum Ended {
    Promoted,
    Aborted,
}

/// What one replica has seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    rollout: String,
    counts: RolloutCounts,
}

/// Everything a registry holds about the newest rollout of an alias.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Book {
    /// The newest rollout.
    pub rollout: Option<Rollout>,
    /// How far it has come.
    pub step: Step,
    /// How it ended.
    pub end: Option<End>,
    /// What each replica has seen, by its id.
    pub seen: BTreeMap<String, RolloutCounts>,
    /// How earlier ones ended, and this one, in the order of their times.
    pub ends: Vec<End>,
}

impl Book {
    /// Reads the tags of a model. Tags that somebody else wrote, or that another version of this program would understand, are
    /// passed over.
    pub fn read(tags: &BTreeMap<String, String>, alias: &str) -> Self {
        let rollout = tags.get(&rollout_tag(alias)).and_then(|text| read::<Rollout>(text)).filter(Rollout::is_sound);
        let mut ends: Vec<End> = under(tags, END_TAG, alias).filter_map(|(_, text)| read(text)).collect();
        ends.sort_by(|left, right| left.at.cmp(&right.at));
        let Some(rollout) = rollout else { return Self { ends, ..Self::default() } };
        let id = rollout.id.as_str();
        let step = tags.get(&step_tag(alias)).and_then(|text| read::<Step>(text)).filter(|step| step.rollout == id);
        let seen = under(tags, SEEN_TAG, alias).take(MAX_REPLICAS).filter_map(|(replica, text)| {
            let seen = read::<Seen>(text).filter(|seen| seen.rollout == id)?;
            Some((replica.to_owned(), seen.counts))
        });
        Self {
            step: step.unwrap_or_else(|| Step { rollout: id.to_owned(), ..Step::default() }),
            end: ends.iter().find(|end| end.rollout == id).cloned(),
            seen: seen.collect(),
            ends,
            rollout: Some(rollout),
        }
    }

    /// The rollout, if it goes on.
    pub fn running(&self) -> Option<&Rollout> {
        self.rollout.as_ref().filter(|_| self.end.is_none())
    }

    /// What all replicas have seen.
    pub fn counts(&self) -> RolloutCounts {
        let mut sum = RolloutCounts::default();
        self.seen.values().for_each(|counts| sum.add(counts));
        sum
    }
}

impl Rollout {
    /// Whether it can be kept: shares and limits are some, and the two versions are two.
    fn is_sound(&self) -> bool {
        let sound = self.highroad_rollout == 1
            && is_id(&self.id)
            && self.plan.check().is_ok()
            && self.rules.check().is_ok()
            && self.limits.are_sound()
            && self.pace.seconds >= 0.0
            && self.stable.version != self.candidate.version;
        if !sound {
            warn!("Passing over a rollout that cannot be kept");
        }
        sound
    }

    /// The share of the traffic that takes part at a step, in percent; the last for steps beyond it.
    pub fn percent(&self, step_idx: u64) -> f64 {
        let percents = self.plan.percents();
        let idx = usize::try_from(step_idx).unwrap_or(usize::MAX).min(percents.len().saturating_sub(1));
        percents.get(idx).copied().unwrap_or(0.0)
    }
}

fn is_id(id: &str) -> bool {
    id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit())
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text).inspect_err(|error| warn!("Passing over a tag of a rollout: {error}")).ok()
}

/// Tags `prefix` + id + `.` + `alias`: the id and the value.
fn under<'a>(
    tags: &'a BTreeMap<String, String>,
    prefix: &'static str,
    alias: &'a str,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    tags.range(prefix.to_owned()..).take_while(move |(key, _)| key.starts_with(prefix)).filter_map(
        move |(key, value)| {
            let (id, of) = key.strip_prefix(prefix)?.split_once('.')?;
            (of == alias).then_some((id, value.as_str()))
        },
    )
}

/// The tag of what is tried for `alias`.
pub fn rollout_tag(alias: &str) -> String {
    format!("{ROLLOUT_TAG}{alias}")
}

/// The tag of how far it has come.
pub fn step_tag(alias: &str) -> String {
    format!("{STEP_TAG}{alias}")
}

/// The tag of how the rollout `id` ended.
pub fn end_tag(id: &str, alias: &str) -> String {
    format!("{END_TAG}{id}.{alias}")
}

/// The tags in which replicas told what they had seen for `alias`: those of rollouts that are over can go.
pub fn seen_tags<'a>(tags: &'a BTreeMap<String, String>, alias: &'a str) -> impl Iterator<Item = String> + 'a {
    under(tags, SEEN_TAG, alias).map(move |(replica, _)| seen_tag(replica, alias))
}

fn seen_tag(replica: &str, alias: &str) -> String {
    format!("{SEEN_TAG}{replica}.{alias}")
}

/// 16 hexadecimal digits that nobody else has: of a rollout, or of a replica.
pub fn new_id() -> String {
    use std::hash::{BuildHasher as _, Hasher as _};
    // `RandomState` is seeded by the system, anew for each.
    format!("{:016x}", std::hash::RandomState::new().build_hasher().finish())
}

/// Now, milliseconds since 1970, UTC.
pub(crate) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// Now, RFC 3339 in UTC.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    pub(super) fn rollout(plan: Plan) -> Rollout {
        Rollout {
            highroad_rollout: 1,
            id: "00000000000000aa".to_owned(),
            stable: Release { version: 1, package: Digest::of(b"1") },
            candidate: Release { version: 2, package: Digest::of(b"2") },
            plan,
            rules: RolloutRules::default(),
            pace: Pace { requests: 10, seconds: 0.0 },
            limits: Limits::default(),
            on_pass: OnPass::Promote,
            by: "ann".to_owned(),
            why: "better".to_owned(),
            begun_at: "2026-11-29T09:00:00Z".to_owned(),
        }
    }

    fn text(value: &impl Serialize) -> String {
        serde_json::to_string(value).unwrap()
    }

    #[test]
    fn a_book_is_read_from_tags_and_what_others_wrote_is_passed_over() {
        let running = rollout(Plan::Canary { percents: vec![5.0, 100.0] });
        let id = running.id.as_str();
        let counts = RolloutCounts { n_asked: 3, ..RolloutCounts::default() };
        let seen = |rollout: &str| text(&Seen { rollout: rollout.to_owned(), counts });
        let mut tags: BTreeMap<String, String> = [
            ("owner".to_owned(), "ann".to_owned()),
            (rollout_tag("champion"), text(&running)),
            (step_tag("champion"), text(&Step { rollout: id.to_owned(), idx: 1, ..Step::default() })),
            (seen_tag("aa", "champion"), seen(id)),
            (seen_tag("ab", "champion"), seen(id)),
            (seen_tag("ac", "champion"), seen("an older one")),
            (seen_tag("ad", "champion"), "not ours".to_owned()),
            (seen_tag("ae", "staging"), seen(id)),
        ]
        .into();
        let book = Book::read(&tags, "champion");
        assert_eq!((book.running().map(|r| r.percent(book.step.idx)), book.counts().n_asked), (Some(100.0), 6));
        assert_eq!(seen_tags(&tags, "champion").count(), 4);
        assert_eq!(Book::read(&tags, "staging"), Book::default());

        let end = End {
            rollout: id.to_owned(),
            outcome: Ended::Aborted,
            candidate: 2,
            reason: "worse".to_owned(),
            by: "rollout".to_owned(),
            at: now(),
            counts,
            checks: Vec::new(),
        };
        tags.insert(end_tag(id, "champion"), text(&end));
        let book = Book::read(&tags, "champion");
        assert_eq!((book.running(), &book.end, book.ends.len()), (None, &Some(end), 1));
    }

    #[test]
    fn a_rollout_that_cannot_be_kept_is_none() {
        let sound = rollout(Plan::Shadow { percent: 20.0 });
        let of = |rollout: &Rollout| Book::read(&[(rollout_tag("a.b"), text(rollout))].into(), "a.b").rollout;
        assert_eq!(of(&sound), Some(sound.clone()));
        for bad in [
            Rollout { plan: Plan::Shadow { percent: 200.0 }, ..sound.clone() },
            Rollout { id: "../../etc/passwd".to_owned(), ..sound.clone() },
            Rollout { candidate: sound.stable, ..sound.clone() },
            Rollout { highroad_rollout: 2, ..sound.clone() },
            Rollout { limits: Limits { min_cosine: 2.0, ..Limits::default() }, ..sound.clone() },
        ] {
            assert_eq!(of(&bad), None, "{bad:?}");
        }
    }
}

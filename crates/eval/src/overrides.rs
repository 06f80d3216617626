use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::Outcome;

/// Longest time from the making of an override to its end.
pub const MAX_OVERRIDE_DAYS: u32 = 30;
/// How far ahead the clock of whoever made an override may be.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(5);
/// Format version that is written and read.
const FORMAT: u32 = 1;

/// A named person's decision that an alias names a package which no verdict admits there, for some days.
///
/// It stands in for the verdict alone: bytes, signatures and parity are checked as ever. Digests and times are written as in a
/// [`Verdict`](crate::Verdict).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// Format version, 1.
    pub highroad_override: u32,
    /// Digest of the package.
    pub package: String,
    /// Registered model whose alias it is for.
    pub model: String,
    /// The one alias it is for.
    pub alias: String,
    /// Who decided it.
    pub by: String,
    /// Why.
    pub why: String,
    /// What a promotion without it lacked.
    pub missing: Missing,
    /// When it was made.
    pub created_at: String,
    /// From when on it is void.
    pub expires_at: String,
}

/// Why no verdict admitted the package when it was overridden.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Missing {
    /// Digest of the verdict that does not admit it; absent if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// What that verdict says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// In words.
    pub reason: String,
}

/// What an override is asked to admit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Aliased<'a> {
    pub package: &'a str,
    pub model: &'a str,
    pub alias: &'a str,
}

/// Why an override does not admit a package to production.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum OverrideRefusal {
    #[error("the override has format {0}, which this program does not read")]
    Format(u32),
    #[error("the override is about {overridden}, not {asked}")]
    Other { overridden: String, asked: String },
    #[error("the override says neither who nor why")]
    Nameless,
    #[error("`{0}` in the override is no time such as `2026-11-23T10:00:00Z`")]
    Time(String),
    #[error("the override runs from {created_at} to {expires_at}: it begins in the future or lasts over 30 days")]
    Span { created_at: String, expires_at: String },
    #[error("{by} overrode the gate only until {expires_at}")]
    Expired { by: String, expires_at: String },
}

impl Override {
    /// The override of `asked` by a person from `now` (RFC 3339, UTC) for `days`, 1 to [`MAX_OVERRIDE_DAYS`].
    ///
    /// Errors as [`Override::admits`] would: it never makes one that admits nothing.
    pub fn new(
        asked: Aliased<'_>,
        [by, why]: [&str; 2],
        missing: Missing,
        now: &str,
        days: u32,
    ) -> Result<Self, OverrideRefusal> {
        let lasts = SignedDuration::from_hours(24 * i64::from(days));
        let expires_at = time(now)?.checked_add(lasts).map_err(|_| OverrideRefusal::Time(now.to_owned()))?;
        let made = Self {
            highroad_override: FORMAT,
            package: asked.package.to_owned(),
            model: asked.model.to_owned(),
            alias: asked.alias.to_owned(),
            by: by.to_owned(),
            why: why.to_owned(),
            missing,
            created_at: now.to_owned(),
            expires_at: expires_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        };
        made.admits(asked, now).map(|()| made)
    }

    /// Whether the alias may name the package at `now` (RFC 3339, UTC) on the strength of this override.
    pub fn admits(&self, asked: Aliased<'_>, now: &str) -> Result<(), OverrideRefusal> {
        if self.highroad_override != FORMAT {
            return Err(OverrideRefusal::Format(self.highroad_override));
        }
        let of = Aliased { package: &self.package, model: &self.model, alias: &self.alias };
        if of != asked {
            return Err(OverrideRefusal::Other { overridden: of.in_words(), asked: asked.in_words() });
        }
        if self.by.trim().is_empty() || self.why.trim().is_empty() {
            return Err(OverrideRefusal::Nameless);
        }
        let (created_at, expires_at, now) = (time(&self.created_at)?, time(&self.expires_at)?, time(now)?);
        let longest = SignedDuration::from_hours(24 * i64::from(MAX_OVERRIDE_DAYS));
        if created_at.duration_since(now) > CLOCK_SKEW || expires_at.duration_since(created_at) > longest {
            let (created_at, expires_at) = (self.created_at.clone(), self.expires_at.clone());
            return Err(OverrideRefusal::Span { created_at, expires_at });
        }
        if expires_at <= now {
            return Err(OverrideRefusal::Expired { by: self.by.clone(), expires_at: self.expires_at.clone() });
        }
        Ok(())
    }

    /// Who, until when and why, in one clause.
    pub fn in_words(&self) -> String {
        format!("{} overrode the gate until {}: {}", self.by, self.expires_at, self.why)
    }
}

impl Aliased<'_> {
    fn in_words(&self) -> String {
        format!("`{}@{}` and package {}", self.model, self.alias, self.package)
    }
}

fn time(text: &str) -> Result<Timestamp, OverrideRefusal> {
    text.parse().map_err(|_| OverrideRefusal::Time(text.to_owned()))
}

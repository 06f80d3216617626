//! A person ends a rollout, or promotes what passed it, in a process that runs it.

use std::time::Instant;

use highroad_package::Selector;
use highroad_service::{Kind, Problem};

use crate::config::ModelSource;
use crate::deployment::Deployment;
use crate::rollout::follow::Look;
use crate::rollout::{End, Ended, OnPass, Trial, end_tag, now};

/// Longest name and reason, in bytes: a tag of MLflow has to hold both.
pub(crate) const MAX_WORDS: usize = 500;

/// Who acts, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hand {
    pub(crate) by: String,
    pub(crate) why: String,
}

impl Hand {
    /// Errors if either is empty, too long, or holds control characters.
    pub(crate) fn new(by: &str, why: &str) -> Result<Self, Problem> {
        for (name, text) in [("by", by), ("why", why)] {
            if text.trim().is_empty() {
                return Err(Problem::invalid(format!("`{name}` is empty: a move has a person and a reason")));
            }
            if text.len() > MAX_WORDS || text.chars().any(char::is_control) {
                return Err(Problem::invalid(format!("`{name}` takes up to {MAX_WORDS} bytes on one line")));
            }
        }
        Ok(Self { by: by.trim().to_owned(), why: why.trim().to_owned() })
    }
}

impl Deployment {
    /// Ends the rollout `id`: its candidate takes no more traffic here, at once, and elsewhere as soon as the others look at the registry.
    ///
    /// Errors if that rollout does not go on here.
    pub(crate) fn abort_by_hand(&self, id: &str, hand: Hand) -> Result<End, Problem> {
        let trial = self.running(id)?;
        let end = by_hand(&trial, Ended::Aborted, hand);
        trial.end(end, Instant::now());
        self.save_own_end();
        // Where the rules ended it in the same moment, that is how it ended.
        trial.ended().cloned().ok_or_else(|| Problem::internal(&"a rollout that was ended has no end"))
    }

    /// Moves the alias to the candidate of the rollout `id`, which passed and waits for a person. The way back is walked first.
    ///
    /// Errors if that rollout does not go on here, has not passed, is promoted by itself, or if the gate or the rehearsal refuse.
    pub(crate) async fn promote_by_hand(&self, id: &str, hand: Hand) -> Result<End, Problem> {
        let trial = self.running(id)?;
        let label = trial.resolved.label();
        if trial.step().passed.is_none() {
            return Err(conflict(format!("rollout {id} of `{label}` has not passed")));
        }
        if trial.rollout.on_pass == OnPass::Promote {
            return Err(conflict(format!("rollout {id} of `{label}` passed and is being promoted")));
        }
        let (ModelSource::Registry(reference), Some(registry)) = (self.source(), self.registry()) else {
            return Err(conflict(format!("`{}` follows no registry", self.name())));
        };
        let Selector::Alias(alias) = &reference.selector else {
            return Err(conflict(format!("`{}` follows no alias", self.name())));
        };
        let look = Look { registry: registry.as_ref(), model: &reference.name, alias };
        let why = format!("rollout {id} passed: {}", hand.why);
        let moved = self.walk_and_promote(&look, &trial, hand.by.clone(), why).await;
        let moved = moved.map_err(|error| Problem::new(Kind::Unavailable, error.to_string()))?;
        match moved {
            None => Err(conflict(format!("rollout {id} of `{label}` was ended meanwhile"))),
            Some(Err(refusal)) => Err(conflict(refusal)),
            Some(Ok(())) => {
                let end = by_hand(&trial, Ended::Promoted, hand);
                // The alias has moved: replicas that read no end take it for one that was promoted.
                if let Err(error) = look.set(&end_tag(id, alias), &end).await {
                    tracing::warn!(member.name = %self.name(), rollout.id = %id, "The end of the rollout was not told: {error}");
                }
                self.rollouts.look_now();
                Ok(end)
            }
        }
    }

    fn running(&self, id: &str) -> Result<std::sync::Arc<Trial>, Problem> {
        let trial = self.rollouts.trial.load_full();
        let running = trial.filter(|trial| trial.rollout.id == id && trial.ended().is_none());
        running.ok_or_else(|| conflict(format!("rollout `{id}` of `{}` does not go on here", self.name())))
    }
}

fn by_hand(trial: &Trial, outcome: Ended, hand: Hand) -> End {
    End {
        rollout: trial.rollout.id.clone(),
        outcome,
        candidate: trial.rollout.candidate.version,
        reason: hand.why,
        by: hand.by,
        at: now(),
        counts: trial.all_counts(),
        checks: trial.judge().checks,
    }
}

fn conflict(message: String) -> Problem {
    Problem::new(Kind::Conflict, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_has_a_name_and_a_reason() {
        assert_eq!(Hand::new(" ann ", "worse").map(|hand| hand.by), Ok("ann".to_owned()));
        for (by, why) in [("", "worse"), ("ann", " "), ("ann\n", "worse"), ("ann", &*"x".repeat(MAX_WORDS + 1))] {
            assert!(Hand::new(by, why).is_err(), "{by:?} {why:?}");
        }
    }
}

//! Rows through a member's kept answers: found, awaited, or computed, each once.

use std::time::{Duration, Instant};

use highroad_task::{Answer, Prepared};
use tokio::sync::watch;

use super::{Cached, Revision, Terms, settle};
use crate::batcher::Done;
use crate::budget::keeper::hold_here;
use crate::cache::{CacheUse, Key, Landed, Late, Leader, Turn, landed};
use crate::error::AskError;
use crate::model::{Work, Yield};
use crate::urgency::Urgency;

/// What each row of a request waits for, by its place.
#[derive(Default)]
struct Parts {
    found: Vec<(usize, Answer)>,
    followed: Vec<(usize, Prepared, watch::Receiver<Landed>)>,
    computed: Vec<(usize, Prepared, Option<Leader>)>,
}

impl Parts {
    /// Tokens of what may have to be computed.
    fn n_tokens(&self) -> usize {
        let followed = self.followed.iter().map(|(_, row, _)| row.n_tokens());
        followed.sum::<usize>() + self.n_computed_tokens()
    }

    fn n_computed_tokens(&self) -> usize {
        self.computed.iter().map(|(_, row, _)| row.n_tokens()).sum()
    }
}

impl Revision {
    /// Every row, in order, and where they came from. What is computed counts against budgets, and nothing else does.
    pub(super) async fn rows_through(
        &self,
        cached: &Cached,
        rows: Vec<Prepared>,
        terms: Terms,
    ) -> Result<(Vec<Done<Yield>>, Option<CacheUse>), AskError> {
        let submitted = Instant::now();
        let n_rows = rows.len();
        let parts = self.parts(cached, rows, terms);
        let n_tokens = parts.n_tokens();
        let hold = if n_tokens == 0 { None } else { hold_here(&self.facts.member, n_tokens).await? };
        let mut used = CacheUse { n_hits: parts.found.len(), n_computed: parts.computed.len(), ..CacheUse::default() };
        let mut n_computed_tokens = parts.n_computed_tokens();
        let mut done: Vec<Option<Done<Yield>>> = (0..n_rows).map(|_| None).collect();
        for (row_idx, answer) in parts.found {
            done[row_idx] = Some(found(answer, Duration::ZERO));
        }
        for (row_idx, row) in self.compute(parts.computed, terms, submitted).await? {
            done[row_idx] = Some(row);
        }
        let mut again = Vec::new();
        for (row_idx, row, flight) in parts.followed {
            match landed(flight, self.deadline(terms, submitted)).await {
                Ok(Some(answer)) => {
                    cached.answers.count_coalesced();
                    used.n_coalesced += 1;
                    done[row_idx] = Some(found(answer, submitted.elapsed()));
                }
                Ok(None) => again.push((row_idx, row, None)),
                Err(Late) => {
                    return Err(self.stats.failed(AskError::Expired { waited: submitted.elapsed() }));
                }
            }
        }
        used.n_computed += again.len();
        n_computed_tokens += again.iter().map(|(_, row, _)| row.n_tokens()).sum::<usize>();
        for (row_idx, row) in self.compute(again, terms, submitted).await? {
            done[row_idx] = Some(row);
        }
        settle(hold, n_computed_tokens);
        let done: Vec<Done<Yield>> = done.into_iter().flatten().collect();
        self.stats.succeeded(&done, submitted.elapsed());
        Ok((done, Some(used)))
    }

    fn parts(&self, cached: &Cached, rows: Vec<Prepared>, terms: Terms) -> Parts {
        let urgency = Urgency::current();
        let priority = urgency.priority(terms.priority);
        // Who is in a hurry of its own does not wait for a row whose deadline is another.
        let waits = terms.timeout.is_none() && urgency.left(Instant::now()).is_none();
        let mut parts = Parts::default();
        for (row_idx, row) in rows.into_iter().enumerate() {
            let key: Key = cached.answers.key(&cached.version, &row);
            match cached.answers.turn(key, priority, waits) {
                Turn::Hit(answer) => parts.found.push((row_idx, answer)),
                Turn::Follow(flight) => parts.followed.push((row_idx, row, flight)),
                Turn::Lead(leader) => parts.computed.push((row_idx, row, Some(leader))),
                Turn::Alone => parts.computed.push((row_idx, row, None)),
            }
        }
        parts
    }

    async fn compute(
        &self,
        rows: Vec<(usize, Prepared, Option<Leader>)>,
        terms: Terms,
        submitted: Instant,
    ) -> Result<Vec<(usize, Done<Yield>)>, AskError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let (places, work): (Vec<_>, Vec<_>) =
            rows.into_iter().map(|(row_idx, row, leader)| ((row_idx, leader), Work::Row(row))).unzip();
        let tickets = self.submit(work, terms, submitted)?;
        let flying = places.into_iter().zip(tickets).map(|((row_idx, leader), ticket)| match leader {
            Some(leader) => (row_idx, leader.fly(ticket)),
            None => (row_idx, ticket),
        });
        let mut done = Vec::new();
        // All of them fly before the first is waited for.
        for (row_idx, ticket) in flying.collect::<Vec<_>>() {
            let row = self.redeem(ticket, submitted).await.map_err(|error| self.stats.failed(error))?;
            done.push((row_idx, row));
        }
        Ok(done)
    }
}

/// An answer that took no batch.
fn found(answer: Answer, queued: Duration) -> Done<Yield> {
    Done { output: Yield::Row(answer), queued, computed: Duration::ZERO, batch_rows: 0 }
}

use std::collections::BTreeMap;
use std::num::NonZeroU32;

/// Whose turn a row takes.
///
/// Flows of one weight are a class. While all classes wait, each gets work in proportion to its weight; within a class each owner gets the
/// same. None of them ever starves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Share of the class; a class of a larger weight goes before one of a smaller.
    pub weight: NonZeroU32,
    /// Who shares it.
    pub owner: u64,
}

impl Default for Flow {
    fn default() -> Self {
        Self { weight: NonZeroU32::MIN, owner: 0 }
    }
}

/// What classes and owners have had, in virtual time: start-time fair queueing on two levels.
///
/// Who is served pays for the tokens it got, a class over its weight; who has paid least is next. Who was away begins at what those
/// pay who were served last, so nothing is saved up.
#[derive(Debug, Default)]
pub(super) struct Shares {
    classes: BTreeMap<NonZeroU32, u64>,
    /// Where the class stood that was served last.
    now: u64,
    owners: BTreeMap<Flow, u64>,
    /// The same for the owners of each class.
    owners_now: BTreeMap<NonZeroU32, u64>,
}

/// Who goes before whom: by the time of the class, its weight, and the time of the owner.
pub(super) type Order = (u64, std::cmp::Reverse<NonZeroU32>, u64);

/// Virtual time of a token, divided by weights: large enough that rounding does not matter.
const TOKEN: u64 = 1 << 16;
/// Owners that are remembered though they have nothing to pay for.
const REMEMBERED: usize = 1024;

impl Shares {
    /// A row of `flow` comes, and finds others waiting or not: any, of its class, of its own. Where none waits there is nothing to share, so
    /// what was paid is forgotten.
    pub(super) fn enter(&mut self, flow: Flow, [any, class, own]: [bool; 3]) {
        if !any {
            *self = Self::default();
        }
        if !class {
            self.owners.retain(|other, _| other.weight != flow.weight);
            self.owners_now.remove(&flow.weight);
            let time = self.classes.entry(flow.weight).or_default();
            *time = self.now.max(*time);
        }
        if !own {
            let now = self.owners_now.get(&flow.weight).copied().unwrap_or_default();
            let time = self.owners.entry(flow).or_default();
            *time = now.max(*time);
        }
    }

    /// Who goes first: the smallest.
    pub(super) fn order(&self, flow: Flow) -> Order {
        let class = self.classes.get(&flow.weight).copied().unwrap_or(self.now);
        (class, std::cmp::Reverse(flow.weight), self.owners.get(&flow).copied().unwrap_or_default())
    }

    /// `anchor` is served, and with it the rows of `taken`, so many tokens each.
    pub(super) fn pay(&mut self, anchor: Flow, taken: impl Iterator<Item = (Flow, usize)>) {
        let (class, _, owner) = self.order(anchor);
        self.now = self.now.max(class);
        let now = self.owners_now.entry(anchor.weight).or_default();
        *now = owner.max(*now);
        for (flow, n_tokens) in taken {
            let cost = (n_tokens.max(1) as u64).saturating_mul(TOKEN);
            let class = self.classes.entry(flow.weight).or_default();
            *class = class.saturating_add(cost / u64::from(flow.weight.get()));
            let owner = self.owners.entry(flow).or_default();
            *owner = owner.saturating_add(cost);
        }
    }

    #[cfg(test)]
    pub(super) fn n_owners(&self) -> usize {
        self.owners.len()
    }

    /// Forgets owners that owe nothing, where there are many.
    pub(super) fn tidy(&mut self, waits: impl Fn(Flow) -> bool) {
        if self.owners.len() > REMEMBERED {
            let now = &self.owners_now;
            self.owners.retain(|flow, time| now.get(&flow.weight).is_none_or(|now| *time > *now) || waits(*flow));
        }
    }
}

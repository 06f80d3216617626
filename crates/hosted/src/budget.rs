use std::sync::{Mutex, PoisonError};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{HostedError, Price};

/// Tokens of a request, or the most there can be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct Tokens {
    pub input: u64,
    pub output: u64,
}

/// What may be spent, shared by everything one command asks. Without a limit it only counts.
///
/// A request is let through only if its dearest outcome still fits beside what is spent and what others under way may cost.
#[derive(Debug, Default)]
pub struct Budget {
    most: Option<f64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    spent: f64,
    reserved: f64,
    /// Of every price so far.
    currency: Option<String>,
}

impl Budget {
    /// At most `most`, in the currency of the prices; anything if `None`.
    pub fn new(most: Option<f64>) -> Self {
        Self { most, state: Mutex::default() }
    }

    /// The limit.
    pub fn most(&self) -> Option<f64> {
        self.most
    }

    /// What was spent so far: a try whose outcome is unknown counts as its dearest one.
    pub fn spent(&self) -> f64 {
        self.lock().spent
    }

    /// Sets aside what a request may cost at most. Errors beyond the limit, or where the price is in another currency than an
    /// earlier one. `None` where no price is known, which [`crate::Client`] allows without a
    /// limit only.
    pub(crate) fn reserve(&self, price: Option<&Price>, worst: Tokens) -> Result<Reserved<'_>, HostedError> {
        let amount = price.map_or(0.0, |price| price.of(worst));
        let mut state = self.lock();
        if let (Some(price), Some(_)) = (price, self.most) {
            let first = state.currency.get_or_insert_with(|| price.currency.clone());
            if *first != price.currency {
                let (first, other) = (first.clone(), price.currency.clone());
                return Err(HostedError::Currencies { first, other });
            }
        }
        if let Some(most) = self.most.filter(|most| state.spent + state.reserved + amount > *most) {
            let currency = price.map_or_else(String::new, |price| price.currency.clone());
            return Err(HostedError::OverBudget { most, spent: state.spent, next: amount, currency });
        }
        state.reserved += amount;
        Ok(Reserved { budget: self, amount })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Money set aside. Dropped without being settled it counts as spent: nobody knows what a request that was cut off cost.
pub(crate) struct Reserved<'a> {
    budget: &'a Budget,
    amount: f64,
}

impl Reserved<'_> {
    pub(crate) fn settle(self, cost: f64) {
        let mut state = self.budget.lock();
        state.reserved -= self.amount;
        state.spent += cost;
        drop(state);
        std::mem::forget(self);
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut state = self.budget.lock();
        state.reserved -= self.amount;
        state.spent += self.amount;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price() -> Price {
        Price { currency: "EUR".to_owned(), input_per_million: 1.0, output_per_million: 2.0 }
    }

    #[test]
    fn requests_under_way_are_counted_at_their_dearest() {
        let budget = Budget::new(Some(10.0));
        let worst = Tokens { input: 1_000_000, output: 2_000_000 };
        let (first, second) = (budget.reserve(Some(&price()), worst).ok(), budget.reserve(Some(&price()), worst).ok());
        assert!(budget.reserve(Some(&price()), worst).is_err(), "15 would be more than 10");
        first.expect("5 of 10").settle(1.0);
        let third = budget.reserve(Some(&price()), Tokens { input: 4_000_000, output: 0 });
        assert!(third.is_ok(), "1 spent, 5 and 4 set aside");
        drop((second, third));
        assert_eq!(budget.spent(), 10.0);
    }

    #[test]
    fn a_limit_is_in_one_currency() {
        let dollars = Price { currency: "USD".to_owned(), ..price() };
        for (budget, is_refused) in [(Budget::new(Some(10.0)), true), (Budget::new(None), false)] {
            assert!(budget.reserve(Some(&price()), Tokens::default()).is_ok());
            let error = budget.reserve(Some(&dollars), Tokens::default()).err().map(|error| error.to_string());
            let told = "the cost cannot be limited: one price is in EUR, another in USD";
            assert_eq!(error.as_deref(), is_refused.then_some(told));
        }
    }
}

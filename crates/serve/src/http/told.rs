//! Where a response comes from, said of every response: also of errors and of what only tells about a member.

use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::{DEVELOPMENT, PACKAGE, origin};
use crate::portfolio::Portfolio;
use crate::revision::{Facts, Unverified};

/// What a response says that is about no member, while members may serve without a verdict.
const MAY_BE_UNVERIFIED: HeaderValue = HeaderValue::from_static("members may serve without a verdict");

tokio::task_local! {
    /// Who was asked last by the request that this task answers.
    static ASKED: Arc<Mutex<Option<Facts>>>;
}

/// Who was asked while a request was answered.
#[derive(Clone, Default)]
pub(crate) struct Origin(Arc<Mutex<Option<Facts>>>);

impl Origin {
    /// Answers a request and notes who is asked meanwhile.
    pub(crate) async fn scope<F: Future>(&self, answering: F) -> F::Output {
        ASKED.scope(Arc::clone(&self.0), answering).await
    }

    /// Adds to a response that does not say yet where it comes from. `visible` leaves out what gRPC's metadata cannot hold.
    pub(crate) fn put(&self, headers: &mut HeaderMap, unverified: Unverified, visible: bool) {
        if headers.contains_key(PACKAGE) {
            return;
        }
        let mut told = HeaderMap::new();
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(facts) => origin(facts, &mut told),
            None if unverified == Unverified::ServeAsDevelopment => drop(told.insert(DEVELOPMENT, MAY_BE_UNVERIFIED)),
            None => {}
        }
        let fits = |(_, value): &(HeaderName, HeaderValue)| !visible || value.to_str().is_ok();
        let told = told.into_iter().filter_map(|(name, value)| Some((name?, value)));
        headers.extend(told.filter(fits));
    }
}

/// What every response says beside where it comes from, where `portfolio` may serve without a verdict: also those of routes that know
/// nothing of it, and what is refused before any route.
pub fn in_development(portfolio: &Portfolio) -> Option<fn(&mut HeaderMap)> {
    let add: fn(&mut HeaderMap) = |headers| {
        if !headers.contains_key(PACKAGE) {
            headers.entry(DEVELOPMENT).or_insert(MAY_BE_UNVERIFIED);
        }
    };
    (portfolio.unverified() == Unverified::ServeAsDevelopment).then_some(add)
}

/// Notes who is asked by the request that this task answers, where it answers one. The last one counts: who stands in for another.
pub(crate) fn asked(facts: &Facts) {
    // What is no request has no response.
    let _noted = ASKED.try_with(|asked| {
        *asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(facts.clone());
    });
}

/// Lets `asking` ask several members without any of them being where the response comes from.
pub(crate) async fn by_several<F: Future>(asking: F) -> F::Output {
    ASKED.scope(Arc::default(), asking).await
}

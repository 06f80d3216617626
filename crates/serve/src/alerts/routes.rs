//! `GET /v1/highroad/alerts` and `/objectives`: what the key may see.

use highroad_service::access::Principal;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::book::{Alert, State};
use super::objectives::{ObjectivesShown, Scope};
use crate::portfolio::Portfolio;

/// What fires and what ended lately.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Alerts")]
pub(crate) struct AlertsShown {
    /// How many fire.
    firing: usize,
    /// What fires first, of each the newest first.
    alerts: Vec<Alert>,
}

/// What the request's key may see of all alerts.
pub(crate) fn alerts(portfolio: &Portfolio) -> AlertsShown {
    let alerts: Vec<Alert> = portfolio.alerts().all().into_iter().filter(may_see).collect();
    let firing = alerts.iter().filter(|alert| alert.state == State::Firing).count();
    AlertsShown { firing, alerts }
}

/// Where every objective stands.
pub(crate) fn objectives(portfolio: &Portfolio) -> ObjectivesShown {
    portfolio.alerts().objectives().view(Timestamp::now(), |scope, name| may_see_of(scope.name(), name))
}

fn may_see(alert: &Alert) -> bool {
    let scopes = Scope::ALL.map(Scope::name);
    let about = alert.labels.iter().filter(|(label, _)| scopes.contains(&label.as_str()));
    about.into_iter().all(|(label, value)| may_see_of(label, value))
}

/// A key that may ask some members sees theirs, and of tenants and keys its own.
fn may_see_of(scope: &str, name: &str) -> bool {
    let Some(principal) = Principal::current().filter(|principal| principal.members().is_some()) else { return true };
    match scope {
        "tenant" => principal.tenant == name,
        "key" => principal.key == name,
        _ => principal.may_ask(name),
    }
}

//! What an override admits, and for how long.

#![allow(clippy::unwrap_used)]

use highroad_eval::{Aliased, MAX_OVERRIDE_DAYS, Missing, Outcome, Override, OverrideRefusal};
use serde_json::json;

const NOW: &str = "2026-11-23T10:00:00Z";
const ASKED: Aliased<'static> = Aliased { package: "sha256:a", model: "router", alias: "champion" };

fn missing() -> Missing {
    Missing { verdict: Some("sha256:v".into()), outcome: Some(Outcome::Fail), reason: "the verdict is fail".into() }
}

fn for_days(days: u32) -> Result<Override, OverrideRefusal> {
    Override::new(ASKED, ["ann", "an outage"], missing(), NOW, days)
}

#[test]
fn an_override_holds_for_its_days_and_not_a_second_longer() {
    let week = for_days(7).unwrap();
    assert_eq!(week.expires_at, "2026-11-30T10:00:00Z");
    assert_eq!(week.admits(ASKED, "2026-11-30T09:59:59Z"), Ok(()));
    let refused = week.admits(ASKED, "2026-11-30T10:00:00Z").unwrap_err();
    assert_eq!(refused.to_string(), "ann overrode the gate only until 2026-11-30T10:00:00Z");
}

#[test]
fn it_is_for_one_package_of_one_model_behind_one_alias() {
    let week = for_days(7).unwrap();
    for other in [
        Aliased { package: "sha256:b", ..ASKED },
        Aliased { model: "other", ..ASKED },
        Aliased { alias: "staging", ..ASKED },
    ] {
        assert!(matches!(week.admits(other, NOW), Err(OverrideRefusal::Other { .. })), "{other:?}");
    }
}

#[test]
fn none_lasts_longer_than_the_limit_or_begins_later() {
    assert!(for_days(MAX_OVERRIDE_DAYS).is_ok());
    assert!(matches!(for_days(MAX_OVERRIDE_DAYS + 1), Err(OverrideRefusal::Span { .. })));
    assert!(matches!(for_days(0), Err(OverrideRefusal::Expired { .. })));
    // Nor does a file that only claims to.
    let long = Override { expires_at: "2027-11-23T10:00:00Z".into(), ..for_days(1).unwrap() };
    assert!(matches!(long.admits(ASKED, NOW), Err(OverrideRefusal::Span { .. })));
    let later =
        Override { created_at: "2027-01-01T00:00:00Z".into(), expires_at: "2027-01-02T00:00:00Z".into(), ..long };
    assert!(matches!(later.admits(ASKED, NOW), Err(OverrideRefusal::Span { .. })));
    // Clocks of two machines differ by a little.
    let ahead = Override { created_at: "2026-11-23T10:02:00Z".into(), ..for_days(1).unwrap() };
    assert_eq!(ahead.admits(ASKED, NOW), Ok(()));
}

#[test]
fn somebody_answers_for_it_and_it_is_readable() {
    assert_eq!(Override::new(ASKED, ["ann", " "], missing(), NOW, 1), Err(OverrideRefusal::Nameless));
    assert_eq!(Override::new(ASKED, ["", "why"], missing(), NOW, 1), Err(OverrideRefusal::Nameless));
    let week = for_days(7).unwrap();
    let odd = Override { expires_at: "soon".into(), ..week.clone() };
    assert_eq!(odd.admits(ASKED, NOW), Err(OverrideRefusal::Time("soon".into())));
    let newer = Override { highroad_override: 2, ..week.clone() };
    assert_eq!(newer.admits(ASKED, NOW), Err(OverrideRefusal::Format(2)));
    let mut json = serde_json::to_value(&week).unwrap();
    assert_eq!(serde_json::from_value::<Override>(json.clone()).unwrap(), week);
    json["trust_me"] = json!(true);
    assert!(serde_json::from_value::<Override>(json).is_err());
}

//! What a gate and an evaluation show to a person.

use highroad_assess::{GoldenSet, Judged};
use highroad_eval::{CheckResult, Flip, Outcome, Verdict};

use crate::commands::eval::{asked, new_table, shorten};

/// Prints a verdict and what it rests on.
#[allow(clippy::print_stdout)]
pub fn print_verdict(verdict: &Verdict, judged: &Judged<'_>) {
    let set = &verdict.golden_set;
    println!("candidate  {}", verdict.package);
    match judged.baseline {
        Some(baseline) => println!("baseline   {}", baseline.package),
        None => println!("baseline   trivial, as a first version has no champion"),
    }
    println!("golden set {} ({} cases), {}\n", set.name, set.n_cases, set.digest);
    for check in &verdict.checks {
        println!("{}  {}", mark(check.outcome), check.rule);
        println!("      {}", check.reason);
        let facts = facts(check);
        if !facts.is_empty() {
            println!("      {facts}");
        }
    }
    print_flips(&verdict.flips, judged.golden);
    for waiver in &verdict.waivers {
        let case = if waiver.case.is_empty() { "the small golden set" } else { &waiver.case };
        println!("accepted   {case} by {} until {}: {}", waiver.by, waiver.expires_at, waiver.why);
    }
    println!("\n{}", sentence(verdict));
}

fn mark(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass => "pass",
        Outcome::Fail => "FAIL",
        Outcome::Inconclusive => "????",
    }
}

/// The interval, the test, and what the check could have seen.
fn facts(check: &CheckResult) -> String {
    let test = check.p_value.map(|p| match p {
        p if p < 0.001 => "exact McNemar p < 0.001".to_owned(),
        p => format!("exact McNemar p = {p:.3}"),
    });
    test.into_iter().chain(check.power_note.clone()).collect::<Vec<_>>().join("; ")
}

/// How many flips of either kind are listed; the verdict holds all.
const MOST_FLIPS_SHOWN: usize = 20;

#[allow(clippy::print_stdout)]
fn print_flips(flips: &[Flip], golden: &GoldenSet) {
    let (regressions, improvements): (Vec<&Flip>, Vec<&Flip>) = flips.iter().partition(|flip| flip.regression);
    for (what, flips) in [("lost", regressions), ("won", improvements)] {
        if flips.is_empty() {
            continue;
        }
        println!("\n{} case(s) {what}", flips.len());
        let mut table = new_table(["case", "expected", "baseline", "candidate", "input"]);
        for flip in flips.iter().take(MOST_FLIPS_SHOWN) {
            let case = if flip.must_pass { format!("{} (must pass)", flip.case) } else { flip.case.clone() };
            table.add_row([&case, &flip.expected, &flip.baseline, &flip.candidate, &text_of(&flip.case, golden)]);
        }
        println!("{table}");
        if flips.len() > MOST_FLIPS_SHOWN {
            println!("and {} more in the verdict", flips.len() - MOST_FLIPS_SHOWN);
        }
    }
}

fn text_of(id: &str, golden: &GoldenSet) -> String {
    let case = golden.cases.iter().find(|case| case.case.id == id);
    case.map_or_else(String::new, |case| shorten(&asked(&case.input), 48))
}

/// The outcome in one sentence a person understands.
fn sentence(verdict: &Verdict) -> String {
    let named = |outcome| {
        let checks = verdict.checks.iter().filter(move |check| check.outcome == outcome);
        checks.map(|check| format!("{} ({})", check.rule, check.reason)).collect::<Vec<_>>()
    };
    match verdict.outcome {
        Outcome::Pass if verdict.waivers.is_empty() => format!("PASS: all {} checks hold", verdict.checks.len()),
        Outcome::Pass => format!(
            "PASS: {} accepted what the golden set is too small to tell, until {}",
            verdict.waivers[0].by, verdict.waivers[0].expires_at
        ),
        Outcome::Fail => match named(Outcome::Fail).as_slice() {
            [] => "FAIL: the candidate lost a case that must pass".to_owned(),
            [only] => format!("FAIL: {only}"),
            [first, rest @ ..] => format!("FAIL: {first}; and {} more", rest.len()),
        },
        Outcome::Inconclusive => {
            format!("INCONCLUSIVE: {}\n{}", named(Outcome::Inconclusive).join("; "), way_out(verdict))
        }
    }
}

fn way_out(verdict: &Verdict) -> String {
    let open = verdict.checks.iter().filter(|check| check.outcome == Outcome::Inconclusive);
    let n_regressions = verdict.flips.iter().filter(|flip| flip.regression).count();
    if !open.into_iter().all(|check| check.waivable) {
        return "hint: add cases to the golden set, or state a rule it can decide".to_owned();
    }
    match n_regressions {
        0 => "hint: add cases, or a named person accepts the small set: --accept-small-set --by NAME --why TEXT"
            .to_owned(),
        n => format!(
            "hint: add cases, or a named person accepts each of the {n} lost: --accept CASE … --by NAME --why TEXT"
        ),
    }
}

//! What `benches/rollout.py` replays: requests that two models answered, in 200 orders, each looked at after every request. JSON on
//! stdin; for each order the outcome and the number of requests it took on stdout.

#![allow(clippy::print_stdout)]

use highroad_eval::{Outcome, RolloutCounts, RolloutRules, judge_rollout};
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Replays {
    rules: RolloutRules,
    /// Whether the answers differ, whether the stable one is right, whether the candidate's is.
    pairs: Vec<[bool; 3]>,
    n_replays: u64,
}

#[derive(Serialize)]
struct Ended {
    outcome: Outcome,
    n_requests: u64,
    /// Whether the share of different answers decided it, rather than the right ones.
    differ: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let replays: Replays = serde_json::from_reader(std::io::stdin())?;
    replays.rules.check()?;
    let mut ended = Vec::new();
    for seed in 0..replays.n_replays {
        let mut pairs = replays.pairs.clone();
        pairs.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        ended.push(replay(&replays.rules, &pairs)?);
    }
    println!("{}", serde_json::to_string(&ended)?);
    Ok(())
}

fn replay(rules: &RolloutRules, pairs: &[[bool; 3]]) -> Result<Ended, highroad_eval::SequentialError> {
    let mut counts = RolloutCounts::default();
    for &[differs, stable, candidate] in pairs {
        counts.add(&RolloutCounts {
            n_compared: 1,
            n_differ: u64::from(differs),
            n_asked: 1,
            n_labelled: 1,
            n_regressions: u64::from(stable && !candidate),
            n_improvements: u64::from(!stable && candidate),
            ..RolloutCounts::default()
        });
        let judgement = judge_rollout(rules, &counts)?;
        if judgement.outcome != Outcome::Inconclusive {
            let differ = judgement.checks[0].outcome == Outcome::Fail;
            return Ok(Ended { outcome: judgement.outcome, n_requests: counts.n_compared, differ });
        }
    }
    Ok(Ended { outcome: Outcome::Inconclusive, n_requests: counts.n_compared, differ: false })
}

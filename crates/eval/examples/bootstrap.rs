//! Times the bootstrap of a mean of paired differences for `benches/gate.py`: a JSON array of differences on stdin, the
//! seconds each of the rounds took and the 90 % BCa interval on stdout.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::Instant;

use highroad_eval::{Bootstrap, Resamples, Units};

const RESAMPLES: Resamples = Resamples { n: 10_000, seed: 20_260_101 };
const N_ROUNDS: usize = 3;

fn main() {
    let differences: Vec<f64> = serde_json::from_reader(std::io::stdin()).unwrap();
    let units = Units::cases(differences.len());
    let round = |_| {
        let begun = Instant::now();
        let interval = Bootstrap::of_mean(&units, RESAMPLES, &differences).bca(0.9);
        (begun.elapsed().as_secs_f64(), interval)
    };
    let (seconds, intervals): (Vec<f64>, Vec<[f64; 2]>) = (0..N_ROUNDS).map(round).unzip();
    println!("{}", serde_json::json!({ "seconds": seconds, "interval": intervals[0] }));
}

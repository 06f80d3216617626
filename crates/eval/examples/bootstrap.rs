//! What `benches/gate.py` times: the bootstrap of a mean of paired differences. A JSON array of differences on stdin; the
//! seconds it took and the 90 % BCa interval on stdout.

#![allow(clippy::print_stdout)]

use std::time::Instant;

use highroad_eval::{Bootstrap, Resamples, Units};

const RESAMPLES: Resamples = Resamples { n: 10_000, seed: 20_260_101 };

fn main() -> Result<(), serde_json::Error> {
    let differences: Vec<f64> = serde_json::from_reader(std::io::stdin())?;
    let begun = Instant::now();
    let interval = Bootstrap::of_mean(&Units::cases(differences.len()), RESAMPLES, &differences).bca(0.9);
    println!("{}", serde_json::json!({ "seconds": begun.elapsed().as_secs_f64(), "interval": interval }));
    Ok(())
}

//! What the runtime alone does with the inputs of a golden set of labels: the limit that an evaluation's throughput is held
//! against. `batches PACKAGE GOLDEN THREADS` prints the inputs a second of its batches, tokenised before, and with tokenisation.

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

use highroad_assess::{GoldenInput, GoldenSet};
use highroad_package::Package;
use highroad_task::{Predictor, PredictorOptions};

/// As many as an evaluation asks at once at most.
const CHUNK: usize = 8192;

#[allow(clippy::print_stdout)]
fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().ok_or("usage: batches PACKAGE GOLDEN THREADS");
    let (package, golden) = (Package::open(Path::new(&next()?))?.verify()?, GoldenSet::read(Path::new(&next()?))?);
    let threads: NonZeroUsize = next()?.parse()?;
    let predictor = Predictor::open(&package, &PredictorOptions { threads, ..PredictorOptions::default() })?;
    let (mut tokenised_s, mut answered_s) = (0.0, 0.0);
    for start in (0..golden.cases.len()).step_by(CHUNK) {
        let mut inputs = Vec::new();
        for idx in start..golden.cases.len().min(start + CHUNK) {
            if let GoldenInput::One(input) = golden.input(idx)?.into_owned() {
                inputs.push(input);
            }
        }
        let begun = Instant::now();
        let prepared = inputs.iter().map(|input| predictor.prepare(input)).collect::<Result<Vec<_>, _>>()?;
        tokenised_s += begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        predictor.predict_prepared(&prepared)?;
        answered_s += begun.elapsed().as_secs_f64();
    }
    let n = golden.cases.len() as f64;
    println!("{{\"batches\": {}, \"with_tokenisation\": {}}}", n / answered_s, n / (answered_s + tokenised_s));
    Ok(())
}

//! How fast linear layers are: this crate's against `rten-gemm` with packed weights, at the shapes of MiniLM-L6.
//!
//! `cargo bench -p highroad-tensor --bench products -- [THREADS]` prints JSON: for each number of rows the milliseconds
//! that all products of the model take, the best of several rounds, in turns. The figure of `rten-gemm` is the limit
//! that `make bench` compares whole models with.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use highroad_tensor::{LinearWeights, Tensor, Unary, linear, parallel};
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::NdTensorView;

/// `(in, out, how often)` of the linear layers of one encoder layer: query, key, value and output, up, down.
const LAYER: [(usize, usize, usize); 3] = [(384, 384, 4), (384, 1536, 1), (1536, 384, 1)];
const N_LAYERS: usize = 6;
const ROUNDS: usize = 15;

fn main() {
    let threads = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(2);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().unwrap();
    let shapes: Vec<(usize, usize)> =
        (0..N_LAYERS).flat_map(|_| LAYER).flat_map(|(k, n, count)| vec![(k, n); count]).collect();
    let weights: Vec<Vec<f32>> = shapes.iter().map(|&(k, n)| numbers(k * n)).collect();
    let ours: Vec<LinearWeights> = shapes
        .iter()
        .zip(&weights)
        .map(|(&(k, n), weight)| LinearWeights::new(&Tensor::from_slice(weight, &[n, k]).unwrap(), None).unwrap())
        .collect();
    let gemm = GemmExecutor::<f32>::new();
    let theirs: Vec<_> = shapes
        .iter()
        .zip(&weights)
        .map(|(&(k, n), weight)| gemm.prepack_b(NdTensorView::from_data([n, k], weight.as_slice()).transposed()))
        .collect();
    let mut rows_json = Vec::new();
    for n_rows in [1, 8, 16, 24, 32, 64, 128, 256, 4096] {
        let inputs: Vec<Tensor> =
            [384, 1536].iter().map(|&k| Tensor::from_slice(&numbers(n_rows * k), &[n_rows, k]).unwrap()).collect();
        let input = |k: usize| if k == 384 { &inputs[0] } else { &inputs[1] };
        let mut out = vec![0.0f32; n_rows * 1536];
        let (mut best_ours, mut best_theirs) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..if n_rows > 1000 { 4 } else { ROUNDS } {
            let start = seconds();
            parallel::with_threads(threads, || {
                for (&(k, _), weights) in shapes.iter().zip(&ours) {
                    std::hint::black_box(linear(input(k), weights, Unary::Identity).unwrap());
                }
            });
            best_ours = best_ours.min(seconds() - start);
            let start = seconds();
            for (&(k, n), weights) in shapes.iter().zip(&theirs) {
                let a = NdTensorView::from_data([n_rows, k], input(k).as_slice::<f32>().unwrap());
                gemm.gemm(
                    &mut out[..n_rows * n],
                    GemmInputA::Unpacked(a),
                    GemmInputB::Packed(weights),
                    GemmOptions::default(),
                )
                .unwrap();
            }
            best_theirs = best_theirs.min(seconds() - start);
        }
        let flops: usize = shapes.iter().map(|&(k, n)| 2 * k * n * n_rows).sum();
        rows_json.push(format!(
            "{{\"rows\": {n_rows}, \"highroad_ms\": {:.3}, \"rten_gemm_ms\": {:.3}, \"rten_gemm_gflops\": {:.0}}}",
            best_ours * 1e3,
            best_theirs * 1e3,
            flops as f64 / best_theirs / 1e9
        ));
    }
    println!("[{}]", rows_json.join(",\n "));
}

/// A clock. The time that the thread had a processor would be disturbed less by neighbours, but some kernels count it in steps of 4 ms.
fn seconds() -> f64 {
    static START: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    START.elapsed().as_secs_f64()
}

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 2_654_435_761) % 1024) as f32 / 512.0 - 1.0).collect()
}

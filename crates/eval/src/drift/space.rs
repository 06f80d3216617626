use serde::{Deserialize, Serialize};

/// Coordinates that a vector is projected to: distances are kept within some 20 % (Johnson and Lindenstrauss), and what is stored is a
/// tenth of the vector and does not give it back.
pub(crate) const N_DIMS: usize = 32;
/// Regions of the space.
const N_CELLS: usize = 8;
/// Steps of Lloyd's algorithm: the cells need not be best, only fixed.
const N_STEPS: usize = 12;
/// Vectors kept for a kernel test.
const N_KEPT: usize = 128;
/// Widest vector.
pub(crate) const MAX_WIDTH: usize = 1 << 16;

/// Where a baseline's embeddings lie: centre, spread, cells and some of them, projected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Space {
    /// Width of the vectors before.
    pub(crate) width: usize,
    pub(crate) mean: Vec<f32>,
    pub(crate) deviation: Vec<f32>,
    pub(crate) cells: Vec<Vec<f32>>,
    pub(crate) kept: Vec<Vec<f32>>,
}

impl Space {
    /// Of projected vectors, of which there are some. Cells are fitted to the even ones, so that counts of the odd ones are as those of
    /// vectors to come.
    pub(crate) fn of(width: usize, projected: &[Vec<f32>]) -> Self {
        let n = projected.len().max(1) as f64;
        let column = |dim: usize| projected.iter().map(move |vector| f64::from(vector[dim]));
        let mean: Vec<f64> = (0..N_DIMS).map(|dim| column(dim).sum::<f64>() / n).collect();
        let variance = |dim: usize| column(dim).map(|x| (x - mean[dim]).powi(2)).sum::<f64>() / n;
        let deviation = (0..N_DIMS).map(|dim| rounded(variance(dim).sqrt() as f32)).collect();
        let fitted: Vec<&Vec<f32>> = projected.iter().step_by(2).collect();
        let step = projected.len().div_ceil(N_KEPT).max(1);
        let round = |vector: &Vec<f32>| vector.iter().copied().map(rounded).collect::<Vec<f32>>();
        Self {
            width,
            mean: mean.iter().map(|&x| rounded(x as f32)).collect(),
            deviation,
            cells: cells(&fitted).iter().map(round).collect(),
            kept: projected.iter().step_by(step).map(round).collect(),
        }
    }

    /// The nearest cell.
    pub(crate) fn cell(&self, projected: &[f32]) -> usize {
        nearest(&self.cells, projected)
    }

    /// How far from the centre, in standard deviations: the root mean square over the dimensions.
    pub(crate) fn distance(&self, projected: &[f32]) -> f64 {
        let of_dim = |((x, mean), deviation): ((&f32, &f32), &f32)| {
            f64::from((x - mean) / deviation.max(f32::MIN_POSITIVE)).powi(2).min(1e6)
        };
        let sum: f64 = projected.iter().zip(&self.mean).zip(&self.deviation).map(of_dim).sum();
        (sum / N_DIMS as f64).sqrt()
    }

    /// Whether it can be used: every vector has its dimensions and finite coordinates.
    pub(crate) fn is_sound(&self) -> bool {
        let sound = |vector: &Vec<f32>| vector.len() == N_DIMS && vector.iter().all(|x| x.is_finite());
        self.width <= MAX_WIDTH
            && sound(&self.mean)
            && sound(&self.deviation)
            && (1..=N_CELLS).contains(&self.cells.len())
            && self.kept.len() <= N_KEPT
            && self.cells.iter().chain(&self.kept).all(sound)
    }
}

/// A vector in fewer dimensions, by signs that its coordinates' numbers decide.
pub(crate) fn project(vector: &[f32]) -> Vec<f32> {
    let mut out = [0.0_f32; N_DIMS];
    for (at, &x) in vector.iter().enumerate() {
        let signs = mix(at as u64);
        for (dim, sum) in out.iter_mut().enumerate() {
            *sum += if signs >> dim & 1 == 1 { x } else { -x };
        }
    }
    let scale = 1.0 / (N_DIMS as f32).sqrt();
    out.iter().map(|x| x * scale).collect()
}

/// SplitMix64: bits that look drawn, the same everywhere.
fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Lloyd's algorithm from vectors that are each far from those before.
fn cells(vectors: &[&Vec<f32>]) -> Vec<Vec<f32>> {
    let Some(first) = vectors.first() else { return vec![vec![0.0; N_DIMS]] };
    let mut cells = vec![(*first).clone()];
    while cells.len() < N_CELLS {
        let far = vectors.iter().map(|vector| (square(&cells[nearest(&cells, vector)], vector), vector));
        match far.max_by(|left, right| left.0.total_cmp(&right.0)) {
            Some((distance, vector)) if distance > 0.0 => cells.push((**vector).clone()),
            _ => break,
        }
    }
    for _ in 0..N_STEPS {
        let mut sums = vec![(vec![0.0_f32; N_DIMS], 0_u32); cells.len()];
        for vector in vectors {
            let (sum, n) = &mut sums[nearest(&cells, vector)];
            sum.iter_mut().zip(*vector).for_each(|(sum, x)| *sum += x);
            *n += 1;
        }
        for (cell, (sum, n)) in cells.iter_mut().zip(sums).filter(|(_, (_, n))| *n > 0) {
            *cell = sum.iter().map(|x| x / n as f32).collect();
        }
    }
    cells
}

fn nearest(cells: &[Vec<f32>], vector: &[f32]) -> usize {
    let mut best = (0, f32::INFINITY);
    for (at, cell) in cells.iter().enumerate() {
        let distance = square(cell, vector);
        if distance < best.1 {
            best = (at, distance);
        }
    }
    best.0
}

fn square(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// Four digits: more would only make the file larger.
fn rounded(x: f32) -> f32 {
    if x == 0.0 || !x.is_finite() {
        return 0.0;
    }
    let scale = 10.0_f64.powi(3 - f64::from(x.abs()).log10().floor() as i32);
    ((f64::from(x) * scale).round() / scale) as f32
}

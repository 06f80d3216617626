//! Resizing by Pillow's algorithm, to the bit: a separable filter whose support grows as the picture shrinks (antialias), in
//! fixed point, columns first, rounded to 8 bits between the two passes.
//!
//! The crates for this take their kernels from the instruction set at run time and round their weights to 16 bits, so they are
//! off by one here and there; a model was trained on Pillow's pixels. Pillow's `libImaging/Resample.c` is the source.

use super::Image;

/// How much a pixel at some distance counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// A triangle over two pixels: `BILINEAR`.
    Bilinear,
    /// Keys' cubic with a = -0.5 over four pixels: `BICUBIC`.
    Bicubic,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    // The order of operations is Pillow's: it decides bits.
    fn at(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// A rectangle of a picture that may never be made as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// Binary places of a weight: 32 less 8 of the pixel and 2 for sums of weights beyond 1.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// The pixels of the source that one pixel of the result is made of.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// The windows of `wanted` of `n_out` pixels along a side that has `n_in`.
fn windows(n_in: usize, n_out: usize, wanted: std::ops::Range<usize>, filter: Filter) -> Vec<Window> {
    let scale = n_in as f64 / n_out as f64;
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    let inverse = 1.0 / filter_scale;
    let window = |idx: usize| {
        let center = (idx as f64 + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(n_in);
        let weights: Vec<f64> =
            (0..end - first).map(|x| filter.at(((x + first) as f64 - center + 0.5) * inverse)).collect();
        let total: f64 = weights.iter().sum();
        let share = |weight: &f64| if total == 0.0 { *weight } else { weight / total };
        Window { first, weights: weights.iter().map(|weight| fixed(share(weight))).collect() }
    };
    wanted.map(window).collect()
}

/// Rounded half away from zero.
fn fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION_BITS);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

fn rounded(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (PRECISION_BITS - 1);

impl Image {
    /// `region` of what this picture is after resizing to `width` × `height`: the same bits as resizing all of it and cropping,
    /// without what lies outside, so that a long thin picture costs no more than another.
    ///
    /// `region` lies within `width` × `height`; both are at least 1.
    pub fn resized(&self, width: usize, height: usize, filter: Filter, region: Region) -> Self {
        let Region { left, top, .. } = region;
        let columns = windows(self.width, width, left..left + region.width, filter);
        let rows = windows(self.height, height, top..top + region.height, filter);
        let first_row = rows.iter().map(|row| row.first).min().unwrap_or(0);
        let end_row = rows.iter().map(|row| row.first + row.weights.len()).max().unwrap_or(0);
        let narrow = self.each_row(first_row..end_row, &columns);
        let pixels = across_rows(&narrow, region.width * self.n_channels, first_row, &rows);
        Self { width: region.width, height: region.height, n_channels: self.n_channels, pixels, orientation: self.orientation }
    }

    fn each_row(&self, rows: std::ops::Range<usize>, columns: &[Window]) -> Vec<u8> {
        let n = self.n_channels;
        let mut narrow = Vec::with_capacity(rows.len() * columns.len() * n);
        for row in rows {
            let row = &self.pixels[row * self.width * n..(row + 1) * self.width * n];
            for Window { first, weights } in columns {
                let mut sums = [HALF; 3];
                for (pixel, weight) in row[first * n..].chunks_exact(n).zip(weights) {
                    for (sum, &sample) in sums.iter_mut().zip(pixel) {
                        *sum += i32::from(sample) * weight;
                    }
                }
                narrow.extend(sums[..n].iter().map(|&sum| rounded(sum)));
            }
        }
        narrow
    }
}

/// `narrow` has rows of `n_samples`, from `first_row` of the source on.
fn across_rows(narrow: &[u8], n_samples: usize, first_row: usize, rows: &[Window]) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(rows.len() * n_samples);
    let mut sums = vec![HALF; n_samples];
    for Window { first, weights } in rows {
        sums.fill(HALF);
        let from = &narrow[(first - first_row) * n_samples..];
        for (row, weight) in from.chunks_exact(n_samples).zip(weights) {
            for (sum, &sample) in sums.iter_mut().zip(row) {
                *sum += i32::from(sample) * weight;
            }
        }
        pixels.extend(sums.iter().map(|&sum| rounded(sum)));
    }
    pixels
}

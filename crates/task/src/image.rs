//! From an encoded picture to a row of `pixel_values`, by the parameters of the package.

use std::sync::Arc;

use highroad_data::{Filter, Image, Region};
use highroad_package::{Channels, ImageInput, Interpolation, Orientation, Resize};

use crate::{Prepared, TaskError};

/// A picture costs a batch as much as one token for each patch of 16 × 16 pixels, as vision transformers count.
const PATCH_PIXELS: usize = 16 * 16;

/// What a program is given of an encoded picture: f32 `[channels, height, width]`, row-major. Errors as [`crate::Predictor::prepare`].
pub fn pixel_values(spec: &ImageInput, bytes: &[u8]) -> Result<Vec<f32>, TaskError> {
    Ok(Pictures::new(spec).prepare(bytes)?.pixel_values().to_vec())
}

/// Makes rows of pictures.
pub(crate) struct Pictures {
    spec: ImageInput,
    /// What a sample of each channel becomes, by its 8 bits.
    values: Vec<[f32; 256]>,
}

impl Pictures {
    pub fn new(spec: &ImageInput) -> Self {
        // In f64 and rounded once, so within one unit in the last place of any order in which PyTorch does it in f32.
        let value = |sample: usize, mean: f64, std: f64| ((sample as f64 * spec.rescale - mean) / std) as f32;
        let channels = spec.mean.iter().zip(&spec.std);
        let values = channels.map(|(&mean, &std)| std::array::from_fn(|sample| value(sample, mean, std))).collect();
        Self { spec: spec.clone(), values }
    }

    /// Height and width of what the program takes.
    fn size(&self) -> (usize, usize) {
        (self.spec.height as usize, self.spec.width as usize)
    }

    /// What a picture costs a batch.
    pub fn n_tokens(&self) -> usize {
        let (height, width) = self.size();
        (height * width).div_ceil(PATCH_PIXELS)
    }

    /// The row of an encoded picture.
    pub fn prepare(&self, bytes: &[u8]) -> Result<Prepared, TaskError> {
        let image = Image::decode(bytes)?;
        let image = if self.spec.orientation == Orientation::Exif { image.upright() } else { image };
        let image = if self.spec.channels == Channels::Grey { image.grey() } else { image.rgb() };
        let image = self.resized(image)?;
        Ok(self.row(image.pixels()))
    }

    /// A made-up picture; another for another `seed`.
    pub fn made_up(&self, seed: usize) -> Prepared {
        let (height, width) = self.size();
        let sample = |idx: usize| ((idx + seed).wrapping_mul(2_654_435_761) >> 13) as u8;
        self.row(&(0..height * width * self.values.len()).map(sample).collect::<Vec<_>>())
    }

    fn resized(&self, image: Image) -> Result<Image, TaskError> {
        let (height, width) = self.size();
        let (rows, columns) = match self.spec.resize {
            Resize::None if (image.height(), image.width()) == (height, width) => return Ok(image),
            Resize::None => {
                let found = (image.height(), image.width());
                return Err(TaskError::ImageSize { found, needed: (height, width) });
            }
            Resize::Exact => (height, width),
            Resize::ShortestEdge(edge) => by_shorter_side(&image, edge as usize),
        };
        let filter = match self.spec.interpolation {
            Interpolation::Bilinear => Filter::Bilinear,
            Interpolation::Bicubic => Filter::Bicubic,
        };
        let (top, left) = (margin(rows, height), margin(columns, width));
        Ok(image.resized(columns, rows, filter, Region { left, top, width, height }))
    }

    /// Channels one after the other, each by its rows.
    fn row(&self, pixels: &[u8]) -> Prepared {
        let n = self.values.len();
        let mut row = Vec::with_capacity(pixels.len());
        for (channel, values) in self.values.iter().enumerate() {
            let from = if self.spec.channels == Channels::Bgr { n - 1 - channel } else { channel };
            row.extend(pixels.iter().skip(from).step_by(n).map(|&sample| values[usize::from(sample)]));
        }
        Prepared::pixels(Arc::from(row), self.n_tokens())
    }
}

/// Rows and columns when the shorter side has `edge` pixels; the other is rounded down, as torchvision does.
fn by_shorter_side(image: &Image, edge: usize) -> (usize, usize) {
    let (height, width) = (image.height(), image.width());
    if width <= height { (edge * height / width, edge) } else { (edge, edge * width / height) }
}

/// What is left off before `kept` of `n` in their middle; half pixels are rounded to even, as Python's `round` does in
/// torchvision's `CenterCrop`.
fn margin(n: usize, kept: usize) -> usize {
    let twice = n - kept;
    let half = twice / 2;
    half + (twice % 2) * (half % 2)
}

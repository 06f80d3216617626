use serde::{Deserialize, Serialize};

use super::{ensure, invalid};
use crate::PackageError;

/// Longest side of what a program takes, in pixels.
const MAX_SIDE: u32 = 4096;
/// Largest mean, standard deviation and factor; those in use are below 256.
const MAX_FACTOR: f64 = 1e6;
/// What turns 0 … 255 into 0 … 1.
const RESCALE: f64 = 1.0 / 255.0;

/// How a picture becomes `pixel_values`, f32 `[B, channels, height, width]`: turned upright, converted to `channels`, resized, cropped to
/// the centre, then `(sample * rescale - mean) / std`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageInput {
    /// Rows that the program takes.
    pub height: u32,
    /// Columns that the program takes.
    pub width: u32,
    /// What is done where a picture has another size.
    pub resize: Resize,
    /// How pixels are weighed, with antialias as Pillow and torchvision do.
    pub interpolation: Interpolation,
    /// Which channels, in which order.
    #[serde(default, skip_serializing_if = "is_default")]
    pub channels: Channels,
    /// Whether a photograph is turned as its EXIF data says.
    #[serde(default, skip_serializing_if = "is_default")]
    pub orientation: Orientation,
    /// Factor before the mean is taken off; 1/255 unless told.
    #[serde(default = "one_255th", skip_serializing_if = "is_one_255th")]
    pub rescale: f64,
    /// Mean of each channel, in the order of `channels`.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel.
    pub std: Vec<f64>,
}

/// How a picture comes to the size that a program takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// Not at all: another size is an error.
    None,
    /// To `height` × `width`, whatever its proportions.
    Exact,
    /// In its proportions, until its shorter side has this many pixels; `height` × `width` are cut from the centre then.
    ShortestEdge(u32),
}

/// The filter of a resize.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Interpolation {
    Bilinear,
    Bicubic,
}

/// The channels of a program's input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channels {
    /// Red, green, blue.
    #[default]
    Rgb,
    /// Blue, green, red: what OpenCV reads.
    Bgr,
    /// One channel, by ITU-R 601-2.
    Grey,
}

impl Channels {
    /// 3 or 1.
    pub fn count(self) -> usize {
        if self == Self::Grey { 1 } else { 3 }
    }
}

/// Which way a photograph is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Orientation {
    /// As its EXIF data says: what a person sees.
    #[default]
    Exif,
    /// As its rows are stored: what `PIL.Image.open` gives, and so what most training loops have seen.
    Stored,
}

impl ImageInput {
    pub(super) fn validate(&self) -> Result<(), PackageError> {
        let sides = [("height", self.height), ("width", self.width)];
        for (key, side) in sides {
            ensure((1..=MAX_SIDE).contains(&side), || format!("`image.{key}` is {side}, not in 1..={MAX_SIDE}"))?;
        }
        if let Resize::ShortestEdge(edge) = self.resize {
            let least = self.height.max(self.width);
            ensure((least..=MAX_SIDE).contains(&edge), || {
                format!("`image.resize.shortest_edge` is {edge}, not in {least}..={MAX_SIDE}: what is cut out must fit")
            })?;
        }
        let n = self.channels.count();
        for (key, values) in [("mean", &self.mean), ("std", &self.std)] {
            ensure(values.len() == n, || format!("`image.{key}` has {} values for {n} channel(s)", values.len()))?;
        }
        let bounded = |value: &f64| value.abs() <= MAX_FACTOR;
        ensure(self.mean.iter().all(bounded), || format!("`image.mean` is not within ±{MAX_FACTOR}"))?;
        let divides = |value: &f64| *value >= 1.0 / MAX_FACTOR && bounded(value);
        ensure(self.std.iter().all(divides), || "`image.std` must be positive".to_owned())?;
        match divides(&self.rescale) {
            true => Ok(()),
            false => Err(invalid(format!("`image.rescale` is {}, which is no factor", self.rescale))),
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn one_255th() -> f64 {
    RESCALE
}

fn is_one_255th(value: &f64) -> bool {
    *value == RESCALE
}

//! From an encoded picture (PNG, JPEG, WebP) to 8-bit pixels, as Pillow makes them: same file, same bits, on every machine.
//!
//! The decoders run without instruction sets that are chosen at run time, and resizing is integer arithmetic.

use std::io::Cursor;

use png::{ColorType, Transformations};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;

use crate::tokenizer::guarded;

mod resize;

pub use resize::{Filter, Region};

/// Longest encoded picture: what a phone's camera writes has 3 to 12 MB.
pub const MAX_IMAGE_BYTES: usize = 32 << 20;
/// Most pixels of a picture, before anything is resized: 100 MB as RGB. Files of a few bytes can claim billions.
pub const MAX_IMAGE_PIXELS: usize = 1 << 25;
/// Longest side of a picture; JPEG knows no longer ones.
pub const MAX_IMAGE_SIDE: usize = 65_535;
/// What a decoder may allocate beside the pixels it gives.
const MAX_DECODER_BYTES: usize = 256 << 20;

/// Why a picture was not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum ImageError {
    #[error("the image has {0} bytes, and at most {MAX_IMAGE_BYTES} are accepted")]
    TooManyBytes(usize),
    #[error(
        "the image has {width} x {height} pixels; at most {MAX_IMAGE_PIXELS} in all and {MAX_IMAGE_SIDE} a side are accepted"
    )]
    TooManyPixels { width: usize, height: usize },
    #[error("the bytes are no PNG, JPEG or WebP")]
    UnknownFormat,
    #[error("the {format} is damaged or cut off: {reason}")]
    Damaged { format: &'static str, reason: String },
    #[error("the {0} is an animation, and one still picture is needed")]
    Animated(&'static str),
    #[error("the JPEG is {0}, whose colours depend on a printer: convert it to RGB")]
    Print(&'static str),
}

/// Rows of 8-bit pixels, from the top left: grey (one channel) or red, green, blue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    n_channels: usize,
    pixels: Vec<u8>,
    /// EXIF orientation, 1 … 8: how the stored rows must be turned to stand upright.
    orientation: u8,
}

type Decoder = fn(&[u8]) -> Result<Image, ImageError>;

impl Image {
    /// Decodes a PNG, JPEG or WebP, told by its first bytes.
    ///
    /// Of 16-bit samples the high byte is taken, palettes and low bit depths become 8-bit samples, and alpha is dropped without
    /// blending (what Pillow's `convert("RGB")` does); colour profiles are ignored. Errors, and never panics, on other formats, on
    /// animations, on CMYK, on damaged and truncated files and on what is over the limits above.
    pub fn decode(bytes: &[u8]) -> Result<Self, ImageError> {
        if bytes.len() > MAX_IMAGE_BYTES {
            return Err(ImageError::TooManyBytes(bytes.len()));
        }
        let (format, decoder): (_, Decoder) = match bytes {
            [0x89, b'P', b'N', b'G', ..] => ("PNG", png),
            [0xff, 0xd8, 0xff, ..] => ("JPEG", jpeg),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => ("WebP", webp),
            _ => return Err(ImageError::UnknownFormat),
        };
        guarded(|| decoder(bytes)).unwrap_or_else(|reason| Err(ImageError::Damaged { format, reason }))
    }

    fn new(format: &'static str, size: (usize, usize), n_samples: usize, samples: Vec<u8>) -> Result<Self, ImageError> {
        let (width, height) = size;
        if samples.len() != width * height * n_samples {
            return Err(damaged(format, format!("it gave {} samples", samples.len())));
        }
        let n_channels = if n_samples < 3 { 1 } else { 3 };
        let pixels = match n_channels == n_samples {
            true => samples,
            false => samples.chunks_exact(n_samples).flat_map(|pixel| &pixel[..n_channels]).copied().collect(),
        };
        Ok(Self { width, height, n_channels, pixels, orientation: 1 })
    }

    fn turned_by(mut self, exif: Option<Vec<u8>>) -> Self {
        self.orientation = exif.and_then(orientation).unwrap_or(1);
        self
    }

    /// Pixels of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// 1 for grey, 3 for red, green, blue.
    pub fn n_channels(&self) -> usize {
        self.n_channels
    }

    /// `height` rows of `width` pixels of [`Image::n_channels`] bytes.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// As the EXIF orientation says the picture is looked at; as it is without one (`PIL.ImageOps.exif_transpose`).
    pub fn upright(self) -> Self {
        let (w, h, n) = (self.width, self.height, self.n_channels);
        // Where the pixel at column `x` and row `y` of the upright picture is stored.
        let stored: fn(usize, usize, usize, usize) -> (usize, usize) = match self.orientation {
            2 => |x, y, w, _| (w - 1 - x, y),
            3 => |x, y, w, h| (w - 1 - x, h - 1 - y),
            4 => |x, y, _, h| (x, h - 1 - y),
            5 => |x, y, _, _| (y, x),
            6 => |x, y, _, h| (y, h - 1 - x),
            7 => |x, y, w, h| (w - 1 - y, h - 1 - x),
            8 => |x, y, w, _| (w - 1 - y, x),
            _ => return self,
        };
        let (width, height) = if self.orientation < 5 { (w, h) } else { (h, w) };
        let mut pixels = Vec::with_capacity(self.pixels.len());
        for y in 0..height {
            for x in 0..width {
                let (column, row) = stored(x, y, w, h);
                let start = (row * w + column) * n;
                pixels.extend_from_slice(&self.pixels[start..start + n]);
            }
        }
        Self { width, height, n_channels: n, pixels, orientation: 1 }
    }

    /// Grey by ITU-R 601-2, in Pillow's fixed point.
    pub fn grey(self) -> Self {
        if self.n_channels == 1 {
            return self;
        }
        let luma = |rgb: &[u8]| {
            let [r, g, b] = [rgb[0], rgb[1], rgb[2]].map(u32::from);
            ((r * 19_595 + g * 38_470 + b * 7_471 + 0x8000) >> 16) as u8
        };
        Self { pixels: self.pixels.chunks_exact(3).map(luma).collect(), n_channels: 1, ..self }
    }

    /// Three channels; grey is repeated.
    pub fn rgb(self) -> Self {
        if self.n_channels == 3 {
            return self;
        }
        Self { pixels: self.pixels.iter().flat_map(|&grey| [grey; 3]).collect(), n_channels: 3, ..self }
    }
}

impl Image {
    /// As a PNG.
    pub fn to_png(&self) -> Result<Vec<u8>, ImageError> {
        let wrong = |error: png::EncodingError| damaged("PNG", error);
        let mut bytes = Vec::new();
        let too_large = |_| ImageError::TooManyPixels { width: self.width, height: self.height };
        let width = u32::try_from(self.width).map_err(too_large)?;
        let height = u32::try_from(self.height).map_err(too_large)?;
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(if self.n_channels == 1 { ColorType::Grayscale } else { ColorType::Rgb });
        let mut writer = encoder.write_header().map_err(wrong)?;
        writer.write_image_data(&self.pixels).map_err(wrong)?;
        writer.finish().map_err(wrong)?;
        Ok(bytes)
    }
}

fn check_size(width: usize, height: usize) -> Result<(), ImageError> {
    let fits = width.max(height) <= MAX_IMAGE_SIDE && width.saturating_mul(height) <= MAX_IMAGE_PIXELS;
    if fits { Ok(()) } else { Err(ImageError::TooManyPixels { width, height }) }
}

fn damaged(format: &'static str, reason: impl ToString) -> ImageError {
    ImageError::Damaged { format, reason: reason.to_string() }
}

fn png(bytes: &[u8]) -> Result<Image, ImageError> {
    const FORMAT: &str = "PNG";
    let wrong = |error| damaged(FORMAT, error);
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), png::Limits { bytes: MAX_DECODER_BYTES });
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let header = decoder.read_header_info().map_err(wrong)?;
    let size = (header.width as usize, header.height as usize);
    check_size(size.0, size.1)?;
    let mut reader = decoder.read_info().map_err(wrong)?;
    if reader.info().animation_control.is_some_and(|animation| animation.num_frames > 1) {
        return Err(ImageError::Animated(FORMAT));
    }
    let n_bytes = reader.output_buffer_size().ok_or_else(|| damaged(FORMAT, "it is too large"))?;
    let mut samples = vec![0; n_bytes];
    reader.next_frame(&mut samples).map_err(wrong)?;
    let n_samples = match reader.output_color_type().0 {
        ColorType::Grayscale => 1,
        ColorType::GrayscaleAlpha => 2,
        ColorType::Rgb => 3,
        ColorType::Rgba => 4,
        ColorType::Indexed => return Err(damaged(FORMAT, "it has a palette that is not expanded")),
    };
    let exif = reader.info().exif_metadata.as_ref().map(|exif| exif.to_vec());
    Ok(Image::new(FORMAT, size, n_samples, samples)?.turned_by(exif))
}

fn jpeg(bytes: &[u8]) -> Result<Image, ImageError> {
    const FORMAT: &str = "JPEG";
    let options =
        DecoderOptions::new_safe().set_strict_mode(true).set_max_width(MAX_IMAGE_SIDE).set_max_height(MAX_IMAGE_SIDE);
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|error| damaged(FORMAT, error))?;
    let size = decoder.dimensions().ok_or_else(|| damaged(FORMAT, "it has no size"))?;
    check_size(size.0, size.1)?;
    let colours = match decoder.input_colorspace() {
        Some(ColorSpace::Luma) => ColorSpace::Luma,
        Some(ColorSpace::CMYK) => return Err(ImageError::Print("CMYK")),
        Some(ColorSpace::YCCK) => return Err(ImageError::Print("YCCK")),
        _ => ColorSpace::RGB,
    };
    decoder.set_options(options.jpeg_set_out_colorspace(colours));
    let samples = decoder.decode().map_err(|error| damaged(FORMAT, error))?;
    let exif = decoder.exif().cloned();
    Ok(Image::new(FORMAT, size, colours.num_components(), samples)?.turned_by(exif))
}

fn webp(bytes: &[u8]) -> Result<Image, ImageError> {
    const FORMAT: &str = "WebP";
    let wrong = |error| damaged(FORMAT, error);
    let mut decoder = image_webp::WebPDecoder::new(Cursor::new(bytes)).map_err(wrong)?;
    decoder.set_memory_limit(MAX_DECODER_BYTES);
    let (width, height) = decoder.dimensions();
    let size = (width as usize, height as usize);
    check_size(size.0, size.1)?;
    if decoder.is_animated() {
        return Err(ImageError::Animated(FORMAT));
    }
    let n_samples = if decoder.has_alpha() { 4 } else { 3 };
    let mut samples = vec![0; size.0 * size.1 * n_samples];
    decoder.read_image(&mut samples).map_err(wrong)?;
    let exif = decoder.exif_metadata().map_err(wrong)?;
    Ok(Image::new(FORMAT, size, n_samples, samples)?.turned_by(exif))
}

/// The orientation that EXIF data says, if it says one that is known. Data that cannot be read says none, as in Pillow.
fn orientation(mut exif: Vec<u8>) -> Option<u8> {
    if exif.starts_with(b"Exif\0\0") {
        exif.drain(..6);
    }
    let fields = exif::Reader::new().read_raw(exif).ok()?;
    let value = fields.get_field(exif::Tag::Orientation, exif::In::PRIMARY)?.value.get_uint(0)?;
    u8::try_from(value).ok().filter(|value| (1..=8).contains(value))
}

//! Pictures of golden cases: their files, their fingerprints, and small ones for reports.

use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use highroad_data::{Filter, Image, MAX_IMAGE_BYTES, Region};
use highroad_package::Digest;

use crate::files::read_limited;

/// Longest picture that stands in a golden set itself; larger ones are files beside it.
pub(super) const MAX_INLINE_BYTES: usize = 64 << 10;
/// Longer side of a picture in a report.
const THUMBNAIL_PIXELS: usize = 64;
/// Columns and rows of differences in a fingerprint.
const SIDE: usize = 16;

/// Where the files of pictures are.
#[derive(Clone, Debug)]
pub(super) enum Files {
    /// Below this folder.
    Below(PathBuf),
    /// Not at hand, as those of an earlier revision; pictures are empty then.
    Unread,
}

impl Files {
    /// The picture called `name`, whose bytes must have the digest `sha256`.
    pub fn read(&self, name: &str, sha256: &str) -> Result<Arc<[u8]>, String> {
        let wanted: Digest = format!("sha256:{sha256}").parse().map_err(|_| {
            format!("`sha256` of image `{}` is not 64 hexadecimal digits in lower case", name.escape_debug())
        })?;
        let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if name.is_empty() || !plain {
            return Err(format!(
                "image `{}` is not a path below the golden set's folder, without `..`",
                name.escape_debug()
            ));
        }
        let Self::Below(folder) = self else { return Ok(Arc::from([])) };
        let bytes = read_limited(&folder.join(name), MAX_IMAGE_BYTES as u64).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!("there is no image `{name}` beside the golden set"),
            _ => format!("cannot read image `{name}`: {error}"),
        })?;
        match Digest::of(&bytes) {
            found if found == wanted => Ok(Arc::from(bytes)),
            found => Err(format!(
                "image `{name}` is {found}, not the sha256 of its case: it was changed after the case was written"
            )),
        }
    }
}

/// What a picture looks like: whether each of 16 × 16 patches is darker than the one to its right (dHash). Pictures that
/// were scaled, recompressed or slightly recoloured differ in few bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint([u64; 4]);

impl Fingerprint {
    pub fn of(image: Image) -> Self {
        let image = image.upright().grey();
        let whole = Region { left: 0, top: 0, width: SIDE + 1, height: SIDE };
        let small = image.resized(SIDE + 1, SIDE, Filter::Bilinear, whole);
        let mut bits = [0; 4];
        let darker = small.pixels().chunks_exact(SIDE + 1).flat_map(|row| row.windows(2).map(|two| two[0] < two[1]));
        darker.enumerate().filter(|(_, darker)| *darker).for_each(|(idx, _)| bits[idx / 64] |= 1 << (idx % 64));
        Self(bits)
    }

    /// Share of equal bits, 0 to 1; unlike pictures come to about a half.
    pub fn likeness(&self, other: &Self) -> f64 {
        let n_apart: u32 = self.0.iter().zip(&other.0).map(|(a, b)| (a ^ b).count_ones()).sum();
        1.0 - f64::from(n_apart) / (SIDE * SIDE) as f64
    }
}

/// A small copy of an encoded picture as a `data:` address; `None` where it cannot be decoded. The copy is made of pixels, so
/// nothing that hides in the file reaches a page.
pub(crate) fn thumbnail(bytes: &[u8]) -> Option<String> {
    let image = Image::decode(bytes).ok()?.upright();
    let longer = image.width().max(image.height());
    let side = |n: usize| (n * THUMBNAIL_PIXELS.min(longer) / longer).max(1);
    let (width, height) = (side(image.width()), side(image.height()));
    let small = image.resized(width, height, Filter::Bilinear, Region { left: 0, top: 0, width, height });
    Some(format!("data:image/png;base64,{}", BASE64_STANDARD.encode(small.to_png().ok()?)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_outside_the_folder_or_with_other_bytes_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.png"), "a").unwrap();
        let files = Files::Below(folder.path().to_owned());
        let right = Digest::of(b"a").hex();
        assert_eq!(&*files.read("a.png", &right).unwrap(), b"a");
        let refused = |name: &str, sha256: &str| files.read(name, sha256).unwrap_err();
        for name in ["", "../a.png", "/a.png", "x/../a.png", "./../a.png"] {
            assert!(refused(name, &right).contains("is not a path below"), "{name}");
        }
        assert!(refused("b.png", &right).starts_with("there is no image `b.png`"));
        assert!(refused("a.png", &Digest::of(b"b").hex()).contains("was changed after"));
        assert!(refused("a.png", "abc").contains("64 hexadecimal digits"));
    }
}

//! What is done to an embedding after the model: fewer coordinates, length 1, fewer bits.

use highroad_package::TaskKind;

use crate::TaskError;

/// The number of coordinates to answer with where a client wants `asked` of them: the model's own number, or one of those that
/// its package declares as `matryoshka_dimensions`. Errors name what there is.
///
/// A model that was not trained for it (Matryoshka representation learning, arXiv:2205.13147) loses far more by the cut than its
/// share, so the package has to say so.
pub fn embedding_width(task: &TaskKind, asked: Option<u64>) -> Result<usize, TaskError> {
    let TaskKind::Embed { dimensions, matryoshka_dimensions, .. } = task else {
        return Err(TaskError::OtherInput { task: "do something else", takes: "no `dimensions`" });
    };
    let mut known = matryoshka_dimensions.iter().chain([dimensions]);
    let width = |n: u32| n as usize;
    match asked {
        None => Ok(width(*dimensions)),
        Some(asked) => match known.find(|&&n| u64::from(n) == asked) {
            Some(&n) => Ok(width(n)),
            None => {
                let known = matryoshka_dimensions.iter().chain([dimensions]).copied().collect();
                Err(TaskError::Dimensions { asked, known })
            }
        },
    }
}

/// The first `width` coordinates of `vector`, scaled to length 1 again where `vector` is of length 1 and some were cut off.
///
/// `is_unit` is the package's `normalized`. The whole vector is given back with its own bits.
pub fn shortened(vector: &[f32], width: usize, is_unit: bool) -> Vec<f32> {
    match vector.get(..width) {
        Some(kept) if width < vector.len() && is_unit => unit(kept),
        Some(kept) => kept.to_vec(),
        None => vector.to_vec(),
    }
}

/// `vector` scaled to length 1; a vector of zeros stays as it is.
///
/// The length is summed in f64 and in order, so its bits depend on the vector alone.
pub fn unit(vector: &[f32]) -> Vec<f32> {
    let length = dot(vector, vector).sqrt();
    if length == 0.0 { vector.to_vec() } else { vector.iter().map(|&x| (f64::from(x) / length) as f32).collect() }
}

/// The cosine of the angle between two vectors of one width, -1 to 1; 0 where one of them has no direction.
pub fn cosine(left: &[f32], right: &[f32]) -> f32 {
    let lengths = (dot(left, left) * dot(right, right)).sqrt();
    if lengths == 0.0 { 0.0 } else { (dot(left, right) / lengths).clamp(-1.0, 1.0) as f32 }
}

/// `vector` in whole numbers: the coordinate of the largest magnitude becomes 127 or -127, the others keep their proportion to
/// it. Cosines stay what they are within rounding; lengths are lost.
pub fn int8(vector: &[f32]) -> Vec<i8> {
    let largest = vector.iter().fold(0.0f64, |largest, &x| largest.max(f64::from(x).abs()));
    let scaled = |&x: &f32| if largest == 0.0 { 0.0 } else { (f64::from(x) / largest * 127.0).round_ties_even() };
    vector.iter().map(|x| scaled(x) as i8).collect()
}

/// The signs of `vector`, eight to a byte, the first one the highest bit: 1 where a coordinate is above 0 (`numpy.packbits`).
/// The last byte is filled with 0.
pub fn signs(vector: &[f32]) -> Vec<u8> {
    let byte = |eight: &[f32]| {
        eight.iter().enumerate().fold(0u8, |byte, (i, &x)| if x > 0.0 { byte | (0x80 >> i) } else { byte })
    };
    vector.chunks(8).map(byte).collect()
}

fn dot(left: &[f32], right: &[f32]) -> f64 {
    left.iter().zip(right).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn embed(matryoshka_dimensions: &[u32]) -> TaskKind {
        TaskKind::Embed { dimensions: 8, normalized: true, matryoshka_dimensions: matryoshka_dimensions.to_vec() }
    }

    #[test]
    fn only_declared_widths_are_given() {
        assert_eq!(embedding_width(&embed(&[]), None).unwrap(), 8);
        assert_eq!(embedding_width(&embed(&[]), Some(8)).unwrap(), 8);
        assert_eq!(embedding_width(&embed(&[2, 4]), Some(4)).unwrap(), 4);
        for (declared, asked, message) in [
            (&[][..], 4, "`dimensions` is 4, and the model gives 8"),
            (&[2, 4][..], 3, "`dimensions` is 3, and the model gives 2, 4 or 8"),
            (&[2, 4][..], u64::MAX, "`dimensions` is 18446744073709551615, and the model gives 2, 4 or 8"),
        ] {
            assert_eq!(embedding_width(&embed(declared), Some(asked)).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_vector_that_is_cut_is_of_length_1_again() {
        assert_eq!(shortened(&[0.6, 0.0, 0.8], 1, true), [1.0]);
        assert_eq!(shortened(&[0.6, 0.8, 0.0], 3, true), [0.6, 0.8, 0.0]);
        assert_eq!(shortened(&[3.0, 4.0, 5.0], 2, false), [3.0, 4.0]);
        assert_eq!(unit(&[3.0, 4.0]), [0.6, 0.8]);
        assert_eq!(unit(&[0.0, -0.0]), [0.0, -0.0]);
    }

    #[test]
    fn cosines_are_between_minus_one_and_one() {
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 2.0]), 0.0);
        assert_eq!(cosine(&[1.0, 3.0], &[-2.0, -6.0]), -1.0);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 1.0]), 0.0);
        assert_eq!(cosine(&[f32::MAX, f32::MAX], &[f32::MAX, f32::MAX]), 1.0);
    }

    #[test]
    fn eight_bits_keep_proportions_and_one_bit_keeps_signs() {
        assert_eq!(int8(&[0.5, -0.25, 0.0, 0.1]), [127, -64, 0, 25]);
        assert_eq!(int8(&[0.0, 0.0]), [0, 0]);
        // numpy.packbits([1, 0, 0, 1, 0, 0, 0, 0, 1]) is [144, 128].
        assert_eq!(signs(&[0.5, -0.5, 0.0, 1e-30, -0.0, -1.0, -2.0, -3.0, 4.0]), [144, 128]);
    }
}

//! Element by element: maps, broadcasting pairs, copies, fills and conversions.

use half::{bf16, f16};
use rten_simd::{Isa, SimdOp};

use crate::nest::Nest;
use crate::tensor::contiguous_strides;
use crate::{DType, Element, Tensor, TensorError, broadcast_shapes, parallel};

/// Elements below which one thread is faster than two.
const PARALLEL_ELEMENTS: usize = 1 << 15;
/// Elements of one task.
const CHUNK: usize = 1 << 13;

/// Runs a plain loop compiled for the widest vectors of the machine; the loop is inlined into each version. For the
/// few loops where that pays: the maps below are instantiated hundreds of times and are bound by memory.
pub(crate) struct Wide<F>(pub F);

impl<F: FnOnce() -> R, R> SimdOp for Wide<F> {
    type Output = R;

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) -> R {
        (self.0)()
    }
}

/// Calls `$body` with `$ty` bound to the Rust type that stores elements of `$dtype`.
#[macro_export]
macro_rules! with_element {
    ($dtype:expr, $ty:ident => $body:expr) => {
        match $dtype {
            $crate::DType::Bool | $crate::DType::U8 => {
                type $ty = u8;
                $body
            }
            $crate::DType::I8 => {
                type $ty = i8;
                $body
            }
            $crate::DType::I16 => {
                type $ty = i16;
                $body
            }
            $crate::DType::I32 => {
                type $ty = i32;
                $body
            }
            $crate::DType::I64 => {
                type $ty = i64;
                $body
            }
            $crate::DType::F16 => {
                type $ty = $crate::f16;
                $body
            }
            $crate::DType::BF16 => {
                type $ty = $crate::bf16;
                $body
            }
            $crate::DType::F32 => {
                type $ty = f32;
                $body
            }
            $crate::DType::F64 => {
                type $ty = f64;
                $body
            }
        }
    };
}

/// `out[i] = f(x[i])`, contiguous, of `dtype`, which `U` stores. Errors if `T` does not store the elements of `x`.
pub fn map<T: Element, U: Element>(
    x: &Tensor,
    dtype: DType,
    f: impl Fn(T) -> U + Sync + Copy,
) -> Result<Tensor, TensorError> {
    let source = elements::<T>(x)?;
    let mut out = Tensor::scratch(dtype, x.shape())?;
    let to = out_slice::<U>(&mut out)?;
    if let Some(from) = x.as_slice::<T>() {
        for_each_span(to, |start, to| {
            let from = &from[start..start + to.len()];
            to.iter_mut().zip(from).for_each(|(to, &from)| *to = f(from));
        });
        return Ok(out);
    }
    let nest = Nest::new(x.shape(), [&contiguous_strides(x.shape()), x.strides()]);
    nest.for_each_row([0, x.offset()], |[to_at, from_at], len, [_, step]| {
        let to = &mut to[to_at..to_at + len];
        if step == 0 {
            to.fill(f(source[from_at]));
        } else {
            to.iter_mut().zip(source[from_at..].iter().step_by(step)).for_each(|(to, &from)| *to = f(from));
        }
    });
    Ok(out)
}

/// `out[i] = f(left[i], right[i])` with both operands broadcast to one shape; contiguous, of `dtype`, which `O` stores.
pub fn zip<T: Element, U: Element, O: Element>(
    left: &Tensor,
    right: &Tensor,
    dtype: DType,
    f: impl Fn(T, U) -> O + Sync + Copy,
) -> Result<Tensor, TensorError> {
    let (lefts, rights) = (elements::<T>(left)?, elements::<U>(right)?);
    let shape = broadcast_shapes(left.shape(), right.shape())?;
    let mut out = Tensor::scratch(dtype, &shape)?;
    let to = out_slice::<O>(&mut out)?;
    if let (Some(left), Some(right), true) =
        (left.as_slice::<T>(), right.as_slice::<U>(), left.shape() == right.shape())
    {
        for_each_span(to, |start, to| zip_rows(to, &left[start..], 1, &right[start..], 1, f));
        return Ok(out);
    }
    let (left, right) = (left.expand(&shape)?, right.expand(&shape)?);
    zip_outer(to, &shape, [&left, &right], |to, [left_at, right_at], [left_step, right_step]| {
        zip_rows(to, &lefts[left_at..], left_step, &rights[right_at..], right_step, f);
    });
    Ok(out)
}

/// Splits the outermost dimension among tasks and calls `row` for every innermost run.
fn zip_outer<O: Element>(
    to: &mut [O],
    shape: &[usize],
    operands: [&Tensor; 2],
    row: impl Fn(&mut [O], [usize; 2], [usize; 2]) + Sync,
) {
    let [left, right] = operands;
    let Some((&n_outer, inner)) = shape.split_first() else {
        return row(to, [left.offset(), right.offset()], [1, 1]);
    };
    let inner_len: usize = inner.iter().product();
    if n_outer == 0 || inner_len == 0 {
        return;
    }
    let strides = contiguous_strides(shape);
    let per_task = if to.len() < PARALLEL_ELEMENTS { n_outer } else { CHUNK.div_ceil(inner_len).min(n_outer) };
    parallel::for_each_chunk(to, per_task * inner_len, |task, to| {
        let first = task * per_task;
        let mut part = crate::Shape::from_slice(shape);
        part[0] = to.len() / inner_len;
        let nest = Nest::new(&part, [&strides, left.strides(), right.strides()]);
        let start = [0, left.offset() + first * left.strides()[0], right.offset() + first * right.strides()[0]];
        nest.for_each_row(start, |[to_at, left_at, right_at], len, [_, left_step, right_step]| {
            row(&mut to[to_at..to_at + len], [left_at, right_at], [left_step, right_step]);
        });
    });
}

/// One run of a pairwise map; the common steps get loops that vectorise.
fn zip_rows<T: Element, U: Element, O: Element>(
    to: &mut [O],
    left: &[T],
    left_step: usize,
    right: &[U],
    right_step: usize,
    f: impl Fn(T, U) -> O + Copy,
) {
    let n = to.len();
    match (left_step, right_step) {
        (1, 1) => {
            let (left, right) = (&left[..n], &right[..n]);
            to.iter_mut().zip(left).zip(right).for_each(|((to, &l), &r)| *to = f(l, r));
        }
        (1, 0) => {
            let (left, r) = (&left[..n], right[0]);
            to.iter_mut().zip(left).for_each(|(to, &l)| *to = f(l, r));
        }
        (0, 1) => {
            let (l, right) = (left[0], &right[..n]);
            to.iter_mut().zip(right).for_each(|(to, &r)| *to = f(l, r));
        }
        _ => to.iter_mut().enumerate().for_each(|(i, to)| *to = f(left[i * left_step], right[i * right_step])),
    }
}

/// `out[i] = condition[i] ? left[i] : right[i]`, all broadcast to one shape; `left` and `right` have one dtype.
pub fn select(condition: &Tensor, left: &Tensor, right: &Tensor) -> Result<Tensor, TensorError> {
    if left.dtype() != right.dtype() {
        return Err(TensorError::DType { expected: left.dtype().name(), got: right.dtype() });
    }
    let shape = broadcast_shapes(&broadcast_shapes(left.shape(), right.shape())?, condition.shape())?;
    let conditions = elements::<u8>(condition)?;
    let (condition, left, right) = (condition.expand(&shape)?, left.expand(&shape)?, right.expand(&shape)?);
    let mut out = Tensor::scratch(left.dtype(), &shape)?;
    with_element!(left.dtype(), T => {
        let (lefts, rights) = (elements::<T>(&left)?, elements::<T>(&right)?);
        let to = out_slice::<T>(&mut out)?;
        let strides = contiguous_strides(&shape);
        let nest = Nest::new(&shape, [&strides, condition.strides(), left.strides(), right.strides()]);
        let start = [0, condition.offset(), left.offset(), right.offset()];
        nest.for_each_row(start, |[to_at, c_at, l_at, r_at], len, [_, c, l, r]| {
            for (i, to) in to[to_at..to_at + len].iter_mut().enumerate() {
                *to = if conditions[c_at + i * c] != 0 { lefts[l_at + i * l] } else { rights[r_at + i * r] };
            }
        });
    });
    Ok(out)
}

/// Splits `to` into spans, one task each, and calls `work(start, span)`; one span when it is small.
pub(crate) fn for_each_span<T: Send>(to: &mut [T], work: impl Fn(usize, &mut [T]) + Sync) {
    let span = if to.len() < PARALLEL_ELEMENTS { to.len() } else { CHUNK };
    parallel::for_each_chunk(to, span, |i, to| work(i * span, to));
}

/// The storage of `x` as `T`; an error if it stores another type.
pub(crate) fn elements<T: Element>(x: &Tensor) -> Result<&[T], TensorError> {
    x.elements::<T>().ok_or(TensorError::DType { expected: T::DTYPE.name(), got: x.dtype() })
}

/// The elements of a tensor just made, for writing.
pub(crate) fn out_slice<T: Element>(out: &mut Tensor) -> Result<&mut [T], TensorError> {
    let got = out.dtype();
    out.as_mut_slice::<T>().ok_or(TensorError::DType { expected: T::DTYPE.name(), got })
}

/// A value of any dtype, as an operator's scalar argument gives it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    /// A boolean.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A floating-point number.
    Float(f64),
}

impl Scalar {
    /// The value as a Rust element: floats lose their fraction and integers wrap, as in C.
    pub fn to<T: Convert>(self) -> T {
        match self {
            Self::Bool(value) => T::from_i64(i64::from(value)),
            Self::Int(value) => T::from_i64(value),
            Self::Float(value) => T::from_f64(value),
        }
    }
}

/// Conversion between element types as PyTorch's CPU kernels do it: floats lose their fraction, integers wrap.
pub trait Convert: Element {
    /// From a 64-bit integer, wrapping.
    fn from_i64(value: i64) -> Self;
    /// From a 64-bit float, rounding to nearest; to integers by cutting the fraction.
    fn from_f64(value: f64) -> Self;
    /// To a 64-bit float.
    fn to_f64(self) -> f64;
    /// To a 64-bit integer, cutting the fraction.
    fn to_i64(self) -> i64;
}

macro_rules! convert_int {
    ($($ty:ty),*) => {$(
        impl Convert for $ty {
            fn from_i64(value: i64) -> Self { value as $ty }
            // By way of i64, because C compilers convert to narrow integers so and values outside wrap.
            fn from_f64(value: f64) -> Self { value as i64 as $ty }
            fn to_f64(self) -> f64 { self as f64 }
            fn to_i64(self) -> i64 { self as i64 }
        }
    )*};
}
convert_int!(u8, i8, i16, i32, i64);

macro_rules! convert_float {
    ($($ty:ty: $from:expr, $to:expr);*) => {$(
        impl Convert for $ty {
            fn from_i64(value: i64) -> Self { Self::from_f64(value as f64) }
            fn from_f64(value: f64) -> Self { ($from)(value) }
            fn to_f64(self) -> f64 { ($to)(self) }
            fn to_i64(self) -> i64 { self.to_f64() as i64 }
        }
    )*};
}
convert_float!(
    f64: |v: f64| v, |v: f64| v;
    // Half types round twice (f64 to f32 to half), as PyTorch does.
    f16: |v: f64| f16::from_f32(v as f32), |v: f16| f64::from(f32::from(v));
    bf16: |v: f64| bf16::from_f32(v as f32), |v: bf16| f64::from(f32::from(v))
);

impl Convert for f32 {
    // Not by way of f64: a large i64 would round twice.
    fn from_i64(value: i64) -> Self {
        value as Self
    }
    fn from_f64(value: f64) -> Self {
        value as Self
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn to_i64(self) -> i64 {
        self as i64
    }
}

impl Tensor {
    /// A contiguous tensor filled with one value.
    pub fn full(dtype: DType, shape: &[usize], value: Scalar) -> Result<Self, TensorError> {
        let mut out = Self::scratch(dtype, shape)?;
        match (dtype, value) {
            (DType::Bool, Scalar::Float(value)) => out_slice::<u8>(&mut out)?.fill(u8::from(value != 0.0)),
            (DType::Bool, value) => out_slice::<u8>(&mut out)?.fill(u8::from(value.to::<i64>() != 0)),
            _ => with_element!(dtype, T => out_slice::<T>(&mut out)?.fill(value.to::<T>())),
        }
        Ok(out)
    }

    /// The elements converted to `dtype`; the tensor itself when it has that dtype. To `Bool` means "is not zero".
    pub fn cast(&self, dtype: DType) -> Result<Self, TensorError> {
        if dtype == self.dtype() {
            return Ok(self.clone());
        }
        let x = self.contiguous();
        let mut out = Self::scratch(dtype, self.shape())?;
        with_element!(self.dtype(), T => {
            let from = x.as_slice::<T>().expect("made contiguous, of its own dtype");
            if dtype == DType::Bool {
                let to = out_slice::<u8>(&mut out)?;
                to.iter_mut().zip(from).for_each(|(to, from)| *to = u8::from(from.to_f64() != 0.0));
            } else {
                with_element!(dtype, U => convert(from, out_slice::<U>(&mut out)?));
            }
        });
        Ok(out)
    }

    /// A tensor with the same elements in row-major order; itself when it already is contiguous.
    pub fn contiguous(&self) -> Self {
        if self.is_contiguous() {
            return self.clone();
        }
        let mut copy = Self::scratch(self.dtype(), self.shape()).expect("a tensor that exists fits in memory");
        with_element!(self.dtype(), T => {
            let to = copy.as_mut_slice::<T>().expect("just made, of this dtype");
            self.copy_into::<T>(to).expect("has the same shape and dtype");
        });
        copy
    }

    /// The elements in row-major order; `None` if the tensor stores another type.
    pub fn to_vec<T: Element>(&self) -> Option<Vec<T>> {
        Some(self.iter::<T>()?.collect())
    }

    /// The elements in row-major order, whatever the strides; `None` if the tensor stores another type.
    pub fn iter<T: Element>(&self) -> Option<impl ExactSizeIterator<Item = T>> {
        let elements = self.elements::<T>()?;
        let mut index: crate::Shape = smallvec::SmallVec::from_elem(0, self.ndim());
        let mut at = self.offset();
        Some((0..self.numel()).map(move |_| {
            let value = elements[at];
            for dim in (0..index.len()).rev() {
                index[dim] += 1;
                at += self.strides()[dim];
                if index[dim] < self.shape()[dim] {
                    break;
                }
                at -= self.strides()[dim] * self.shape()[dim];
                index[dim] = 0;
            }
            value
        }))
    }

    /// The only element, as a scalar; `None` if there is not exactly one.
    pub fn item(&self) -> Option<Scalar> {
        if self.numel() != 1 {
            return None;
        }
        with_element!(self.dtype(), T => {
            let value = self.elements::<T>()?[self.offset()];
            Some(match self.dtype() {
                DType::Bool => Scalar::Bool(value.to_i64() != 0),
                dtype if dtype.is_float() => Scalar::Float(value.to_f64()),
                _ => Scalar::Int(value.to_i64()),
            })
        })
    }

    /// Writes the elements of `source`, broadcast to `shape`, into a contiguous part `to` of a result.
    pub fn copy_into<T: Element>(&self, to: &mut [T]) -> Result<(), TensorError> {
        let source = elements::<T>(self)?;
        if to.len() != self.numel() {
            return Err(TensorError::Length { len: to.len(), shape: self.shape().into() });
        }
        if let Some(from) = self.as_slice::<T>() {
            to.copy_from_slice(from);
            return Ok(());
        }
        let nest = Nest::new(self.shape(), [&contiguous_strides(self.shape()), self.strides()]);
        nest.for_each_row([0, self.offset()], |[to_at, from_at], len, [_, step]| {
            let to = &mut to[to_at..to_at + len];
            match step {
                1 => to.copy_from_slice(&source[from_at..from_at + len]),
                0 => to.fill(source[from_at]),
                _ => to.iter_mut().zip(source[from_at..].iter().step_by(step)).for_each(|(to, &from)| *to = from),
            }
        });
        Ok(())
    }
}

/// The tensors joined along `dim`; all have one dtype and, but for `dim`, one shape.
pub fn concat(parts: &[Tensor], dim: usize) -> Result<Tensor, TensorError> {
    let first = parts.first().ok_or(TensorError::Length { len: 0, shape: vec![] })?;
    first.size(dim)?;
    let mut shape = crate::Shape::from_slice(first.shape());
    shape[dim] = 0;
    for part in parts {
        let fits =
            part.ndim() == first.ndim() && (0..first.ndim()).all(|d| d == dim || part.shape()[d] == first.shape()[d]);
        if !fits {
            let (left, right) = (part.shape().into(), first.shape().into());
            return Err(TensorError::Mismatch { what: "joined tensors", left, right });
        }
        if part.dtype() != first.dtype() {
            return Err(TensorError::DType { expected: first.dtype().name(), got: part.dtype() });
        }
        shape[dim] += part.shape()[dim];
    }
    let mut out = Tensor::scratch(first.dtype(), &shape)?;
    let inner: usize = shape[dim + 1..].iter().product();
    let (row, n_rows) = (shape[dim] * inner, shape[..dim].iter().product::<usize>());
    with_element!(first.dtype(), T => {
        let to = out_slice::<T>(&mut out)?;
        let mut at = 0;
        for part in parts {
            let part = part.contiguous();
            let from = part.as_slice::<T>().expect("made contiguous, of the dtype checked above");
            let width = part.shape()[dim] * inner;
            for i in 0..n_rows {
                to[i * row + at..i * row + at + width].copy_from_slice(&from[i * width..(i + 1) * width]);
            }
            at += width;
        }
    });
    Ok(out)
}

// Not split among threads or compiled for wide vectors: with ten by ten dtypes that would be most of the crate's code.
fn convert<T: Convert, U: Convert>(from: &[T], to: &mut [U]) {
    if T::DTYPE.is_float() {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = U::from_f64(from.to_f64()));
    } else {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = U::from_i64(from.to_i64()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(shape: &[usize]) -> Tensor {
        let data: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| i as f32).collect();
        Tensor::from_slice(&data, shape).unwrap()
    }

    /// Layouts of one logical tensor: contiguous, transposed storage, a window of a larger tensor.
    fn layouts(x: &Tensor) -> Vec<Tensor> {
        let transposed = x.transpose(0, 1).unwrap().contiguous().transpose(0, 1).unwrap();
        let wide = concat(&[x.clone(), x.clone()], 1).unwrap().narrow(1, x.shape()[1], x.shape()[1]).unwrap();
        vec![x.clone(), transposed, wide]
    }

    #[test]
    fn layout_does_not_matter_to_a_pairwise_map() {
        let (a, b) = (counted(&[5, 7, 3]), counted(&[5, 7, 3]).transpose(1, 2).unwrap().contiguous());
        let b = b.transpose(1, 2).unwrap();
        let plain: Vec<f32> =
            a.iter::<f32>().unwrap().zip(b.iter::<f32>().unwrap()).map(|(a, b)| a * 2.0 - b).collect();
        for a in layouts(&a) {
            for b in layouts(&b) {
                let out = zip(&a, &b, DType::F32, |a: f32, b: f32| a * 2.0 - b).unwrap();
                assert_eq!(out.to_vec::<f32>().unwrap(), plain);
            }
        }
    }

    #[test]
    fn every_broadcast_equals_the_expanded_operands() {
        let shapes: [&[usize]; 8] = [&[], &[1], &[4], &[3, 1], &[3, 4], &[2, 1, 4], &[2, 3, 1], &[2, 3, 4]];
        for left in shapes {
            for right in shapes {
                let (a, b) = (counted(left), counted(right));
                let shape = broadcast_shapes(left, right).unwrap();
                let (ae, be) = (a.expand(&shape).unwrap(), b.expand(&shape).unwrap());
                let plain: Vec<f32> =
                    ae.iter::<f32>().unwrap().zip(be.iter::<f32>().unwrap()).map(|(a, b)| a - 3.0 * b).collect();
                let out = zip(&a, &b, DType::F32, |a: f32, b: f32| a - 3.0 * b).unwrap();
                assert_eq!(out.to_vec::<f32>().unwrap(), plain, "{left:?} {right:?}");
            }
        }
    }

    #[test]
    fn threads_do_not_matter_to_maps() {
        let (a, b) = (counted(&[300, 401]), counted(&[401]));
        let one = zip(&a, &b, DType::F32, |a: f32, b: f32| a / (b + 1.0)).unwrap().to_vec::<f32>();
        let many = parallel::with_threads(3, || zip(&a, &b, DType::F32, |a: f32, b: f32| a / (b + 1.0)).unwrap());
        assert_eq!(many.to_vec::<f32>(), one);
    }

    #[test]
    fn conversions_follow_c() {
        let x = Tensor::from_slice(&[-1.7f32, 0.0, 2.9, 300.5], &[4]).unwrap();
        assert_eq!(x.cast(DType::I64).unwrap().to_vec(), Some(vec![-1i64, 0, 2, 300]));
        assert_eq!(x.cast(DType::U8).unwrap().to_vec(), Some(vec![255u8, 0, 2, 44]));
        assert_eq!(x.cast(DType::Bool).unwrap().to_vec(), Some(vec![1u8, 0, 1, 1]));
        assert_eq!(x.cast(DType::BF16).unwrap().cast(DType::F32).unwrap().to_vec::<f32>().unwrap()[1], 0.0);
        let big = Tensor::scalar((1i64 << 53) + 1);
        assert_eq!(big.cast(DType::I32).unwrap().item(), Some(Scalar::Int(1)));
    }

    #[test]
    fn select_broadcasts_all_three() {
        let condition = Tensor::from_bools(&[true, false], &[2, 1]).unwrap();
        let out = select(&condition, &counted(&[3]), &Tensor::scalar(9.0f32)).unwrap();
        assert_eq!(out.to_vec::<f32>(), Some(vec![0.0, 1.0, 2.0, 9.0, 9.0, 9.0]));
    }

    #[test]
    fn joining_the_parts_of_a_split_gives_the_whole() {
        let x = counted(&[3, 5, 2]);
        for dim in 0..3 {
            let cut = x.shape()[dim] / 2;
            let parts = [x.narrow(dim, 0, cut).unwrap(), x.narrow(dim, cut, x.shape()[dim] - cut).unwrap()];
            assert_eq!(concat(&parts, dim).unwrap().to_vec::<f32>(), x.to_vec::<f32>());
        }
    }
}

//! Matrix products.
//!
//! Every output element is one chain of fused multiply-adds over the inner dimension in ascending order, then the bias,
//! then the activation. So an element depends on its own row and column only: not on the number of rows, not on how
//! work is split, and on machines with fused multiply-add not on the vector width. `rten-gemm` gives the same promise
//! for packed operands, but writes only whole contiguous outputs, splits work by rayon, and adds bias and activation in
//! further passes; the micro-kernel here follows its design (and uses the same `rten-simd` vectors).

#![allow(unsafe_code)]

use std::cell::RefCell;

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp, SimdUnaryOp};

use crate::elementwise::{elements, out_slice};
use crate::math::{Unary, with_unary};
use crate::parallel::{self, Parts};
use crate::pool::Line;
use crate::{Convert, DType, Shape, Tensor, TensorError, broadcast_shapes, with_element};

/// Vectors side by side in a micro-tile.
const REGS: usize = 2;
/// Inner dimension of one pass over a panel: the panel (32 columns wide at most) stays in the first-level cache.
const DEPTH_BLOCK: usize = 384;
/// Rows of one pass over the panels: their slice of the left operand stays in the second-level cache.
const ROW_BLOCK: usize = 96;
/// Multiply-adds below which a product runs on one thread.
const PARALLEL_MACS: usize = 1 << 17;

/// The right operand of products, rearranged once into panels of columns for the machine's vectors.
pub struct PackedMatrix {
    n_rows: usize,
    n_cols: usize,
    width: usize,
    lines: Vec<Line>,
}

impl PackedMatrix {
    /// Packs `matrix`, `f32` of shape `[k, n]` with any strides.
    pub fn new(matrix: &Tensor) -> Result<Self, TensorError> {
        Self::side_by_side(std::slice::from_ref(matrix))
    }

    /// Packs matrices of shapes `[k, n_i]` as one of shape `[k, Σ n_i]`.
    pub fn side_by_side(matrices: &[Tensor]) -> Result<Self, TensorError> {
        let n_rows = matrices.first().map_or(0, |matrix| matrix.shape().first().copied().unwrap_or(0));
        for matrix in matrices {
            if matrix.ndim() != 2 || matrix.shape()[0] != n_rows {
                let (left, right) = (matrix.shape().into(), vec![n_rows]);
                return Err(TensorError::Mismatch { what: "matrices side by side", left, right });
            }
            elements::<f32>(matrix)?;
        }
        let width = panel_width();
        let n_cols: usize = matrices.iter().map(|matrix| matrix.shape()[1]).sum();
        let len = n_cols.div_ceil(width) * width * n_rows;
        let mut lines = vec![bytemuck::Zeroable::zeroed(); (len * 4).div_ceil(64)];
        let panels = &mut bytemuck::cast_slice_mut::<Line, f32>(&mut lines)[..len];
        if len > 0 {
            parallel::for_each_chunk(panels, n_rows * width, |panel, to| {
                let mut start = 0;
                for matrix in matrices {
                    pack_columns(matrix, panel * width, start, to, width);
                    start += matrix.shape()[1];
                }
            });
        }
        Ok(Self { n_rows, n_cols, width, lines })
    }

    /// Inner dimension of products.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Columns of products.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Bytes of memory.
    pub fn size_bytes(&self) -> usize {
        self.lines.len() * 64
    }

    fn panels(&self) -> &[f32] {
        bytemuck::cast_slice(&self.lines)
    }
}

/// Writes those columns of `matrix` (which is columns `start ..` of the whole) that lie in the panel of columns
/// `panel_start .. panel_start + width` into that panel, row by row.
fn pack_columns(matrix: &Tensor, panel_start: usize, start: usize, to: &mut [f32], width: usize) {
    let (n_rows, n_cols) = (matrix.shape()[0], matrix.shape()[1]);
    let (row, col) = (matrix.strides()[0], matrix.strides()[1]);
    let source = matrix.elements::<f32>().expect("checked by the caller");
    let first = panel_start.max(start);
    let last = (panel_start + width).min(start + n_cols);
    if first >= last {
        return;
    }
    let from = matrix.offset() + (first - start) * col;
    let (at, n) = (first - panel_start, last - first);
    if col == 1 {
        for (k, to) in to.chunks_exact_mut(width).enumerate() {
            to[at..at + n].copy_from_slice(&source[from + k * row..from + k * row + n]);
        }
        return;
    }
    // Transposing: blocks of rows keep both the lines read and the lines written in cache.
    const BLOCK: usize = 16;
    for k in (0..n_rows).step_by(BLOCK) {
        let block = BLOCK.min(n_rows - k);
        for j in 0..n {
            let column = from + j * col + k * row;
            for i in 0..block {
                to[(k + i) * width + at + j] = source[column + i * row];
            }
        }
    }
}

/// The weights of a linear layer, packed, with its bias.
pub struct LinearWeights {
    packed: PackedMatrix,
    bias: Option<Vec<f32>>,
}

impl LinearWeights {
    /// Packs `weight`, `f32` of shape `[out, in]` as `torch.nn.Linear` keeps it, and `bias` of shape `[out]`.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self, TensorError> {
        Self::stacked(&[(weight.clone(), bias.cloned())])
    }

    /// Layers that share an input, as one: the outputs lie side by side. A missing bias is zero where another is given.
    pub fn stacked(layers: &[(Tensor, Option<Tensor>)]) -> Result<Self, TensorError> {
        let columns: Vec<Tensor> = layers.iter().map(|(weight, _)| weight.transpose(0, 1)).collect::<Result<_, _>>()?;
        let packed = PackedMatrix::side_by_side(&columns)?;
        if layers.iter().all(|(_, bias)| bias.is_none()) {
            return Ok(Self { packed, bias: None });
        }
        let mut biases = Vec::with_capacity(packed.n_cols());
        for (weight, bias) in layers {
            let n = weight.shape()[0];
            match bias {
                None => biases.resize(biases.len() + n, 0.0),
                Some(bias) => {
                    elements::<f32>(bias)?;
                    biases.extend(bias.expand(&[n])?.iter::<f32>().expect("checked to be f32"));
                }
            }
        }
        Ok(Self { packed, bias: Some(biases) })
    }

    /// Size of the last dimension of inputs.
    pub fn in_features(&self) -> usize {
        self.packed.n_rows
    }

    /// Size of the last dimension of outputs.
    pub fn out_features(&self) -> usize {
        self.packed.n_cols
    }

    /// Bytes of memory.
    pub fn size_bytes(&self) -> usize {
        self.packed.size_bytes() + self.bias.as_ref().map_or(0, |bias| bias.len() * 4)
    }
}

/// `activation(x · weightᵀ + bias)` over the last dimension of `x`, `f32` of shape `[…, in]`; the result is `[…, out]`.
pub fn linear(x: &Tensor, weights: &LinearWeights, activation: Unary) -> Result<Tensor, TensorError> {
    times_packed(x, &weights.packed, weights.bias.as_deref(), activation)
}

/// `x · matrix` over the last dimension of `x`, `f32` of shape `[…, k]`; the result is `[…, n]`.
fn times_packed(
    x: &Tensor,
    matrix: &PackedMatrix,
    bias: Option<&[f32]>,
    activation: Unary,
) -> Result<Tensor, TensorError> {
    let mismatch = || {
        let (left, right) = (x.shape().into(), vec![matrix.n_rows, matrix.n_cols]);
        TensorError::Mismatch { what: "matrix product", left, right }
    };
    let (&depth, lead) = x.shape().split_last().ok_or_else(mismatch)?;
    if depth != matrix.n_rows {
        return Err(mismatch());
    }
    let mut shape = Shape::from_slice(lead);
    shape.push(matrix.n_cols);
    let mut out = Tensor::scratch(DType::F32, &shape)?;
    let n_rows: usize = lead.iter().product();
    let x =
        x.view(&[n_rows, depth]).filter(|x| x.strides()[1] == 1 || depth == 1).map_or_else(|| x.contiguous(), |x| x);
    let x = x.reshape(&[n_rows, depth])?;
    let product = Product {
        left: &elements::<f32>(&x)?[x.offset().min(elements::<f32>(&x)?.len())..],
        left_row: if depth == 0 { 0 } else { x.strides()[0] },
        panels: matrix.panels(),
        panel: matrix.n_rows * matrix.width,
        panel_row: matrix.width,
        depth,
        out_row: matrix.n_cols,
        n_cols: matrix.n_cols,
        bias,
        activation,
    };
    product.run(out_slice::<f32>(&mut out)?, n_rows);
    Ok(out)
}

/// One product `out = activation(left · right + bias)` with the right operand in panels.
pub(crate) struct Product<'a> {
    /// Rows of the left operand, `left_row` elements apart, their elements side by side.
    pub left: &'a [f32],
    pub left_row: usize,
    /// Panels of the right operand, `panel` elements apart; a panel's rows are `panel_row` elements apart and at least
    /// as wide as [`panel_width`] but for the last panel's, which may be cut at the end of the slice by no more than
    /// its unused columns.
    pub panels: &'a [f32],
    pub panel: usize,
    pub panel_row: usize,
    pub depth: usize,
    pub out_row: usize,
    pub n_cols: usize,
    pub bias: Option<&'a [f32]>,
    pub activation: Unary,
}

impl Product<'_> {
    /// Writes `n_rows` rows to `out`, on the allowed threads.
    fn run(&self, out: &mut [f32], n_rows: usize) {
        if n_rows == 0 || self.n_cols == 0 {
            return;
        }
        let width = panel_width();
        let n_panels = self.n_cols.div_ceil(width);
        let n_threads = if n_rows * self.n_cols * self.depth < PARALLEL_MACS { 1 } else { parallel::threads() };
        let rows_per_task = n_rows.div_ceil(n_rows.div_ceil(ROW_BLOCK)).next_multiple_of(4);
        let n_row_blocks = n_rows.div_ceil(rows_per_task);
        // Tasks enough that a thread held up by its neighbours does not hold up the product.
        let n_groups = if n_threads == 1 { 1 } else { (4 * n_threads).div_ceil(n_row_blocks).min(n_panels) };
        let panels_per_task = n_panels.div_ceil(n_groups);
        let n_groups = n_panels.div_ceil(panels_per_task);
        let parts = Parts::new(out);
        let work = |task: usize| {
            let (block, group) = (task / n_groups, task % n_groups);
            let first_row = block * rows_per_task;
            let first_panel = group * panels_per_task;
            let part = Part {
                first_row,
                n_rows: rows_per_task.min(n_rows - first_row),
                first_panel,
                n_panels: panels_per_task.min(n_panels - first_panel),
            };
            // SAFETY: `out` holds `n_rows` rows of `n_cols`, and tasks cover disjoint rows and columns of it.
            unsafe { self.part(parts.as_ptr(), parts.len(), &part) };
        };
        if n_threads == 1 {
            (0..n_row_blocks * n_groups).for_each(work);
        } else {
            parallel::for_each(n_row_blocks * n_groups, work);
        }
    }

    /// Writes one part of the output.
    ///
    /// # Safety
    /// `out` points to `out_len` elements; nobody else may access the rows and columns of the part while this runs.
    pub(crate) unsafe fn part(&self, out: *mut f32, out_len: usize, part: &Part) {
        let width = panel_width();
        let last_col = ((part.first_panel + part.n_panels) * width).min(self.n_cols);
        let last_row = part.first_row + part.n_rows;
        if part.n_rows == 0 || part.n_panels == 0 {
            return;
        }
        // The bounds that the micro-kernel's pointers rely on.
        assert!((last_row - 1) * self.out_row + last_col <= out_len, "the output holds the part");
        assert!((last_row - 1) * self.left_row + self.depth <= self.left.len(), "the left operand has these rows");
        if self.depth > 0 {
            let last_panel = part.first_panel + part.n_panels - 1;
            let used = (self.n_cols - last_panel * width).min(width);
            let end = last_panel * self.panel + (self.depth - 1) * self.panel_row + used;
            assert!(end <= self.panels.len(), "the right operand has these panels");
        }
        assert!(self.bias.is_none_or(|bias| bias.len() >= last_col), "the bias covers the columns");
        PartOp { product: self, part, out }.dispatch();
    }
}

/// Rows and panels of an output that one task computes.
pub(crate) struct Part {
    pub first_row: usize,
    pub n_rows: usize,
    pub first_panel: usize,
    pub n_panels: usize,
}

struct PartOp<'a> {
    product: &'a Product<'a>,
    part: &'a Part,
    out: *mut f32,
}

impl SimdOp for PartOp<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let Self { product, part, out } = self;
        let width = isa.f32().len() * REGS;
        let max_rows = if isa.f32().len() >= 16 { 12 } else { 6 };
        let n_tiles = part.n_rows.div_ceil(max_rows);
        let n_blocks = product.depth.div_ceil(DEPTH_BLOCK).max(1);
        for block in 0..n_blocks {
            let depth_start = block * DEPTH_BLOCK;
            let depth = DEPTH_BLOCK.min(product.depth - depth_start);
            for panel in part.first_panel..part.first_panel + part.n_panels {
                let first_col = panel * width;
                let n_cols = width.min(product.n_cols - first_col);
                let mut row = part.first_row;
                for tile in 0..n_tiles {
                    // Tiles as even as possible: 16 rows are 8 + 8, not 12 + 4.
                    let end = part.first_row + (tile + 1) * part.n_rows / n_tiles;
                    // SAFETY: `Product::part` checked that these rows and columns exist in all operands.
                    unsafe {
                        let tile = Tile {
                            left: product.left.as_ptr().add(row * product.left_row + depth_start),
                            left_row: product.left_row,
                            right: product.panels.as_ptr().add(panel * product.panel + depth_start * product.panel_row),
                            right_row: product.panel_row,
                            depth,
                            out: out.add(row * product.out_row + first_col),
                            out_row: product.out_row,
                            n_cols,
                            start: if block == 0 { Start::Zero } else { Start::Output },
                        };
                        dispatch_rows(isa, &tile, end - row);
                        if block + 1 == n_blocks {
                            finish(isa, &tile, end - row, product, first_col);
                        }
                    }
                    row = end;
                }
            }
        }
    }
}

/// What the sums of a micro-tile start from.
#[derive(Clone, Copy, PartialEq)]
enum Start {
    Zero,
    Output,
}

/// A block of the output small enough that its sums stay in registers.
struct Tile {
    left: *const f32,
    left_row: usize,
    right: *const f32,
    right_row: usize,
    depth: usize,
    out: *mut f32,
    out_row: usize,
    n_cols: usize,
    start: Start,
}

#[inline(always)]
unsafe fn dispatch_rows<I: Isa>(isa: I, tile: &Tile, n_rows: usize) {
    macro_rules! rows {
        ($($n:literal)*) => {
            match n_rows {
                // SAFETY: as this function's.
                $($n => unsafe { sum_tile::<I, $n>(isa, tile) },)*
                _ => unreachable!("tiles have at most 12 rows"),
            }
        };
    }
    if isa.f32().len() >= 16 { rows!(1 2 3 4 5 6 7 8 9 10 11 12) } else { rows!(1 2 3 4 5 6) }
}

/// `out (+)= left · right` for `ROWS` rows; each element one chain of multiply-adds.
///
/// # Safety
/// The tile's pointers are valid for `ROWS` rows, `depth` and `n_cols`.
#[inline(always)]
unsafe fn sum_tile<I: Isa, const ROWS: usize>(isa: I, tile: &Tile) {
    let ops = isa.f32();
    let lanes = ops.len();
    let is_whole = tile.n_cols == REGS * lanes;
    let masks: [_; REGS] = std::array::from_fn(|j| ops.first_n_mask(tile.n_cols.saturating_sub(j * lanes).min(lanes)));
    let mut sums = [[ops.zero(); REGS]; ROWS];
    // SAFETY: the caller's; masked accesses touch only the first `n_cols` columns.
    unsafe {
        if tile.start == Start::Output {
            for i in 0..ROWS {
                for j in 0..REGS {
                    let at = tile.out.add(i * tile.out_row + j * lanes);
                    sums[i][j] = if is_whole { ops.load_ptr(at) } else { ops.load_ptr_mask(at, masks[j]) };
                }
            }
        }
        if is_whole {
            let mut right = tile.right;
            let mut k = 0;
            while k + 4 <= tile.depth {
                for u in 0..4 {
                    step::<I, ROWS>(isa, &mut sums, tile, k + u, |j| {
                        ops.load_ptr(right.add(u * tile.right_row + j * lanes))
                    });
                }
                right = right.add(4 * tile.right_row);
                k += 4;
            }
            while k < tile.depth {
                step::<I, ROWS>(isa, &mut sums, tile, k, |j| ops.load_ptr(right.add(j * lanes)));
                right = right.add(tile.right_row);
                k += 1;
            }
        } else {
            for k in 0..tile.depth {
                step::<I, ROWS>(isa, &mut sums, tile, k, |j| {
                    ops.load_ptr_mask(tile.right.add(k * tile.right_row + j * lanes), masks[j])
                });
            }
        }
        for i in 0..ROWS {
            for j in 0..REGS {
                let at = tile.out.add(i * tile.out_row + j * lanes);
                if is_whole { ops.store_ptr(sums[i][j], at) } else { ops.store_ptr_mask(sums[i][j], at, masks[j]) }
            }
        }
    }
}

/// One step along the inner dimension.
///
/// # Safety
/// As [`sum_tile`]'s.
#[inline(always)]
unsafe fn step<I: Isa, const ROWS: usize>(
    isa: I,
    sums: &mut [[I::F32; REGS]; ROWS],
    tile: &Tile,
    k: usize,
    load: impl Fn(usize) -> I::F32,
) {
    let ops = isa.f32();
    let right: [I::F32; REGS] = std::array::from_fn(&load);
    for i in 0..ROWS {
        // SAFETY: row `i` of the left operand has `depth` elements.
        let left = ops.splat(unsafe { *tile.left.add(i * tile.left_row + k) });
        for j in 0..REGS {
            sums[i][j] = ops.mul_add(left, right[j], sums[i][j]);
        }
    }
}

/// Bias and activation of a finished tile, which is still in the first-level cache.
///
/// # Safety
/// As [`sum_tile`]'s; the bias covers the tile's columns.
#[inline(always)]
unsafe fn finish<I: Isa>(isa: I, tile: &Tile, n_rows: usize, product: &Product<'_>, first_col: usize) {
    let ops = isa.f32();
    if product.bias.is_none() && product.activation == Unary::Identity {
        return;
    }
    let lanes = ops.len();
    let mut col = 0;
    while col < tile.n_cols {
        let mask = ops.first_n_mask((tile.n_cols - col).min(lanes));
        // SAFETY: masked to the columns that exist.
        let bias = product.bias.map(|bias| unsafe { ops.load_ptr_mask(bias.as_ptr().add(first_col + col), mask) });
        macro_rules! rows {
            ($x:ident => $then:expr) => {
                for i in 0..n_rows {
                    // SAFETY: the tile's rows exist in the output; masked to its columns.
                    unsafe {
                        let at = tile.out.add(i * tile.out_row + col);
                        let mut $x = ops.load_ptr_mask(at, mask);
                        if let Some(bias) = bias {
                            $x = ops.add($x, bias);
                        }
                        ops.store_ptr_mask($then, at, mask);
                    }
                }
            };
        }
        with_unary!(product.activation, op => rows!(x => op.eval(isa, x)), else rows!(x => x));
        col += lanes;
    }
}

/// Columns of a panel: what a micro-tile is wide on this machine.
pub(crate) fn panel_width() -> usize {
    struct Width;
    impl SimdOp for Width {
        type Output = usize;

        #[inline(always)]
        fn eval<I: Isa>(self, isa: I) -> usize {
            isa.f32().len() * REGS
        }
    }
    static WIDTH: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *WIDTH.get_or_init(|| Width.dispatch())
}

/// The instruction set that kernels use on this machine: `avx512`, `avx2`, `neon` or `generic`.
pub fn instruction_set() -> &'static str {
    match (cfg!(target_arch = "aarch64"), panel_width() / REGS) {
        (true, _) => "neon",
        (false, 16) => "avx512",
        (false, 8) => "avx2",
        _ => "generic",
    }
}

/// Calls `work` with `len` elements of arbitrary content that the thread keeps for the next call.
pub(crate) fn with_thread_scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local!(static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) });
    SCRATCH.with(|cell| {
        let mut lines = cell.take();
        if lines.len() * 16 < len {
            lines = vec![bytemuck::Zeroable::zeroed(); len.div_ceil(16)];
        }
        let result = work(&mut bytemuck::cast_slice_mut::<Line, f32>(&mut lines)[..len]);
        cell.replace(lines);
        result
    })
}

/// The product of matrices with the shapes, broadcasting and one-dimensional cases of `torch.matmul`; both operands
/// have one dtype, which is not `Bool`.
pub fn matmul(left: &Tensor, right: &Tensor) -> Result<Tensor, TensorError> {
    let mismatch = || {
        let (left, right) = (left.shape().into(), right.shape().into());
        TensorError::Mismatch { what: "matrix product", left, right }
    };
    if left.dtype() != right.dtype() {
        return Err(TensorError::DType { expected: left.dtype().name(), got: right.dtype() });
    }
    if left.ndim() == 0 || right.ndim() == 0 {
        return Err(mismatch());
    }
    if left.ndim() == 1 {
        let out = matmul(&left.unsqueeze(0)?, right)?;
        let rows = out.ndim() - if right.ndim() == 1 { 1 } else { 2 };
        return out.squeeze(rows);
    }
    if right.ndim() == 1 {
        let out = matmul(left, &right.unsqueeze(1)?)?;
        return out.squeeze(out.ndim() - 1);
    }
    let (lead_l, &[m, k]) = left.shape().split_last_chunk::<2>().ok_or_else(mismatch)?;
    let (lead_r, &[k_right, n]) = right.shape().split_last_chunk::<2>().ok_or_else(mismatch)?;
    if k != k_right {
        return Err(mismatch());
    }
    let lead = broadcast_shapes(lead_l, lead_r)?;
    match left.dtype() {
        DType::F32 if lead_r.iter().all(|&size| size == 1) && lead.len() == lead_l.len() => {
            let right = right.reshape(&[k, n])?;
            times_packed(left, &PackedMatrix::new(&right)?, None, Unary::Identity)
        }
        DType::F32 => batched(left, right, &lead, [m, k, n]),
        DType::F16 | DType::BF16 => matmul(&left.cast(DType::F32)?, &right.cast(DType::F32)?)?.cast(left.dtype()),
        DType::F64 => plain_matmul::<f64>(left, right, &lead, [m, k, n], |a, b, sum| a.mul_add(b, sum)),
        dtype => with_element!(dtype, T => plain_matmul::<T>(left, right, &lead, [m, k, n], |a, b, sum| {
            T::from_i64(a.to_i64().wrapping_mul(b.to_i64()).wrapping_add(sum.to_i64()))
        })),
    }
}

/// Products of two batches of `f32` matrices; a task is one product.
fn batched(left: &Tensor, right: &Tensor, lead: &[usize], [m, k, n]: [usize; 3]) -> Result<Tensor, TensorError> {
    let with_lead = |rows, cols| lead.iter().copied().chain([rows, cols]).collect::<Shape>();
    let left = left.expand(&with_lead(m, k))?;
    let left = if k == 1 || left.strides()[lead.len() + 1] == 1 { left } else { left.contiguous() };
    let right = right.expand(&with_lead(k, n))?;
    let (lefts, rights) = (elements::<f32>(&left)?, elements::<f32>(&right)?);
    let mut out = Tensor::scratch(DType::F32, &with_lead(m, n))?;
    let width = panel_width();
    let n_panels = n.div_ceil(width);
    let offset = |x: &Tensor, mut batch: usize| {
        let mut at = x.offset();
        for dim in (0..lead.len()).rev() {
            at += batch % lead[dim] * x.strides()[dim];
            batch /= lead[dim];
        }
        at
    };
    let (row, col) = (right.strides()[lead.len()], right.strides()[lead.len() + 1]);
    if m * n == 0 {
        return Ok(out);
    }
    parallel::for_each_chunk(out_slice::<f32>(&mut out)?, m * n, |batch, out| {
        with_thread_scratch(n_panels * width * k, |panels| {
            pack_panels(&rights[offset(&right, batch).min(rights.len())..], [row, col], [k, n], panels);
            let product = Product {
                left: &lefts[offset(&left, batch).min(lefts.len())..],
                left_row: if k == 0 { 0 } else { left.strides()[lead.len()] },
                panels,
                panel: k * width,
                panel_row: width,
                depth: k,
                out_row: n,
                n_cols: n,
                bias: None,
                activation: Unary::Identity,
            };
            let part = Part { first_row: 0, n_rows: m, first_panel: 0, n_panels };
            // SAFETY: `out` is this task's own chunk of `m · n` elements.
            unsafe { product.part(out.as_mut_ptr(), out.len(), &part) };
        });
    });
    Ok(out)
}

/// Packs a matrix of shape `[k, n]` with strides `[row, col]` into panels; columns past `n` hold zeros.
pub(crate) fn pack_panels(source: &[f32], [row, col]: [usize; 2], [k, n]: [usize; 2], to: &mut [f32]) {
    let width = panel_width();
    if k == 0 {
        return;
    }
    for (panel, to) in to.chunks_exact_mut(k * width).enumerate() {
        let first = panel * width;
        let n_cols = width.min(n - first);
        if n_cols < width {
            to.fill(0.0);
        }
        if col == 1 {
            for (i, to) in to.chunks_exact_mut(width).enumerate() {
                to[..n_cols].copy_from_slice(&source[i * row + first..i * row + first + n_cols]);
            }
            continue;
        }
        for j in 0..n_cols {
            let column = &source[(first + j) * col..];
            for i in 0..k {
                to[i * width + j] = column[i * row];
            }
        }
    }
}

/// The product by its definition; the reference of the fast ones and the kernel of dtypes that have none.
fn plain_matmul<T: Convert>(
    left: &Tensor,
    right: &Tensor,
    lead: &[usize],
    [m, k, n]: [usize; 3],
    mul_add: impl Fn(T, T, T) -> T + Sync,
) -> Result<Tensor, TensorError> {
    let with_lead = |rows, cols| lead.iter().copied().chain([rows, cols]).collect::<Shape>();
    let (left, right) = (left.expand(&with_lead(m, k))?.contiguous(), right.expand(&with_lead(k, n))?.contiguous());
    let (lefts, rights) = (elements::<T>(&left)?, elements::<T>(&right)?);
    let (lefts, rights) = (&lefts[left.offset()..], &rights[right.offset()..]);
    let mut out = Tensor::scratch(left.dtype(), &with_lead(m, n))?;
    if n == 0 || m == 0 {
        return Ok(out);
    }
    parallel::for_each_chunk(out_slice::<T>(&mut out)?, n, |row, out| {
        let right = row / m * k * n;
        out.fill(T::from_i64(0));
        for i in 0..k {
            let a = lefts[row * k + i];
            out.iter_mut().zip(&rights[right + i * n..]).for_each(|(out, &b)| *out = mul_add(a, b, *out));
        }
    });
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random, worst_difference};

    fn plain(left: &Tensor, right: &Tensor) -> Tensor {
        let lead = broadcast_shapes(&left.shape()[..left.ndim() - 2], &right.shape()[..right.ndim() - 2]).unwrap();
        let (m, k) = (left.shape()[left.ndim() - 2], left.shape()[left.ndim() - 1]);
        let n = right.shape()[right.ndim() - 1];
        let (left, right) = (left.cast(DType::F64).unwrap(), right.cast(DType::F64).unwrap());
        plain_matmul::<f64>(&left, &right, &lead, [m, k, n], |a, b, sum| a * b + sum).unwrap()
    }

    #[test]
    fn products_equal_the_definition_for_every_shape_and_layout() {
        for m in [0, 1, 2, 5, 12, 13, 97, 200] {
            for (k, n) in [(1, 1), (3, 33), (32, 64), (385, 31), (800, 70), (0, 4), (7, 0)] {
                let (a, b) = (random(&[m, k], 1), random(&[k, n], 2));
                let expected = plain(&a, &b);
                for a in [a.clone(), a.transpose(0, 1).unwrap().contiguous().transpose(0, 1).unwrap()] {
                    for b in [b.clone(), b.transpose(0, 1).unwrap().contiguous().transpose(0, 1).unwrap()] {
                        let out = matmul(&a, &b).unwrap();
                        assert_eq!(out.shape(), [m, n]);
                        assert!(worst_difference(&out, &expected) < 4e-6 * (1.0 + k as f64).sqrt(), "{m} {k} {n}");
                    }
                }
            }
        }
    }

    #[test]
    fn batches_broadcast_and_one_dimensional_operands_drop_out() {
        let (a, b) = (random(&[3, 1, 5, 7], 1), random(&[2, 7, 4], 2));
        assert!(worst_difference(&matmul(&a, &b).unwrap(), &plain(&a, &b)) < 1e-5);
        let b = random(&[2, 4, 7], 3).transpose(1, 2).unwrap();
        assert!(worst_difference(&matmul(&a, &b).unwrap(), &plain(&a, &b)) < 1e-5);
        let v = random(&[7], 4);
        assert_eq!(matmul(&a, &v).unwrap().shape(), [3, 1, 5]);
        assert_eq!(matmul(&v, &b).unwrap().shape(), [2, 4]);
        assert_eq!(matmul(&v, &v).unwrap().shape(), [] as [usize; 0]);
        assert!(matmul(&a, &random(&[6, 2], 5)).is_err());
        let ints = Tensor::from_slice(&[1i64, 2, 3, 4], &[2, 2]).unwrap();
        assert_eq!(matmul(&ints, &ints).unwrap().to_vec(), Some(vec![7i64, 10, 15, 22]));
    }

    #[test]
    fn a_row_has_the_same_bits_alone_in_any_batch_and_with_any_threads() {
        let weights = LinearWeights::new(&random(&[150, 900], 1), Some(&random(&[150], 2))).unwrap();
        let x = random(&[257, 900], 3);
        let all = linear(&x, &weights, Unary::Gelu).unwrap().to_vec::<f32>().unwrap();
        for n_threads in [1, 2, 5] {
            for (start, len) in [(0, 257), (0, 1), (200, 1), (13, 30), (100, 157)] {
                let part = x.narrow(0, start, len).unwrap();
                let out = parallel::with_threads(n_threads, || linear(&part, &weights, Unary::Gelu).unwrap());
                assert_eq!(out.to_vec::<f32>().unwrap(), all[start * 150..(start + len) * 150]);
            }
        }
        let (a, b) = (random(&[6, 9, 40], 4), random(&[6, 40, 33], 5));
        let all = matmul(&a, &b).unwrap().to_vec::<f32>().unwrap();
        let two = parallel::with_threads(2, || matmul(&a, &b).unwrap().to_vec::<f32>().unwrap());
        assert_eq!(two, all);
        let alone = matmul(&a.select(0, 4).unwrap().narrow(0, 3, 1).unwrap(), &b.select(0, 4).unwrap()).unwrap();
        assert_eq!(alone.to_vec::<f32>().unwrap(), all[(4 * 9 + 3) * 33..(4 * 9 + 4) * 33]);
    }

    #[test]
    fn trailing_zeros_of_the_inner_dimension_do_not_change_a_bit() {
        let (a, b) = (random(&[5, 37], 1), random(&[37, 20], 2));
        let short = matmul(&a, &b).unwrap().to_vec::<f32>();
        let zeros = |shape: &[usize]| Tensor::zeros(DType::F32, shape).unwrap();
        let (a, b) =
            (crate::concat(&[a, zeros(&[5, 400])], 1).unwrap(), crate::concat(&[b, random(&[400, 20], 3)], 0).unwrap());
        assert_eq!(matmul(&a, &b).unwrap().to_vec::<f32>(), short);
    }

    #[test]
    fn bias_and_activation_follow_the_product() {
        let (x, weight, bias) = (random(&[4, 3, 20], 1), random(&[45, 20], 2), random(&[45], 3));
        let product = matmul(&x, &weight.transpose(0, 1).unwrap()).unwrap();
        let sum = crate::zip(&product, &bias, DType::F32, |a: f32, b: f32| a + b).unwrap();
        for activation in [Unary::Identity, Unary::Relu, Unary::Gelu, Unary::Tanh, Unary::Clamp { min: 0.0, max: 0.5 }]
        {
            let expected = crate::unary(&sum, activation).unwrap().to_vec::<f32>();
            let weights = LinearWeights::new(&weight, Some(&bias)).unwrap();
            assert_eq!(linear(&x, &weights, activation).unwrap().to_vec::<f32>(), expected);
        }
    }

    #[test]
    fn stacked_layers_give_their_outputs_side_by_side() {
        let x = random(&[9, 24], 1);
        let layers = [(random(&[10, 24], 2), Some(random(&[10], 3))), (random(&[50, 24], 4), None)];
        let both = linear(&x, &LinearWeights::stacked(&layers).unwrap(), Unary::Identity).unwrap();
        let mut start = 0;
        for (weight, bias) in &layers {
            let alone = linear(&x, &LinearWeights::new(weight, bias.as_ref()).unwrap(), Unary::Identity).unwrap();
            let n = weight.shape()[0];
            assert_eq!(both.narrow(1, start, n).unwrap().to_vec::<f32>(), alone.to_vec::<f32>());
            start += n;
        }
    }
}

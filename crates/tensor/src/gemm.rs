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
    let x = x.view(&[n_rows, depth]).filter(|x| x.strides()[1] == 1 || depth == 1).unwrap_or_else(|| x.contiguous());
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
    /// Panels of the right operand, `panel` elements apart; a panel's rows are [`panel_width`] wide and `panel_row`
    /// elements apart.
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
        // And as many for each thread: nine equal tasks take two threads as long as ten.
        let n_groups = match n_threads {
            1 => 1,
            _ => ((4 * n_threads).div_ceil(n_row_blocks)..)
                .find(|n_groups| (n_row_blocks * n_groups).is_multiple_of(n_threads))
                .map_or(n_panels, |n_groups| n_groups.min(n_panels)),
        };
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
            let end = last_panel * self.panel + (self.depth - 1) * self.panel_row + width;
            assert!(end <= self.panels.len(), "the right operand has these panels");
        }
        assert!(self.bias.is_none_or(|bias| bias.len() >= last_col), "the bias covers the columns");
        // SAFETY: the operands hold all rows and columns of the part, as just checked.
        unsafe { self.panels_of(out, part) };
    }

    /// # Safety
    /// As [`Product::part`]'s, and its checks hold.
    unsafe fn panels_of(&self, out: *mut f32, part: &Part) {
        let (width, max_rows) = (panel_width(), max_tile_rows());
        // Tiles as even as possible: 16 rows are 8 + 8, not 12 + 4.
        let n_tiles = part.n_rows.div_ceil(max_rows);
        let (rows, n_taller) = (part.n_rows / n_tiles, part.n_rows % n_tiles);
        let n_blocks = self.depth.div_ceil(DEPTH_BLOCK).max(1);
        let end_panel = part.first_panel + part.n_panels;
        for block in 0..n_blocks {
            let depth_start = block * DEPTH_BLOCK;
            for panel in part.first_panel..end_panel {
                let first_col = panel * width;
                let next = match panel + 1 < end_panel {
                    true => (panel + 1) * self.panel + depth_start * self.panel_row,
                    // Another thread multiplies by it, and may find it in the cache that all share.
                    false if block + 1 == n_blocks => (panel + 1) * self.panel,
                    false => part.first_panel * self.panel + (depth_start + DEPTH_BLOCK) * self.panel_row,
                };
                // SAFETY: the caller's; every address is that of an element or one past the end.
                unsafe {
                    let mut strip = Strip {
                        n_tiles: n_taller,
                        left: self.left.as_ptr().add(part.first_row * self.left_row + depth_start),
                        left_row: self.left_row,
                        right: self.panels.as_ptr().add(panel * self.panel + depth_start * self.panel_row),
                        right_row: self.panel_row,
                        ahead: self.panels.as_ptr().wrapping_add(next),
                        ahead_step: self.panel_row.div_ceil(n_tiles),
                        depth: DEPTH_BLOCK.min(self.depth - depth_start),
                        out: out.add(part.first_row * self.out_row + first_col),
                        out_row: self.out_row,
                        n_cols: width.min(self.n_cols - first_col),
                        start: if block == 0 { Start::Zero } else { Start::Output },
                    };
                    let finish = Finish {
                        n_rows: part.n_rows,
                        out: strip.out,
                        out_row: strip.out_row,
                        n_cols: strip.n_cols,
                        bias: self.bias.map(|bias| bias.as_ptr().add(first_col)),
                        activation: self.activation,
                    };
                    strip.run(rows + 1);
                    strip.left = strip.left.add(n_taller * (rows + 1) * self.left_row);
                    strip.out = strip.out.add(n_taller * (rows + 1) * self.out_row);
                    strip.ahead = strip.ahead.wrapping_add(n_taller * strip.depth * strip.ahead_step);
                    strip.n_tiles = n_tiles - n_taller;
                    strip.run(rows);
                    if block + 1 == n_blocks {
                        finish.run();
                    }
                }
            }
        }
    }
}

/// Rows and panels of an output that one task computes.
pub(crate) struct Part {
    pub first_row: usize,
    pub n_rows: usize,
    pub first_panel: usize,
    pub n_panels: usize,
}

/// What the sums of a micro-tile start from.
#[derive(Clone, Copy, PartialEq)]
enum Start {
    Zero,
    Output,
}

/// Micro-tiles below each other, all of one height, at one panel: blocks of the output whose sums stay in registers.
#[derive(Clone, Copy)]
struct Strip {
    n_tiles: usize,
    left: *const f32,
    left_row: usize,
    right: *const f32,
    right_row: usize,
    /// What the next strip multiplies by: fetched meanwhile, so many elements in the time of one row of the right operand.
    ahead: *const f32,
    ahead_step: usize,
    depth: usize,
    out: *mut f32,
    out_row: usize,
    n_cols: usize,
    start: Start,
}

impl Strip {
    /// `out (+)= left · right` for tiles of `rows` rows; each element one chain of multiply-adds.
    ///
    /// # Safety
    /// The pointers are valid for `n_tiles · rows` rows, `depth` and (the output) `n_cols`; rows of the right operand
    /// are whole panels.
    unsafe fn run(self, rows: usize) {
        macro_rules! rows {
            ($($n:literal)*) => {
                match rows {
                    $($n => StripOp::<$n>(self).dispatch(),)*
                    _ => unreachable!("tiles have at most 12 rows"),
                }
            };
        }
        if self.n_tiles > 0 {
            // One instantiation a height, each dispatched by itself: inlined into one function they make the
            // compiler run out of registers.
            rows!(1 2 3 4 5 6 7 8 9 10 11 12);
        }
    }
}

/// Runs a block for `$i` = 0 … 11 below `$n`, each a constant. Loops would do, but the compiler unrolls only small ones,
/// and sums indexed by a variable live in memory instead of registers, which is five times slower.
macro_rules! for_rows {
    ($i:ident in 0..$n:ident $body:block) => {
        for_rows!(@ $i $n $body 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    (@ $i:ident $n:ident $body:block $($row:literal)*) => {
        $(if $row < $n {
            const $i: usize = $row;
            $body
        })*
    };
}

/// Elements of a line of the caches.
const LINE: usize = 16;

struct StripOp<const ROWS: usize>(Strip);

impl<const ROWS: usize> SimdOp for StripOp<ROWS> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        let Self(mut strip) = self;
        let lanes = ops.len();
        let is_whole = strip.n_cols == REGS * lanes;
        let masks = [ops.first_n_mask(strip.n_cols.min(lanes)), ops.first_n_mask(strip.n_cols.saturating_sub(lanes))];
        for _ in 0..strip.n_tiles {
            let mut sums = [[ops.zero(); REGS]; ROWS];
            // SAFETY: `Strip::run`'s; masked accesses touch only the first `n_cols` columns.
            unsafe {
                if strip.start == Start::Output {
                    for_rows!(R in 0..ROWS {
                        let at = strip.out.add(R * strip.out_row);
                        sums[R] = if is_whole {
                            [ops.load_ptr(at), ops.load_ptr(at.add(lanes))]
                        } else {
                            [ops.load_ptr_mask(at, masks[0]), ops.load_ptr_mask(at.wrapping_add(lanes), masks[1])]
                        };
                    });
                }
                let mut right = strip.right;
                for k in 0..strip.depth {
                    let (x, y) = (ops.load_ptr(right), ops.load_ptr(right.add(lanes)));
                    ops.prefetch(strip.ahead);
                    ops.prefetch(strip.ahead.wrapping_add(LINE));
                    strip.ahead = strip.ahead.wrapping_add(strip.ahead_step);
                    for_rows!(R in 0..ROWS {
                        let left = ops.splat(*strip.left.add(R * strip.left_row + k));
                        sums[R] = [ops.mul_add(left, x, sums[R][0]), ops.mul_add(left, y, sums[R][1])];
                    });
                    right = right.wrapping_add(strip.right_row);
                }
                for_rows!(R in 0..ROWS {
                    let (at, [x, y]) = (strip.out.add(R * strip.out_row), sums[R]);
                    if is_whole {
                        ops.store_ptr(x, at);
                        ops.store_ptr(y, at.add(lanes));
                    } else {
                        ops.store_ptr_mask(x, at, masks[0]);
                        ops.store_ptr_mask(y, at.wrapping_add(lanes), masks[1]);
                    }
                });
            }
            strip.left = strip.left.wrapping_add(ROWS * strip.left_row);
            strip.out = strip.out.wrapping_add(ROWS * strip.out_row);
        }
    }
}

/// Bias and activation of the finished rows at one panel, which are still in the first-level cache.
struct Finish {
    n_rows: usize,
    out: *mut f32,
    out_row: usize,
    n_cols: usize,
    bias: Option<*const f32>,
    activation: Unary,
}

impl Finish {
    /// # Safety
    /// The output is valid for `n_rows` rows of `n_cols`, the bias for `n_cols`.
    unsafe fn run(self) {
        if self.bias.is_some() || self.activation != Unary::Identity {
            with_unary!(self.activation, op => FinishOp(self, op).dispatch(), else FinishOp(self, Same).dispatch());
        }
    }
}

struct Same;

impl SimdUnaryOp<f32> for Same {
    #[inline(always)]
    fn eval<I: Isa>(&self, _isa: I, x: I::F32) -> I::F32 {
        x
    }
}

struct FinishOp<Op>(Finish, Op);

impl<Op: SimdUnaryOp<f32>> SimdOp for FinishOp<Op> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        let Self(finish, op) = self;
        let lanes = ops.len();
        for col in (0..finish.n_cols).step_by(lanes) {
            let mask = ops.first_n_mask((finish.n_cols - col).min(lanes));
            // SAFETY: `Finish::run`'s; masked to the columns that exist.
            unsafe {
                let bias = finish.bias.map_or(ops.zero(), |bias| ops.load_ptr_mask(bias.add(col), mask));
                for i in 0..finish.n_rows {
                    let at = finish.out.add(i * finish.out_row + col);
                    let x = ops.add(ops.load_ptr_mask(at, mask), bias);
                    ops.store_ptr_mask(op.eval(isa, x), at, mask);
                }
            }
        }
    }
}

/// Most rows of a micro-tile: with two vectors a row, the sums and operands of 12 fill AVX-512's 32 registers, of 6
/// AVX2's 16.
fn max_tile_rows() -> usize {
    if panel_width() >= 16 * REGS { 12 } else { 6 }
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

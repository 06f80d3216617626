//! Row independence: the proof that row `i` of every output depends on row `i` of the inputs alone.
//!
//! Batching may put any requests side by side, so a served program must not let one row see another. The proof is a
//! dataflow analysis over the canonical graph: every value gets a [`Rows`], each operator's rule derives the result's
//! from its arguments', and whatever no rule covers counts as mixed. It is about meaning; that the kernels also give
//! the same *bits* in any batch is their promise and is tested.

use std::fmt;

use crate::graph::{Argument, Dim, Graph, Node, Source, Type, ValueId};
use crate::op;

/// How a value relates to the rows of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// The same whatever the batch holds and however many rows it has.
    Uniform,
    /// Slice `i` along this dimension depends on row `i` of the inputs and on no other.
    Row(usize),
    /// Slice `i` along this dimension holds the number `i` (`arange(batch)`, as masks index with it); all other
    /// dimensions have size 1.
    Iota(usize),
    /// The number of rows.
    Size,
    /// An integer computed from the number of rows.
    FromSize,
}

/// Derives the rows of an operator's results from its arguments; the error says in words why rows may mix.
pub type RowRule = fn(&RowCall<'_>) -> Result<Rows, String>;

/// Whether the rows of a batch can influence each other.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowIndependence {
    /// Row `i` of every output depends on row `i` of the inputs alone: the same row gives the same bits alone and in
    /// any batch.
    Proved,
    /// Not proved; `reason` names the first offending node or output.
    NotProved {
        /// Why, in words.
        reason: String,
    },
}

impl RowIndependence {
    /// Whether it was proved.
    pub fn is_proved(&self) -> bool {
        *self == Self::Proved
    }

    /// Analyses the canonical graph of a program.
    pub fn of(graph: &Graph) -> Self {
        match prove(graph) {
            Ok(()) => Self::Proved,
            Err(reason) => Self::NotProved { reason },
        }
    }
}

impl fmt::Display for RowIndependence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proved => f.write_str("proved: every row is computed from that row alone"),
            Self::NotProved { reason } => write!(f, "not proved: {reason}"),
        }
    }
}

fn prove(graph: &Graph) -> Result<(), String> {
    let batch = batch_symbol(graph)?;
    let mut rows: Vec<Option<Rows>> = vec![None; graph.values.len()];
    for input in &graph.inputs {
        let is_batched = matches!(input.source, Source::User { .. }) && leads_with(graph, input.value, &batch);
        rows[input.value.0 as usize] = Some(if is_batched { Rows::Row(0) } else { Rows::Uniform });
    }
    for node in &graph.nodes {
        let call = RowCall { graph, node, rows: &rows, batch: &batch };
        let result = call.rule().map_err(|why| format!("{} {why}", describe(graph, node)))?;
        for id in node.outputs.iter().flatten() {
            rows[id.0 as usize] = Some(result);
        }
    }
    graph.outputs.iter().enumerate().try_for_each(|(index, output)| match output {
        Argument::Value(id) => match rows[id.0 as usize] {
            Some(Rows::Row(0)) if leads_with(graph, *id, &batch) => Ok(()),
            _ => {
                Err(format!("output {index} (`%{}`) does not have the rows of the batch first", graph.value(*id).name))
            }
        },
        _ => Ok(()),
    })
}

/// The symbol of dimension 0 of the first user input that has one.
fn batch_symbol(graph: &Graph) -> Result<Dim, String> {
    let first_dims = graph.inputs.iter().filter(|input| matches!(input.source, Source::User { .. }));
    first_dims
        .filter_map(|input| sizes(graph, input.value)?.first())
        .find(|dim| matches!(dim, Dim::Symbol(_)))
        .cloned()
        .ok_or_else(|| "no input has a dynamic batch dimension".to_owned())
}

fn leads_with(graph: &Graph, value: ValueId, batch: &Dim) -> bool {
    sizes(graph, value).is_some_and(|sizes| sizes.first() == Some(batch))
}

fn sizes(graph: &Graph, value: ValueId) -> Option<&[Dim]> {
    match &graph.value(value).ty {
        Type::Tensor(ty) => Some(&ty.sizes),
        _ => None,
    }
}

fn describe(graph: &Graph, node: &Node) -> String {
    let name = node.outputs.iter().flatten().next().map_or("?", |&id| &graph.value(id).name);
    let location = node.location.as_ref().map(|location| format!(" ({location})")).unwrap_or_default();
    format!("`%{name} = {}`{location}", node.op)
}

/// A node as its rule sees it: arguments by schema name, with their rows and sizes.
pub struct RowCall<'a> {
    graph: &'a Graph,
    node: &'a Node,
    rows: &'a [Option<Rows>],
    batch: &'a Dim,
}

impl<'a> RowCall<'a> {
    fn rule(&self) -> Result<Rows, String> {
        if self.all_values().all(|(_, rows)| rows == Rows::Uniform) {
            return Ok(Rows::Uniform);
        }
        let op = op::lookup(&self.node.op).ok_or("is not known")?;
        (op.declaration().rows)(self)
    }

    /// Every value among the arguments, lists included, with its rows.
    pub fn all_values(&self) -> impl Iterator<Item = (ValueId, Rows)> {
        let mut ids = Vec::new();
        self.node.args.iter().for_each(|(_, arg)| collect_values(arg, &mut ids));
        ids.into_iter().map(|id| (id, self.rows_of(id)))
    }

    /// The values of argument `name`, lists included, with their rows.
    pub fn values(&self, name: &str) -> Vec<(ValueId, Rows)> {
        let mut ids = Vec::new();
        if let Some(arg) = self.node.arg(name) {
            collect_values(arg, &mut ids);
        }
        ids.into_iter().map(|id| (id, self.rows_of(id))).collect()
    }

    /// Rows of the argument `name`; uniform if it is a constant or absent.
    pub fn rows(&self, name: &str) -> Rows {
        self.values(name).first().map_or(Rows::Uniform, |&(_, rows)| rows)
    }

    /// Sizes of the tensor argument `name`.
    pub fn sizes(&self, name: &str) -> Result<&'a [Dim], String> {
        let &(id, _) = self.values(name).first().ok_or_else(|| format!("has no tensor `{name}`"))?;
        self.sizes_of(id)
    }

    /// Sizes of the value `id`.
    pub fn sizes_of(&self, id: ValueId) -> Result<&'a [Dim], String> {
        sizes(self.graph, id).ok_or_else(|| format!("uses `%{}` of unknown shape", self.graph.value(id).name))
    }

    /// Sizes of the first result.
    pub fn out_sizes(&self) -> Result<&'a [Dim], String> {
        let id = self.node.outputs.iter().flatten().next().ok_or("has no result")?;
        self.sizes_of(*id)
    }

    /// The argument `name` as the graph holds it.
    pub fn arg(&self, name: &str) -> Option<&'a Argument> {
        self.node.arg(name)
    }

    /// The constant integer `name`.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.arg(name)? {
            Argument::Int(int) => Some(*int),
            _ => None,
        }
    }

    /// The constant dimension `name` of a tensor of `ndim` dimensions, counted from the front.
    pub fn dim(&self, name: &str, ndim: usize) -> Result<usize, String> {
        self.int(name).and_then(|dim| from_front(dim, ndim)).ok_or_else(|| format!("has a `{name}` that is unknown"))
    }

    /// The constant dimensions `name`, one or several, counted from the front; `None` where the argument is absent or
    /// empty, which reductions read as "all".
    pub fn dims(&self, name: &str, ndim: usize) -> Result<Option<Vec<usize>>, String> {
        let unknown = || format!("has a `{name}` that is unknown");
        match self.arg(name) {
            None | Some(Argument::None) => Ok(None),
            Some(Argument::List(items)) if items.is_empty() => Ok(None),
            Some(Argument::List(items)) => {
                let dim = |item: &Argument| match item {
                    Argument::Int(dim) => from_front(*dim, ndim),
                    _ => None,
                };
                items.iter().map(|item| dim(item).ok_or_else(unknown)).collect::<Result<_, _>>().map(Some)
            }
            Some(Argument::Int(dim)) => Ok(Some(vec![from_front(*dim, ndim).ok_or_else(unknown)?])),
            Some(_) => Err(unknown()),
        }
    }

    /// Whether `size` is the number of rows.
    pub fn is_batch(&self, size: &Dim) -> bool {
        size == self.batch
    }

    fn rows_of(&self, id: ValueId) -> Rows {
        self.rows[id.0 as usize].unwrap_or(Rows::FromSize)
    }
}

fn from_front(dim: i64, ndim: usize) -> Option<usize> {
    let ndim = i64::try_from(ndim).ok()?;
    let dim = if dim < 0 { dim + ndim } else { dim };
    (0..ndim).contains(&dim).then_some(dim as usize)
}

fn collect_values(arg: &Argument, ids: &mut Vec<ValueId>) {
    match arg {
        Argument::Value(id) => ids.push(*id),
        Argument::List(items) => items.iter().for_each(|item| collect_values(item, ids)),
        _ => {}
    }
}

/// `rows` of an argument that keeps its dimensions: copies, conversions.
pub(crate) fn same_as(call: &RowCall<'_>, argument: &str) -> Result<Rows, String> {
    Ok(call.rows(argument))
}

/// Results computed from all tensors at the same place after broadcasting.
pub(crate) fn elementwise(call: &RowCall<'_>) -> Result<Rows, String> {
    let values: Vec<_> = call.all_values().collect();
    broadcast(call, &values, usize::MAX)
}

/// Values broadcast against each other; `last` is the first dimension, counted from the front of the result, that is
/// not computed place by place.
fn broadcast(call: &RowCall<'_>, values: &[(ValueId, Rows)], last: usize) -> Result<Rows, String> {
    let mut ndim = 0;
    for &(id, rows) in values {
        match rows {
            Rows::Size | Rows::FromSize => return Err("computes with the number of rows".to_owned()),
            Rows::Iota(_) => return Err("computes with positions in the batch".to_owned()),
            Rows::Uniform if sizes(call.graph, id).is_none() => {}
            Rows::Uniform | Rows::Row(_) => ndim = ndim.max(call.sizes_of(id)?.len()),
        }
    }
    let aligned = |id: ValueId, row: usize| Ok::<_, String>(ndim - call.sizes_of(id)?.len() + row);
    let mut place = None;
    for &(id, rows) in values {
        if let Rows::Row(row) = rows {
            let at = aligned(id, row)?;
            if place.is_some_and(|place| place != at) {
                return Err("meets rows along two different dimensions".to_owned());
            }
            place = Some(at);
        }
    }
    let Some(place) = place else { return Ok(Rows::Uniform) };
    if place >= last {
        return Err("mixes along the dimension of the rows".to_owned());
    }
    for &(id, rows) in values {
        if rows == Rows::Uniform && !is_repeated(call, id, ndim, place) {
            return Err(format!("meets `%{}`, which has a size of its own along the rows", call.graph.value(id).name));
        }
    }
    Ok(Rows::Row(place))
}

/// Whether `id`, broadcast to `ndim` dimensions, holds the same along dimension `place`.
fn is_repeated(call: &RowCall<'_>, id: ValueId, ndim: usize, place: usize) -> bool {
    let Some(sizes) = sizes(call.graph, id) else { return true };
    (place + sizes.len()).checked_sub(ndim).is_none_or(|at| sizes[at] == Dim::Known(1))
}

/// Computed along dimension `argument` of tensor `tensor` (softmax, sums that run, narrowing): other rows stay apart.
pub(crate) fn along(call: &RowCall<'_>, tensor: &str, argument: &str) -> Result<Rows, String> {
    only(call, &[tensor])?;
    let ndim = call.sizes(tensor)?.len();
    let dims = call.dims(argument, ndim)?.ok_or("works along all dimensions")?;
    call.moved(tensor, |row| if dims.contains(&row) { Err(MIXED.to_owned()) } else { Ok(row) })
}

/// `gather`: picks by an index that has the rows at the same place, along another dimension.
pub(crate) fn gathered(call: &RowCall<'_>) -> Result<Rows, String> {
    let rows = elementwise(call)?;
    let at = call.dim("dim", call.sizes("self")?.len())?;
    if rows == Rows::Row(at) { Err(MIXED.to_owned()) } else { Ok(rows) }
}

const MIXED: &str = "mixes along the dimension of the rows";

/// Every other argument must not depend on the batch.
fn only(call: &RowCall<'_>, tensors: &[&str]) -> Result<(), String> {
    for (name, _) in &call.node.args {
        if !tensors.contains(&name.as_str()) && call.values(name).iter().any(|(_, rows)| *rows != Rows::Uniform) {
            return Err(format!("has an argument `{name}` that depends on the batch"));
        }
    }
    Ok(())
}

/// Reduces the dimensions `dim`, all of them where the operator names none.
pub(crate) fn reduced(call: &RowCall<'_>) -> Result<Rows, String> {
    only(call, &["self"])?;
    let ndim = call.sizes("self")?.len();
    let dims = call.dims("dim", ndim)?.ok_or("reduces over all rows")?;
    let keeps = matches!(call.arg("keepdim"), Some(Argument::Bool(true)));
    call.moved("self", |row| match dims.contains(&row) {
        true => Err("reduces over the rows".to_owned()),
        false if keeps => Ok(row),
        false => Ok(row - dims.iter().filter(|&&dim| dim < row).count()),
    })
}

/// Works on the last `n` dimensions of `tensor` as a whole and keeps those before.
pub(crate) fn leading(call: &RowCall<'_>, tensor: &str, n: usize) -> Result<Rows, String> {
    only(call, &[tensor])?;
    let free = call.sizes(tensor)?.len().saturating_sub(n);
    call.moved(tensor, |row| if row < free { Ok(row) } else { Err(MIXED.to_owned()) })
}

/// Layer normalisation: works on as many last dimensions as `normalized_shape` lists.
pub(crate) fn layer_normalised(call: &RowCall<'_>) -> Result<Rows, String> {
    match call.arg("normalized_shape") {
        Some(Argument::List(sizes)) => leading(call, "input", sizes.len()),
        _ => Err("has a `normalized_shape` that is unknown".to_owned()),
    }
}

/// A sum of two tensors that is layer normalised.
pub(crate) fn added_and_normalised(call: &RowCall<'_>) -> Result<Rows, String> {
    only(call, &["input", "residual"])?;
    let Some(Argument::List(sizes)) = call.arg("normalized_shape") else {
        return Err("has a `normalized_shape` that is unknown".to_owned());
    };
    let values: Vec<_> = call.values("input").into_iter().chain(call.values("residual")).collect();
    let free = call.sizes("input")?.len().saturating_sub(sizes.len());
    broadcast(call, &values, free)
}

/// Convolutions, pooling, batch normalisation after training: images in dimension 0 are apart, everything else is not.
pub(crate) fn first_only(call: &RowCall<'_>) -> Result<Rows, String> {
    let tensor = if call.arg("input").is_some() { "input" } else { "self" };
    only(call, &[tensor])?;
    call.moved(tensor, |row| if row == 0 { Ok(row) } else { Err(MIXED.to_owned()) })
}

/// A constant of the shape of `tensor`: its rows are alike, however many.
pub(crate) fn constant_like(call: &RowCall<'_>, tensor: &str) -> Result<Rows, String> {
    only(call, &[tensor])?;
    Ok(match call.rows(tensor) {
        Rows::Iota(row) => Rows::Row(row),
        rows => rows,
    })
}

/// A constant of the sizes `argument`.
pub(crate) fn sized(call: &RowCall<'_>, argument: &str) -> Result<Rows, String> {
    only(call, &[argument, "self"])?;
    if call.values(argument).iter().all(|(_, rows)| *rows == Rows::Uniform) {
        return Ok(Rows::Uniform);
    }
    batch_place(call)
}

/// The place of the batch among the sizes of the result.
fn batch_place(call: &RowCall<'_>) -> Result<Rows, String> {
    let place = call.out_sizes()?.iter().position(|size| call.is_batch(size));
    place.map(Rows::Row).ok_or_else(|| "has a size computed from the number of rows".to_owned())
}

/// `arange`: counts the rows where it runs from 0 to their number.
pub(crate) fn counted(call: &RowCall<'_>) -> Result<Rows, String> {
    let starts_at_0 = call.arg("start").is_none_or(|start| *start == Argument::Int(0));
    let steps_by_1 = call.arg("step").is_none_or(|step| *step == Argument::Int(1));
    match call.rows("end") {
        Rows::Size if starts_at_0 && steps_by_1 => Ok(Rows::Iota(0)),
        _ => Err("counts in a range computed from the number of rows".to_owned()),
    }
}

/// Views that keep the row-major order of elements: the batch stays in place where what is before it stays.
pub(crate) fn reshaped(call: &RowCall<'_>) -> Result<Rows, String> {
    let (from, to) = (call.sizes("self")?, call.out_sizes()?);
    let significant = |sizes: &[Dim]| -> Vec<Dim> { sizes.iter().filter(|s| **s != Dim::Known(1)).cloned().collect() };
    call.moved("self", |row| {
        let before = significant(&from[..row]);
        let place = |at: &usize| call.is_batch(&to[*at]) && significant(&to[..*at]) == before;
        (0..to.len()).find(place).ok_or_else(|| "merges or splits the dimension of the rows".to_owned())
    })
}

/// `squeeze`: a batch of one row must not lose its dimension.
pub(crate) fn squeezed(call: &RowCall<'_>) -> Result<Rows, String> {
    let ndim = call.sizes("self")?.len();
    let dims = call.dims("dim", ndim)?.unwrap_or_else(|| (0..ndim).collect());
    call.moved("self", |row| if dims.contains(&row) { Err("drops a batch of one row".to_owned()) } else { Ok(row) })?;
    reshaped(call)
}

/// `expand`: rows stay at their place from the end; what is the same for all rows may be repeated for each.
pub(crate) fn expanded(call: &RowCall<'_>) -> Result<Rows, String> {
    let ndim = call.out_sizes()?.len();
    let lead = ndim.saturating_sub(call.sizes("self")?.len());
    match call.rows("self") {
        Rows::Uniform => batch_place(call),
        // Repeated along other dimensions, a count is an ordinary row: it must not be used as an index any more.
        Rows::Row(row) | Rows::Iota(row) if lead + row < ndim => Ok(match call.rows("self") {
            Rows::Iota(_) if only_one(call.out_sizes()?, lead + row) => Rows::Iota(lead + row),
            Rows::Iota(_) => return Err("computes with positions in the batch".to_owned()),
            _ => Rows::Row(lead + row),
        }),
        _ => Err("expands what depends on the batch".to_owned()),
    }
}

fn only_one(sizes: &[Dim], but: usize) -> bool {
    sizes.iter().enumerate().all(|(at, size)| at == but || *size == Dim::Known(1))
}

/// One entry of dimension `dim`, which goes away (`select`, `unbind`).
pub(crate) fn removed(call: &RowCall<'_>) -> Result<Rows, String> {
    only(call, &["self"])?;
    let at = call.dim("dim", call.sizes("self")?.len())?;
    call.moved("self", |row| match row.cmp(&at) {
        std::cmp::Ordering::Less => Ok(row),
        std::cmp::Ordering::Equal => Err("picks one row of the batch".to_owned()),
        std::cmp::Ordering::Greater => Ok(row - 1),
    })
}

/// `slice`: along the rows only the slice that takes all of them.
pub(crate) fn sliced(call: &RowCall<'_>) -> Result<Rows, String> {
    let takes_all = is_first(call, "start")
        && (matches!(call.arg("end"), None | Some(Argument::None | Argument::Int(i64::MAX)))
            || ends_with_rows(call, "end"))
        && matches!(call.arg("step"), None | Some(Argument::Int(1)));
    part(call, takes_all)
}

/// `narrow`: along the rows only the part that takes all of them.
pub(crate) fn narrowed(call: &RowCall<'_>) -> Result<Rows, String> {
    part(call, is_first(call, "start") && ends_with_rows(call, "length"))
}

/// A part of dimension `dim`, which is 0 where it is left out.
fn part(call: &RowCall<'_>, takes_all: bool) -> Result<Rows, String> {
    let ndim = call.sizes("self")?.len();
    let at = if call.arg("dim").is_none() { 0 } else { call.dim("dim", ndim)? };
    match call.rows("self") {
        Rows::Row(row) | Rows::Iota(row) if row == at && takes_all => call.moved("self", Ok),
        Rows::Row(row) | Rows::Iota(row) if row == at => Err("takes a part of the batch".to_owned()),
        _ => {
            only(call, &["self"])?;
            call.moved("self", Ok)
        }
    }
}

fn is_first(call: &RowCall<'_>, argument: &str) -> bool {
    matches!(call.arg(argument), None | Some(Argument::None | Argument::Int(0)))
}

fn ends_with_rows(call: &RowCall<'_>, argument: &str) -> bool {
    call.rows(argument) == Rows::Size
}

/// `slice_scatter`, `select_scatter`: both tensors have the rows at one place, which is not written along.
pub(crate) fn written(call: &RowCall<'_>) -> Result<Rows, String> {
    only(call, &["self", "src"])?;
    let at = call.dim("dim", call.sizes("self")?.len())?;
    let removed = usize::from(call.node.op.contains("select"));
    match (call.rows("self"), call.rows("src")) {
        (Rows::Row(row), Rows::Uniform) if row != at => Ok(Rows::Row(row)),
        (Rows::Row(row), Rows::Row(src)) if row != at && src == row - removed * usize::from(at < row) => {
            Ok(Rows::Row(row))
        }
        _ => Err("writes to rows of the batch".to_owned()),
    }
}

/// `cat`: every part has the rows, and not along the joined dimension.
pub(crate) fn joined(call: &RowCall<'_>) -> Result<Rows, String> {
    let parts = call.values("tensors");
    let &(first, rows) = parts.first().ok_or("joins nothing")?;
    let ndim = call.sizes_of(first)?.len();
    let at = if call.arg("dim").is_none() { 0 } else { call.dim("dim", ndim)? };
    match rows {
        Rows::Row(row) if row != at && parts.iter().all(|(_, other)| *other == rows) => Ok(rows),
        _ => Err("joins along the rows or with what is no row".to_owned()),
    }
}

/// `stack`: a new dimension before or after the rows.
pub(crate) fn stacked(call: &RowCall<'_>) -> Result<Rows, String> {
    let parts = call.values("tensors");
    let &(first, rows) = parts.first().ok_or("stacks nothing")?;
    let ndim = call.sizes_of(first)?.len() + 1;
    let at = if call.arg("dim").is_none() { 0 } else { call.dim("dim", ndim)? };
    match rows {
        Rows::Row(row) if parts.iter().all(|(_, other)| *other == rows) => Ok(Rows::Row(row + usize::from(at <= row))),
        _ => Err("stacks what is no row".to_owned()),
    }
}

/// Matrix products: the rows may be among the leading dimensions of both factors, or rows of the left one.
pub(crate) fn multiplied(call: &RowCall<'_>) -> Result<Rows, String> {
    let values: Vec<_> = call.all_values().collect();
    let is_small = |id: ValueId| call.sizes_of(id).map(|sizes| sizes.len() < 2);
    let tensors = values.iter().filter(|(id, _)| sizes(call.graph, *id).is_some());
    for (id, _) in tensors.clone() {
        if is_small(*id)? && call.node.op.contains("mul") {
            return Err("multiplies a vector".to_owned());
        }
    }
    let ndim = call.out_sizes()?.len();
    let left = ["self", "mat1", "batch1"].into_iter().rfind(|name| call.arg(name).is_some()).ok_or("has no factor")?;
    // Rows of the left factor stay rows of the product when the right factor is the same for all.
    if let Rows::Row(row) = call.rows(left)
        && row + 2 == call.sizes(left)?.len()
        && only(call, &[left]).is_ok()
    {
        let n_columns = if call.node.op.contains(".mv.") { 0 } else { 1 };
        return (ndim.checked_sub(1 + n_columns)).map(Rows::Row).ok_or_else(|| MIXED.to_owned());
    }
    broadcast(call, &values, ndim.saturating_sub(2))
}

/// Attention: the rows are among the leading dimensions of query, key, value and mask.
pub(crate) fn attended(call: &RowCall<'_>) -> Result<Rows, String> {
    let values: Vec<_> = call.all_values().collect();
    broadcast(call, &values, call.out_sizes()?.len().saturating_sub(2))
}

/// `embedding`: a table that is the same for all rows.
pub(crate) fn looked_up(call: &RowCall<'_>) -> Result<Rows, String> {
    only(call, &["indices"])?;
    call.moved("indices", Ok)
}

/// `index_select`: of rows by indices that are the same for all.
pub(crate) fn index_selected(call: &RowCall<'_>) -> Result<Rows, String> {
    along(call, "self", "dim")
}

/// `pad` counts dimensions from the last.
pub(crate) fn padded(call: &RowCall<'_>) -> Result<Rows, String> {
    match call.arg("pad") {
        Some(Argument::List(pads)) => leading(call, "self", pads.len() / 2),
        _ => Err("has a `pad` that is unknown".to_owned()),
    }
}

/// `x[i, j, …]`: each row picks from itself where the index along the rows counts them.
pub(crate) fn indexed(call: &RowCall<'_>) -> Result<Rows, String> {
    let x = call.rows("self");
    let Some(Argument::List(items)) = call.arg("indices") else {
        return Err("has indices that are unknown".to_owned());
    };
    let indices: Vec<(usize, ValueId, Rows)> = items
        .iter()
        .enumerate()
        .filter_map(|(at, item)| item.as_value().map(|id| (at, id, call.rows_of(id))))
        .collect();
    let is_mask = |id: ValueId| call.graph.tensor_type(id).is_none_or(|ty| ty.dtype == highroad_tensor::DType::Bool);
    if indices.iter().any(|(_, id, _)| is_mask(*id)) {
        return Err("picks by a mask".to_owned());
    }
    let are_neighbours = indices.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0);
    let place = if are_neighbours { indices.first().map_or(0, |index| index.0) } else { 0 };
    let index_ndim =
        indices.iter().map(|(_, id, _)| call.sizes_of(*id).map(<[Dim]>::len)).collect::<Result<Vec<_>, _>>()?;
    let ndim = index_ndim.into_iter().max().unwrap_or(0);
    let aligned = |id: ValueId, row: usize| call.sizes_of(id).map(|sizes| place + ndim - sizes.len() + row);
    // The index along the rows of `self`, which must count them.
    let along_rows = match x {
        Rows::Row(row) => indices.iter().find(|(at, _, _)| *at == row).copied(),
        Rows::Uniform => None,
        _ => return Err("picks from positions in the batch".to_owned()),
    };
    let mut found = match (x, along_rows) {
        (_, Some((_, id, Rows::Iota(row)))) => Some(aligned(id, row)?),
        (_, Some(_)) => return Err("picks rows of the batch".to_owned()),
        (Rows::Row(_), None) if indices.iter().any(|(_, _, rows)| *rows != Rows::Uniform) => {
            return Err("picks from all rows by what depends on one".to_owned());
        }
        (Rows::Row(row), None) => {
            let n_before = indices.iter().filter(|(at, _, _)| *at < row).count();
            let shift = if place <= row { ndim } else { 0 };
            return Ok(Rows::Row(row - n_before + shift));
        }
        _ => None,
    };
    for (_, id, rows) in indices.iter().filter(|index| along_rows.is_none_or(|(at, _, _)| at != index.0)) {
        let at = match rows {
            Rows::Uniform => continue,
            Rows::Row(row) => aligned(*id, *row)?,
            _ => return Err("picks by positions in the batch".to_owned()),
        };
        if found.is_some_and(|found| found != at) {
            return Err("meets rows along two different dimensions".to_owned());
        }
        found = Some(at);
    }
    let Some(found) = found else { return Ok(Rows::Uniform) };
    let uniform = indices.iter().filter(|(_, _, rows)| *rows == Rows::Uniform);
    for (_, id, _) in uniform {
        if !is_repeated(call, *id, ndim, found - place) {
            return Err("picks by an index with a size of its own along the rows".to_owned());
        }
    }
    Ok(Rows::Row(found))
}

impl RowCall<'_> {
    /// The rows of `tensor`, moved to where `place` says their dimension goes.
    pub(crate) fn moved(&self, tensor: &str, place: impl Fn(usize) -> Result<usize, String>) -> Result<Rows, String> {
        match self.rows(tensor) {
            Rows::Row(row) => place(row).map(Rows::Row),
            Rows::Iota(row) => place(row).map(Rows::Iota),
            _ => Err("depends on the number of rows".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof(text: &str) -> RowIndependence {
        RowIndependence::of(&text.parse().expect("the test's graph is well formed"))
    }

    fn refusal(text: &str) -> String {
        match proof(text) {
            RowIndependence::Proved => panic!("proved:\n{text}"),
            RowIndependence::NotProved { reason } => reason,
        }
    }

    #[test]
    fn an_encoder_with_a_mask_per_row_is_proved() {
        let proved = proof(
            "graph(%ids: i64[b, s], %mask: i64[b, s], %table: f32[9, 4] = \"table\", %w: f32[4, 4] = \"w\"):
               %n: int = aten.sym_size.int(self=%ids, dim=0)
               %x: f32[b, s, 4] = aten.embedding.default(weight=%table, indices=%ids)
               %q: f32[b, s, 4] = aten.linear.default(input=%x, weight=%w)
               %h: f32[b, s, 2, 2] = aten.view.default(self=%q, size=[%n, -1, 2, 2])
               %t: f32[b, 2, s, 2] = aten.transpose.int(self=%h, dim0=1, dim1=2)
               %m: bool[b, s] = aten.to.dtype(self=%mask, dtype=bool)
               %u: bool[b, 1, s] = aten.unsqueeze.default(self=%m, dim=1)
               %k: bool[b, 1, 1, s] = aten.unsqueeze.default(self=%u, dim=2)
               %a: f32[b, 2, s, 2] = aten.scaled_dot_product_attention.default(query=%t, key=%t, value=%t, attn_mask=%k)
               %y: f32[b, 2, 2] = aten.mean.dim(self=%a, dim=[2])
               return (%y)",
        );
        assert_eq!(proved, RowIndependence::Proved);
    }

    #[test]
    fn a_mask_indexed_by_its_own_rows_is_proved() {
        let graph = |index: &str| {
            format!(
                "graph(%mask: bool[b, s]):
                   %n: int = aten.sym_size.int(self=%mask, dim=0)
                   %s: int = aten.sym_size.int(self=%mask, dim=1)
                   %rows: i64[b] = aten.arange.default(end=%n)
                   %r: i64[b, 1] = aten.unsqueeze.default(self=%rows, dim=1)
                   %c: i64[s] = aten.arange.default(end=%s)
                   {index}
                   return (%y)"
            )
        };
        let by_rows = graph("%y: bool[b, s] = aten.index.Tensor(self=%mask, indices=[%r, %c])");
        assert_eq!(proof(&by_rows), RowIndependence::Proved);
        let shifted = graph(
            "%z: i64[b, 1] = aten.add.Tensor(self=%r, other=1)
             %y: bool[b, s] = aten.index.Tensor(self=%mask, indices=[%z, %c])",
        );
        assert!(refusal(&shifted).contains("computes with positions in the batch"), "{}", refusal(&shifted));
    }

    #[test]
    fn whatever_lets_rows_meet_is_refused_by_name() {
        for (node, why) in [
            ("%y: f32[b, 3] = aten.softmax.int(self=%x, dim=0)", "mixes along the dimension of the rows"),
            ("%y: f32[3] = aten.sum.dim_IntList(self=%x, dim=[0])", "reduces over the rows"),
            ("%y: f32[] = aten.mean.default(self=%x)", "reduces over all rows"),
            ("%y: f32[b, 3] = aten.flip.default(self=%x, dims=[0])", "mixes along the dimension of the rows"),
            ("%y: f32[3] = aten.select.int(self=%x, dim=0, index=0)", "picks one row of the batch"),
            ("%y: f32[2, 3] = aten.slice.Tensor(self=%x, dim=0, start=0, end=2)", "takes a part of the batch"),
            ("%y: f32[b, 3] = aten.slice.Tensor(self=%x, dim=0, start=1)", "takes a part of the batch"),
            ("%y: f32[b, 3] = aten.cumsum.default(self=%x, dim=0)", "mixes along the dimension of the rows"),
            ("%y: f32[3] = aten.squeeze.default(self=%x)", "drops a batch of one row"),
            ("%y: f32[m] = aten.view.default(self=%x, size=[-1])", "merges or splits the dimension of the rows"),
            (
                "%n: int = aten.sym_size.int(self=%x, dim=0)
              %y: f32[b, 3] = aten.mul.Tensor(self=%x, other=%n)",
                "computes with the number of rows",
            ),
            (
                "%t: f32[3, b] = aten.t.default(self=%x)
              %y: f32[b, b] = aten.mm.default(self=%x, mat2=%t)",
                "meets rows along two different dimensions",
            ),
            (
                "%y: f32[b, 3] = aten.roll.default(self=%x, shifts=[1], dims=[0])",
                "mixes along the dimension of the rows",
            ),
        ] {
            let reason = refusal(&format!("graph(%x: f32[b, 3]):\n {node}\n return (%y)"));
            assert!(reason.contains(why), "{node}: {reason}");
            assert!(reason.starts_with("`%"), "the node is named: {reason}");
        }
    }

    #[test]
    fn a_mask_cut_to_the_batch_keeps_its_rows() {
        let graph = "graph(%x: f32[b, s], %mask: f32[b, s]):
               %n: int = aten.sym_size.int(self=%x, dim=0)
               %m: f32[b, s] = aten.narrow.default(self=%mask, dim=0, start=0, length=%n)
               %k: f32[b, s] = aten.slice.Tensor(self=%m, dim=0, start=0, end=%n)
               %y: f32[b, s] = aten.mul.Tensor(self=%x, other=%k)
               return (%y)";
        assert_eq!(proof(graph), RowIndependence::Proved);
    }

    #[test]
    fn a_fixed_batch_and_an_output_without_rows_are_not_proved() {
        assert!(
            refusal("graph(%x: f32[4, 3]):\n %y: f32[4, 3] = aten.relu.default(self=%x)\n return (%y)")
                .contains("dynamic")
        );
        let turned = refusal("graph(%x: f32[b, 3]):\n %y: f32[3, b] = aten.t.default(self=%x)\n return (%y)");
        assert!(turned.contains("does not have the rows of the batch first"), "{turned}");
    }
}

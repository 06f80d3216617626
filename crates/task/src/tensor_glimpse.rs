use std::collections::BTreeMap;

use highroad_eval::drift::{MAX_TENSOR_SIGNALS, RowValues, TensorRow};
use highroad_runtime::TensorSpec;
use highroad_runtime::graph::Dim;
use highroad_tensor::{DType, Tensor, TensorError};

use crate::OutputTensor;

/// Most elements that a summary is made of, evenly spread over the row.
const MOST_ELEMENTS: usize = 4096;
/// Numbers of a summary.
const N_SUMMARY: usize = 4;
/// Most dimensions of a row whose last one is of features: beyond, as in pictures, a place in it means nothing.
const MOST_FEATURE_DIMS: usize = 2;

/// What monitoring looks at of a program's tensors. Decided once, by what the program says of them, so that a baseline and what is met
/// later are counted alike.
///
/// A row is a place in the first dimension of every tensor that has the batch there, the symbol that the first dimension of the first input
/// has; a program without one takes and gives one row. Of a row of up to two dimensions the last one is of features: each is looked at
/// (of several places one, drawn), as long as there are no more than [`MAX_TENSOR_SIGNALS`] signals in all. Other rows are summed up.
#[derive(Clone, Debug)]
pub struct TensorGlimpse {
    inputs: Vec<Option<Look>>,
    outputs: Vec<Option<Look>>,
}

/// What went into a program that somebody else hosts and what came out, by name. Which of its sizes vary nobody says.
#[derive(Clone, Debug, Default)]
pub struct MetTensors {
    /// What went in.
    pub inputs: BTreeMap<String, Tensor>,
    /// What came out.
    pub outputs: BTreeMap<String, Tensor>,
}

/// What is known of such a program from what it met: sizes that were always the same, and others. The first dimension of a tensor is of
/// rows where it was always as long as that of the first input by name.
#[derive(Clone, Debug, Default)]
pub struct MetShapes {
    n_met: usize,
    inputs: BTreeMap<String, MetShape>,
    outputs: BTreeMap<String, MetShape>,
}

#[derive(Clone, Debug)]
struct MetShape {
    dtype: DType,
    n_met: usize,
    has_rows: bool,
    /// `None` where sizes were different; no tensor at all where the number of dimensions was.
    sizes: Option<Vec<Option<usize>>>,
}

impl MetShapes {
    /// Takes in one request and its answer.
    pub fn add(&mut self, met: &MetTensors) {
        let n_rows = met.n_rows();
        self.n_met += 1;
        for (known, tensors) in [(&mut self.inputs, &met.inputs), (&mut self.outputs, &met.outputs)] {
            for (name, tensor) in tensors {
                let shape = tensor.shape();
                let has_rows = n_rows.is_some() && shape.first().copied() == n_rows;
                let new = || MetShape {
                    dtype: tensor.dtype(),
                    n_met: 0,
                    has_rows,
                    sizes: Some(shape.iter().copied().map(Some).collect()),
                };
                let known = known.entry(name.clone()).or_insert_with(new);
                known.n_met += 1;
                known.has_rows &= has_rows;
                let sizes = known.sizes.take().filter(|sizes| sizes.len() == shape.len());
                known.sizes = sizes.map(|sizes| {
                    sizes.into_iter().zip(shape).map(|(known, &size)| known.filter(|&known| known == size)).collect()
                });
            }
        }
    }

    /// What is looked at of it: tensors that were always there, by name.
    pub fn glimpse(&self) -> TensorGlimpse {
        let spec = |(name, met): (&String, &MetShape)| {
            let sizes = met.sizes.as_ref().filter(|_| met.n_met == self.n_met)?;
            let dim = |(at, size): (usize, &Option<usize>)| match size {
                _ if at == 0 && met.has_rows => Dim::Symbol("rows".to_owned()),
                Some(size) => Dim::Known(*size),
                None => Dim::Symbol(format!("{name}.{at}")),
            };
            let sizes = sizes.iter().enumerate().map(dim).collect();
            Some(TensorSpec { name: name.clone(), dtype: met.dtype, sizes })
        };
        let specs = |of: &BTreeMap<String, MetShape>| of.iter().filter_map(spec).collect::<Vec<_>>();
        TensorGlimpse::of(&specs(&self.inputs), &specs(&self.outputs))
    }
}

impl MetTensors {
    /// Those that came with their bits; what has others than its shape says is left out.
    pub fn of(inputs: Vec<OutputTensor>, outputs: Vec<OutputTensor>) -> Self {
        let named = |all: Vec<OutputTensor>| -> BTreeMap<String, Tensor> {
            all.into_iter().filter_map(|of| of.tensor().map(|tensor| (of.name, tensor))).collect()
        };
        Self { inputs: named(inputs), outputs: named(outputs) }
    }

    /// Rows of the first input by name; `None` where it has no dimension.
    fn n_rows(&self) -> Option<usize> {
        self.inputs.values().next().and_then(|tensor| tensor.shape().first().copied())
    }

    /// The same, where no dimension is one row.
    pub fn n_rows_or_one(&self) -> usize {
        self.n_rows().unwrap_or(1)
    }

    /// Row `row` of it, as `glimpse` has its tensors; `draw` decides the place where a row has several.
    pub fn rows(&self, glimpse: &TensorGlimpse, row: usize, draw: u64) -> Vec<TensorRow> {
        let of = |looks: &[Option<Look>], side: &str, tensors: &BTreeMap<String, Tensor>| {
            let look = |look: &Look| {
                let tensor = tensors.get(look.name.strip_prefix(side)?)?;
                look.at(tensor, row, draw).ok().flatten()
            };
            looks.iter().flatten().filter_map(look).collect::<Vec<_>>()
        };
        let mut rows = of(&glimpse.inputs, "input.", &self.inputs);
        rows.extend(of(&glimpse.outputs, "output.", &self.outputs));
        rows
    }

    /// All that any glimpse might look at in row `row`: features and their summary. A baseline counts those that it has.
    pub fn rows_of_any(&self, row: usize, draw: u64) -> Vec<TensorRow> {
        let n_rows = self.n_rows();
        let mut rows = Vec::new();
        for (side, tensors) in [("input", &self.inputs), ("output", &self.outputs)] {
            for (name, tensor) in tensors {
                let shape = tensor.shape();
                let has_rows = n_rows.is_some() && shape.first().copied() == n_rows;
                let rest = &shape[usize::from(has_rows)..];
                let values = match rest.last() {
                    None => Some(Values::Scalar),
                    Some(&n) if rest.len() <= MOST_FEATURE_DIMS && (1..=MAX_TENSOR_SIGNALS).contains(&n) => {
                        Some(Values::Features(n))
                    }
                    Some(_) => None,
                };
                let look = |values: Values, has_more: bool| Look {
                    name: format!("{side}.{name}"),
                    n_dims: shape.len(),
                    has_rows,
                    values,
                    has_nan: has_more && tensor.dtype().is_float(),
                    size_varies: has_more,
                };
                let summary = (!rest.is_empty()).then(|| look(Values::Summary, values.is_none()));
                let looks = values.map(|values| look(values, true)).into_iter().chain(summary);
                rows.extend(looks.filter_map(|look| look.at(tensor, row, draw).ok().flatten()));
            }
        }
        rows
    }
}

/// What is looked at of one tensor.
#[derive(Clone, Debug)]
struct Look {
    name: String,
    n_dims: usize,
    has_rows: bool,
    values: Values,
    has_nan: bool,
    size_varies: bool,
}

#[derive(Clone, Copy, Debug)]
enum Values {
    Scalar,
    Features(usize),
    Summary,
}

impl TensorGlimpse {
    /// Of a program of these inputs and outputs. Of tensors beyond the limit of signals, in that order, nothing is looked at.
    pub fn of(inputs: &[TensorSpec], outputs: &[TensorSpec]) -> Self {
        let batch = inputs.first().and_then(|spec| spec.sizes.first()).filter(|dim| matches!(dim, Dim::Symbol(_)));
        let mut left = MAX_TENSOR_SIGNALS;
        let mut looks = |side: &str, specs: &[TensorSpec]| -> Vec<Option<Look>> {
            specs.iter().map(|spec| Look::of(side, spec, batch, &mut left)).collect()
        };
        Self { inputs: looks("input", inputs), outputs: looks("output", outputs) }
    }

    /// Rows of a request; of none where a tensor has none.
    pub fn n_rows(&self, inputs: &[Tensor]) -> usize {
        let of_rows = self.inputs.iter().zip(inputs).find(|(look, _)| look.as_ref().is_some_and(|look| look.has_rows));
        of_rows.map_or(1, |(_, tensor)| tensor.shape().first().copied().unwrap_or(0))
    }

    /// Row `row` of what goes in; `draw` decides the place where a row has several. Tensors that do not fit the program are passed over.
    pub fn of_inputs(&self, inputs: &[Tensor], row: usize, draw: u64) -> Vec<TensorRow> {
        rows(&self.inputs, inputs, row, draw)
    }

    /// The same of what comes out.
    pub fn of_outputs(&self, outputs: &[Tensor], row: usize, draw: u64) -> Vec<TensorRow> {
        rows(&self.outputs, outputs, row, draw)
    }
}

fn rows(looks: &[Option<Look>], tensors: &[Tensor], row: usize, draw: u64) -> Vec<TensorRow> {
    let look = |(look, tensor): (&Option<Look>, &Tensor)| look.as_ref()?.at(tensor, row, draw).ok().flatten();
    looks.iter().zip(tensors).filter_map(look).collect()
}

impl Look {
    /// `None` where no signals are left for it.
    fn of(side: &str, spec: &TensorSpec, batch: Option<&Dim>, left: &mut usize) -> Option<Self> {
        let has_rows = batch.is_some() && spec.sizes.first() == batch;
        let rest = &spec.sizes[usize::from(has_rows)..];
        let size_varies = rest.iter().any(|dim| matches!(dim, Dim::Symbol(_)));
        let has_nan = spec.dtype.is_float();
        let n_more = usize::from(has_nan) + usize::from(size_varies);
        let features = match rest.last() {
            Some(&Dim::Known(n)) if rest.len() <= MOST_FEATURE_DIMS => (n > 0 && n + n_more <= *left).then_some(n),
            _ => None,
        };
        let (values, n_values) = match features {
            _ if rest.is_empty() => (Values::Scalar, 1),
            Some(n) => (Values::Features(n), n),
            None => (Values::Summary, N_SUMMARY),
        };
        *left = left.checked_sub(n_values + n_more)?;
        let name = format!("{side}.{}", spec.name);
        Some(Self { name, n_dims: spec.sizes.len(), has_rows, values, has_nan, size_varies })
    }

    fn at(&self, tensor: &Tensor, row: usize, draw: u64) -> Result<Option<TensorRow>, TensorError> {
        if tensor.ndim() != self.n_dims {
            return Ok(None);
        }
        let row = if self.has_rows { tensor.select(0, row)? } else { tensor.clone() };
        let n = row.numel();
        let flat = row.reshape(&[n])?;
        let looked_at = match self.values {
            Values::Features(width) if row.shape().last() == Some(&width) => {
                let n_places = (n / width).max(1) as u64;
                // Fibonacci hashing: neighbours fall far apart.
                let place = (draw.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % n_places;
                flat.narrow(0, place as usize * width, width)?
            }
            Values::Features(_) => return Ok(None),
            Values::Scalar => flat,
            Values::Summary => flat.slice(0, 0, n, n.div_ceil(MOST_ELEMENTS).max(1))?,
        };
        let Some(elements) = looked_at.cast(DType::F64)?.to_vec::<f64>().filter(|elements| !elements.is_empty()) else {
            return Ok(None);
        };
        let n_missing = elements.iter().filter(|element| element.is_nan()).count();
        let missing = self.has_nan.then(|| n_missing as f64 / elements.len() as f64);
        let values = match self.values {
            Values::Scalar => RowValues::Scalar(elements[0]),
            Values::Features(_) => RowValues::Features(elements),
            Values::Summary => summary(&elements),
        };
        Ok(Some(TensorRow { name: self.name.clone(), values, missing, size: self.size_varies.then_some(n as f64) }))
    }
}

/// Of the elements that are numbers; NaN where there is none.
fn summary(elements: &[f64]) -> RowValues {
    let numbers = || elements.iter().copied().filter(|element| !element.is_nan());
    let n = numbers().count() as f64;
    let mean = numbers().sum::<f64>() / n;
    let deviation = (numbers().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
    let extreme = |of: fn(f64, f64) -> f64| numbers().reduce(of).unwrap_or(f64::NAN);
    RowValues::Summary { mean, deviation, minimum: extreme(f64::min), maximum: extreme(f64::max) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// `"x: B 3"`, where a number is a known size.
    fn spec(text: &str, dtype: DType) -> TensorSpec {
        let (name, sizes) = text.split_once(": ").unwrap();
        let dim = |size: &str| size.parse().map_or_else(|_| Dim::Symbol(size.to_owned()), Dim::Known);
        let sizes = sizes.split_whitespace().map(dim).collect();
        TensorSpec { name: name.to_owned(), dtype, sizes }
    }

    fn glimpse(inputs: &[&str]) -> TensorGlimpse {
        let specs: Vec<TensorSpec> = inputs.iter().map(|text| spec(text, DType::F32)).collect();
        TensorGlimpse::of(&specs, &[])
    }

    fn row(inputs: &[&str], tensors: &[Tensor], row: usize, draw: u64) -> Vec<TensorRow> {
        glimpse(inputs).of_inputs(tensors, row, draw)
    }

    fn counted(n: usize, shape: &[usize]) -> Tensor {
        Tensor::from_slice(&(0..n).map(|x| x as f32).collect::<Vec<f32>>(), shape).unwrap()
    }

    #[test]
    fn a_row_of_features_is_looked_at_one_by_one() {
        let tensors = [counted(6, &[2, 3]), counted(2, &[2])];
        let rows = row(&["x: B 3", "age: B"], &tensors, 1, 0);
        assert_eq!(rows[0].values, RowValues::Features(vec![3.0, 4.0, 5.0]));
        assert_eq!((rows[0].name.as_str(), rows[0].missing, rows[0].size), ("input.x", Some(0.0), None));
        assert_eq!(rows[1].values, RowValues::Scalar(1.0));
        assert_eq!(glimpse(&["x: B 3", "age: B"]).n_rows(&tensors), 2);
    }

    #[test]
    fn of_a_sequence_one_place_is_drawn_and_its_length_is_looked_at() {
        let tensors = [counted(24, &[2, 4, 3])];
        let mut seen: Vec<f64> = Vec::new();
        for draw in 0..40 {
            let rows = row(&["x: B T 3"], &tensors, 0, draw);
            let RowValues::Features(values) = &rows[0].values else { panic!("{rows:?}") };
            assert_eq!((values[1] - values[0], rows[0].size), (1.0, Some(12.0)));
            seen.push(values[0]);
        }
        seen.sort_by(f64::total_cmp);
        seen.dedup();
        assert_eq!(seen, [0.0, 3.0, 6.0, 9.0]);
    }

    #[test]
    fn what_is_wider_or_deeper_is_summed_up() {
        let wide = Tensor::from_slice(&[1.0_f32, f32::NAN, 3.0, 5.0], &[1, 4]).unwrap();
        let expected = RowValues::Summary { mean: 3.0, deviation: (8.0_f64 / 3.0).sqrt(), minimum: 1.0, maximum: 5.0 };
        let rows = row(&["x: B T"], &[wide], 0, 0);
        assert_eq!((&rows[0].values, rows[0].missing), (&expected, Some(0.25)));
        let picture = row(&["x: B 3 20 30"], &[counted(1800, &[1, 3, 20, 30])], 0, 0);
        assert!(matches!(picture[0].values, RowValues::Summary { minimum: 0.0, maximum: 1799.0, .. }));
        assert!(matches!(row(&["x: B 300"], &[counted(300, &[1, 300])], 0, 0)[0].values, RowValues::Summary { .. }));
    }

    #[test]
    fn there_are_no_more_signals_than_the_limit_however_many_tensors_there_are() {
        let names: Vec<String> = (0..50).map(|at| format!("x{at}: B 7")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let tensors = vec![counted(7, &[1, 7]); 50];
        let n_signals: usize = row(&names, &tensors, 0, 0)
            .iter()
            .map(|row| 1 + if let RowValues::Features(values) = &row.values { values.len() } else { N_SUMMARY })
            .sum();
        assert!((120..=MAX_TENSOR_SIGNALS).contains(&n_signals), "{n_signals}");
    }

    #[test]
    fn tensors_that_do_not_fit_are_passed_over() {
        for tensor in [counted(6, &[6]), counted(6, &[3, 2]), counted(0, &[0, 3]), counted(6, &[1, 2, 3])] {
            assert_eq!(row(&["x: B 3"], std::slice::from_ref(&tensor), 0, 0), [], "{:?}", tensor.shape());
        }
        assert_eq!(row(&["x: B 3"], &[counted(6, &[2, 3])], 2, 0), []);
        assert_eq!(glimpse(&["x: B 3"]).n_rows(&[counted(0, &[0, 3])]), 0);
    }

    fn met(inputs: &[(&str, Tensor)], outputs: &[(&str, Tensor)]) -> MetTensors {
        let named =
            |tensors: &[(&str, Tensor)]| tensors.iter().map(|(name, of)| ((*name).to_owned(), of.clone())).collect();
        MetTensors { inputs: named(inputs), outputs: named(outputs) }
    }

    #[test]
    fn what_a_host_met_says_which_sizes_vary_and_later_requests_are_looked_at_alike() {
        let request = |n: usize, length: usize| {
            let picture = counted(n * 300, &[n, 3, 10, 10]);
            let inputs = [
                ("a", counted(3 * n, &[n, 3])),
                ("words", counted(n * length, &[n, length])),
                ("scale", counted(1, &[])),
            ];
            met(&inputs, &[("score", counted(n, &[n])), ("picture", picture), ("classes", counted(4, &[4]))])
        };
        let (mut shapes, requests) = (MetShapes::default(), [request(1, 5), request(2, 7), request(1, 9)]);
        requests.iter().for_each(|request| shapes.add(request));
        // Of one that is not always there, or of another rank, nothing.
        shapes.add(&met(
            &[("a", counted(3, &[1, 3])), ("words", counted(6, &[1, 2, 3])), ("scale", counted(1, &[]))],
            &[("score", counted(1, &[1]))],
        ));
        let glimpse = shapes.glimpse();
        let names = |rows: &[TensorRow]| rows.iter().map(|row| row.name.clone()).collect::<Vec<_>>();
        let rows = requests[1].rows(&glimpse, 1, 0);
        assert_eq!(names(&rows), ["input.a", "input.scale", "output.score"]);
        assert_eq!(
            (&rows[0].values, &rows[2].values),
            (&RowValues::Features(vec![3.0, 4.0, 5.0]), &RowValues::Scalar(1.0))
        );
        let mut all = MetShapes::default();
        requests.iter().for_each(|request| all.add(request));
        let rows = requests[1].rows(&all.glimpse(), 1, 0);
        assert_eq!(
            names(&rows),
            ["input.a", "input.scale", "input.words", "output.classes", "output.picture", "output.score"]
        );
        assert!(matches!(rows[2].values, RowValues::Summary { .. }) && rows[2].size == Some(7.0));
        // Each is among what is looked at where nothing is known.
        let any = requests[1].rows_of_any(1, 0);
        for row in rows {
            let of_any: Vec<_> = any.iter().filter(|other| other.name == row.name).collect();
            assert!(of_any.iter().any(|other| other.values == row.values), "{row:?} {of_any:?}");
            assert!(row.size.is_none() || of_any.iter().any(|other| other.size == row.size), "{row:?}");
        }
    }

    #[test]
    fn a_program_without_a_batch_has_one_row() {
        let rows = row(&["x: 4"], &[counted(4, &[4])], 0, 0);
        assert_eq!(rows[0].values, RowValues::Features(vec![0.0, 1.0, 2.0, 3.0]));
    }
}

use std::collections::BTreeSet;

use highroad_package::{ImageInput, Task, TaskKind};
use highroad_runtime::graph::Dim;
use highroad_runtime::{RowIndependence, TensorSpec};
use highroad_tensor::{DType, Tensor};

use crate::{Prepared, TaskError};

/// Which inputs may share a run of the program without changing each other's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sharing {
    /// Any: rows are proved independent, and a padded row was seen to give the bits it gives alone.
    Padded,
    /// Inputs of one length: rows are proved independent, but padding is part of what the program sees.
    EqualLengths,
    /// None: rows are not proved independent, or the program takes one row.
    Alone,
}

/// How a program's tensors mean a task: found once, at open, so that `answer` cannot meet a surprise.
pub(crate) struct Signature {
    takes: Takes,
    one_row: bool,
    width: usize,
}

enum Takes {
    Tokens {
        roles: Vec<(Role, DType)>,
        /// The program takes rows of exactly this many tokens.
        n_tokens: Option<usize>,
    },
    /// `[channels, height, width]` of a row of pixels.
    Pixels([usize; 3]),
    /// Whatever it takes, by name: no rows are made of inputs.
    Tensors,
}

/// What a program's input is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    /// `input_ids`: token ids, the padding token where a row has ended.
    Ids,
    /// `attention_mask`: 1 for tokens, 0 for padding.
    Mask,
    /// `token_type_ids`: 0, as an input is one text.
    Types,
}

impl Role {
    fn of(name: &str) -> Option<Self> {
        match name {
            "input_ids" => Some(Self::Ids),
            "attention_mask" => Some(Self::Mask),
            "token_type_ids" => Some(Self::Types),
            _ => None,
        }
    }

    fn accepts(self, dtype: DType) -> bool {
        match self {
            Self::Ids | Self::Types => matches!(dtype, DType::I64 | DType::I32),
            Self::Mask => matches!(dtype, DType::I64 | DType::I32 | DType::Bool | DType::F32),
        }
    }
}

impl Signature {
    /// Checks that a program of these `inputs` and `outputs` takes tokens, or pixels, and returns what `task` says. Errors say
    /// which tensor does not fit and what would.
    pub fn of(inputs: &[TensorSpec], outputs: &[TensorSpec], task: &Task) -> Result<Self, TaskError> {
        if matches!(task.kind, TaskKind::Tensors) {
            let (named, given) = (task.outputs.len(), outputs.len());
            if named > 0 && named != given {
                return Err(mismatch(format!("it returns {given} tensors, and `outputs` names {named}")));
            }
            return Ok(Self { takes: Takes::Tensors, one_row: true, width: 0 });
        }
        let takes = match &task.image {
            Some(image) => pixels(inputs, image)?,
            None => tokens(inputs, task.max_tokens as usize)?,
        };
        let width = output_width(outputs, task)?;
        let rows = known(&inputs[0].sizes[0]);
        if let Some(n @ (0 | 2..)) = rows {
            return Err(mismatch(format!("it takes exactly {n} rows; export it with a dynamic batch dimension")));
        }
        Ok(Self { takes, one_row: rows.is_some(), width })
    }

    /// How inputs may be batched, before anything was run: the strongest that the proof and the signature allow.
    pub fn sharing(&self, rows: &RowIndependence) -> Sharing {
        let tells_padding = match &self.takes {
            Takes::Tokens { roles, n_tokens } => {
                n_tokens.is_some() || roles.iter().any(|(role, _)| *role == Role::Mask)
            }
            // All pictures have one size.
            Takes::Pixels(_) => true,
            Takes::Tensors => false,
        };
        if self.one_row || !rows.is_proved() {
            Sharing::Alone
        } else if tells_padding {
            Sharing::Padded
        } else {
            Sharing::EqualLengths
        }
    }

    /// How inputs may be batched where a row was seen to give other bits beside another one.
    pub fn unless_padded(&self) -> Sharing {
        match self.takes {
            Takes::Tokens { .. } => Sharing::EqualLengths,
            Takes::Pixels(_) | Takes::Tensors => Sharing::Alone,
        }
    }

    /// Values per row of the output.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The program's inputs for `rows`, padded at the end to the longest of them.
    pub fn tensors(&self, rows: &[&Prepared], pad_id: u32) -> Result<Vec<Tensor>, TaskError> {
        let (roles, n_tokens) = match &self.takes {
            Takes::Tokens { roles, n_tokens } => (roles, *n_tokens),
            Takes::Pixels([channels, height, width]) => {
                let values: Vec<f32> = rows.iter().flat_map(|row| row.pixel_values()).copied().collect();
                return Ok(vec![Tensor::from_slice(&values, &[rows.len(), *channels, *height, *width])?]);
            }
            Takes::Tensors => return Err(mismatch("its inputs are tensors".to_owned())),
        };
        let longest = rows.iter().map(|row| row.ids().len()).max().unwrap_or(0);
        let n_tokens = n_tokens.unwrap_or(longest);
        let padded = |of: &dyn Fn(&Prepared, usize) -> i64| -> Vec<i64> {
            rows.iter().flat_map(|row| (0..n_tokens).map(|i| of(row, i)).collect::<Vec<_>>()).collect()
        };
        let tensor = |&(role, dtype): &(Role, DType)| {
            let values = match role {
                Role::Ids => padded(&|row, i| i64::from(row.ids().get(i).copied().unwrap_or(pad_id))),
                Role::Mask => padded(&|row, i| i64::from(i < row.ids().len())),
                Role::Types => padded(&|row, i| i64::from(row.types().get(i).copied().unwrap_or(0))),
            };
            Ok(Tensor::from_slice(&values, &[rows.len(), n_tokens])?.cast(dtype)?)
        };
        roles.iter().map(tensor).collect()
    }
}

fn tokens(inputs: &[TensorSpec], max_tokens: usize) -> Result<Takes, TaskError> {
    let roles = roles(inputs)?;
    let n_tokens = known(&inputs[0].sizes[1]);
    match n_tokens.filter(|&n| n < max_tokens) {
        Some(n) => {
            Err(mismatch(format!("it takes exactly {n} tokens, and the package says `max_tokens` {max_tokens}")))
        }
        None => Ok(Takes::Tokens { roles, n_tokens }),
    }
}

/// The one input of a program that sees pictures, whatever its name.
fn pixels(inputs: &[TensorSpec], image: &ImageInput) -> Result<Takes, TaskError> {
    let size = [image.channels.count(), image.height as usize, image.width as usize];
    let fits = |spec: &TensorSpec| {
        let sizes = spec.sizes.get(1..).unwrap_or_default();
        let same = |(dim, size): (&Dim, &usize)| known(dim).is_none_or(|known| known == *size);
        spec.dtype == DType::F32 && sizes.len() == size.len() && sizes.iter().zip(&size).all(same)
    };
    match inputs {
        [spec] if fits(spec) => Ok(Takes::Pixels(size)),
        _ => {
            let [channels, height, width] = size;
            let found = inputs.iter().map(|spec| format!("`{}` {spec}", spec.name)).collect::<Vec<_>>().join(", ");
            Err(mismatch(format!(
                "it takes [{found}] where one input f32[batch, {channels}, {height}, {width}] is needed, the pixels of an image"
            )))
        }
    }
}

fn roles(inputs: &[TensorSpec]) -> Result<Vec<(Role, DType)>, TaskError> {
    let mut roles = Vec::new();
    for spec in inputs {
        let role = Role::of(&spec.name).ok_or_else(|| {
            mismatch(format!(
                "input `{}` is unknown; a text program takes `input_ids`, `attention_mask` and `token_type_ids`",
                spec.name
            ))
        })?;
        if !role.accepts(spec.dtype) || spec.sizes.len() != 2 {
            return Err(mismatch(format!("input `{}` is {spec} where integers [batch, tokens] are needed", spec.name)));
        }
        if spec.sizes != inputs[0].sizes {
            return Err(mismatch(format!("inputs `{}` and `{}` differ in shape", inputs[0].name, spec.name)));
        }
        roles.push((role, spec.dtype));
    }
    if roles.iter().map(|(role, _)| *role).collect::<BTreeSet<_>>().len() != roles.len() {
        return Err(mismatch("it takes one of its inputs twice".to_owned()));
    }
    match roles.iter().any(|(role, _)| *role == Role::Ids) {
        true => Ok(roles),
        false => Err(mismatch("it has no input `input_ids`".to_owned())),
    }
}

fn output_width(outputs: &[TensorSpec], task: &Task) -> Result<usize, TaskError> {
    let (width, what) = match &task.kind {
        TaskKind::Classify { labels, .. } => (labels.len(), format!("logits for {} labels", labels.len())),
        TaskKind::Embed { dimensions, .. } => (*dimensions as usize, format!("vectors of {dimensions} dimensions")),
        TaskKind::Recommend { items } => (items.len(), format!("logits for {} items", items.len())),
        TaskKind::Rerank => (1, "one logit for each pair".to_owned()),
        other => return Err(mismatch(format!("this version does not know the task {other:?}"))),
    };
    let [output] = outputs else {
        return Err(mismatch(format!("it returns {} tensors where one is needed, {what}", outputs.len())));
    };
    let fits = matches!(&output.sizes[..], [_, last] if known(last).is_none_or(|last| last == width));
    if output.dtype != DType::F32 || !fits {
        return Err(mismatch(format!("it returns {output} where f32[batch, {width}] is needed, {what}")));
    }
    Ok(width)
}

fn known(dim: &Dim) -> Option<usize> {
    match dim {
        Dim::Known(size) => Some(*size),
        Dim::Symbol(_) => None,
    }
}

pub(crate) fn mismatch(reason: String) -> TaskError {
    TaskError::Signature(reason)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Name, dtype and sizes, where a number is a known size: `("input_ids", DType::I64, "b s")`.
    type Spec = (&'static str, DType, &'static str);

    fn specs(tensors: &[Spec]) -> Vec<TensorSpec> {
        let dim = |size: &str| size.parse().map_or_else(|_| Dim::Symbol(size.to_owned()), Dim::Known);
        let spec = |&(name, dtype, sizes): &Spec| TensorSpec {
            name: name.to_owned(),
            dtype,
            sizes: sizes.split(' ').map(dim).collect(),
        };
        tensors.iter().map(spec).collect()
    }

    fn embed(dimensions: u32) -> Task {
        Task::new(TaskKind::Embed { dimensions, normalized: false, matryoshka_dimensions: Vec::new() }, 8)
    }

    fn classify(labels: &[&str]) -> Task {
        let labels = labels.iter().map(ToString::to_string).collect();
        Task::new(TaskKind::Classify { labels, flagged: None, pairs: false, thresholds: Vec::new() }, 8)
    }

    const IDS: Spec = ("input_ids", DType::I64, "b s");
    const VECTOR: Spec = ("y", DType::F32, "b 16");

    /// Why a program of these inputs and outputs does not fit the task.
    fn refused(inputs: &[Spec], outputs: &[Spec], task: &Task) -> String {
        match Signature::of(&specs(inputs), &specs(outputs), task) {
            Ok(_) => panic!("accepted"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn inputs_that_are_no_tokens_are_refused() {
        let cases: [(&[Spec], &str); 9] = [
            (&[], "it has no input `input_ids`"),
            (&[("attention_mask", DType::I64, "b s")], "it has no input `input_ids`"),
            (&[("input_ids", DType::F32, "b s")], "input `input_ids` is f32[b, s] where integers [batch, tokens]"),
            (&[("input_ids", DType::I64, "b")], "input `input_ids` is i64[b] where integers [batch, tokens]"),
            (&[IDS, IDS], "it takes one of its inputs twice"),
            (&[IDS, ("pixels", DType::F32, "b s")], "input `pixels` is unknown; a text program takes `input_ids`,"),
            (&[IDS, ("attention_mask", DType::I64, "b t")], "inputs `input_ids` and `attention_mask` differ in shape"),
            (&[("input_ids", DType::I64, "3 s")], "it takes exactly 3 rows; export it with a dynamic batch dimension"),
            (&[("input_ids", DType::I64, "b 4")], "it takes exactly 4 tokens, and the package says `max_tokens` 8"),
        ];
        for (inputs, reason) in cases {
            let message = refused(inputs, &[VECTOR], &embed(16));
            assert!(
                message.starts_with("the program does not fit its task: ") && message.contains(reason),
                "{message}"
            );
        }
    }

    #[test]
    fn outputs_that_are_not_the_tasks_are_refused() {
        let needed = "where f32[batch, 3] is needed, logits for 3 labels";
        let labels = classify(&["a", "b", "c"]);
        for (dtype, sizes) in [(DType::F32, "b 2"), (DType::F64, "b 3"), (DType::F32, "b s 3"), (DType::I64, "b 3")] {
            let message = refused(&[IDS], &[("y", dtype, sizes)], &labels);
            assert!(message.ends_with(needed), "{message}");
        }
        let message = refused(&[IDS], &[VECTOR, VECTOR], &embed(16));
        assert!(message.ends_with("it returns 2 tensors where one is needed, vectors of 16 dimensions"), "{message}");
    }

    #[test]
    fn what_may_share_a_run_follows_from_proof_mask_and_sizes() {
        let unproved = RowIndependence::NotProved { reason: "mean over the batch".to_owned() };
        let mask = ("attention_mask", DType::Bool, "b s");
        let cases: [(&[Spec], &RowIndependence, Sharing); 5] = [
            (&[IDS, mask], &RowIndependence::Proved, Sharing::Padded),
            (&[IDS], &RowIndependence::Proved, Sharing::EqualLengths),
            (&[("input_ids", DType::I64, "b 8")], &RowIndependence::Proved, Sharing::Padded),
            (&[IDS, mask], &unproved, Sharing::Alone),
            (&[("input_ids", DType::I64, "1 s")], &RowIndependence::Proved, Sharing::Alone),
        ];
        for (inputs, rows, sharing) in cases {
            let signature = Signature::of(&specs(inputs), &specs(&[VECTOR]), &embed(16)).unwrap();
            assert_eq!(signature.sharing(rows), sharing, "{inputs:?}");
        }
    }

    fn row(ids: &[u32]) -> Prepared {
        Prepared::tokens(ids.to_vec(), Vec::new(), false)
    }

    #[test]
    fn rows_are_padded_at_their_end_in_the_order_and_dtypes_of_the_program() {
        let inputs = [("attention_mask", DType::F32, "b s"), IDS, ("token_type_ids", DType::I32, "b s")];
        let signature = Signature::of(&specs(&inputs), &specs(&[VECTOR]), &embed(16)).unwrap();
        let tensors = signature.tensors(&[&row(&[5, 6, 7]), &row(&[8])], 1).unwrap();
        assert_eq!(tensors[0].as_slice::<f32>().unwrap(), [1., 1., 1., 1., 0., 0.]);
        assert_eq!(tensors[1].as_slice::<i64>().unwrap(), [5, 6, 7, 8, 1, 1]);
        assert_eq!(tensors[2].as_slice::<i32>().unwrap(), [0; 6]);
    }

    #[test]
    fn a_fixed_number_of_tokens_is_always_filled() {
        let inputs = [("input_ids", DType::I64, "b 8"), ("attention_mask", DType::Bool, "b 8")];
        let signature = Signature::of(&specs(&inputs), &specs(&[VECTOR]), &embed(16)).unwrap();
        let tensors = signature.tensors(&[&row(&[5, 6])], 0).unwrap();
        assert_eq!(tensors[0].as_slice::<i64>().unwrap(), [5, 6, 0, 0, 0, 0, 0, 0]);
        assert_eq!(tensors[1].as_slice::<u8>().unwrap(), [1, 1, 0, 0, 0, 0, 0, 0]);
    }
}

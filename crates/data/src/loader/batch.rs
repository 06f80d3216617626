//! One batch: texts to padded rows, columns to arrays.

use super::{Shared, Text};
use crate::encoder::{Token, Words};
use crate::field::{Cell, Kind};
use crate::plan::Plan;
use crate::table::DataError;

/// Values of a batch, in memory that its owner may hand on without a copy.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Array {
    Int { values: Vec<i64>, shape: Vec<usize> },
    Int32 { values: Vec<i32>, shape: Vec<usize> },
    F32 { values: Vec<f32>, shape: Vec<usize> },
    F64 { values: Vec<f64>, shape: Vec<usize> },
    Bool { values: Vec<bool>, shape: Vec<usize> },
    Str(Vec<String>),
    Number(i64),
}

/// A batch: its arrays by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Names are those of fields and of model inputs.
    pub arrays: Vec<(String, Array)>,
}

/// Tokens of the samples of a batch, one after another.
#[derive(Default)]
struct Samples {
    tokens: Vec<Token>,
    ends: Vec<usize>,
}

impl Shared {
    /// Batch `index` of the plan.
    pub(super) fn batch(&self, plan: &Plan, index: usize, words: &mut Words) -> Result<Batch, DataError> {
        let range = plan.batch(index);
        let chosen = &plan.order[range.start as usize..range.end as usize];
        let n_texts = self.text.as_ref().map_or(0, |text| text.n_texts);
        let mut samples = Samples::default();
        let mut columns: Vec<Array> =
            self.table.fields()[n_texts..].iter().map(|field| column(&field.kind, chosen.len())).collect();
        for &sample in chosen {
            if let Some(tokens) = &self.tokens {
                tokens.of(sample, &mut samples.tokens);
            }
            if self.tokens.is_none() || !columns.is_empty() {
                let mut cells = self.table.read(sample)?;
                if let (Some(text), None) = (&self.text, &self.tokens) {
                    self.encode(text, &cells, words, &mut samples.tokens)?;
                }
                columns.iter_mut().zip(cells.drain(n_texts..)).for_each(|(column, cell)| push(column, cell));
            }
            samples.ends.push(samples.tokens.len());
        }
        let mut batch = Batch::default();
        if let Some(text) = &self.text {
            let rows: Vec<usize> =
                plan.row_ends_between(range.start, range.end).iter().map(|end| (end - range.start) as usize).collect();
            self.rows(text, &samples, &rows, &mut batch);
        }
        let names = self.table.fields()[n_texts..].iter().map(|field| field.name.clone());
        batch.arrays.extend(names.zip(columns));
        Ok(batch)
    }

    /// Rows of tokens, padded on the right; `row_ends` counts samples.
    fn rows(&self, text: &Text, samples: &Samples, row_ends: &[usize], batch: &mut Batch) {
        let row_starts = std::iter::once(0).chain(row_ends.iter().copied());
        let spans: Vec<_> = row_starts.zip(row_ends).map(|(start, &end)| samples.span(start, end)).collect();
        let longest = match self.options.layout.pack {
            Some(width) => width as usize,
            None => spans.iter().map(std::ops::Range::len).max().unwrap_or(0).max(1),
        };
        let width = longest.next_multiple_of(self.options.pad_to_multiple_of.get());
        let (n_rows, n) = (spans.len(), spans.len() * width);
        let shape = vec![n_rows, width];
        let mut ids = vec![i64::from(text.encoder.pad_id()); n];
        let mut mask = vec![0; n];
        let mut types = vec![0; if text.n_texts == 2 { n } else { 0 }];
        for (row, span) in spans.iter().enumerate() {
            for (column, token) in samples.tokens[span.clone()].iter().enumerate() {
                ids[row * width + column] = i64::from(token.id());
                if text.n_texts == 2 {
                    types[row * width + column] = i64::from(token.kind());
                }
            }
            mask[row * width..][..span.len()].fill(1);
        }
        batch.add("input_ids", Array::Int { values: ids, shape: shape.clone() });
        batch.add("attention_mask", Array::Int { values: mask, shape: shape.clone() });
        if text.n_texts == 2 {
            batch.add("token_type_ids", Array::Int { values: types, shape });
        }
        if self.options.layout.pack.is_some() {
            self.documents(samples, row_ends, width, batch);
        }
    }

    /// Where documents lie in packed rows.
    fn documents(&self, samples: &Samples, row_ends: &[usize], width: usize, batch: &mut Batch) {
        let n_rows = row_ends.len();
        let mut positions = vec![0; n_rows * width];
        let mut segments = vec![0; n_rows * width];
        let mut first = 0;
        for (row, &end) in row_ends.iter().enumerate() {
            let mut column = row * width;
            for (number, sample) in (first..end).enumerate() {
                for position in 0..samples.span(sample, sample + 1).len() {
                    positions[column] = position as i64;
                    segments[column] = number as i64 + 1;
                    column += 1;
                }
            }
            first = end;
        }
        if self.options.block_mask {
            let same = |i: usize| {
                let (row, query, key) = (i / (width * width), i / width % width, i % width);
                let (query, key) = (segments[row * width + query], segments[row * width + key]);
                query == key && key != 0
            };
            let values = (0..n_rows * width * width).map(same).collect();
            batch.add("block_mask", Array::Bool { values, shape: vec![n_rows, 1, width, width] });
        }
        let longest = (0..samples.ends.len()).map(|i| samples.span(i, i + 1).len()).max().unwrap_or(0);
        let ends = std::iter::once(0).chain(samples.ends.iter().map(|&end| end as i32)).collect::<Vec<_>>();
        let shape = vec![n_rows, width];
        batch.add("position_ids", Array::Int { values: positions, shape: shape.clone() });
        batch.add("segment_ids", Array::Int { values: segments, shape });
        batch.add("cu_seqlens", Array::Int32 { shape: vec![ends.len()], values: ends });
        batch.add("max_seqlen", Array::Number(longest as i64));
    }
}

impl Batch {
    fn add(&mut self, name: &str, array: Array) {
        self.arrays.push((name.to_owned(), array));
    }
}

impl Samples {
    /// Tokens of the samples `start..end`.
    fn span(&self, start: usize, end: usize) -> std::ops::Range<usize> {
        let until = |n: usize| if n == 0 { 0 } else { self.ends[n - 1] };
        until(start)..until(end)
    }
}

fn column(kind: &Kind, n: usize) -> Array {
    let shape = vec![n];
    match kind {
        Kind::Int | Kind::Class(_) => Array::Int { values: Vec::with_capacity(n), shape },
        Kind::F32 => Array::F32 { values: Vec::with_capacity(n), shape },
        Kind::F64 => Array::F64 { values: Vec::with_capacity(n), shape },
        Kind::Bool => Array::Bool { values: Vec::with_capacity(n), shape },
        Kind::Str | Kind::Text => Array::Str(Vec::with_capacity(n)),
    }
}

fn push(column: &mut Array, cell: Cell<'_>) {
    match (column, cell) {
        (Array::Int { values, .. }, Cell::Int(value)) => values.push(value),
        (Array::F32 { values, .. }, Cell::Float(value)) => values.push(value as f32),
        (Array::F64 { values, .. }, Cell::Float(value)) => values.push(value),
        (Array::Bool { values, .. }, Cell::Bool(value)) => values.push(value),
        (Array::Str(values), Cell::Str(text)) => values.push(text.into_owned()),
        _ => unreachable!("a field's cell is of its column's type"),
    }
}

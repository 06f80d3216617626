//! Columns as rows of JSON, for records whose fields nest.

use std::io::Write;
use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::{Array as _, ArrayRef, FixedSizeListArray, RecordBatch, StructArray};
use arrow_json::LineDelimitedWriter;
use arrow_schema::{ArrowError, DataType, Field, FieldRef, Schema};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::reader::ChunkReader;
use serde::Deserialize;

use crate::table::guarded;

/// Writes a Parquet file's rows to `jsonl`, one object a row with its columns as keys: structs become objects, lists arrays,
/// fixed-shape tensors arrays in arrays, and what is null is left out. A batch of rows is in memory at a time.
///
/// Errors with a reason if the file is broken, if a column's type has no JSON, if the rows take more than `limit` bytes, or if
/// they cannot be written.
pub fn parquet_to_jsonl(parquet: impl ChunkReader + 'static, jsonl: impl Write, limit: u64) -> Result<(), String> {
    guarded(|| {
        let builder = ParquetRecordBatchReaderBuilder::try_new(parquet).map_err(|e| e.to_string())?;
        let mut writer = LineDelimitedWriter::new(Limited { to: jsonl, n_left: limit });
        for batch in builder.build().map_err(|e| e.to_string())? {
            let batch = batch.and_then(|batch| with_shapes(&batch)).map_err(|e| e.to_string())?;
            writer.write(&batch).map_err(|e| e.to_string())?;
        }
        writer.finish().map_err(|e| e.to_string())?;
        writer.into_inner().to.flush().map_err(|e| e.to_string())
    })
}

/// Arrow's extension type of tensors, which are flat lists, and what its metadata says.
const FIXED_SHAPE_TENSOR: &str = "arrow.fixed_shape_tensor";

#[derive(Deserialize)]
struct FixedShape {
    shape: Vec<usize>,
    /// Of the dimensions as they are meant.
    permutation: Option<Vec<usize>>,
}

/// The rows with fixed-shape tensors as lists in lists.
fn with_shapes(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = batch.schema();
    let (fields, columns) = all_with_shapes(schema.fields(), batch.columns())?;
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

fn all_with_shapes(fields: &[FieldRef], columns: &[ArrayRef]) -> Result<(Vec<FieldRef>, Vec<ArrayRef>), ArrowError> {
    let columns = fields.iter().zip(columns).map(|(field, column)| {
        let column = with_shape(field, column)?;
        Ok((Arc::new(Field::new(field.name(), column.data_type().clone(), field.is_nullable())), column))
    });
    Ok(columns.collect::<Result<Vec<_>, ArrowError>>()?.into_iter().unzip())
}

fn with_shape(field: &Field, column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    match column.data_type() {
        DataType::Struct(fields) => {
            let parts = column.as_struct();
            let (fields, columns) = all_with_shapes(fields, parts.columns())?;
            if fields.is_empty() {
                return Ok(Arc::clone(column));
            }
            Ok(Arc::new(StructArray::try_new(fields.into(), columns, parts.nulls().cloned())?))
        }
        DataType::FixedSizeList(item, _) if field.extension_type_name() == Some(FIXED_SHAPE_TENSOR) => {
            let list = column.as_fixed_size_list();
            let odd = |problem: &str| ArrowError::SchemaError(format!("tensor `{}` {problem}", field.name()));
            let told = field.extension_type_metadata().unwrap_or_default();
            let FixedShape { shape, permutation } =
                serde_json::from_str(told).map_err(|_| odd("has a shape that cannot be read"))?;
            if permutation.is_some_and(|order| !order.iter().copied().eq(0..order.len())) {
                return Err(odd("has its dimensions in another order"));
            }
            let size = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
            if size != usize::try_from(list.value_length()).ok() {
                return Err(odd("has another shape than its lists"));
            }
            let Some((&first, rest)) = shape.split_first().filter(|_| size != Some(0)) else {
                return Ok(Arc::clone(column));
            };
            let (mut item, mut values) = (Arc::clone(item), Arc::clone(list.values()));
            let length = |size: usize| i32::try_from(size).map_err(|_| odd("is too large"));
            for &size in rest.iter().rev() {
                values = Arc::new(FixedSizeListArray::try_new(item, length(size)?, values, None)?);
                item = Arc::new(Field::new("item", values.data_type().clone(), false));
            }
            Ok(Arc::new(FixedSizeListArray::try_new(item, length(first)?, values, list.nulls().cloned())?))
        }
        _ => Ok(Arc::clone(column)),
    }
}

/// Passes at most so many bytes on.
struct Limited<W> {
    to: W,
    n_left: u64,
}

impl<W: Write> Write for Limited<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n_left = self.n_left.checked_sub(bytes.len() as u64);
        self.n_left =
            n_left.ok_or_else(|| std::io::Error::other("its rows take more bytes than a golden set may have"))?;
        self.to.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

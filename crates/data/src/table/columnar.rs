//! Arrow IPC, mapped; Parquet and compressed Arrow are first decoded into an uncompressed Arrow file of the needed columns.

use std::borrow::Cow;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_buffer::Buffer;
use arrow_ipc::reader::{FileDecoder, StreamDecoder, read_footer_length};
use arrow_ipc::writer::FileWriter;
use arrow_ipc::{Block, convert::try_fb_to_schema, root_as_footer};
use arrow_schema::{DataType, Schema};
use bytes::Bytes;
use highroad_tensor::Storage;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{Bad, Owner, Rows, cells};
use crate::field::{Cell, Field, Value};
use crate::files::Place;
use crate::threads::in_parallel;

/// What an Arrow file begins and ends with; a stream does not.
const MAGIC: &[u8] = b"ARROW1";
/// Rows of a batch that Parquet is decoded to.
const ROWS_A_BATCH: usize = 8192;

type Opened = Result<(Box<dyn Rows>, Bad), String>;

/// Record batches over mapped memory.
pub(crate) struct Columnar {
    schema: Vec<(String, String)>,
    batches: Vec<RecordBatch>,
    /// Number of rows up to and including each batch.
    ends: Vec<u64>,
    /// Rows that are good, where not all are.
    good: Option<Vec<u32>>,
}

impl Columnar {
    pub(super) fn arrow(bytes: &Storage, fields: &[Field], place: &Place, threads: usize) -> Opened {
        let buffer = Buffer::from(shared(bytes));
        let decoded = guarded(|| {
            let (schema, batches) = decode(&buffer)?;
            let mut mapped = Vec::new();
            for batch in batches {
                let batch = wanted(&batch?, fields)?;
                if !lies_in(&batch, &buffer) {
                    return Ok((schema, None));
                }
                mapped.push(batch);
            }
            Ok((schema, Some(mapped)))
        })?;
        match decoded {
            (schema, Some(batches)) => Self::checked(&schema, batches, fields, threads),
            (schema, None) => {
                let spilled = guarded(|| {
                    let (_, batches) = decode(&buffer)?;
                    spill(batches.map(|batch| wanted(&batch?, fields)), place)
                })?;
                Self::checked(&schema, spilled, fields, threads)
            }
        }
    }

    pub(super) fn parquet(bytes: &Storage, fields: &[Field], place: &Place, threads: usize) -> Opened {
        let (schema, batches) = guarded(|| {
            let builder = ParquetRecordBatchReaderBuilder::try_new(shared(bytes)).map_err(|e| e.to_string())?;
            let schema = builder.schema().clone();
            let indices = columns(&schema, fields)?;
            let mask = ProjectionMask::roots(builder.parquet_schema(), indices);
            let reader = builder.with_projection(mask).with_batch_size(ROWS_A_BATCH).build();
            let reader = reader.map_err(|e| e.to_string())?;
            let batches = reader.map(|batch| wanted(&batch.map_err(|e| e.to_string())?, fields));
            Ok((schema, spill(batches, place)?))
        })?;
        Self::checked(&schema, batches, fields, threads)
    }

    fn checked(schema: &Schema, batches: Vec<RecordBatch>, fields: &[Field], threads: usize) -> Opened {
        let schema = schema.fields().iter().map(|f| (f.name().clone(), f.data_type().to_string())).collect();
        let mut ends = Vec::with_capacity(batches.len());
        let mut n_rows = 0;
        for batch in &batches {
            n_rows += batch.num_rows() as u64;
            ends.push(n_rows);
        }
        if n_rows > super::MAX_SAMPLES {
            return Err(format!("it has {n_rows} rows, and at most {} are accepted", super::MAX_SAMPLES));
        }
        let checked = in_parallel(batches.len(), threads, |i| {
            let rows = 0..batches[i].num_rows();
            rows.filter_map(|row| Some((row as u64, read(&batches[i], row, fields).err()?))).collect::<Vec<_>>()
        });
        let mut bad = Bad::default();
        let mut bad_rows = Vec::new();
        for (i, rows) in checked.into_iter().enumerate() {
            let before = if i == 0 { 0 } else { ends[i - 1] };
            for (row, reason) in rows {
                bad_rows.push((before + row) as u32);
                bad.add(before + row + 1, reason);
            }
        }
        let good = |row: &u32| bad_rows.binary_search(row).is_err();
        let good = (!bad_rows.is_empty()).then(|| (0..n_rows as u32).filter(good).collect());
        Ok((Box::new(Self { schema, batches, ends, good }), bad))
    }
}

impl Rows for Columnar {
    fn len(&self) -> usize {
        match &self.good {
            Some(good) => good.len(),
            None => self.ends.last().copied().unwrap_or(0) as usize,
        }
    }

    fn read<'a>(&'a self, row: usize, fields: &[Field]) -> Result<Vec<Cell<'a>>, String> {
        let row = self.good.as_ref().map_or(row as u64, |good| u64::from(good[row]));
        let batch = self.ends.partition_point(|&end| end <= row);
        let before = if batch == 0 { 0 } else { self.ends[batch - 1] };
        read(&self.batches[batch], (row - before) as usize, fields)
    }

    fn schema(&self) -> Vec<(String, String)> {
        self.schema.clone()
    }
}

/// `batches` hold one column for each field, in their order.
fn read<'a>(batch: &'a RecordBatch, row: usize, fields: &[Field]) -> Result<Vec<Cell<'a>>, String> {
    cells(fields, batch.columns().iter().map(|column| Some(value(column.as_ref(), row))).collect())
}

fn value(column: &dyn Array, row: usize) -> Value<'_> {
    if column.is_null(row) {
        return Value::Null;
    }
    let text = |text| Value::Str(Cow::Borrowed(text));
    match column.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => Value::Bool(column.as_boolean().value(row)),
        DataType::Int8 => Value::Int(column.as_primitive::<Int8Type>().value(row).into()),
        DataType::Int16 => Value::Int(column.as_primitive::<Int16Type>().value(row).into()),
        DataType::Int32 => Value::Int(column.as_primitive::<Int32Type>().value(row).into()),
        DataType::Int64 => Value::Int(column.as_primitive::<Int64Type>().value(row)),
        DataType::UInt8 => Value::Int(column.as_primitive::<UInt8Type>().value(row).into()),
        DataType::UInt16 => Value::Int(column.as_primitive::<UInt16Type>().value(row).into()),
        DataType::UInt32 => Value::Int(column.as_primitive::<UInt32Type>().value(row).into()),
        DataType::UInt64 => {
            let value = column.as_primitive::<UInt64Type>().value(row);
            i64::try_from(value).map_or(Value::Float(value as f64), Value::Int)
        }
        DataType::Float32 => Value::Float(column.as_primitive::<Float32Type>().value(row).into()),
        DataType::Float64 => Value::Float(column.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => text(column.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => text(column.as_string::<i64>().value(row)),
        DataType::Utf8View => text(column.as_string_view().value(row)),
        DataType::Dictionary(..) => {
            let dictionary = column.as_any_dictionary();
            match value(dictionary.keys(), row) {
                Value::Int(key) => value(dictionary.values().as_ref(), key as usize),
                _ => Value::Null,
            }
        }
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => Value::Other("a list"),
        DataType::Struct(_) | DataType::Map(..) => Value::Other("an object"),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            Value::Other("bytes")
        }
        _ => Value::Other("of another Arrow type"),
    }
}

/// One column for each field, in their order.
fn wanted(batch: &RecordBatch, fields: &[Field]) -> Result<RecordBatch, String> {
    let indices = columns(batch.schema_ref(), fields)?;
    batch.project(&indices).map_err(|e| e.to_string())
}

fn columns(schema: &Schema, fields: &[Field]) -> Result<Vec<usize>, String> {
    let index = |field: &Field| {
        let names = || schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ");
        schema.index_of(&field.name).map_err(|_| format!("there is no column `{}`; it has {}", field.name, names()))
    };
    fields.iter().map(index).collect()
}

type Batches<'b> = Box<dyn Iterator<Item = Result<RecordBatch, String>> + 'b>;

/// The schema and the batches of an Arrow file or stream, over its own memory where it is not compressed.
fn decode(buffer: &Buffer) -> Result<(Arc<Schema>, Batches<'_>), String> {
    if buffer.starts_with(MAGIC) { decode_file(buffer) } else { decode_stream(buffer) }
}

fn decode_file(buffer: &Buffer) -> Result<(Arc<Schema>, Batches<'_>), String> {
    let trailer = buffer.len().checked_sub(10).ok_or("it ends before its footer")?;
    let length = read_footer_length(buffer[trailer..].try_into().expect("10 bytes")).map_err(|e| e.to_string())?;
    let start = trailer.checked_sub(length).ok_or("its footer begins before the file")?;
    let footer = root_as_footer(&buffer[start..trailer]).map_err(|e| e.to_string())?;
    let schema = Arc::new(try_fb_to_schema(footer.schema().ok_or("it has no schema")?).map_err(|e| e.to_string())?);
    let mut decoder = FileDecoder::new(schema.clone(), footer.version());
    for block in footer.dictionaries().iter().flatten() {
        decoder.read_dictionary(block, &part(buffer, block)?).map_err(|e| e.to_string())?;
    }
    let blocks: Vec<Block> = footer.recordBatches().iter().flatten().copied().collect();
    let batches = blocks.into_iter().filter_map(move |block| {
        let read = |part| decoder.read_record_batch(&block, &part).map_err(|e| e.to_string());
        part(buffer, &block).and_then(read).transpose()
    });
    Ok((schema, Box::new(batches)))
}

fn part(buffer: &Buffer, block: &Block) -> Result<Buffer, String> {
    let outside = || "a block lies outside the file".to_owned();
    let size = |n: i64| usize::try_from(n).map_err(|_| outside());
    let start = size(block.offset())?;
    let length = size(block.bodyLength())?.checked_add(size(block.metaDataLength().into())?).ok_or_else(outside)?;
    let range: Range<usize> = start..start.checked_add(length).ok_or_else(outside)?;
    if range.end > buffer.len() {
        return Err(outside());
    }
    Ok(buffer.slice_with_length(start, length))
}

fn decode_stream(buffer: &Buffer) -> Result<(Arc<Schema>, Batches<'_>), String> {
    let mut rest = buffer.clone();
    let mut decoder = StreamDecoder::new();
    let first = decoder.decode(&mut rest).map_err(|e| e.to_string())?;
    let schema = decoder.schema().ok_or("it is neither an Arrow file nor an Arrow stream")?;
    let mut done = first.is_none();
    let others = std::iter::from_fn(move || {
        if done {
            return None;
        }
        let next = decoder.decode(&mut rest).and_then(|batch| match batch {
            Some(batch) => Ok(Some(batch)),
            None => decoder.finish().map(|()| None),
        });
        done = !matches!(next, Ok(Some(_)));
        next.map_err(|e| e.to_string()).transpose()
    });
    Ok((schema, Box::new(first.map(Ok).into_iter().chain(others))))
}

/// Whether all of the batch's memory is the file's.
fn lies_in(batch: &RecordBatch, buffer: &Buffer) -> bool {
    let file = buffer.as_ptr_range();
    let mine = |part: &Buffer| part.is_empty() || file.contains(&part.as_ptr());
    batch.columns().iter().all(|column| {
        let data = column.to_data();
        data.buffers().iter().all(mine)
    })
}

/// The batches, written to a temporary file and mapped.
fn spill(
    batches: impl Iterator<Item = Result<RecordBatch, String>>,
    place: &Place,
) -> Result<Vec<RecordBatch>, String> {
    let mut batches = batches.peekable();
    let schema = match batches.peek() {
        None => return Ok(Vec::new()),
        Some(first) => first.as_ref().map_err(Clone::clone)?.schema(),
    };
    let mut file = place.temporary().map_err(|error| format!("cannot write to the cache directory: {error}"))?;
    let mut writer = FileWriter::try_new(BufWriter::new(&mut file), &schema).map_err(|e| e.to_string())?;
    for batch in batches {
        writer.write(&batch?).map_err(|e| e.to_string())?;
    }
    let mut written = writer.into_inner().map_err(|e| e.to_string())?;
    written.flush().map_err(|e| e.to_string())?;
    drop(written);
    let map = Storage::map(&file).map_err(|e| e.to_string())?;
    let buffer = Buffer::from(shared(&map));
    decode_file(&buffer)?.1.collect()
}

fn shared(bytes: &Storage) -> Bytes {
    Bytes::from_owner(Owner(Arc::new(bytes.clone())))
}

/// What `work` gives, or the message of its panic: the Arrow and Parquet readers assert in places that a hostile file reaches.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // Nothing is used after a panic but the error, so no broken invariant can be seen.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(format!("the file is broken: {}", text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?")))
    })
}

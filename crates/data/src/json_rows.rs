//! Columns as rows of JSON, for records whose fields nest.

use arrow_json::LineDelimitedWriter;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::table::guarded;

/// A Parquet file's rows as JSONL, one object a row with its columns as keys: structs become objects, lists arrays, and what is
/// null is left out.
///
/// Errors with a reason if the file is broken, if a column's type has no JSON, or if the rows take more than `limit` bytes.
pub fn parquet_as_jsonl(bytes: Vec<u8>, limit: usize) -> Result<Vec<u8>, String> {
    guarded(|| {
        let builder = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes)).map_err(|e| e.to_string())?;
        let mut writer = LineDelimitedWriter::new(Vec::new());
        for batch in builder.build().map_err(|e| e.to_string())? {
            writer.write(&batch.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
            if writer.get_ref().len() > limit {
                return Err(format!("its rows take more than {limit} bytes"));
            }
        }
        writer.finish().map_err(|e| e.to_string())?;
        Ok(writer.into_inner())
    })
}

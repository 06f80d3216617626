//! Columns as rows of JSON, for records whose fields nest.

use std::io::Write;

use arrow_json::LineDelimitedWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::reader::ChunkReader;

use crate::table::guarded;

/// Writes a Parquet file's rows to `jsonl`, one object a row with its columns as keys: structs become objects, lists arrays, and
/// what is null is left out. A batch of rows is in memory at a time.
///
/// Errors with a reason if the file is broken, if a column's type has no JSON, if the rows take more than `limit` bytes, or if
/// they cannot be written.
pub fn parquet_to_jsonl(parquet: impl ChunkReader + 'static, jsonl: impl Write, limit: u64) -> Result<(), String> {
    guarded(|| {
        let builder = ParquetRecordBatchReaderBuilder::try_new(parquet).map_err(|e| e.to_string())?;
        let mut writer = LineDelimitedWriter::new(Limited { to: jsonl, n_left: limit });
        for batch in builder.build().map_err(|e| e.to_string())? {
            writer.write(&batch.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
        }
        writer.finish().map_err(|e| e.to_string())?;
        writer.into_inner().to.flush().map_err(|e| e.to_string())
    })
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

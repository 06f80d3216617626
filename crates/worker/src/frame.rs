//! What goes over the pipes: a length in eight little-endian bytes, then a safetensors file.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use safetensors::SafeTensors;

/// Longest frame: 4096 tokens need 96 KiB, as many patches of pixels 12 MiB, and their answers fit many times.
pub const MAX_FRAME_BYTES: u64 = 1 << 30;

/// One frame. `InvalidData` where its length is out of bounds, `UnexpectedEof` where the stream ends.
pub(crate) fn read_frame(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 8];
    stream.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_FRAME_BYTES {
        let reason = format!("a frame of {length} bytes, and {MAX_FRAME_BYTES} are the most");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    // Grows with what arrives, not with what is claimed.
    let mut frame = Vec::new();
    match stream.take(length).read_to_end(&mut frame)? as u64 == length {
        true => Ok(frame),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

pub(crate) fn write_frame(stream: &mut impl Write, frame: &[u8]) -> io::Result<()> {
    stream.write_all(&(frame.len() as u64).to_le_bytes())?;
    stream.write_all(frame)?;
    stream.flush()
}

/// What a frame says beside its tensors. Errors, in words, where it is no safetensors file.
pub fn metadata(frame: &[u8]) -> Result<HashMap<String, String>, String> {
    let (_, header) = SafeTensors::read_metadata(frame).map_err(|error| error.to_string())?;
    Ok(header.metadata().clone().unwrap_or_default())
}

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

/// A file's bytes; an error of kind `FileTooLarge` if there are more than `limit`.
pub(crate) fn read_limited(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is over {limit} bytes")));
    }
    Ok(bytes)
}

/// Puts `bytes` at `path`, whole or not at all: a reader sees the old file or the new one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = folder_of(path);
    let mut new = tempfile::Builder::new().prefix(".highroad-").tempfile_in(folder)?;
    new.write_all(bytes)?;
    // A file made for one's own eyes would stay so: keep what the old one allowed, else what others may usually read.
    let permissions = std::fs::metadata(path).map(|old| old.permissions()).unwrap_or_else(|_| readable());
    new.as_file().set_permissions(permissions)?;
    new.as_file().sync_all()?;
    new.persist(path)?;
    Ok(())
}

/// Where `path` lies.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

fn readable() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::Permissions::from_mode(0o644)
}

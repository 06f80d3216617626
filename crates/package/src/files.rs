//! Files of a directory that somebody else may have prepared: no links followed, no devices opened, every read bounded.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use sha2::{Digest as _, Sha256};

use crate::{Digest, PackageError};

/// More entries than this in a package's directory are not listed at all.
const MAX_ENTRIES: usize = 1024;
/// Large enough that reading costs little beside hashing, small enough to stay in the L2 cache.
const BLOCK_BYTES: usize = 256 * 1024;

/// An open directory; its files are opened relative to it, so a renamed path cannot redirect them.
pub(crate) struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// Opens the directory at `path`. A symbolic link as the last component is refused.
    pub fn open(path: &Path) -> Result<Self, PackageError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| PackageError::io(path)(e.into()))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the regular file `name` for reading, and gives its size. `name` is one path component.
    pub fn file(&self, name: &str) -> Result<(File, u64), PackageError> {
        // NONBLOCK: opening a named pipe must not wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::empty()).map_err(|e| match e {
            rustix::io::Errno::NOENT => PackageError::Missing { file: name.to_owned() },
            rustix::io::Errno::LOOP | rustix::io::Errno::NXIO => PackageError::NotRegular { file: name.to_owned() },
            other => PackageError::io(self.path.join(name))(other.into()),
        })?;
        let file = File::from(fd);
        let metadata = file.metadata().map_err(PackageError::io(self.path.join(name)))?;
        if !metadata.is_file() {
            return Err(PackageError::NotRegular { file: name.to_owned() });
        }
        Ok((file, metadata.len()))
    }

    /// The whole content of the regular file `name`, at most `limit` bytes.
    pub fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, PackageError> {
        let (file, size) = self.file(name)?;
        let over = |found| PackageError::Limit { file: name.to_owned(), what: "size in bytes", found, limit };
        if size > limit {
            return Err(over(size));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).map_err(|_| over(size))?);
        // The file may have grown since its size was read.
        file.take(limit + 1).read_to_end(&mut bytes).map_err(PackageError::io(self.path.join(name)))?;
        if bytes.len() as u64 > limit {
            return Err(over(bytes.len() as u64));
        }
        Ok(bytes)
    }

    /// Every entry's name except `.` and `..`, sorted. Names that are not UTF-8 are shown with replacement characters.
    pub fn names(&self) -> Result<Vec<String>, PackageError> {
        let failed = |e: rustix::io::Errno| PackageError::io(&self.path)(e.into());
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_string_lossy().into_owned();
            if matches!(name.as_str(), "." | "..") && entry.file_type() == FileType::Directory {
                continue;
            }
            if names.len() == MAX_ENTRIES {
                let (found, limit) = (MAX_ENTRIES as u64 + 1, MAX_ENTRIES as u64);
                return Err(PackageError::Limit { file: name, what: "number of files", found, limit });
            }
            names.push(name);
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// Copies `reader` to `writer` and gives the number of bytes and their digest. Stops with an error of kind
/// `FileTooLarge` after `limit` bytes.
pub(crate) fn copy_and_hash(reader: impl Read, writer: &mut impl Write, limit: u64) -> io::Result<(u64, Digest)> {
    let mut hasher = Sha256::new();
    let mut block = vec![0; BLOCK_BYTES];
    let mut size: u64 = 0;
    let mut reader = reader.take(limit.saturating_add(1));
    loop {
        let n = match reader.read(&mut block) {
            Ok(0) => return Ok((size, Digest::finish(hasher))),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        size += n as u64;
        if size > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        hasher.update(&block[..n]);
        writer.write_all(&block[..n])?;
    }
}

/// Writes a new file durably: the bytes are on disk when this returns.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), PackageError> {
    let mut file = File::create_new(path).map_err(PackageError::io(path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(PackageError::io(path))
}

/// Makes a directory's entries durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), PackageError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(PackageError::io(path))
}

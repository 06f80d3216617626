//! What commands print.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write as _};
use std::process;

/// As the shell tells of a program that SIGPIPE ended.
pub const NOBODY_READS: u8 = 128 + 13;

/// `println!` for a stdout whose reader may leave, as `head` does: the command then ends without a word.
#[macro_export]
macro_rules! outln {
    () => { $crate::out::line(format_args!("")) };
    ($($arg:tt)*) => { $crate::out::line(format_args!($($arg)*)) };
}

/// Prints a line on stdout, or ends this process where nobody reads it.
pub fn line(line: Arguments<'_>) {
    if let Err(error) = writeln!(io::stdout(), "{line}") {
        if is_left(&error) {
            process::exit(i32::from(NOBODY_READS));
        }
        eprintln!("error: cannot write to stdout: {error}");
        process::exit(i32::from(crate::USAGE_OR_ENVIRONMENT));
    }
}

/// Prints a line on stderr for a person, where one still reads: `eprintln!` would end what goes on without.
pub fn tell(line: &str) {
    _ = writeln!(io::stderr(), "{line}");
}

/// Whether the reader of a pipe has left.
pub fn is_left(error: &io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe
}

//! The Python module: load and run programs, record parity cases.

//! Development only: goldens, closeness, test servers.

mod packages;

pub use packages::TinyPackage;

//! Development only: goldens, closeness, test servers.

mod closeness;
mod goldens;
mod packages;
mod postgres;

pub use closeness::{check_close, same_bits};
pub use goldens::{Golden, GoldenValue, goldens};
pub use packages::TinyPackage;
pub use postgres::Postgres;

//! Tells cargo that a new file under `migrations/` changes the library, which reads that folder as it is compiled.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}

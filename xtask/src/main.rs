//! The project's own commands: test, ci, docs, tidy.
fn main() {}

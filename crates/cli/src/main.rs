//! `prunella`: the command line.
fn main() {}

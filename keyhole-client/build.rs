//! Hands the linker the program's layout, where packaging/build-clients builds it as it is shipped.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=program.ld");
    // The layout is for programs at a fixed address; other builds of the program are merely larger.
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    if flags.contains("relocation-model=static") && env::var_os("CARGO_FEATURE_PROGRAM").is_some() {
        let folder = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-T{folder}/program.ld");
    }
}

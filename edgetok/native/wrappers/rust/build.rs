//! Links libedgetok.a of the exported folder, or of EDGETOK_LIB_DIR.
use std::{env, path::PathBuf};

fn main() {
    let var = |name| env::var(name).unwrap_or_default();
    let target = match (var("CARGO_CFG_TARGET_ARCH").as_str(), var("CARGO_CFG_TARGET_OS").as_str())
    {
        ("x86_64", "linux") => "x86_64-linux",
        ("aarch64", "linux") => "aarch64-linux",
        ("aarch64", "macos") => "arm64-macos",
        ("x86_64", "windows") => "x86_64-windows",
        (arch, os) => panic!("there is no libedgetok for {arch} and {os}; set EDGETOK_LIB_DIR"),
    };
    let given = var("EDGETOK_LIB_DIR");
    let exported = PathBuf::from(var("CARGO_MANIFEST_DIR")).join("../lib").join(target);
    let folder = if given.is_empty() { exported } else { given.into() };
    println!("cargo:rerun-if-env-changed=EDGETOK_LIB_DIR");
    println!("cargo:rerun-if-changed={}", folder.display());
    println!("cargo:rustc-link-search=native={}", folder.display());
    println!("cargo:rustc-link-lib=static=edgetok");
    if target.ends_with("linux") {
        println!("cargo:rustc-link-lib=m");
    } else if target.ends_with("windows") {
        println!("cargo:rustc-link-lib=api-ms-win-core-synch-l1-2-0");
    }
}

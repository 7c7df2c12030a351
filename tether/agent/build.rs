//! For musl, that is for the boot image, the linker leaves out what only unwinding would read, and does
//! not pad what is read and what is run to pages of their own: every page of it is every guest's.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=discard.ld");
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "musl") {
        let directory = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
        println!("cargo:rustc-link-arg-bins=-Wl,-T,{directory}/discard.ld");
        println!("cargo:rustc-link-arg-bins=-Wl,-z,noseparate-code");
    }
}

//! Makes the linker's output depend on its input alone.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // No time of day in the header, and no debug directory, whose file name
    // holds a hash of the build's location.
    for argument in ["/Brepro", "/DEBUG:NONE"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}

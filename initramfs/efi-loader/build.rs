//! Links an ELF file that has the shape of an EFI application; `bootimage` puts it into one.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for argument in [
        "--entry=efi_main",
        // The first page is the application's headers.
        "--image-base=0x1000",
        // A section of an application starts on a page of its own.
        "-zseparate-loadable-segments",
        // No page that changes its protection once relocations are done: firmware does not do that.
        "-znorelro",
        // No hash of where it was built.
        "--build-id=none",
    ] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}

//! The C entry point. Rust's own would open /dev/null before there is a /dev, install a handler
//! for stack overflow and ignore SIGPIPE, which every container process would inherit.

/// What the C library calls.
#[cfg(not(test))]
// SAFETY: the one `main` of the program, with the signature the C library expects.
#[unsafe(no_mangle)]
extern "C" fn main(_: libc::c_int, _: *const *const libc::c_char) -> libc::c_int {
    crate::start()
}

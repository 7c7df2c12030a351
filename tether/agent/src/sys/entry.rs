//! The C entry point. Rust's own would open /dev/null before there is a /dev, install a handler
//! for stack overflow and ignore SIGPIPE, which every container process would inherit.

/// The name by which tether is its own rehearsal's program, which says one word and ends.
pub const REHEARSAL: &str = "/rehearsal";

/// What the C library calls.
#[cfg(not(test))]
// SAFETY: the one `main` of the program, with the signature the C library expects.
#[unsafe(no_mangle)]
extern "C" fn main(count: libc::c_int, words: *const *const libc::c_char) -> libc::c_int {
    // SAFETY: so many C strings, as execve(2) was given them.
    let name = (count > 0).then(|| unsafe { core::ffi::CStr::from_ptr(*words) });
    if name.is_some_and(|name| name.to_bytes() == REHEARSAL.as_bytes()) {
        super::write_somewhere(1, b"ready\n");
        return 0;
    }
    crate::start()
}

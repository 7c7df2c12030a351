//! What the standard library would bring: an allocator, the C library's, and a word on a panic.
//!
//! Only for the boot image, that is for musl where panics abort. Anywhere else the standard library
//! is linked: a build of the whole workspace unites the features of every crate's dependencies, and
//! one `std` among them would make two panic handlers.

use core::alloc::{GlobalAlloc, Layout};
use core::panic::PanicInfo;

// Without the standard library nobody else asks for it.
#[link(name = "c", kind = "static")]
// SAFETY: nothing is declared.
unsafe extern "C" {}

/// `malloc(3)` of the C library that is linked in anyway.
struct Malloc;

/// What `malloc(3)` aligns to on x86-64.
const ALIGNED: usize = 16;

// SAFETY: malloc, realloc and free fulfil the contract for the alignments they are used for;
// posix_memalign does for all others.
unsafe impl GlobalAlloc for Malloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() <= ALIGNED {
            // SAFETY: any size may be asked for.
            return unsafe { libc::malloc(layout.size()) }.cast();
        }
        let mut place = core::ptr::null_mut();
        // SAFETY: `place` is written on success alone; the alignment is a power of two above 16.
        let result = unsafe { libc::posix_memalign(&raw mut place, layout.align(), layout.size()) };
        if result == 0 {
            place.cast()
        } else {
            core::ptr::null_mut()
        }
    }

    unsafe fn dealloc(&self, place: *mut u8, _: Layout) {
        // SAFETY: it came from `alloc`.
        unsafe { libc::free(place.cast()) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if layout.align() <= ALIGNED {
            // SAFETY: it came from malloc.
            return unsafe { libc::realloc(place.cast(), size) }.cast();
        }
        // SAFETY: as the trait's own default.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                core::ptr::copy_nonoverlapping(place, new, layout.size().min(size));
                self.dealloc(place, layout);
            }
            new
        }
    }
}

#[global_allocator]
static ALLOCATOR: Malloc = Malloc;

/// A defect of tether itself: say so where the host can see it, and end the machine.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    crate::shutdown::die(format_args!("a defect of tether itself: {info}"))
}

/// Named by the unwind tables of the prebuilt libraries, and never called: panics abort.
// SAFETY: the one definition of a symbol that nothing else in the program has.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// Where the prebuilt libraries' clean-up after a panic would go on. There is none to clean up
/// after: [`panic`] does not return.
// SAFETY: as above.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    crate::sys::exit(127)
}

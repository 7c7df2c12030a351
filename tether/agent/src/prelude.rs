//! What every other Rust program has without asking. Tether is built on `core` and `alloc` alone:
//! the standard library brings half as much again as all of tether, to print backtraces that nobody
//! would see.

pub use alloc::borrow::ToOwned;
pub use alloc::format;
pub use alloc::string::{String, ToString};
pub use alloc::vec;
pub use alloc::vec::Vec;

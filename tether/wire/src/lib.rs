#![no_std]
extern crate alloc;
pub mod guest;
pub mod message;

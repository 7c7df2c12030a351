//! Standard input of `vch run`, read on a thread of its own: a read from a terminal or a pipe
//! cannot be called off, so nothing waits for this thread.

use std::io::{self, Read};
use tether_link::InputWriter;
use tokio::runtime::Handle;

const READ: usize = 64 * 1024;

/// Sends standard input to the process until either ends; the end is sent too.
///
/// # Errors
/// No thread can be started.
pub fn forward(handle: Handle, mut writer: InputWriter) -> io::Result<()> {
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            let mut stdin = io::stdin().lock();
            let mut buffer = vec![0; READ];
            loop {
                let count = match stdin.read(&mut buffer) {
                    // A terminal that is gone has said its last.
                    Ok(0) | Err(_) => break,
                    Ok(count) => count,
                };
                if handle.block_on(writer.write_all(&buffer[..count])).is_err() {
                    // Nobody reads any more.
                    return;
                }
            }
            writer.finish();
        })?;
    Ok(())
}

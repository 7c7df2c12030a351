//! Staying with a main process: its output into the log and to whoever is attached, their input to it, until
//! it has ended and everything it wrote is stored.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tether_link::{Chunk, InputWriter, LinkError, OutputReader, ProcessControl};
use tether_wire::message::{Exit, Output};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::boot::chain;
use crate::cell::Cell;
use crate::error::Error;
use crate::log::Writer;
use crate::stream::Piece;

/// How long output is waited for after the process's end: only processes that outlive it (`--pid host`) can
/// hold its streams open.
const LINGER: Duration = Duration::from_secs(5);
/// How long a reader that does not read holds up a process that has ended.
const STALLED: Duration = Duration::from_secs(10);
/// The pause before output is offered to a log again that could not take it.
const LOG_PAUSE: Duration = Duration::from_secs(1);

/// Ends when the process has ended and what it wrote is stored.
///
/// # Errors
/// The machine or its channel is gone.
pub(crate) async fn attend(
    cell: &Arc<Cell>,
    main: ProcessControl,
    streams: [OutputReader; 2],
    mut log: Writer,
) -> Result<Exit, LinkError> {
    let result = follow(cell, main, streams, &mut log).await;
    // Also when the machine is gone: what came of a last line is all there will be.
    store(cell, || log.end()).await;
    result
}

async fn follow(
    cell: &Arc<Cell>,
    main: ProcessControl,
    [mut stdout, mut stderr]: [OutputReader; 2],
    log: &mut Writer,
) -> Result<Exit, LinkError> {
    let (mut out_open, mut err_open) = (true, true);
    let mut exit = None;
    let mut linger = Instant::now();
    while out_open || err_open || exit.is_none() {
        let (output, chunk) = tokio::select! {
            chunk = stdout.next(), if out_open => (Output::Stdout, chunk?),
            chunk = stderr.next(), if err_open => (Output::Stderr, chunk?),
            ended = main.wait(), if exit.is_none() => {
                exit = Some(ended?);
                linger = Instant::now() + LINGER;
                continue;
            }
            () = sleep_until(linger), if exit.is_some() => break,
        };
        let (reader, open) = match output {
            Output::Stdout => (&stdout, &mut out_open),
            Output::Stderr => (&stderr, &mut err_open),
        };
        let Some(chunk) = chunk else {
            *open = false;
            store(cell, || log.finish(output)).await;
            continue;
        };
        if exit.is_some() {
            linger = Instant::now() + LINGER;
        }
        let now = SystemTime::now();
        let stored = store(cell, || log.append(output, chunk.offset, &chunk.data, now)).await;
        reader.stored(stored);
        pass_on(cell, &main, output, chunk).await;
    }
    match exit {
        Some(exit) => Ok(exit),
        None => main.wait().await,
    }
}

/// Tries until the log takes it: what is not stored stays in the guest, and the process waits.
async fn store<T>(cell: &Cell, mut write: impl FnMut() -> Result<T, Error>) -> T {
    loop {
        match write() {
            Ok(stored) => return stored,
            Err(error) => {
                tracing::error!(container = %cell.id, error = chain(&error), "cannot write the log; its output waits");
                sleep(LOG_PAUSE).await;
            }
        }
    }
}

async fn pass_on(cell: &Cell, main: &ProcessControl, output: Output, chunk: Chunk) {
    let piece = Piece {
        output,
        data: chunk.data,
    };
    let stalled = async {
        // An error is an end, too.
        let _ = main.wait().await;
        sleep(STALLED).await;
    };
    tokio::select! {
        biased;
        () = cell.hub.publish(piece) => {}
        () = stalled => cell.hub.drop_stalled(),
    }
}

/// Passes input on to the process until whoever sends has gone, or the process.
pub(crate) async fn feed(mut pieces: mpsc::Receiver<Bytes>, mut stdin: InputWriter) {
    while let Some(data) = pieces.recv().await {
        if stdin.write_all(&data).await.is_err() {
            return;
        }
    }
    stdin.finish();
}

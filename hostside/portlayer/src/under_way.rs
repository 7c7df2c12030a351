//! What runs for a port layer, counted, so that its end can be waited for: a task is ended when the port layer is
//! closed, but what it put on a thread goes on until it is done.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::Error;

/// How much is under way. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct UnderWay(Arc<watch::Sender<usize>>);

/// Something that is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct Piece(UnderWay);

impl Drop for Piece {
    fn drop(&mut self) {
        self.0.0.send_modify(|pieces| *pieces -= 1);
    }
}

impl UnderWay {
    /// One more.
    pub fn begin(&self) -> Piece {
        self.0.send_modify(|pieces| *pieces += 1);
        Piece(self.clone())
    }

    /// Begins something on a thread of its own.
    pub fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let piece = self.begin();
        tokio::task::spawn_blocking(move || {
            let _piece = piece;
            work()
        })
    }

    /// Runs what waits for disks on a thread of its own, to its end, whether or not whoever asked for it stays.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        match self.thread(work).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(Error::ShuttingDown),
        }
    }

    /// Resolves when nothing is.
    pub async fn ended(&self) {
        // The sender is held here.
        let _ = self.0.subscribe().wait_for(|pieces| *pieces == 0).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_thread_is_waited_for_when_its_task_is_gone() {
        let under_way = UnderWay::default();
        let (go, gone) = mpsc::channel::<()>();
        let task = tokio::spawn({
            let under_way = under_way.clone();
            async move {
                under_way
                    .blocking(move || {
                        let _ = gone.recv();
                        Ok(())
                    })
                    .await
            }
        });
        tokio::task::yield_now().await;
        task.abort();
        let early = tokio::time::timeout(Duration::from_millis(20), under_way.ended()).await;
        assert!(early.is_err(), "its thread runs");
        drop(go);
        under_way.ended().await;
    }

    #[tokio::test]
    async fn a_panic_is_an_end() {
        let under_way = UnderWay::default();
        let task = tokio::spawn({
            let under_way = under_way.clone();
            async move {
                let panics = || -> Result<(), Error> { panic!("as it is meant to") };
                under_way.blocking(panics).await
            }
        });
        assert!(task.await.is_err());
        under_way.ended().await;
    }
}

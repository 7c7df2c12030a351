//! What every handler has at hand.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use portlayer::{Container, ContainerId, PortLayer};
use tokio::sync::watch;

use crate::errors::ApiError;
use crate::metrics::Metrics;

/// What a VCH says of itself.
#[derive(Debug, Clone)]
pub struct Vch {
    /// Its name.
    pub name: String,
    /// What identifies it among all, stable over restarts.
    pub id: String,
    /// Where its state is kept.
    pub state: PathBuf,
    /// Version of the program that serves it.
    pub version: String,
}

/// The endpoint of one VCH. Clones are the same.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    port_layer: PortLayer,
    vch: Vch,
    metrics: Metrics,
    started: SystemTime,
    ending: watch::Receiver<bool>,
}

impl Engine {
    /// An endpoint over `port_layer`. Streams end when `ending` becomes true, or its sender is gone.
    pub fn new(port_layer: PortLayer, vch: Vch, ending: watch::Receiver<bool>) -> Self {
        let inner = Inner {
            port_layer,
            vch,
            metrics: Metrics::default(),
            started: SystemTime::now(),
            ending,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The containers.
    pub fn port_layer(&self) -> &PortLayer {
        &self.inner.port_layer
    }

    /// Whose endpoint this is.
    pub fn vch(&self) -> &Vch {
        &self.inner.vch
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Since when it serves.
    pub fn started(&self) -> SystemTime {
        self.inner.started
    }

    /// Returns when the endpoint is to end.
    pub fn ending(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut ending = self.inner.ending.clone();
        async move {
            // A sender that is gone says the same.
            let _ = ending.wait_for(|ending| *ending).await;
        }
    }

    /// The container of this name, id or prefix.
    ///
    /// # Errors
    /// 404 or 400 (several).
    pub fn find(&self, text: &str) -> Result<ContainerId, ApiError> {
        Ok(self.port_layer().find(text)?)
    }

    /// The same, looked at.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn container(&self, text: &str) -> Result<Container, ApiError> {
        let id = self.find(text)?;
        Ok(self.port_layer().inspect(&id)?)
    }
}

/// Runs something to its end even when the client that asked for it has gone: half a change is worse than
/// one nobody waits for.
///
/// # Errors
/// Those of `change`; 500 if it panicked.
pub async fn to_the_end<T, F>(change: F) -> Result<T, ApiError>
where
    F: Future<Output = Result<T, ApiError>> + Send + 'static,
    T: Send + 'static,
{
    match tokio::spawn(change).await {
        Ok(result) => result,
        Err(error) => Err(ApiError::internal(format!("the request failed: {error}"))),
    }
}

//! What a guest that was started ahead of need is led through before there is a machine for it. The driver
//! knows nothing of what is spoken on a channel, so who opens it says how.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use hypervisor::Channel;

/// What becomes of a rehearsal.
pub type Rehearsed = Result<(), Box<dyn Error + Send + Sync>>;

type Lead = dyn Fn(Channel) -> Pin<Box<dyn Future<Output = Rehearsed> + Send>> + Send + Sync;

/// Leads a guest through its first steps, and lets go of its channel.
#[derive(Clone)]
pub struct Rehearsal(Arc<Lead>);

impl Rehearsal {
    /// By this.
    pub fn new<F, Fut>(lead: F) -> Self
    where
        F: Fn(Channel) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Rehearsed> + Send + 'static,
    {
        Self(Arc::new(move |channel| Box::pin(lead(channel))))
    }

    pub(crate) async fn lead(&self, channel: Channel) -> Rehearsed {
        (self.0)(channel).await
    }
}

impl fmt::Debug for Rehearsal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rehearsal(..)")
    }
}

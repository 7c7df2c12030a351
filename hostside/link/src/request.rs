//! One request and the wait for its answer.

use crate::LinkError;
use crate::core::Shared;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tether_wire::Full;
use tether_wire::message::{Reply, Request, RequestId};

/// The answer to a request that is already on its way.
///
/// The request is handed over when this is made, not when it is first polled, so requests reach
/// the guest in the order they were made and without waiting for one another's answers. (Only when
/// the session's bound on unanswered requests is reached does it wait for room first.) Dropping it
/// does not call the request back; it only stops waiting.
#[must_use = "the request is on its way, but only awaiting says what became of it"]
#[derive(Debug)]
pub struct Answer {
    shared: Arc<Shared>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The session had no room for it.
    Full(Box<Request>),
    /// It can never be sent.
    TooLong(Full),
    Sent(RequestId),
    Taken,
}

impl Answer {
    pub(crate) fn new(shared: &Arc<Shared>, request: Request) -> Self {
        let state = match shared.lock().submit(&request) {
            Ok(id) => State::Sent(id),
            Err(Full::InFlight) => State::Full(Box::new(request)),
            Err(full) => State::TooLong(full),
        };
        shared.outbound.notify_one();
        Self {
            shared: shared.clone(),
            state,
        }
    }
}

impl Future for Answer {
    type Output = Result<Reply, LinkError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let mut core = this.shared.lock();
        if let State::Full(request) = &this.state
            && core.ended().is_none()
        {
            match core.submit(request) {
                Ok(id) => {
                    this.state = State::Sent(id);
                    this.shared.outbound.notify_one();
                }
                Err(full @ Full::Size(_)) => this.state = State::TooLong(full),
                Err(Full::InFlight) => {
                    core.wait_for_room(cx.waker());
                    return Poll::Pending;
                }
            }
        }
        if let State::TooLong(full) = &this.state {
            return Poll::Ready(Err(LinkError::TooLong(full.clone())));
        }
        let State::Sent(id) = this.state else {
            return Poll::Ready(Err(core.ended().unwrap_or(LinkError::Closed)));
        };
        let Some(slot) = core.answers.get_mut(&id) else {
            return Poll::Ready(Err(LinkError::Closed));
        };
        if let Some(result) = slot.result.take() {
            core.answers.remove(&id);
            this.state = State::Taken;
            return Poll::Ready(result.map_err(LinkError::Guest));
        }
        slot.waker = Some(cx.waker().clone());
        match core.ended() {
            Some(reason) => Poll::Ready(Err(reason)),
            None => Poll::Pending,
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let State::Sent(id) = self.state else { return };
        let mut core = self.shared.lock();
        let Some(slot) = core.answers.get_mut(&id) else {
            return;
        };
        if slot.result.is_some() {
            core.answers.remove(&id);
        } else {
            slot.abandoned = true;
            slot.waker = None;
        }
    }
}

//! A carrier that flips and drops bytes, both ways.

use crate::random::Random;
use hypervisor::ChannelIo;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How many lies were told, over all connections.
#[derive(Clone, Debug, Default)]
pub struct Told(Arc<AtomicU64>);

impl Told {
    /// So many so far.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One direction's lies.
#[derive(Debug)]
struct Liar {
    random: Random,
    /// Bytes that pass before the next lie.
    honest: u64,
    mean: u64,
    told: Told,
}

impl Liar {
    fn new(mut random: Random, mean: u64, told: Told) -> Self {
        let honest = random.below(2 * mean);
        Self {
            random,
            honest,
            mean,
            told,
        }
    }

    /// What arrives of these bytes.
    fn pass(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut arrives = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            if self.honest > 0 {
                self.honest -= 1;
                arrives.push(byte);
                continue;
            }
            self.honest = self.random.below(2 * self.mean);
            self.told.0.fetch_add(1, Ordering::Relaxed);
            if self.random.below(2) == 0 {
                arrives.push(byte ^ (1 << self.random.below(8)));
            }
        }
        arrives
    }
}

/// A carrier between which and its user there is a liar for each direction.
pub struct Lying {
    carrier: Box<dyn ChannelIo>,
    incoming: Liar,
    outgoing: Liar,
    /// What arrives of what was written, and how much of it is with the carrier.
    pending: (Vec<u8>, usize),
}

impl Lying {
    /// One lie in `mean` bytes.
    pub fn new(carrier: Box<dyn ChannelIo>, mut random: Random, mean: u64, told: &Told) -> Self {
        let mut liar = || Liar::new(Random::new(random.next()), mean, told.clone());
        Self {
            carrier,
            incoming: liar(),
            outgoing: liar(),
            pending: (Vec::new(), 0),
        }
    }

    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (bytes, written) = &mut self.pending;
        while *written < bytes.len() {
            match Pin::new(&mut self.carrier).poll_write(cx, &bytes[*written..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => *written += count,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Lying {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut honest = vec![0; buffer.remaining().min(16 << 10)];
            let mut bytes = ReadBuf::new(&mut honest);
            match Pin::new(&mut self.carrier).poll_read(cx, &mut bytes) {
                Poll::Ready(Ok(())) => {}
                other => return other,
            }
            if bytes.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            let arrives = self.incoming.pass(bytes.filled());
            // Nothing filled would be the end.
            if !arrives.is_empty() {
                buffer.put_slice(&arrives);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Lying {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.poll_pending(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        }
        let arrives = self.outgoing.pass(bytes);
        self.pending = (arrives, 0);
        // What the carrier does not take now goes with the next write or flush.
        match self.poll_pending(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.poll_pending(cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.carrier).poll_flush(cx),
            other => other,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.carrier).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_liar_lies_as_often_as_it_says() {
        let told = Told::default();
        let mut liar = Liar::new(Random::new(7), 100, told.clone());
        let truth = vec![0x55; 100_000];
        let arrives = liar.pass(&truth);
        let flipped = arrives.iter().filter(|&&byte| byte != 0x55).count() as u64;
        let dropped = (truth.len() - arrives.len()) as u64;
        assert_eq!(flipped + dropped, told.count());
        assert!((500..2000).contains(&told.count()), "{}", told.count());
        assert!(flipped > 0 && dropped > 0);
    }
}

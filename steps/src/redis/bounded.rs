//! A connection that takes in so many bytes and no more: an answer has no size before it is there.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream of which only so many bytes can be read.
pub(super) struct Bounded<S> {
    inner: S,
    left: u64,
}

/// The answer is longer than anybody wants to keep.
#[derive(Debug, thiserror::Error)]
#[error("the answer is longer than is taken in")]
pub(super) struct TooLong;

impl<S> Bounded<S> {
    pub(super) fn new(inner: S, limit: u64) -> Self {
        Self { inner, left: limit }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left == 0 {
            return Poll::Ready(Err(io::Error::other(TooLong)));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buffer);
        self.left = self.left.saturating_sub((buffer.filled().len() - before) as u64);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn no_more_is_read_than_the_limit_and_one_buffer() {
        let mut whole = Vec::new();
        Bounded::new(&b"12345"[..], 6).read_to_end(&mut whole).await.expect("fits");
        assert_eq!(whole, b"12345");
        let error = Bounded::new(tokio::io::repeat(7), 1000).read_to_end(&mut Vec::new()).await;
        assert!(error.expect_err("never ends").get_ref().is_some_and(|inner| inner.is::<TooLong>()));
    }
}

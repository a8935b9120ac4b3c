//! Rows from one server to another, piece by piece, without being looked at.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, pin_mut};
use lifeboat_engine::step::StepError;

use super::{Client, PgError};
use crate::store::Meter;

impl Client {
    /// Sends what `out` copies out here into what `into` copies in there. Returns the number of rows.
    ///
    /// Memory does not depend on their number. If it fails, nothing of it has been taken in.
    pub(in super::super) async fn copy_to(
        &self,
        out: &str,
        (to, into): (&Client, &str),
        meter: &Meter,
    ) -> Result<u64, StepError> {
        let work = async {
            let rows = self.inner.copy_out(out).await.map_err(driver)?;
            let sink = to.inner.copy_in::<_, Bytes>(into).await.map_err(driver)?;
            pin_mut!(rows, sink);
            while let Some(piece) = rows.next().await {
                let piece = piece.map_err(driver)?;
                meter.advance(piece.len() as u64)?;
                sink.send(piece).await.map_err(driver)?;
            }
            sink.finish().await.map_err(driver)
        };
        tokio::select! {
            copied = work => copied,
            () = self.login.cancel.cancelled() => {
                for client in [self, to] {
                    client.usable.store(false, Ordering::Release);
                    client.cancel_statement().await;
                }
                Err(PgError::Cancelled.into_step())
            }
        }
    }
}

fn driver(error: tokio_postgres::Error) -> StepError {
    PgError::from_driver(&error).into_step()
}

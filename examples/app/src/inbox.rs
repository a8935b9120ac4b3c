//! `member-app inbox`: takes the messages of a webhook, in place of the chat that a real team has.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Json, Router};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::error::AnyError;
use crate::serve::wait_for_signal;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddr,
    /// The file to keep messages in, one JSON document a line.
    #[arg(long)]
    file: PathBuf,
}

/// Takes messages until SIGTERM or SIGINT.
pub(crate) async fn run(args: Args) -> Result<(), AnyError> {
    let listener = TcpListener::bind(args.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", args.listen))?;
    println!("the inbox listens on http://{}", listener.local_addr()?);
    let router = Router::new().fallback(take).with_state(Arc::new(args.file));
    tokio::select! {
        ended = axum::serve(listener, router) => ended.map_err(Into::into),
        told = wait_for_signal() => told,
    }
}

async fn take(State(file): State<Arc<PathBuf>>, Json(message): Json<Value>) -> StatusCode {
    let kept = OpenOptions::new().create(true).append(true).open(file.as_path());
    match kept.and_then(|mut file| file.write_all(format!("{message}\n").as_bytes())) {
        Ok(()) => {
            let text = message["message"]
                .as_str()
                .or(message["text"].as_str())
                .unwrap_or("a message without a text");
            println!("{text}");
            StatusCode::NO_CONTENT
        }
        Err(error) => {
            eprintln!("a message is not kept: {error}");
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

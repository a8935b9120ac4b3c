//! `member-app serve`: the HTTP interface.

mod auth;
mod health;
mod media;
mod members;
mod payments;

use std::future::IntoFuture;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::HeaderValue;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Router, extract::Request};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::cache::Cache;
use crate::database::{self, Pool};
use crate::error::{AnyError, ApiError};
use crate::uploads::Uploads;

const LARGEST_UPLOAD: usize = 5 * 1024 * 1024;
/// How long requests that have begun may take once the program is to end.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The database, as postgresql://user@host:port/name.
    #[arg(long, env, hide_env_values = true)]
    database_url: String,
    /// The Redis server, as redis://host:port.
    #[arg(long, env, hide_env_values = true)]
    redis_url: String,
    /// The directory of media files.
    #[arg(long)]
    uploads: std::path::PathBuf,
    /// What this instance calls itself in every answer, so that nobody takes one system for another.
    #[arg(long, default_value = "member-app")]
    instance: String,
}

/// What every request can use.
#[derive(Clone, Debug)]
struct App {
    pool: Pool,
    cache: Cache,
    uploads: Uploads,
    instance: HeaderValue,
}

/// Answers until SIGTERM or SIGINT, then lets open requests finish.
pub(crate) async fn run(args: Args) -> Result<(), AnyError> {
    let app = App {
        pool: Pool::new(database::parse(&args.database_url)?),
        cache: Cache::new(&args.redis_url)?,
        uploads: Uploads::new(args.uploads),
        instance: HeaderValue::from_str(&args.instance)
            .map_err(|_| "--instance holds characters that no HTTP header may have")?,
    };
    let listener = TcpListener::bind(args.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", args.listen))?;
    println!("{} listens on http://{}", args.instance, listener.local_addr()?);
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut told = stopped.clone();
    let server = axum::serve(listener, router(app))
        .with_graceful_shutdown(async move { drop(told.wait_for(|stop| *stop).await) })
        .into_future();
    let ended = async {
        wait_for_signal().await?;
        stop.send_replace(true);
        tokio::time::sleep(GRACE).await;
        Err::<(), AnyError>(format!("requests were still open {}s after the signal", GRACE.as_secs()).into())
    };
    tokio::select! {
        result = server => result.map_err(Into::into),
        result = ended => result,
    }
}

/// Waits until somebody wants this program to end.
pub(crate) async fn wait_for_signal() -> Result<(), AnyError> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

fn router(app: App) -> Router {
    Router::new()
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/login", post(auth::login))
        .route("/members", get(members::search))
        .route("/members/{id}", get(members::show))
        .route("/members/{id}/status", post(members::decide))
        .route("/payments", get(payments::list).post(payments::enter))
        .route("/feed", get(media::feed))
        .route("/media", post(media::upload))
        .route("/media/{id}", get(media::fetch))
        .fallback(nothing_here)
        .layer(DefaultBodyLimit::max(LARGEST_UPLOAD))
        .layer(middleware::from_fn_with_state(app.clone(), sign))
        .with_state(app)
}

async fn nothing_here(request: Request) -> ApiError {
    ApiError::NotFound(format!("there is nothing at {}", request.uri().path()))
}

/// Puts the name of this instance on every answer.
async fn sign(State(app): State<App>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert("x-instance", app.instance);
    response
}

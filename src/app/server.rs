//! Listens, serves connections, and on a signal lets what runs finish.
//!
//! Connections are served by hyper's own builder, because it can bound the time a client takes to send a
//! request's head; half-open and slow clients then cost a socket for that long and no more.

use std::pin::pin;
use std::time::{Duration, Instant};

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tower::ServiceExt;

use super::AppError;
use crate::config::Settings;

/// Async threads; they mostly sleep, the engine has the rest of the machine.
const ASYNC_THREADS: usize = 2;

/// Serves until SIGTERM or SIGINT, then waits for running requests as long as the settings allow.
///
/// `is_idle` says whether no request is being answered.
pub(super) fn run(
    routes: Router,
    settings: &Settings,
    is_idle: impl Fn() -> bool,
) -> Result<(), AppError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(ASYNC_THREADS)
        .enable_all()
        .build()
        .map_err(AppError::Start)?;
    let result = runtime.block_on(listen(routes, settings, is_idle));
    // Requests that outlived the drain are dropped with the runtime.
    runtime.shutdown_background();
    result
}

/// How long the server must have been idle before connections that never sent a whole request, or never
/// take an answer that is finished, are given up in a drain.
const QUIET: Duration = Duration::from_secs(2);

/// Returns when no request has been answered for [`QUIET`].
async fn quiet(is_idle: impl Fn() -> bool) {
    let mut since = Instant::now();
    loop {
        tokio::time::sleep(QUIET / 20).await;
        if !is_idle() {
            since = Instant::now();
        } else if since.elapsed() >= QUIET {
            return;
        }
    }
}

async fn listen(
    routes: Router,
    settings: &Settings,
    is_idle: impl Fn() -> bool,
) -> Result<(), AppError> {
    let address = settings.address;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| AppError::Listen { address, source })?;
    let mut terminate = signal(SignalKind::terminate()).map_err(AppError::Start)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AppError::Start)?;
    let bound = listener.local_addr().map_err(AppError::Start)?;
    // Launchers and scripts wait for this word.
    tracing::info!(address = %bound, "Connected");

    let mut builder = Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(settings.header_read);
    let connections = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Mostly too many open files: wait for some to close rather than spin.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Tokens are small packets that must leave at once.
        let _ = stream.set_nodelay(true);
        let service = routes
            .clone()
            .map_request(|request: hyper::Request<Incoming>| request.map(axum::body::Body::new));
        let connection =
            builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended badly");
            }
        });
    }
    drop(listener);
    tracing::info!(limit_s = settings.drain.as_secs(), "draining");
    let mut drained = pin!(tokio::time::timeout(settings.drain, connections.shutdown()));
    tokio::select! {
        result = &mut drained => if result.is_err() {
            tracing::warn!("requests still running at the end of the drain are dropped");
        },
        () = quiet(is_idle) => tracing::info!("connections without a request are closed"),
        _ = terminate.recv() => tracing::warn!("second signal: stopping at once"),
        _ = interrupt.recv() => tracing::warn!("second signal: stopping at once"),
    }
    tracing::info!("stopped");
    Ok(())
}

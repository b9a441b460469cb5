//! Listens, serves connections, and on a signal lets what runs finish.
//!
//! Connections are served by hyper's own builder, because it can bound what a client costs before it has
//! asked for anything: the time it takes to send a request's head, and the head's size. Together with a
//! bound on open connections, and on the time an answer may lie unread (`stall.rs`), half-open and slow
//! clients cost a socket and some kilobytes for so long and no more.
//!
//! SIGHUP reads the certificate again, and the keys of callers with what they may let leave and who should
//! answer them; what is wrong then is logged, and what was right before goes on, all of it. Credentials of
//! upstreams are not read again: they come from the environment, which a process cannot read anew.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::hybrid::Upkeep;
use super::stall::Impatient;
use super::{AppError, tls};
use crate::api::{Key, KeyRing};
use crate::config::{Grants, Settings, read_callers};
use crate::dispatch::Dispatcher;
use crate::egress::Gate;

/// Async threads; they mostly sleep, the engine has the rest of the machine.
const ASYNC_THREADS: usize = 2;
/// Most bytes of a request's head. Bearer tokens and cookies of careful clients are a few kilobytes.
const MAX_HEAD_BYTES: usize = 32 << 10;
/// Most header lines of a request.
const MAX_HEADERS: usize = 100;
/// Most bytes that wait in each direction of a connection, beside one frame of a body.
const MAX_BUFFER_BYTES: usize = 64 << 10;

/// What decides who comes in, and can be read again while the server runs.
pub(super) struct Doorkeeper {
    /// Present when HTTPS is served.
    pub(super) tls: Option<TlsAcceptor>,
    /// The keys of callers, shared with the routes.
    pub(super) keys: KeyRing,
    /// What lets text leave, if there is anywhere to go.
    pub(super) gate: Option<Gate>,
}

impl Doorkeeper {
    /// Reads again what stands in files.
    fn reload(&mut self, settings: &Settings) {
        if let Some(files) = &settings.tls {
            match tls::open(files) {
                Ok(fresh) => {
                    self.tls = Some(fresh);
                    tracing::info!("certificate read again");
                }
                Err(error) => tracing::error!(%error, "the certificate stays as it was"),
            }
        }
        if let Some(file) = &settings.keys_file {
            match read_callers(file) {
                Ok((keys, grants)) => self.take(keys, grants, settings),
                Err(error) => tracing::error!(
                    %error,
                    "the keys stay as they were, and so do what they may let leave and their policies"
                ),
            }
        }
    }

    /// Takes up what was read. Text of a key that is not known yet leaves for nobody, so the gate comes first.
    fn take(&self, keys: Vec<Key>, grants: Grants, settings: &Settings) {
        let count = keys.len();
        if let Some(gate) = &self.gate {
            gate.note_admin(admin_line(&grants));
            let Grants {
                known,
                anonymous,
                default,
                keys,
                policies,
                may_widen,
            } = grants;
            gate.replace_grants(anonymous, default, keys, known);
            settings.route.policies.replace(policies, may_widen);
        }
        self.keys.replace(keys);
        tracing::info!(
            keys = count,
            "keys read again, with what they may let leave and their policies; other settings need a restart"
        );
    }
}

/// What the audit log says about grants that were read again: who may let how much leave.
fn admin_line(grants: &Grants) -> String {
    let own = |name: &String| {
        let grant = grants.keys.get(name).unwrap_or(&grants.default);
        format!(", key {name} {}", grant.level.name())
    };
    let keys: String = grants.known.iter().map(own).collect();
    let anonymous = grants.anonymous.level.name();
    format!("keys read again: without a key {anonymous}{keys}")
}

/// Serves until SIGTERM or SIGINT, then waits for running requests as long as the settings allow.
///
pub(super) fn run(
    routes: Router,
    settings: &Settings,
    door: Doorkeeper,
    mut upkeep: Option<Upkeep>,
    dispatcher: &Dispatcher,
) -> Result<(), AppError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(ASYNC_THREADS)
        .enable_all()
        .build()
        .map_err(AppError::Start)?;
    if let Some(upkeep) = &mut upkeep {
        runtime.spawn(upkeep.run());
    }
    runtime.spawn(dispatcher.clone().keep_pulse());
    let result = runtime.block_on(listen(routes, settings, door, dispatcher));
    if let Some(upkeep) = upkeep {
        runtime.block_on(upkeep.close());
    }
    // Requests that outlived the drain are dropped with the runtime, which says what they came to.
    runtime.shutdown_timeout(LAST_DROPS);
    result
}

/// How long work that cannot be interrupted is waited for at the end.
const LAST_DROPS: Duration = Duration::from_secs(1);

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
    mut door: Doorkeeper,
    dispatcher: &Dispatcher,
) -> Result<(), AppError> {
    let address = settings.address;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| AppError::Listen { address, source })?;
    let mut terminate = signal(SignalKind::terminate()).map_err(AppError::Start)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AppError::Start)?;
    let mut hangup = reload_signal(settings).map_err(AppError::Start)?;
    let bound = listener.local_addr().map_err(AppError::Start)?;
    // Launchers and scripts wait for this word.
    tracing::info!(address = %bound, tls = door.tls.is_some(), "Connected");

    let builder = builder(settings);
    let connections = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(settings.max_connections));
    loop {
        // Without a place nothing is accepted: clients wait in the system's queue, and cost nothing here.
        let accept = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = accept => accepted,
            () = received(&mut hangup) => {
                door.reload(settings);
                continue;
            }
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
        let connection = Connection {
            builder: builder.clone(),
            routes: routes.clone(),
            watcher: connections.watcher(),
            handshake: settings.header_read,
        };
        let stream = patient(stream, settings);
        let tls = door.tls.clone();
        tokio::spawn(async move {
            connection.serve(stream, tls).await;
            drop(place);
        });
    }
    drop(listener);
    // Whoever watches would watch for ever.
    dispatcher.pulse().end();
    tracing::info!(limit_s = settings.drain.as_secs(), "draining");
    let mut drained = pin!(tokio::time::timeout(settings.drain, connections.shutdown()));
    tokio::select! {
        result = &mut drained => if result.is_err() {
            tracing::warn!("requests still running at the end of the drain are dropped");
        },
        () = quiet(|| dispatcher.is_idle()) => tracing::info!("connections without a request are closed"),
        _ = terminate.recv() => tracing::warn!("second signal: stopping at once"),
        _ = interrupt.recv() => tracing::warn!("second signal: stopping at once"),
    }
    tracing::info!("stopped");
    Ok(())
}

/// Hyper's settings: see the consts above.
fn builder(settings: &Settings) -> Builder {
    let mut builder = Builder::new();
    builder
        .timer(TokioTimer::new())
        // Also bounds the time between two requests of a connection.
        .header_read_timeout(settings.header_read)
        .max_header_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER_BYTES);
    builder
}

/// Listens to SIGHUP only where there is something to read again; elsewhere it ends the process, as it does
/// by default when a terminal is closed.
fn reload_signal(settings: &Settings) -> std::io::Result<Option<Signal>> {
    let wanted = settings.tls.is_some() || settings.keys_file.is_some();
    wanted.then(|| signal(SignalKind::hangup())).transpose()
}

async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => _ = signal.recv().await,
        None => std::future::pending().await,
    }
}

fn patient(stream: TcpStream, settings: &Settings) -> Impatient<TcpStream> {
    // Tokens are small packets that must leave at once.
    let _ = stream.set_nodelay(true);
    Impatient::new(stream, settings.write_stall)
}

/// What one connection needs to be served.
struct Connection {
    builder: Builder,
    routes: Router,
    watcher: Watcher,
    handshake: Duration,
}

impl Connection {
    async fn serve(self, stream: Impatient<TcpStream>, tls: Option<TlsAcceptor>) {
        let Some(tls) = tls else {
            return self.serve_http(stream).await;
        };
        match tokio::time::timeout(self.handshake, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.serve_http(stream).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn serve_http(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = self
            .routes
            .map_request(|request: hyper::Request<Incoming>| request.map(axum::body::Body::new));
        let service = TowerToHyperService::new(service);
        let connection = self.builder.serve_connection(TokioIo::new(stream), service);
        if let Err(error) = self.watcher.watch(connection).await {
            tracing::debug!(%error, "a connection ended badly");
        }
    }
}

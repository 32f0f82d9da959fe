//! Calls to etcd with a deadline, retries where they are harmless, and a way around dead endpoints.
//!
//! etcd-client doesn't fail over by itself: of the endpoints it is given it keeps asking a dead one in turn, and a stopped
//! one hangs. So each [`Calls`] talks to one endpoint at a time and goes to the next when that one fails or is silent.

use std::future::Future;
use std::io;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error as EtcdError};
use metrics::counter;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::Code;
use tracing::debug;

use super::tls::Tls;
use crate::backoff::Backoff;

/// How long one call may take. Healthy ones take a few milliseconds, one during a leader election up to about 1.5 s.
pub(super) const CALL_DEADLINE: Duration = Duration::from_millis(2500);

/// How long a connection may take to stand, and how often and how long it is asked whether it still does.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Attempts of an idempotent call beyond one per endpoint.
const EXTRA_ATTEMPTS: usize = 2;

/// Counter of calls, failed ones included.
pub(super) const TOTAL: &str = "headwater_directory_calls_total";

/// Counter of failed calls, labelled by `reason`.
pub(super) const FAILED_TOTAL: &str = "headwater_directory_failed_calls_total";

/// Why a call failed.
#[derive(Debug)]
pub(super) enum CallError {
    /// No answer in time: it may have been performed or not.
    Silent,
    /// etcd, or the way to it, said no.
    Refused(EtcdError),
    /// The files of TLS can't be read.
    Files(io::Error),
}

impl CallError {
    /// The lease that a write was to go under is gone.
    pub(super) fn is_lease_gone(&self) -> bool {
        // etcdserver's ErrLeaseNotFound; the only NotFound of the calls we make.
        matches!(self, Self::Refused(EtcdError::GRpcStatus(status)) if status.code() == Code::NotFound)
    }

    /// A revision that was asked for isn't there: it is compacted away or still to come.
    pub(super) fn is_out_of_range(&self) -> bool {
        matches!(self, Self::Refused(EtcdError::GRpcStatus(status)) if status.code() == Code::OutOfRange)
    }

    /// Asking again, or somebody else, may help.
    fn is_retryable(&self) -> bool {
        match self {
            Self::Silent | Self::Files(_) => true,
            Self::Refused(EtcdError::GRpcStatus(status)) => matches!(
                status.code(),
                Code::Unavailable
                    | Code::DeadlineExceeded
                    | Code::Cancelled
                    | Code::Unknown
                    | Code::Internal
                    | Code::Aborted
                    | Code::ResourceExhausted
                    | Code::Unauthenticated
            ),
            Self::Refused(EtcdError::InvalidArgs(_) | EtcdError::InvalidUri(_)) => false,
            Self::Refused(_) => true,
        }
    }
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Silent => f.write_str("no answer in time"),
            Self::Refused(error) => error.fmt(f),
            Self::Files(error) => error.fmt(f),
        }
    }
}

/// Whether a call may be performed twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It may: it is retried.
    Idempotent,
    /// It may not: the caller finds out what became of it.
    Once,
}

/// The endpoint in use.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    /// Which of all connections it is.
    generation: u64,
}

/// One endpoint at a time out of several.
pub(super) struct Calls {
    endpoints: Vec<String>,
    options: ConnectOptions,
    tls: Option<Tls>,
    state: Mutex<State>,
}

struct State {
    index: usize,
    generation: u64,
    client: Option<Client>,
}

impl Calls {
    /// `endpoints` must not be empty. Nodes start at different ones, to spread the load.
    pub(super) fn new(
        endpoints: Vec<String>,
        user: Option<(String, String)>,
        tls: Option<Tls>,
    ) -> Self {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true)
            .with_auto_token_refresh(user.is_some());
        if let Some((name, password)) = user {
            options = options.with_user(name, password);
        }
        let index = rand::random_range(0..endpoints.len().max(1));
        Self {
            endpoints,
            options,
            tls,
            state: Mutex::new(State {
                index,
                generation: 0,
                client: None,
            }),
        }
    }

    /// A client of the endpoint in use.
    pub(super) async fn connection(&self) -> Result<Connection, CallError> {
        let mut state = self.state.lock().await;
        if let Some(client) = &state.client {
            return Ok(Connection {
                client: client.clone(),
                generation: state.generation,
            });
        }
        let endpoint = self
            .endpoints
            .get(state.index % self.endpoints.len().max(1))
            .cloned()
            .unwrap_or_default();
        let connecting = async {
            let options = match &self.tls {
                Some(tls) => {
                    let tls = tls.read().await.map_err(CallError::Files)?;
                    self.options.clone().with_tls(tls)
                }
                None => self.options.clone(),
            };
            // Without a user this makes no round trip; with one it fetches a token.
            let connecting = Client::connect([endpoint.as_str()], Some(options));
            connecting.await.map_err(CallError::Refused)
        };
        let connected = timeout(CALL_DEADLINE, connecting).await;
        let connected = connected.unwrap_or(Err(CallError::Silent));
        state.generation += 1;
        match connected {
            Ok(client) => {
                debug!(%endpoint, "etcd endpoint in use");
                state.client = Some(client.clone());
                Ok(Connection {
                    client,
                    generation: state.generation,
                })
            }
            Err(error) => {
                state.index = state.index.wrapping_add(1);
                Err(error)
            }
        }
    }

    /// Leaves the endpoint of a connection that failed, unless somebody did already.
    pub(super) async fn leave(&self, connection: &Connection) {
        let mut state = self.state.lock().await;
        if state.generation == connection.generation && state.client.is_some() {
            state.client = None;
            state.index = state.index.wrapping_add(1);
        }
    }

    /// Performs a call, again if that is harmless and may help.
    pub(super) async fn run<T, F, R>(&self, repeat: Repeat, call: F) -> Result<T, CallError>
    where
        F: Fn(Client) -> R,
        R: Future<Output = Result<T, EtcdError>>,
    {
        let attempts = match repeat {
            Repeat::Idempotent => self.endpoints.len() + EXTRA_ATTEMPTS,
            Repeat::Once => 1,
        };
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(500));
        let mut attempt = 1;
        loop {
            let error = match self.attempt(&call).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if attempt >= attempts || !error.is_retryable() {
                return Err(error);
            }
            attempt += 1;
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    async fn attempt<T, F, R>(&self, call: &F) -> Result<T, CallError>
    where
        F: Fn(Client) -> R,
        R: Future<Output = Result<T, EtcdError>>,
    {
        counter!(TOTAL).increment(1);
        let connection = self.connection().await?;
        let error = match timeout(CALL_DEADLINE, call(connection.client.clone())).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => CallError::Refused(error),
            Err(_) => CallError::Silent,
        };
        let reason = match &error {
            CallError::Silent => "silent",
            CallError::Refused(_) | CallError::Files(_) => "refused",
        };
        counter!(FAILED_TOTAL, "reason" => reason).increment(1);
        debug!(%error, "call to etcd failed");
        if error.is_retryable() {
            self.leave(&connection).await;
        }
        Err(error)
    }
}

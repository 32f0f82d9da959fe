//! What is left of an association once its handshake is complete.
//!
//! `rtc-dtls` keeps the whole transcript for as long as its connection lives: certificates, key shares and all that was sent, some 15 kB a
//! viewer for what may be hours. All that is still needed is our last flight, for a viewer who repeats his because ours was lost, our
//! close_notify, which is sealed at once, and keys to open the viewer's.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use rtc_dtls::config::HandshakeConfig;
use rtc_dtls::conn::DTLSConn;
use rtc_dtls::endpoint::Endpoint;
use rtc_dtls::state::State;
use rtc_shared::error::Error as DtlsError;

use super::records::{CONTENT_HANDSHAKE, RECORD_HEADER_BYTES, records};
use super::{Identity, PEER};

const CONTENT_ALERT: u8 = 21;

/// See the module.
pub(super) struct Established {
    last_flight: Vec<BytesMut>,
    goodbye: Vec<BytesMut>,
    /// Has the keys and nothing else; `None` if they can't be had, then the viewer's silence ends it.
    reader: Option<Box<DTLSConn>>,
}

/// What a datagram is to an established association.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The viewer lacks our last flight.
    Repeat,
    /// The viewer ended it.
    Closed,
    /// Nothing, or nothing that is authentic.
    Nothing,
}

impl Established {
    /// Of an endpoint whose handshake is complete.
    pub(super) fn new(
        mut endpoint: Endpoint,
        last_flight: Vec<BytesMut>,
        identity: &Identity,
        now: Instant,
    ) -> Self {
        let reader = endpoint.get_connection_state(PEER).and_then(|state| {
            let keys = state.marshal_binary().ok()?;
            reader(&keys, identity, &identity.gcm)
        });
        endpoint.stop(now, PEER);
        let goodbye = std::iter::from_fn(|| endpoint.poll_transmit());
        Self {
            last_flight,
            goodbye: goodbye.map(|transmit| transmit.message).collect(),
            reader,
        }
    }

    /// A datagram came.
    pub(super) fn handle_datagram(&mut self, datagram: &[u8]) -> Meaning {
        let mut meaning = Meaning::Nothing;
        let mut start = 0;
        for (content_type, epoch, content) in records(datagram) {
            let end = start + RECORD_HEADER_BYTES + content.len();
            let record = datagram.get(start..end).unwrap_or_default();
            start = end;
            match (content_type, epoch) {
                (CONTENT_HANDSHAKE, _) => meaning = Meaning::Repeat,
                // In epoch 0 anybody could have sent it.
                (CONTENT_ALERT, 1..) if self.is_end(record) => return Meaning::Closed,
                _ => {}
            }
        }
        meaning
    }

    /// Our last flight, as it was: what the viewer had of it already, its replay window drops.
    pub(super) fn last_flight(&self) -> impl Iterator<Item = BytesMut> + '_ {
        self.last_flight.iter().cloned()
    }

    /// Our close_notify.
    pub(super) fn into_goodbye(self) -> Vec<BytesMut> {
        self.goodbye
    }

    /// An alert is authentic and ends the association: close_notify, or a fatal one.
    fn is_end(&mut self, record: &[u8]) -> bool {
        let Some(reader) = &mut self.reader else {
            return false;
        };
        // As in the handshake, a parser that isn't ours must not cost a shard.
        match catch_unwind(AssertUnwindSafe(|| reader.read(record))) {
            Ok(read) => matches!(read, Err(DtlsError::ErrAlertFatalOrClose)),
            Err(_) => {
                self.reader = None;
                false
            }
        }
    }
}

/// A connection with these keys that never saw a handshake.
fn reader(
    keys: &[u8],
    identity: &Identity,
    config: &Arc<HandshakeConfig>,
) -> Option<Box<DTLSConn>> {
    let mut state = State::new(Arc::clone(&identity.provider), false);
    state.unmarshal_binary(keys).ok()?;
    state.peer_certificates = Vec::new();
    Some(Box::new(DTLSConn::new(
        Arc::clone(config),
        false,
        Some(state),
    )))
}

//! The actor kit: what actors see of each other, so that they need not know actix's `Addr`.
//!
//! [`Sender::try_send`] is for media (perishable, bounded by the mailbox), [`Sender::post`] for control
//! (must arrive; few by design). See `ARCHITECTURE.md` for which message is which.

use std::fmt;

use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Handler, Message, Recipient};

/// Why a message was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Undelivered {
    /// The mailbox is full; the receiver is slow.
    #[error("the mailbox is full")]
    Full,
    /// The receiver has ended.
    #[error("the receiver has ended")]
    Closed,
}

/// A long-lived link to an actor for one kind of message.
///
/// actix lets every sender exceed the mailbox capacity by one, so keep one `Sender` per link and do not clone it per message.
pub struct Sender<M>
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    recipient: Recipient<M>,
}

impl<M> Sender<M>
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    /// A link to `addr`.
    pub fn new<A>(addr: &Addr<A>) -> Self
    where
        A: Actor + Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        Self {
            recipient: addr.clone().recipient(),
        }
    }

    /// Delivers a perishable message, or says why not. Never waits.
    ///
    /// # Errors
    /// [`Undelivered`]: drop the message, count it, tell the core.
    pub fn try_send(&self, message: M) -> Result<(), Undelivered> {
        self.recipient
            .try_send(message)
            .map_err(|error| match error {
                actix::prelude::SendError::Full(_) => Undelivered::Full,
                actix::prelude::SendError::Closed(_) => Undelivered::Closed,
            })
    }

    /// Delivers a control message regardless of the mailbox's capacity; false if the receiver has ended.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that queues past capacity"
    )]
    pub fn post(&self, message: M) -> bool {
        if !self.recipient.connected() {
            return false;
        }
        self.recipient.do_send(message);
        true
    }

    /// The receiver is still alive.
    pub fn connected(&self) -> bool {
        self.recipient.connected()
    }
}

impl<M> Clone for Sender<M>
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    fn clone(&self) -> Self {
        Self {
            recipient: self.recipient.clone(),
        }
    }
}

impl<M> fmt::Debug for Sender<M>
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("connected", &self.connected())
            .finish()
    }
}

//! Transactions on stream records: claim, release, put again.
//!
//! Each reads the record and then writes on the condition that nobody wrote in between. A transaction without an answer may
//! have been performed or not: it isn't repeated blindly, the record is read again.

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use headwater_media::id::{Epoch, StreamName};
use tracing::debug;

use super::calls::{CallError, Repeat};
use super::records::{StreamValue, epoch_of};
use super::{Claim, Shared, unavailable};
use crate::directory::{Error, Restore, StreamRecord, next_claim};

/// How often a claim is tried again after somebody wrote in between, or after silence.
const ATTEMPTS: usize = 4;

/// A stream's record as it was read.
struct Read {
    record: Option<StreamRecord>,
    /// The lease it lies under.
    lease: i64,
    /// The revision that wrote it, 0 if it is absent.
    written: i64,
    /// etcd's revision when it was read.
    revision: i64,
}

/// A claim that is being written. Whoever asked for it may lose patience and drop it, or etcd may not answer: then nobody
/// knows whether there is a record, and without a claim in [`super::Own`] nobody would ever remove it. So unless it is
/// [settled](Self::settle) it becomes a release of whatever the claim wrote.
pub(super) struct InDoubt<'a> {
    shared: &'a Shared,
    name: Option<StreamName>,
}

impl<'a> InDoubt<'a> {
    /// Call it before the write. A release that is still due is this claim's matter from now on: done later, it would
    /// take the new record away.
    pub(super) fn begin(shared: &'a Shared, name: &StreamName) -> Self {
        let mut own = shared.own();
        own.releases.remove(name);
        own.claiming.insert(name.clone());
        drop(own);
        let name = Some(name.clone());
        Self { shared, name }
    }

    fn settle(&mut self) {
        if let Some(name) = self.name.take() {
            self.shared.own().claiming.remove(&name);
        }
    }
}

impl Drop for InDoubt<'_> {
    fn drop(&mut self) {
        let Some(name) = self.name.take() else {
            return;
        };
        let mut own = self.shared.own();
        own.claiming.remove(&name);
        if !own.withdrawn {
            own.releases.insert(name, None);
            drop(own);
            self.shared.repair.notify_one();
        }
    }
}

pub(super) async fn claim(
    shared: &Shared,
    name: StreamName,
    grpc_url: String,
    over: Option<Epoch>,
) -> Result<Epoch, Error> {
    let mut in_doubt: Option<InDoubt<'_>> = None;
    let mut last = "other nodes keep writing the record".to_owned();
    for _ in 0..ATTEMPTS {
        let lease = shared.current_lease().await?;
        let read = read(shared, &name)
            .await
            .map_err(|error| unavailable(&error))?;
        if let Some(held) = &read.record
            && !shared.own_run.may_claim(Some(held), over)
        {
            if let Some(claim) = &mut in_doubt {
                claim.settle();
            }
            // It is known here before the watch says so.
            shared.check_claim(&mut shared.own(), held);
            return Err(Error::Held(held.clone()));
        }
        // Normally the revision of this transaction is above all epochs that were given. After etcd lost data and counts
        // from lower again, records that are known, or were once, still name higher ones.
        let known = known_epoch(shared, &name, read.record.as_ref());
        let newest = shared.copy().newest;
        let ahead = if newest > epoch_of(read.revision) {
            Some(next_claim(known.max(newest)))
        } else {
            (known >= epoch_of(read.revision)).then(|| next_claim(known))
        };
        let value = StreamValue {
            origin: shared.own_run.id.clone(),
            incarnation: shared.own_run.incarnation,
            grpc_url: grpc_url.clone(),
            epoch: ahead,
        };
        let in_doubt = in_doubt.get_or_insert_with(|| InDoubt::begin(shared, &name));
        match write(shared, &name, read.written, Some((&value, lease))).await {
            Ok(Some(revision)) => {
                let epoch = ahead.unwrap_or_else(|| epoch_of(revision));
                let mut own = shared.own();
                if !own.withdrawn {
                    own.releases.remove(&name);
                    own.claims.insert(name.clone(), Claim { epoch, grpc_url });
                }
                let withdrawn = own.withdrawn;
                drop(own);
                in_doubt.settle();
                if withdrawn {
                    return Err(Error::Unavailable("this node has withdrawn".into()));
                }
                let mut own = shared.own();
                // The watch may have shown a newer owner before this answer came, and will not show it again.
                let newer = shared.copy().streams.get(&name).cloned();
                if let Some(record) = newer {
                    shared.check_claim(&mut own, &record);
                }
                return Ok(epoch);
            }
            Ok(None) => {}
            Err(error) if error.is_lease_gone() => {
                // Woken, the keeper asks etcd and takes a new lease, or says that this one lives after all.
                shared.lease.send_if_modified(|current| {
                    let stale = *current == Some(lease);
                    if stale {
                        *current = None;
                    }
                    stale
                });
                shared.doubt.notify_one();
                last = error.to_string();
            }
            Err(error) => last = error.to_string(),
        }
    }
    Err(Error::Unavailable(last.into()))
}

pub(super) async fn release(shared: &Shared, name: StreamName, epoch: Epoch) -> Result<(), Error> {
    let release;
    {
        let mut own = shared.own();
        if own
            .claims
            .get(&name)
            .is_some_and(|claim| claim.epoch != epoch)
        {
            // Claimed anew since: the release is of an older epoch and has nothing to remove.
            return Ok(());
        }
        own.claims.remove(&name);
        if own.withdrawn {
            return Ok(());
        }
        // One without an epoch covers this one, and what a later claim wrote without an answer.
        release = match own.releases.get(&name) {
            Some(None) => None,
            Some(Some(_)) | None => Some(epoch),
        };
        own.releases.insert(name.clone(), release);
    }
    remove(shared, &name, release).await.map_err(|error| {
        shared.repair.notify_one();
        unavailable(&error)
    })
}

/// Removes the record of a claim that was given up, if it is still that claim's. Without an epoch it is any record of this
/// run, but not while a claim stands: the record says where the stream is, even if its epoch is not the claim's.
pub(super) async fn remove(
    shared: &Shared,
    name: &StreamName,
    release: Option<Epoch>,
) -> Result<(), CallError> {
    for _ in 0..ATTEMPTS {
        let read = read(shared, name).await?;
        {
            // Asked after reading: a claim takes the release back before it writes, so what was read is none of its records.
            let own = shared.own();
            if own.releases.get(name) != Some(&release)
                || (release.is_none() && own.claims.contains_key(name))
            {
                return Ok(());
            }
        }
        let ours = |record: &StreamRecord| {
            shared.own_run.wrote(record) && release.is_none_or(|epoch| record.epoch == epoch)
        };
        let gone = !read.record.as_ref().is_some_and(ours)
            || write(shared, name, read.written, None).await?.is_some();
        if gone {
            let mut own = shared.own();
            if own.releases.get(name) == Some(&release) {
                own.releases.remove(name);
            }
            return Ok(());
        }
    }
    Err(CallError::Silent)
}

/// Puts the record of a standing claim under `lease` again, unless it lies there already or is another node's by now.
pub(super) async fn restore(
    shared: &Shared,
    name: &StreamName,
    claim: &Claim,
    lease: i64,
) -> Result<(), CallError> {
    for _ in 0..ATTEMPTS {
        let read = read(shared, name).await?;
        let found = read.record.as_ref();
        match shared.own_run.restore(claim.epoch, found) {
            Restore::Lost => {
                debug!(stream = %name, "the stream has a newer owner");
                let mut own = shared.own();
                if own.claims.get(name) == Some(claim) {
                    own.claims.remove(name);
                }
                return Ok(());
            }
            Restore::Stands => return Ok(()),
            Restore::Put => {}
        }
        let stands = |record: &StreamRecord| {
            shared.own_run.wrote(record) && record.epoch == claim.epoch && read.lease == lease
        };
        if found.is_some_and(stands) {
            return Ok(());
        }
        if shared.own().claims.get(name) != Some(claim) {
            return Ok(());
        }
        let value = StreamValue {
            origin: shared.own_run.id.clone(),
            incarnation: shared.own_run.incarnation,
            grpc_url: claim.grpc_url.clone(),
            epoch: Some(claim.epoch),
        };
        if write(shared, name, read.written, Some((&value, lease)))
            .await?
            .is_some()
        {
            return Ok(());
        }
    }
    Err(CallError::Silent)
}

/// The highest epoch that this node knows was given for the stream.
fn known_epoch(shared: &Shared, name: &StreamName, read: Option<&StreamRecord>) -> Epoch {
    let own = shared.own().claims.get(name).map(|claim| claim.epoch);
    let copied = shared.copy().streams.get(name).map(|record| record.epoch);
    let read = read.map(|record| record.epoch);
    [own, copied, read]
        .into_iter()
        .flatten()
        .max()
        .unwrap_or_default()
}

async fn read(shared: &Shared, name: &StreamName) -> Result<Read, CallError> {
    let key = shared.keys.stream(name);
    let answer = shared
        .calls
        .run(Repeat::Idempotent, async |client| {
            client.kv_client().get(key.as_str(), None).await
        })
        .await?;
    let kv = answer.kvs().first();
    // A record that can't be read belongs to nobody and may be overwritten.
    let record = kv.and_then(|kv| {
        let value: StreamValue = serde_json::from_slice(kv.value()).ok()?;
        Some(value.record(name.clone(), kv.mod_revision()))
    });
    Ok(Read {
        record,
        lease: kv.map_or(0, |kv| kv.lease()),
        written: kv.map_or(0, |kv| kv.mod_revision()),
        revision: answer.header().map_or(0, |header| header.revision()),
    })
}

/// Puts or deletes the record if it was last written at `written`; yields the revision, or none if it was not.
async fn write(
    shared: &Shared,
    name: &StreamName,
    written: i64,
    put: Option<(&StreamValue, i64)>,
) -> Result<Option<i64>, CallError> {
    let key = shared.keys.stream(name);
    let operation = match put {
        Some((value, lease)) => TxnOp::put(
            key.as_str(),
            serde_json::to_vec(value).unwrap_or_default(),
            Some(PutOptions::new().with_lease(lease)),
        ),
        None => TxnOp::delete(key.as_str(), None),
    };
    let unchanged = Compare::mod_revision(key.as_str(), CompareOp::Equal, written);
    let transaction = Txn::new().when([unchanged]).and_then([operation]);
    let answer = shared
        .calls
        .run(Repeat::Once, async |client| {
            client.kv_client().txn(transaction.clone()).await
        })
        .await?;
    Ok(answer
        .succeeded()
        .then(|| answer.header().map_or(0, |header| header.revision())))
}

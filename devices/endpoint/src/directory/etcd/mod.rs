//! A directory in etcd, for many hosts.
//!
//! Below its prefix are `record/FORM/SERVICE/FIRST`, one record each; `owner/NAME`, which etcd removes when
//! that owner's lease ends; and `shape`, which every change of ranges writes, so that of two that could overlap one is
//! done again. A change is one transaction that compares the revisions it is based on.
//!
//! An answer may be lost when a member dies. Each record has the number of the change that wrote it, so
//! that a change that is done again knows itself.

use std::future::Future;
use std::io;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse,
};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};

use crate::name::Pattern;
use crate::range::Form;
use crate::record::{Entry, Owner, Record};
use crate::table::Table;
use crate::vid::Vid;

use self::keys::{Keys, Stored};
use super::{Change, Directory, DirectoryError, Lease, Updates, rules};

mod keys;
#[cfg(test)]
mod tests;
mod watch;

/// How long one member may take to answer before another is asked.
const ATTEMPT: Duration = Duration::from_secs(1);
/// How long to wait before it is tried again.
const PAUSE: Duration = Duration::from_millis(20);
/// How often a change is done again because others were faster.
const MOST_RACES: u32 = 1000;

/// Where the directory is.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// Addresses of the members, as `http://h1:2379`.
    pub members: Vec<String>,
    /// What all keys begin with.
    pub prefix: String,
    /// How long to wait for an answer: longer than the members take to agree on another leader.
    pub patience: Duration,
    /// Addresses of interfaces, which no range may contain.
    pub reserved: Vec<Vid>,
    /// Name and password, where etcd asks for them.
    pub user: Option<(String, String)>,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        Self {
            members: Vec::new(),
            prefix: "/vmm/endpoints/".into(),
            patience: Duration::from_secs(5),
            reserved: Vec::new(),
            user: None,
        }
    }
}

/// A directory in etcd.
#[derive(Debug)]
pub struct EtcdDirectory {
    /// Always there until it is dropped.
    runtime: Option<Runtime>,
    core: Core,
}

/// What tasks have of it.
#[derive(Clone)]
struct Core {
    client: Client,
    keys: Keys,
    patience: Duration,
    reserved: Vec<Vid>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl EtcdDirectory {
    /// The directory of these members.
    ///
    /// # Errors
    /// No thread for it; addresses that are none.
    pub fn new(options: EtcdOptions) -> Result<Self, DirectoryError> {
        let wrong = |error: io::Error| DirectoryError::Unreachable(error.to_string());
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("etcd")
            .enable_all()
            .build()
            .map_err(wrong)?;
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(ATTEMPT)
            .with_keep_alive(ATTEMPT, ATTEMPT)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some((name, password)) = options.user {
            connect = connect.with_user(name, password);
        }
        let connecting = Client::connect(options.members, Some(connect));
        let client = answer(&runtime, async move {
            timeout(options.patience, connecting)
                .await
                .map_err(|_| unreachable("no member"))?
                .map_err(unreachable)
        })??;
        let (keys, patience, reserved) =
            (Keys::new(options.prefix), options.patience, options.reserved);
        Ok(Self { runtime: Some(runtime), core: Core { client, keys, patience, reserved } })
    }

    /// What `work` makes of a core of its own.
    fn run<T, F>(&self, work: impl FnOnce(Core) -> F) -> Result<T, DirectoryError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, DirectoryError>> + Send + 'static,
    {
        let runtime = self.runtime.as_ref().ok_or_else(|| unreachable("it has ended"))?;
        answer(runtime, work(self.core.clone()))?
    }
}

/// What `work` makes, which is not done on this thread: that may belong to another runtime.
fn answer<T: Send + 'static>(
    runtime: &Runtime,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, DirectoryError> {
    let (sender, receiver) = channel();
    runtime.spawn(async move {
        let _ = sender.send(work.await); // its receiver waits
    });
    receiver.recv().map_err(|_| unreachable("its thread has ended"))
}

#[expect(clippy::needless_pass_by_value, reason = "errors are mapped by it")]
fn unreachable(why: impl ToString) -> DirectoryError {
    DirectoryError::Unreachable(why.to_string())
}

impl Drop for EtcdDirectory {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background(); // may be done on any thread
        }
    }
}

/// A number nobody guesses.
fn random() -> Result<u64, DirectoryError> {
    let mut bytes = [0; 8];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    if got != Ok(bytes.len()) {
        return Err(unreachable("no random numbers"));
    }
    Ok(u64::from_le_bytes(bytes))
}

/// What a change is based on.
struct Basis {
    table: Table,
    floor: u64,
    /// The revision of `shape`, 0 if there is none.
    shape: i64,
    /// Who wrote each record.
    changes: Vec<(Record, u64)>,
    /// Whether the lease is still the owner's.
    is_held: bool,
}

impl Core {
    /// `work` until it is answered, or patience ends.
    async fn again<T, F>(&self, mut work: impl FnMut(Client) -> F) -> Result<T, DirectoryError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let deadline = Instant::now() + self.patience;
        loop {
            let error = match timeout(ATTEMPT, work(self.client.clone())).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => unreachable(error),
                Err(_) => unreachable("no answer in time"),
            };
            if Instant::now() >= deadline {
                return Err(error);
            }
            sleep(PAUSE).await;
        }
    }

    async fn open(self, owner: Owner, ttl: Duration) -> Result<Lease, DirectoryError> {
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let grant = |mut client: Client| async move { client.lease_grant(seconds, None).await };
        let grant = self.again(grant).await?;
        let (id, token) = (grant.id(), random()?);
        let given = Duration::from_secs(u64::try_from(grant.ttl()).unwrap_or_default());
        let key = self.keys.owner(&owner);
        let result = self
            .again(|mut client| {
                let value = token.to_string();
                let put =
                    TxnOp::put(key.clone(), value.clone(), Some(PutOptions::new().with_lease(id)));
                let is_free = Compare::create_revision(key.clone(), CompareOp::Equal, 0);
                let get = TxnOp::get(key.clone(), None);
                let txn = Txn::new().when([is_free]).and_then([put]).or_else([get]);
                async move {
                    let answer = client.txn(txn).await?;
                    // An attempt before this one may have been done though it was not answered.
                    let is_own = answer.op_responses().iter().any(|response| match response {
                        TxnOpResponse::Get(get) => {
                            get.kvs().iter().any(|kv| kv.value() == value.as_bytes())
                        }
                        _ => false,
                    });
                    Ok(answer.succeeded() || is_own)
                }
            })
            .await;
        if let Ok(true) = result {
            return Ok(Lease { owner, ttl: given, token, id });
        }
        // A courtesy: it ends by itself.
        let _ = timeout(ATTEMPT, self.client.clone().lease_revoke(id)).await;
        result.and(Err(DirectoryError::OwnerExists(owner)))
    }

    async fn renew(self, lease: Lease) -> Result<(), DirectoryError> {
        let left = self
            .again(|mut client| async move {
                let (mut keeper, mut answers) = client.lease_keep_alive(lease.id).await?;
                keeper.keep_alive().await?;
                Ok(answers.message().await?.map_or(0, |answer| answer.ttl()))
            })
            .await;
        match left {
            Ok(left) if left > 0 => Ok(()),
            Ok(_) => Err(DirectoryError::LeaseLost(lease.owner)),
            // The client says so itself when the first answer is that there is no such lease.
            Err(DirectoryError::Unreachable(_)) if self.has_ended(&lease).await? => {
                Err(DirectoryError::LeaseLost(lease.owner))
            }
            Err(error) => Err(error),
        }
    }

    async fn has_ended(&self, lease: &Lease) -> Result<bool, DirectoryError> {
        let key = self.keys.owner(&lease.owner);
        let found = self
            .again(|mut client| {
                let key = key.clone();
                async move { client.get(key, None).await }
            })
            .await?;
        let token = lease.token.to_string();
        Ok(!found.kvs().iter().any(|kv| kv.value() == token.as_bytes()))
    }

    async fn close(self, lease: Lease) -> Result<(), DirectoryError> {
        if self.has_ended(&lease).await? {
            return Err(DirectoryError::LeaseLost(lease.owner));
        }
        // An attempt that was done though it was not answered makes the next one fail: look.
        let revoke = |mut client: Client| async move { client.lease_revoke(lease.id).await };
        match timeout(self.patience, revoke(self.client.clone())).await {
            Ok(Ok(_)) => Ok(()),
            _ if self.has_ended(&lease).await? => Ok(()),
            _ => self.again(revoke).await.map(drop),
        }
    }

    /// What `change` is to be checked against, all of it of one moment.
    async fn basis(&self, lease: &Lease, change: &Change) -> Result<Basis, DirectoryError> {
        let prefix = || Some(GetOptions::new().with_prefix());
        let mut wanted =
            vec![TxnOp::get(self.keys.shape(), None), TxnOp::get(self.keys.owners(), prefix())];
        if change.is_of_shape() {
            let ranges = change.from.iter().chain(&change.to).map(|record| record.range);
            let mut services: Vec<_> =
                ranges.map(|range| (range.form(), range.service())).collect();
            services.sort_unstable();
            services.dedup();
            let forms: Vec<_> = services.iter().map(|(form, _)| *form).collect();
            let all = |form: Form| TxnOp::get(self.keys.form(form), prefix());
            // A range may overlap others of its service, and all of the other form, of which there are rarely any.
            if forms.contains(&Form::Prefix) {
                wanted.push(all(Form::Suffix));
            }
            if forms.contains(&Form::Suffix) {
                wanted.push(all(Form::Prefix));
            }
            let services = services.into_iter().map(|service| self.keys.service(service));
            wanted.extend(services.map(|key| TxnOp::get(key, prefix())));
        } else {
            let keys = change.from.iter().map(|record| self.keys.record(record.range));
            wanted.extend(keys.map(|key| TxnOp::get(key, None)));
        }
        let answer = self
            .again(|mut client| {
                let txn = Txn::new().and_then(wanted.clone());
                async move { client.txn(txn).await }
            })
            .await?;
        let token = lease.token.to_string();
        let mut basis = Basis {
            table: Table::default(),
            floor: 0,
            shape: 0,
            changes: Vec::new(),
            is_held: false,
        };
        for response in answer.op_responses() {
            let TxnOpResponse::Get(found) = response else { continue };
            for kv in found.kvs() {
                if kv.key() == self.keys.shape().as_bytes() {
                    basis.shape = kv.mod_revision();
                    basis.floor = keys::floor(kv)?;
                } else if let Some(owner) = self.keys.owner_of(kv.key()) {
                    basis.is_held |= owner == lease.owner && kv.value() == token.as_bytes();
                    basis.table.set_alive(&owner, true);
                } else {
                    let Stored { record, change } = Stored::read(kv)?;
                    basis.table.put(record.clone());
                    basis.changes.push((record, change));
                }
            }
        }
        Ok(basis)
    }

    async fn change(self, lease: Lease, change: Change) -> Result<Vec<Record>, DirectoryError> {
        let number = random()?;
        let deadline = Instant::now() + self.patience;
        let mut unclear = None;
        for _ in 0..MOST_RACES {
            let basis = self.basis(&lease, &change).await?;
            // Is this what an attempt before did, whose answer was lost?
            if unclear.is_some() {
                let is_own = |record: &&(Record, u64)| record.1 == number;
                let own: Vec<_> =
                    basis.changes.iter().filter(is_own).map(|(record, _)| record.clone()).collect();
                let is_gone =
                    |record: &Record| basis.table.get(crate::table::key(record.range)).is_none();
                if own.len() == change.to.len()
                    && (!own.is_empty() || change.from.iter().all(is_gone))
                {
                    return Ok(own);
                }
            }
            if !basis.is_held {
                return Err(DirectoryError::LeaseLost(lease.owner));
            }
            let put =
                rules::check(&change, &lease.owner, &basis.table, basis.floor, &self.reserved)?;
            let txn = self.transaction(&lease, &change, &put, &basis, number)?;
            match timeout(ATTEMPT, self.client.clone().txn(txn)).await {
                Ok(Ok(answer)) if answer.succeeded() => {
                    let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
                    let revision = u64::try_from(revision).unwrap_or_default();
                    return Ok(put
                        .into_iter()
                        .map(|record| Record { revision, ..record })
                        .collect());
                }
                // Somebody was faster, or the lease has ended: the next look shows which.
                Ok(Ok(_)) => continue,
                Ok(Err(error)) => unclear = Some(unreachable(error)),
                Err(_) => unclear = Some(unreachable("no answer in time")),
            }
            if Instant::now() >= deadline {
                break;
            }
            sleep(PAUSE).await;
        }
        Err(unclear.unwrap_or_else(|| unreachable("others change it all the time")))
    }

    /// The transaction that does `change`, if nothing of `basis` has changed.
    fn transaction(
        &self,
        lease: &Lease,
        change: &Change,
        put: &[Record],
        basis: &Basis,
        number: u64,
    ) -> Result<Txn, DirectoryError> {
        let is_shape = change.is_of_shape();
        let mut compares = vec![Compare::value(
            self.keys.owner(&lease.owner),
            CompareOp::Equal,
            lease.token.to_string(),
        )];
        let mut writes = Vec::new();
        let mut dead: Vec<&Owner> = Vec::new();
        for old in &change.from {
            let current = basis.table.get(crate::table::key(old.range)).unwrap_or(old);
            let key = self.keys.record(old.range);
            let revision = i64::try_from(current.revision).unwrap_or(i64::MAX);
            compares.push(Compare::mod_revision(key.clone(), CompareOp::Equal, revision));
            let is_heir = current.phase.heir().is_some_and(|(_, heir)| *heir == lease.owner);
            if current.owner != lease.owner && !is_heir && !dead.contains(&&current.owner) {
                dead.push(&current.owner);
            }
            if !put.iter().any(|record| self.keys.record(record.range) == key) {
                writes.push(TxnOp::delete(key, None));
            }
        }
        // What was taken over because its owner is dead is so only as long as that stays dead.
        let is_dead =
            |owner: &Owner| Compare::create_revision(self.keys.owner(owner), CompareOp::Equal, 0);
        compares.extend(dead.into_iter().map(is_dead));
        if is_shape {
            compares.push(Compare::mod_revision(self.keys.shape(), CompareOp::Equal, basis.shape));
            writes.push(TxnOp::put(
                self.keys.shape(),
                rules::floor(change, basis.floor).to_string(),
                None,
            ));
        }
        for record in put {
            let value = Stored { record: record.clone(), change: number }.write()?;
            writes.push(TxnOp::put(self.keys.record(record.range), value, None));
        }
        Ok(Txn::new().when(compares).and_then(writes))
    }

    /// What is below `prefixes`, all of it of one moment, and that moment's revision.
    async fn read(&self, mut prefixes: Vec<String>) -> Result<(Table, i64), DirectoryError> {
        prefixes.push(self.keys.owners());
        let gets: Vec<_> = prefixes
            .into_iter()
            .map(|prefix| TxnOp::get(prefix, Some(GetOptions::new().with_prefix())))
            .collect();
        let answer = self
            .again(|mut client| {
                let txn = Txn::new().and_then(gets.clone());
                async move { client.txn(txn).await }
            })
            .await?;
        let mut table = Table::default();
        for response in answer.op_responses() {
            let TxnOpResponse::Get(found) = response else { continue };
            for kv in found.kvs() {
                match self.keys.owner_of(kv.key()) {
                    Some(owner) => table.set_alive(&owner, true),
                    None => table.put(Stored::read(kv)?.record),
                }
            }
        }
        Ok((table, answer.header().map_or(0, etcd_client::ResponseHeader::revision)))
    }
}

fn entries<'a>(table: &Table, records: impl Iterator<Item = &'a Record>) -> Vec<Entry> {
    records.map(|record| table.entry(record)).collect()
}

impl Directory for EtcdDirectory {
    fn open(&self, owner: &Owner, ttl: Duration) -> Result<Lease, DirectoryError> {
        self.run(|core| core.open(owner.clone(), ttl))
    }

    fn renew(&self, lease: &Lease) -> Result<(), DirectoryError> {
        self.run(|core| core.renew(lease.clone()))
    }

    fn close(&self, lease: &Lease) -> Result<(), DirectoryError> {
        self.run(|core| core.close(lease.clone()))
    }

    fn change(&self, lease: &Lease, change: &Change) -> Result<Vec<Record>, DirectoryError> {
        self.run(|core| core.change(lease.clone(), change.clone()))
    }

    fn find(&self, vid: Vid) -> Result<Option<Entry>, DirectoryError> {
        let services = Form::ALL.into_iter().filter_map(|form| Some((form, form.parts(vid)?.0)));
        let prefixes = services.map(|service| self.core.keys.service(service)).collect();
        let (table, _) = self.run(|core| async move { core.read(prefixes).await })?;
        Ok(table.find(vid).map(|record| table.entry(record)))
    }

    fn services(&self, pattern: &Pattern) -> Result<Vec<Entry>, DirectoryError> {
        let prefixes = match pattern.name() {
            Some(name) => {
                Form::ALL.map(|form| self.core.keys.service((form, form.service(&name)))).to_vec()
            }
            None => vec![self.core.keys.records()],
        };
        let (table, _) = self.run(|core| async move { core.read(prefixes).await })?;
        Ok(entries(&table, table.services(pattern)))
    }

    fn list(&self) -> Result<Vec<Entry>, DirectoryError> {
        let prefixes = vec![self.core.keys.records()];
        let (table, _) = self.run(|core| async move { core.read(prefixes).await })?;
        Ok(entries(&table, table.records()))
    }

    fn watch(&self) -> Result<Updates, DirectoryError> {
        self.run(watch::start)
    }
}

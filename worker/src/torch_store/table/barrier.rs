//! BARRIER: counts connections, in rounds.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::{Connection, ENTRY_BYTES, Granted, Parked, Refusal, Reply, STOP_WAITING, Table, count, index};

#[derive(Debug, Default)]
pub(super) struct Barrier {
    /// Of the present round.
    pub(super) arrived: BTreeSet<Connection>,
    /// Counted in a completed round, but not told.
    owed: BTreeSet<Connection>,
    /// As the last caller said.
    pub(super) world: i64,
}

impl Table {
    /// A connection arrives; the last one ends the round for everybody. An empty barrier is forgotten, so that the
    /// memory of barriers is bounded by who waits and not by how many there ever were.
    pub(super) fn arrive(
        &mut self,
        connection: Connection,
        key: &[u8],
        world: i64,
        reply: &mut Reply,
        woken: &mut Vec<Connection>,
    ) -> Result<(), Refusal> {
        if self.pay(connection, key) {
            reply.byte(STOP_WAITING);
            return Ok(());
        }
        let shared = self.enter(connection, key)?;
        let client = &mut self.clients[index(connection)];
        client.parked = Some(Parked::Barrier(shared.clone()));
        let Some(barrier) = self.barriers.get_mut(key) else { return Ok(()) };
        barrier.world = world;
        if count(barrier.arrived.len()) < world {
            return Ok(());
        }
        for member in std::mem::take(&mut barrier.arrived) {
            let client = &mut self.clients[index(member)];
            if !matches!(&client.parked, Some(Parked::Barrier(here)) if *here == shared) {
                barrier.owed.insert(member);
                continue;
            }
            client.parked = None;
            client.granted = Some(Granted::Barrier(shared.clone()));
            client.barriers.remove(key);
            self.budget.release(ENTRY_BYTES);
            if member != connection {
                woken.push(member);
            }
        }
        self.forget_empty(key);
        reply.byte(STOP_WAITING);
        Ok(())
    }

    /// The end of a round was sent to a connection that had just given up: it will come again for it.
    pub(super) fn owe(&mut self, connection: Connection, key: &Bytes) {
        // Without memory for it the retry counts into the next round.
        if self.budget.charge(2 * ENTRY_BYTES + key.len()).is_err() {
            return;
        }
        if self.barriers.contains_key(key) {
            self.budget.release(ENTRY_BYTES + key.len());
        }
        self.barriers.entry(key.clone()).or_default().owed.insert(connection);
        self.clients[index(connection)].barriers.insert(key.clone());
    }

    /// A connection closed: nobody counts on it any more.
    pub(super) fn leave(&mut self, connection: Connection, key: &[u8]) {
        let Some(barrier) = self.barriers.get_mut(key) else { return };
        if barrier.arrived.remove(&connection) || barrier.owed.remove(&connection) {
            self.budget.release(ENTRY_BYTES);
        }
        self.forget_empty(key);
    }

    /// Is this connection owed the end of a former round? It is told now.
    fn pay(&mut self, connection: Connection, key: &[u8]) -> bool {
        let owed = self.barriers.get_mut(key).is_some_and(|barrier| barrier.owed.remove(&connection));
        if owed {
            self.budget.release(ENTRY_BYTES);
            self.clients[index(connection)].barriers.remove(key);
            self.forget_empty(key);
        }
        owed
    }

    /// Counts a connection once; the barrier's key, shared.
    fn enter(&mut self, connection: Connection, key: &[u8]) -> Result<Bytes, Refusal> {
        let known = self.barriers.get_key_value(key).map(|(shared, _)| shared.clone());
        if let (Some(shared), Some(barrier)) = (&known, self.barriers.get(key))
            && barrier.arrived.contains(&connection)
        {
            return Ok(shared.clone());
        }
        let new = if known.is_some() { 0 } else { key.len() + ENTRY_BYTES };
        self.budget.charge(new + ENTRY_BYTES)?;
        let shared = known.unwrap_or_else(|| Bytes::copy_from_slice(key));
        self.barriers.entry(shared.clone()).or_default().arrived.insert(connection);
        self.clients[index(connection)].barriers.insert(shared.clone());
        Ok(shared)
    }

    fn forget_empty(&mut self, key: &[u8]) {
        let empty = |barrier: &Barrier| barrier.arrived.is_empty() && barrier.owed.is_empty();
        if self.barriers.get(key).is_some_and(empty) {
            self.barriers.remove(key);
            self.budget.release(key.len() + ENTRY_BYTES);
        }
    }
}

//! WAIT: parking a connection, and waking it when its keys come into being.

use bytes::Bytes;

use super::{
    Connection, ENTRY_BYTES, Granted, Keys, Parked, Refusal, Reply, Request, STOP_WAITING, Table, Wait, index,
};

impl Table {
    pub(super) fn wait(
        &mut self,
        connection: Connection,
        mut keys: Keys<'_>,
        reply: &mut Reply,
    ) -> Result<(), Refusal> {
        let Some((first, rest)) = self.first_missing(&mut keys) else {
            reply.byte(STOP_WAITING);
            return Ok(());
        };
        let bytes = rest.as_bytes().len() + first.len() + 2 * ENTRY_BYTES;
        self.budget.charge(bytes)?;
        let ticket = self.tickets;
        self.tickets += 1;
        self.waiters.entry(first.into()).or_default().insert(ticket, connection);
        let keys = Bytes::copy_from_slice(rest.as_bytes());
        let wait = Wait { keys, count: rest.left(), ticket, bytes };
        self.clients[index(connection)].parked = Some(Parked::Wait(wait));
        Ok(())
    }

    /// The first key that does not exist, and the keys from it on.
    fn first_missing<'a>(&self, keys: &mut Keys<'a>) -> Option<(&'a [u8], Keys<'a>)> {
        loop {
            let here = *keys;
            let key = keys.next()?;
            if !self.exists(key) {
                return Some((key, here));
            }
        }
    }

    /// A key without a value got one: everybody who waits for it goes on.
    pub(super) fn appeared(&mut self, key: &[u8], woken: &mut Vec<Connection>) {
        if self.waiters.is_empty() {
            return;
        }
        for connection in self.waiters.remove(key).unwrap_or_default().into_values() {
            self.advance(connection, woken);
        }
    }

    /// Something lies in this queue: one of those who wait for it gets to know.
    pub(super) fn offer(&mut self, key: &[u8], woken: &mut Vec<Connection>) {
        if !self.queues.contains_key(key) {
            return;
        }
        while let Some(waiting) = self.waiters.get_mut(key) {
            let next = waiting.pop_first();
            if waiting.is_empty() {
                self.waiters.remove(key);
            }
            let Some((_, connection)) = next else { return };
            if self.advance(connection, woken) {
                self.clients[index(connection)].granted = Some(Granted::Queue(key.into()));
                return;
            }
        }
    }

    /// A waiter's key came into being: wake it, or index it by its next missing key. True: it is awake.
    fn advance(&mut self, connection: Connection, woken: &mut Vec<Connection>) -> bool {
        let Some(Parked::Wait(mut wait)) = self.clients[index(connection)].parked.take() else {
            return false;
        };
        let mut keys = Keys::from_bytes(&wait.keys, wait.count);
        let Some((first, rest)) = self.first_missing(&mut keys) else {
            self.budget.release(wait.bytes);
            woken.push(connection);
            return true;
        };
        self.waiters.entry(first.into()).or_default().insert(wait.ticket, connection);
        (wait.keys, wait.count) = (wait.keys.slice_ref(rest.as_bytes()), rest.left());
        self.clients[index(connection)].parked = Some(Parked::Wait(wait));
        false
    }

    /// Ends a wait without an answer. An arrival at a barrier stays.
    pub(super) fn unpark(&mut self, connection: Connection) {
        let Some(Parked::Wait(wait)) = self.clients[index(connection)].parked.take() else { return };
        self.budget.release(wait.bytes);
        let key = Keys::from_bytes(&wait.keys, wait.count).next().unwrap_or_default();
        if let Some(waiting) = self.waiters.get_mut(key) {
            waiting.remove(&wait.ticket);
            if waiting.is_empty() {
                self.waiters.remove(key);
            }
        }
    }

    /// The request after a wait that ended well shows whether the client has seen that it did.
    pub(super) fn settle(
        &mut self,
        connection: Connection,
        granted: &Granted,
        request: &Request<'_>,
        woken: &mut Vec<Connection>,
    ) {
        match (granted, request) {
            (Granted::Queue(key), Request::QueuePop(popped)) if **key == **popped => {}
            (Granted::Queue(key), _) => self.offer(key, woken),
            // It timed out while the answer was on its way: it will come again, for the round that is over.
            (Granted::Barrier(key), Request::CancelWait) => self.owe(connection, key),
            (Granted::Barrier(_), _) => {}
        }
    }
}

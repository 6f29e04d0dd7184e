//! How shards and manifests come into a pool, so that readers find all of one or none.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::aio::Errno;
use super::{DEPTH, Layout, RadosStore, c_string, striped};
use crate::dataset::{count, index_of};
use crate::memory::Block;
use crate::store::striping::{self, OBJECT_BYTES, Striping};
use crate::store::{Store, StoreError};

/// The largest manifest that is one object. OSDs take 90 MB in one operation (`osd_max_write_size`), and with that no more.
const PLAIN_MAX: u64 = 32 << 20;

/// What a shard is made of.
#[derive(Clone)]
enum Source {
    Memory(Arc<[u8]>),
    Shard(Store, Arc<str>),
}

impl Source {
    async fn read(&self, offset: u64, len: u64) -> Result<Block, StoreError> {
        let mut block = Block::with_len(index_of(len));
        match self {
            Self::Memory(bytes) => {
                let from = index_of(offset);
                block.copy_from_slice(&bytes[from..from + index_of(len)]);
                Ok(block)
            }
            Self::Shard(store, name) => {
                let (block, read) = store.read(name, offset, block).await;
                read.map(|()| block)
            }
        }
    }
}

impl RadosStore {
    /// Writes a manifest. Readers find the old one or the new one; when both are larger than an object may be, there is none
    /// for a moment in between.
    pub async fn write(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        let len = count(bytes.len());
        if len > PLAIN_MAX {
            self.remove_striped(name).await?;
            self.stripe(name, len, &Source::Memory(bytes.into())).await?;
            // Until now readers took this one.
            return self.remove_plain(name).await;
        }
        let mut block = Block::with_len(bytes.len());
        block.copy_from_slice(&bytes);
        self.write_plain(name, block).await?;
        self.remove_striped(name).await
    }

    /// Copies a shard of that size from another store. It becomes visible when it is complete; until then, and when this
    /// fails, readers find no shard of that name.
    pub async fn copy_from(&self, name: &str, bytes: u64, from: &Store) -> Result<(), StoreError> {
        let source = Source::Shard(from.clone(), name.into());
        // Before anything is removed: it may be that nothing can be read.
        let first = source.read(0, bytes.min(OBJECT_BYTES)).await?;
        self.remove_plain(name).await?;
        self.remove_striped(name).await?;
        if bytes <= OBJECT_BYTES {
            self.write_plain(name, first).await
        } else {
            self.stripe(name, bytes, &source).await
        }
    }

    async fn write_plain(&self, name: &str, block: Block) -> Result<(), StoreError> {
        let written = self.inner.pool.write(&self.inner.object(name)?, block).await;
        self.inner.layouts().insert(name.to_owned(), Layout::Plain);
        written.map_err(|error| self.inner.write_error(name, error))
    }

    /// Writes the objects of a striped shard, and then its size: that is what readers look for.
    async fn stripe(&self, name: &str, bytes: u64, source: &Source) -> Result<(), StoreError> {
        let mut running = JoinSet::new();
        let mut waiting = 0..Striping::OURS.objects(bytes);
        loop {
            while running.len() < DEPTH {
                let Some(number) = waiting.next() else { break };
                let (store, source, name) = (self.clone(), source.clone(), name.to_owned());
                running.spawn(async move { store.write_object(&name, number, bytes, &source).await });
            }
            match running.join_next().await {
                None => break,
                Some(Ok(done)) => done?,
                Some(Err(_)) => return Err(StoreError::Stopped { name: name.into() }),
            }
        }
        let Striping { stripe_unit, stripe_count, object_size } = Striping::OURS;
        let values = [stripe_unit, stripe_count, object_size, bytes].map(|value| value.to_string());
        let names = [striping::STRIPE_UNIT, striping::STRIPE_COUNT, striping::OBJECT_SIZE, striping::SIZE]
            .map(c_string);
        let mut attributes = Vec::new();
        for (name, value) in names.iter().zip(&values) {
            attributes.push((name.as_c_str(), Some(value.as_bytes())));
        }
        let head = self.inner.object(&striping::object_name(name, 0))?;
        let done = self.inner.pool.set_attributes(&head, &attributes).await;
        self.inner.layouts().remove(name);
        done.map_err(|error| self.inner.write_error(name, error))
    }

    async fn write_object(
        &self,
        name: &str,
        number: u64,
        bytes: u64,
        source: &Source,
    ) -> Result<(), StoreError> {
        let offset = number * OBJECT_BYTES;
        let block = source.read(offset, (bytes - offset).min(OBJECT_BYTES)).await?;
        let object = self.inner.object(&striping::object_name(name, number))?;
        let written = self.inner.pool.write(&object, block).await;
        written.map_err(|error| self.inner.write_error(name, error))
    }

    async fn remove_plain(&self, name: &str) -> Result<(), StoreError> {
        self.inner.layouts().remove(name);
        let removed = self.inner.pool.remove(&self.inner.object(name)?).await;
        self.found(name, removed).map(|_| ())
    }

    /// Removes a striped shard, or what is left of one; none is no error. Its size goes first, so that nobody reads half of
    /// it; then its objects from the last to the first, so that the rest can be found again when this is interrupted.
    async fn remove_striped(&self, name: &str) -> Result<(), StoreError> {
        self.inner.layouts().remove(name);
        let first = self.inner.object(&striping::object_name(name, 0))?;
        let complete = match self.inner.pool.head(&first).await {
            Err(Errno::NOT_FOUND) => None,
            head => striped(&head.map_err(|error| self.inner.write_error(name, error))?),
        };
        let objects = match complete {
            Some((bytes, striping)) => {
                let size = c_string(striping::SIZE);
                let done = self.inner.pool.set_attributes(&first, &[(&size, None)]).await;
                done.map_err(|error| self.inner.write_error(name, error))?;
                striping.objects(bytes)
            }
            None => self.objects_left(name).await?,
        };
        for number in (0..objects).rev() {
            let object = self.inner.object(&striping::object_name(name, number))?;
            let removed = self.inner.pool.remove(&object).await;
            self.found(name, removed)?;
        }
        Ok(())
    }

    /// How many objects there are of a shard that does not say it: up to where as many are missing one after the other as
    /// writers go ahead.
    async fn objects_left(&self, name: &str) -> Result<u64, StoreError> {
        let (mut number, mut end) = (0, 0);
        while number < end + count(DEPTH) {
            let object = self.inner.object(&striping::object_name(name, number))?;
            let head = self.inner.pool.head(&object).await.map(|_| ());
            number += 1;
            if self.found(name, head)? {
                end = number;
            }
        }
        Ok(end)
    }

    /// Whether there was such an object.
    fn found(&self, name: &str, result: Result<(), Errno>) -> Result<bool, StoreError> {
        match result {
            Ok(()) => Ok(true),
            Err(Errno::NOT_FOUND) => Ok(false),
            Err(error) => Err(self.inner.write_error(name, error)),
        }
    }
}

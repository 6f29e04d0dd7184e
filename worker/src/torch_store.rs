//! PyTorch's TCPStore, served by us: unmodified programs call `init_process_group` and meet here.
//!
//! `protocol` decodes what clients send and encodes what they are answered, `table` decides (both pure), `server` is
//! the thread with the sockets. One fresh [`Server`] per generation, on a port of its own: torch's agent-store
//! contract is that a restarted group finds an empty store.
//!
//! What differs from torch's own server, on purpose:
//! - it binds one interface, resolves no names, and answers nobody who has not sent VALIDATE with the right magic;
//! - a barrier counts connections (one per process), not calls, and its key may be used again for the next round;
//! - what goes wrong on one connection (a number that is none, a limit exceeded) ends that connection only;
//! - memory, connections and unread answers are bounded by [`Limits`], and a silent stranger is dropped;
//! - [`Server::stats`] says who joined, who is waiting, and for what.

mod protocol;
mod server;
mod table;

pub use protocol::{Command, CommandLimits, Decoder, Fault, Keys, MAGIC, Pairs, Query, Reply, Request, Step};
pub use server::{Limits, Peer, Server, Stats, StoreError};
pub use table::{BarrierProgress, ClientProgress, Connection, Progress, Refusal, Table, Waiting};

//! Bulk data from one process to another, by our lane and by others: how fast, and at which cost of CPU on both ends.
//!
//! ```text
//! lane run SIDE FOLDER REQUEST_BYTES REQUESTS DEPTH [THREADS]
//! ```
//! FOLDER holds one `.bin` file of [`CHUNKS`] × 4 MiB. A second process of this program serves it out of memory; this one
//! asks DEPTH ranges at a time, round and round, and prints JSON. One pass over everything goes before and is not counted:
//! it fills the server's cache and finds the packet size. CPU is that of both processes, all threads.
//!
//! | SIDE | what |
//! |---|---|
//! | `ours` | a plane's lane, into slots of 64 KiB samples, each sample's CRC-32C compared |
//! | `raw` | quinn as we tune it: same socket, transport, ciphers and streams; what comes is dropped |
//! | `copied` | the same, and what comes is copied into the slot |
//! | `default` | quinn as it comes, copied into the slot |
//! | `tls1`, `tls4` | rustls over one or four TCP connections, a thread each, into the slot |
//!
//! THREADS of the QUIC sides' runtimes are 2 otherwise, as a worker has on two CPUs; 0 is a single-threaded runtime.

mod ours;
mod quic;
mod server;
mod tls;
mod work;

use std::io::Write;
use std::path::PathBuf;

use tokio::runtime::{Builder, Runtime};

use benches::Failure;
use server::Server;
use work::Work;

/// Chunks of the data: 128 MiB, more than caches of a CPU hold.
const CHUNKS: u64 = 32;
const CHUNK_BYTES: u64 = 4 << 20;
const RECORD_BYTES: u64 = 64 << 10;
const THREADS: usize = 2;

/// Who moves the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Ours,
    /// With our tuning or without; copied into the slot or dropped.
    Quinn {
        tuned: bool,
        copied: bool,
    },
    Tls {
        connections: u16,
    },
}

impl Side {
    fn parse(name: &str) -> Result<Self, Failure> {
        Ok(match name {
            "ours" => Self::Ours,
            "raw" => Self::Quinn { tuned: true, copied: false },
            "copied" => Self::Quinn { tuned: true, copied: true },
            "default" => Self::Quinn { tuned: false, copied: true },
            "tls1" => Self::Tls { connections: 1 },
            "tls4" => Self::Tls { connections: 4 },
            _ => return Err(format!("there is no side {name}").into()),
        })
    }
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().ok_or_else(|| format!("missing argument: {what}"));
    let (verb, side, folder) = (next("run")?, next("SIDE")?, PathBuf::from(next("FOLDER")?));
    let which = Side::parse(&side)?;
    if verb == "serve" {
        return server::serve(which, &folder, runtime(next("THREADS")?.parse()?)?);
    }
    let (request, requests) = (next("REQUEST_BYTES")?.parse()?, next("REQUESTS")?.parse()?);
    let depth = next("DEPTH")?.parse()?;
    let threads = arguments.next().map_or(Ok(THREADS), |threads| threads.parse())?;
    let server = Server::start(&side, &folder, threads)?;
    let work = Work { request, requests, depth };
    let result = match which {
        Side::Ours => runtime(threads)?.block_on(ours::run(server, &folder, work)),
        Side::Quinn { tuned, copied } => runtime(threads)?.block_on(quic::run(server, work, tuned, copied)),
        Side::Tls { connections } => tls::run(server, work, connections),
    }?;
    Ok(std::io::stdout().lock().write_all(format!("{result}\n").as_bytes())?)
}

fn runtime(threads: usize) -> Result<Runtime, Failure> {
    let mut builder = if threads == 0 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    Ok(builder.worker_threads(threads.max(1)).enable_all().build()?)
}

//! rustls over TCP with our ciphers: a thread and a connection each, requests sent ahead, answers in their order.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use datapath::transport::quic::tls::{Identity, provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

use crate::server::{SERVER, Server};
use crate::work::{self, Work};
use crate::{CHUNK_BYTES, CHUNKS, Failure};

/// A request: where the range begins and how long it is.
pub(crate) const ASK_BYTES: usize = 16;

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// The folder's data.
pub(crate) fn data(folder: &Path) -> Result<Vec<u8>, Failure> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "bin") {
            let data = std::fs::read(path)?;
            if u64::try_from(data.len())? == CHUNKS * CHUNK_BYTES {
                return Ok(data);
            }
        }
    }
    Err(format!("no file of {} bytes in {}", CHUNKS * CHUNK_BYTES, folder.display()).into())
}

pub(crate) fn ask(start: u64, len: usize) -> [u8; ASK_BYTES] {
    // A length in memory fits into 64 bits.
    let numbers = [start, u64::try_from(len).unwrap_or(u64::MAX)];
    let mut ask = [0; ASK_BYTES];
    for (to, number) in ask.chunks_exact_mut(8).zip(numbers) {
        to.copy_from_slice(&number.to_le_bytes());
    }
    ask
}

pub(crate) fn range(ask: [u8; ASK_BYTES]) -> Result<Range<usize>, Failure> {
    let (start, len) = ask.split_at(8);
    let start = usize::try_from(u64::from_le_bytes(start.try_into()?))?;
    Ok(start..start + usize::try_from(u64::from_le_bytes(len.try_into()?))?)
}

/// Starts to answer.
pub(crate) fn serve(identity: &Identity, folder: &Path) -> Result<SocketAddr, Failure> {
    let data = Arc::new(data(folder)?);
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(identity)?), provider()).build()?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(identity), key(identity))?;
    let config = Arc::new(config);
    let listener = TcpListener::bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let (config, data) = (Arc::clone(&config), Arc::clone(&data));
            std::thread::spawn(move || answer(socket, config, &data));
        }
    });
    Ok(address)
}

fn answer(socket: TcpStream, config: Arc<ServerConfig>, data: &[u8]) -> Result<(), Failure> {
    socket.set_nodelay(true)?;
    let mut stream = StreamOwned::new(ServerConnection::new(config)?, socket);
    let mut asked = [0; ASK_BYTES];
    loop {
        stream.read_exact(&mut asked)?;
        stream.write_all(data.get(range(asked)?).ok_or("a range beyond the data")?)?;
        stream.flush()?;
    }
}

/// Measures it.
pub(crate) fn run(server: Server, work: Work, connections: u16) -> Result<Value, Failure> {
    let identity = &server.identity;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(chain(identity), key(identity))?;
    let config = Arc::new(config);
    let connect = |_| -> Result<Stream, Failure> {
        let socket = TcpStream::connect(server.address)?;
        socket.set_nodelay(true)?;
        let tls = ClientConnection::new(Arc::clone(&config), ServerName::try_from(SERVER)?)?;
        Ok(StreamOwned::new(tls, socket))
    };
    let mut streams = (0..connections).map(connect).collect::<Result<Vec<_>, _>>()?;
    work::measure_blocking(server, work, |requests| transfer(&mut streams, work, &requests))
}

fn transfer(streams: &mut [Stream], work: Work, requests: &Range<u64>) -> Result<(), Failure> {
    let step = streams.len();
    let depth = usize::try_from(work.depth)?.div_ceil(step);
    std::thread::scope(|scope| {
        let starts = requests.clone().take(step);
        let threads: Vec<_> = streams
            .iter_mut()
            .zip(starts)
            .map(|(stream, first)| {
                let numbers = (first..requests.end).step_by(step);
                scope.spawn(move || fetch_all(stream, work, numbers, depth))
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        Ok(())
    })
}

/// Gets requests into slots, `depth` of them asked for at once.
fn fetch_all(
    stream: &mut Stream,
    work: Work,
    numbers: impl Iterator<Item = u64> + Clone,
    depth: usize,
) -> Result<(), Failure> {
    let mut slots = (0..depth).map(|_| work.slot()).collect::<Result<Vec<_>, _>>()?;
    let len = usize::try_from(work.request)?;
    let mut ahead = numbers.clone();
    for number in ahead.by_ref().take(depth) {
        stream.write_all(&ask(work.start(number), len))?;
    }
    for (count, _) in numbers.enumerate() {
        stream.read_exact(&mut slots[count % depth])?;
        if let Some(number) = ahead.next() {
            stream.write_all(&ask(work.start(number), len))?;
        }
    }
    Ok(())
}

fn roots(identity: &Identity) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(identity.ca_der.clone()))?;
    Ok(roots)
}

fn chain(identity: &Identity) -> Vec<CertificateDer<'static>> {
    vec![CertificateDer::from(identity.cert_der.clone())]
}

fn key(identity: &Identity) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key_der.clone()))
}

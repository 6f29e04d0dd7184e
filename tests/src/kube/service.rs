//! A Service in front of controllers' rendezvous, as a cluster has one: packets go to the one that says it is ready. The rig
//! forwards no services, so this is carried out here, by a relay that knows each sender by a socket of its own.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::leftovers::pause;

/// A packet, or an answer about readiness, is waited for so long before it is looked at what has changed.
const LOOK: Duration = Duration::from_millis(500);
/// The largest packet of UDP.
const PACKET_MAX: usize = 65_507;

/// One controller behind a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Where it answers `/readyz`.
    pub http: SocketAddr,
    /// Where its rendezvous listens.
    pub rendezvous: SocketAddr,
}

/// A service; gone when dropped.
#[derive(Debug)]
pub struct Service {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    front: UdpSocket,
    backends: Vec<Backend>,
    /// Where packets go now.
    ready: Mutex<Option<Backend>>,
    is_over: AtomicBool,
}

impl Service {
    /// In front of so many controllers, at this host's address; [`Service::backends`] says where each has to listen.
    #[must_use]
    pub fn start(host: &str, controllers: usize) -> Self {
        let front = UdpSocket::bind((host, 0)).unwrap();
        front.set_read_timeout(Some(LOOK)).unwrap();
        let address = front.local_addr().unwrap();
        let backend = |_| Backend {
            http: TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(),
            rendezvous: UdpSocket::bind((host, 0)).unwrap().local_addr().unwrap(),
        };
        let backends = (0..controllers).map(backend).collect();
        let shared = Shared { front, backends, ready: Mutex::default(), is_over: AtomicBool::new(false) };
        let shared = Arc::new(shared);
        let (probing, relaying) = (Arc::clone(&shared), Arc::clone(&shared));
        std::thread::spawn(move || probing.probe());
        std::thread::spawn(move || relaying.relay());
        Self { address, shared }
    }

    /// Where clients reach it.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The controllers behind it.
    #[must_use]
    pub fn backends(&self) -> &[Backend] {
        &self.shared.backends
    }

    /// The controller that packets go to, if one is ready.
    #[must_use]
    pub fn ready(&self) -> Option<Backend> {
        *self.shared.ready.lock().unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    fn probe(&self) {
        while !self.is_over() {
            let ready = self.backends.iter().copied().find(|backend| is_ready(backend.http));
            *self.ready.lock().unwrap() = ready;
            pause();
        }
    }

    fn relay(self: &Arc<Self>) {
        let mut packet = vec![0; PACKET_MAX];
        let mut senders: BTreeMap<SocketAddr, (Backend, Arc<UdpSocket>)> = BTreeMap::new();
        while !self.is_over() {
            let Ok((length, sender)) = self.front.recv_from(&mut packet) else { continue };
            let Some(ready) = *self.ready.lock().unwrap() else { continue };
            let known = senders.get(&sender).filter(|(backend, _)| *backend == ready);
            let socket = match known {
                Some((_, socket)) => Arc::clone(socket),
                None => {
                    let socket = Arc::new(self.behind(ready, sender));
                    // The one before, if there is one, ends with its last answer.
                    senders.insert(sender, (ready, Arc::clone(&socket)));
                    socket
                }
            };
            socket.send(&packet[..length]).ok();
        }
    }

    /// A socket that stands for `sender` at a controller; what comes back goes to the sender.
    fn behind(self: &Arc<Self>, backend: Backend, sender: SocketAddr) -> UdpSocket {
        let socket = UdpSocket::bind((backend.rendezvous.ip(), 0)).unwrap();
        socket.connect(backend.rendezvous).unwrap();
        socket.set_read_timeout(Some(LOOK)).unwrap();
        let (back, shared) = (socket.try_clone().unwrap(), Arc::clone(self));
        std::thread::spawn(move || {
            let mut packet = vec![0; PACKET_MAX];
            while !shared.is_over() {
                if let Ok(length) = back.recv(&mut packet) {
                    shared.front.send_to(&packet[..length], sender).ok();
                }
            }
        });
        socket
    }
}

fn is_ready(http: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&http, LOOK)?;
        stream.set_read_timeout(Some(LOOK))?;
        stream.write_all(b"GET /readyz HTTP/1.0\r\nHost: controller\r\n\r\n")?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    ask().is_ok_and(|answer| answer.ends_with(b" 200"))
}

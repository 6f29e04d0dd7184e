//! The server against the worker's own client, over loopback.

use std::net::Ipv4Addr;

use datapath::transport::quic::tls::Identity;
use tokio::sync::watch;
use tokio::time::timeout;
use worker::rendezvous::client::{Client, ClientConfig, SessionEvent};
use worker::rendezvous::message::HostFacts;
use worker::units::Generation;

use super::*;
use crate::rendezvous::authority::Seed;

/// Longer than any of these tests needs on a busy host.
const PATIENCE: Duration = Duration::from_secs(30);
/// What must not happen is waited for this long: a round trip over loopback takes a thousandth of it.
const NOTHING: Duration = Duration::from_millis(300);

fn registration(worker: u32) -> Registration {
    Registration {
        worker: WorkerId(worker),
        incarnation: Incarnation(7),
        pid: 1,
        host: HostFacts::default(),
        data_address: None,
        running: None,
        data: None,
    }
}

fn server(authority: &Authority) -> (Server, Entry, mpsc::Receiver<Inbound>) {
    let server = Server::start((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let (entry, inbound) = server.enlist("j", authority).unwrap();
    (server, entry, inbound)
}

fn client(server: &Server, identity: &Identity, says: u32) -> (Client, mpsc::Receiver<SessionEvent>) {
    let (sender, receiver) = watch::channel(registration(says));
    let config = ClientConfig {
        launcher: server.address(),
        launcher_name: &launcher_name("j"),
        bind: Ipv4Addr::LOCALHOST.into(),
        identity,
    };
    let started = Client::start(&config, receiver).unwrap();
    drop(sender);
    started
}

#[tokio::test]
async fn a_worker_registers_and_both_sides_talk() {
    let mut authority = Authority::new("j", Seed::draw().unwrap()).unwrap();
    let identity = authority.worker(WorkerId(3)).unwrap();
    let (server, _entry, mut inbound) = server(&authority);
    let (client, mut events) = client(&server, &identity, 3);
    let first = timeout(PATIENCE, inbound.recv()).await.unwrap().unwrap();
    let Inbound::Registered { registration, outbound } = first else { panic!("{first:?}") };
    assert_eq!(*registration, self::registration(3));
    assert!(outbound.send(ToWorker::Gather { generation: Generation(1) }));
    let mut session = None;
    loop {
        match timeout(PATIENCE, events.recv()).await.unwrap().unwrap() {
            SessionEvent::Connected(id) => session = Some(id),
            SessionEvent::Message(message) => {
                assert_eq!(message, ToWorker::Gather { generation: Generation(1) });
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    let ready = ToLauncher::Ready { generation: Generation(1), faults: Vec::new() };
    assert!(client.send(session.unwrap(), ready.clone()));
    let second = timeout(PATIENCE, inbound.recv()).await.unwrap().unwrap();
    let Inbound::Message { worker, incarnation, message } = second else { panic!("{second:?}") };
    assert_eq!((worker, incarnation, *message), (WorkerId(3), Incarnation(7), ready));
    client.close().await;
    server.close().await;
}

#[tokio::test]
async fn a_certificate_is_good_for_its_own_number_only() {
    let mut authority = Authority::new("j", Seed::draw().unwrap()).unwrap();
    let identity = authority.worker(WorkerId(3)).unwrap();
    let (server, _entry, mut inbound) = server(&authority);
    let (_client, _events) = client(&server, &identity, 4);
    assert!(timeout(NOTHING, inbound.recv()).await.is_err(), "worker 3 cannot be worker 4");
    server.close().await;
}

#[tokio::test]
async fn a_stranger_is_not_heard() {
    let mut authority = Authority::new("j", Seed::draw().unwrap()).unwrap();
    authority.worker(WorkerId(0)).unwrap();
    let other = Authority::new("other", Seed::draw().unwrap()).unwrap().worker(WorkerId(0)).unwrap();
    let launcher = authority.launcher().unwrap();
    let (server, _entry, mut inbound) = server(&authority);
    let (_client, _events) = client(&server, &other, 0);
    // A certificate of the right authority, but of no worker.
    let (_impostor, _their_events) = client(&server, &launcher, 0);
    assert!(timeout(NOTHING, inbound.recv()).await.is_err());
    server.close().await;
}

//! The client against a launcher that is a few lines of quinn.

use super::*;
use crate::rendezvous::message::{HostFacts, Registration};
use crate::rendezvous::testing::{PATIENCE, Peer, accept, authority, listen};
use crate::units::{Generation, Incarnation, WorkerId};

struct Rig {
    launcher: Endpoint,
    client: Client,
    events: mpsc::Receiver<SessionEvent>,
    registration: watch::Sender<Registration>,
}

fn rig(launcher: &Identity, worker: &Identity) -> Rig {
    let launcher = listen(launcher);
    let (registration, watched) = watch::channel(Registration {
        worker: WorkerId(4),
        incarnation: Incarnation(99),
        pid: 1,
        host: HostFacts::default(),
        data_address: None,
        running: None,
        data: None,
    });
    let config = ClientConfig {
        launcher: launcher.local_addr().unwrap(),
        launcher_name: "launcher",
        bind: "127.0.0.1".parse().unwrap(),
        identity: worker,
    };
    let (client, events) = Client::start(&config, watched).unwrap();
    Rig { launcher, client, events, registration }
}

impl Rig {
    fn good() -> Self {
        let authority = authority();
        rig(&authority.identity("launcher"), &authority.identity("worker-4"))
    }

    async fn accept(&self) -> Peer {
        accept(&self.launcher).await
    }

    async fn event(&mut self) -> SessionEvent {
        timeout(PATIENCE, self.events.recv()).await.unwrap().unwrap()
    }

    async fn connected(&mut self) -> SessionId {
        match self.event().await {
            SessionEvent::Connected(session) => session,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn registers_and_talks_both_ways() {
    let mut rig = Rig::good();
    let mut peer = rig.accept().await;
    assert_eq!(peer.hear_registration().await.worker, WorkerId(4));
    let session = rig.connected().await;
    peer.say(&ToWorker::Welcome { lease_ms: 5_000, heartbeat_ms: 500 }).await;
    peer.say(&ToWorker::Gather { generation: Generation(1) }).await;
    for expected in [
        ToWorker::Welcome { lease_ms: 5_000, heartbeat_ms: 500 },
        ToWorker::Gather { generation: Generation(1) },
    ] {
        match rig.event().await {
            SessionEvent::Message(message) => assert_eq!(message, expected),
            other => panic!("{other:?}"),
        }
    }
    let ready = ToLauncher::Ready { generation: Generation(1), faults: Vec::new() };
    assert!(rig.client.send(session, ready.clone()));
    assert_eq!(peer.hear().await, ready);
}

#[tokio::test]
async fn a_broken_session_is_made_anew_and_old_messages_stay_out_of_it() {
    let mut rig = Rig::good();
    let mut peer = rig.accept().await;
    assert_eq!(peer.hear_registration().await.running, None);
    let first = rig.connected().await;
    rig.registration.send_modify(|registration| registration.running = Some(Generation(7)));
    peer.connection.close(VarInt::from_u32(1), b"restart");
    assert!(matches!(rig.event().await, SessionEvent::Lost { .. }));

    let mut peer = rig.accept().await;
    assert_eq!(peer.hear_registration().await.running, Some(Generation(7)), "says what still runs");
    let second = rig.connected().await;
    assert!(second > first);
    rig.client.send(first, ToLauncher::Fenced { generation: Generation(1) });
    rig.client.send(second, ToLauncher::Fenced { generation: Generation(2) });
    assert_eq!(peer.hear().await, ToLauncher::Fenced { generation: Generation(2) });
}

#[tokio::test]
async fn closing_delivers_what_is_queued() {
    let mut rig = Rig::good();
    let mut peer = rig.accept().await;
    peer.hear_registration().await;
    let session = rig.connected().await;
    for generation in 1..=100 {
        rig.client.send(session, ToLauncher::Fenced { generation: Generation(generation) });
    }
    let Rig { client, events, launcher, .. } = rig;
    let hear = async {
        for generation in 1..=100 {
            assert_eq!(peer.hear().await, ToLauncher::Fenced { generation: Generation(generation) });
        }
        assert!(peer.receive.read(&mut [0]).await.is_ok_and(|rest| rest.is_none()), "a clean end");
    };
    timeout(PATIENCE, async { tokio::join!(client.close(), hear) }).await.unwrap();
    drop((events, launcher));
}

#[tokio::test]
async fn another_jobs_launcher_is_not_registered_with() {
    let mut rig = rig(&authority().identity("launcher"), &authority().identity("worker-4"));
    let accept = async {
        while let Some(incoming) = rig.launcher.accept().await {
            assert!(incoming.await.is_err(), "the handshake must fail");
        }
    };
    tokio::select! {
        () = accept => {}
        event = timeout(PATIENCE, rig.events.recv()) => {
            assert!(matches!(event.unwrap(), Some(SessionEvent::Lost { .. })));
        }
    }
}

#[tokio::test]
async fn a_launcher_of_another_version_is_told_apart_from_a_broken_one() {
    let mut rig = Rig::good();
    let mut peer = rig.accept().await;
    peer.hear_registration().await;
    rig.connected().await;
    let body = br#"{"v":2,"body":{"kind":"finish"}}"#;
    peer.send.write_all(&u32::try_from(body.len()).unwrap().to_le_bytes()).await.unwrap();
    peer.send.write_all(body).await.unwrap();
    assert!(matches!(rig.event().await, SessionEvent::Incompatible { .. }));
    let mut peer = rig.accept().await;
    peer.hear_registration().await;
    rig.connected().await;
    peer.send.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    match rig.event().await {
        SessionEvent::Lost { reason, .. } => assert!(reason.contains("accept a frame"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

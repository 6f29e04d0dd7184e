//! The sidecar's end of the link to the ranks' container: takes the agent's orders, keeps a launch until somebody is there
//! to execute it, and tells what became of the ranks, also when their container just ends.

mod desk;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::message::{FromRanks, ToRanks};
use super::socket;
use super::status::Status;
use crate::ranks::{Prepare, RanksEvent};
use crate::units::{Generation, Rank};
use desk::{Desk, Do, Order};

/// Orders that wait for the link: a launch and a stop or two per generation.
const ORDERS_MAX: usize = 64;
/// Frames that wait to be written or handled: a few per rank.
const FRAMES_MAX: usize = 1_024;
/// What is told and not yet taken.
const EVENTS_MAX: usize = 1_024;
/// From the end of the connection until nothing of the container can run any more: the kernel closes the files of a
/// container's first process just before it kills all others (exit(2) in pid_namespaces(7)), and those need a moment.
const GONE_AFTER: Duration = Duration::from_secs(1);

/// Where orders to the ranks' container are dropped.
#[derive(Clone, Debug)]
pub(crate) struct Orders(mpsc::Sender<Order>);

impl Orders {
    pub(crate) fn launch(&self, generation: Generation, ranks: &[Rank], prepare: Prepare) {
        self.order(Order::Launch { generation, ranks: ranks.to_vec(), prepare });
    }

    pub(crate) fn stop(&self, generation: Generation, grace: Duration) {
        self.order(Order::Stop { generation, grace });
    }

    fn order(&self, order: Order) {
        if self.0.try_send(order).is_err() {
            // The task takes orders whatever the container does, so this cannot be seen.
            tracing::error!("the link to the ranks' container takes no orders");
        }
    }
}

/// The running link; dropping it closes the connection, upon which the container kills its ranks.
#[derive(Debug)]
pub(crate) struct Link {
    orders: Orders,
    task: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// Listens for the container. Needs a runtime.
    ///
    /// # Errors
    /// When somebody else has the socket.
    pub(crate) fn open(pod_uid: &str, status: Arc<Status>) -> io::Result<(Self, mpsc::Receiver<RanksEvent>)> {
        let listener = socket::listen(pod_uid)?;
        let (orders, inbox) = mpsc::channel(ORDERS_MAX);
        let (events, told) = mpsc::channel(EVENTS_MAX);
        let task = tokio::spawn(run(listener, inbox, events, status));
        Ok((Self { orders: Orders(orders), task }, told))
    }

    /// A handle for orders.
    pub(crate) fn orders(&self) -> Orders {
        self.orders.clone()
    }

    /// Says that the job is over: to the container that is there, or to the one that will come.
    pub(crate) fn over(&self) {
        self.orders.order(Order::Over);
    }
}

/// A connected container.
struct Connection {
    outgoing: mpsc::Sender<ToRanks>,
    incoming: mpsc::Receiver<FromRanks>,
    /// Carry the frames; dropping them closes the connection.
    _tasks: JoinSet<()>,
}

async fn run(
    listener: UnixListener,
    mut orders: mpsc::Receiver<Order>,
    events: mpsc::Sender<RanksEvent>,
    status: Arc<Status>,
) {
    let mut desk = Desk::default();
    let mut connection: Option<Connection> = None;
    let mut gone_at: Option<Instant> = None;
    loop {
        let todo = tokio::select! {
            order = orders.recv() => match order {
                Some(order) => desk.order(order),
                None => return,
            },
            accepted = listener.accept(), if connection.is_none() => {
                connection = accepted.ok().and_then(|(stream, _)| open(stream));
                continue;
            }
            message = receive(&mut connection), if connection.is_some() => match message {
                Some(message) => desk.message(message),
                None => {
                    connection = None;
                    tracing::warn!("the ranks' container has closed its connection");
                    desk.lost()
                }
            },
            () = sleep_until(gone_at.unwrap_or_else(Instant::now)), if gone_at.is_some() => {
                gone_at = None;
                desk.gone()
            }
        };
        for action in todo {
            match action {
                Do::Send(message) => {
                    // A container that takes nothing is as good as lost; it kills its ranks when it notices.
                    let sent = connection.as_ref().map(|connection| connection.outgoing.try_send(message));
                    if !matches!(sent, Some(Ok(()))) {
                        tracing::error!(
                            "the ranks' container does not take its orders: closing the connection"
                        );
                        if let Some(connection) = &mut connection {
                            connection.incoming.close();
                        }
                    }
                }
                Do::Tell(event) => {
                    // The agent is gone at the end; the container still wants to know.
                    let _ = events.send(event).await;
                }
                Do::WaitForEnd => gone_at = Some(Instant::now() + GONE_AFTER),
            }
        }
        status.ranks(desk.wants_ranks());
    }
}

async fn receive(connection: &mut Option<Connection>) -> Option<FromRanks> {
    match connection {
        Some(connection) => connection.incoming.recv().await,
        None => None,
    }
}

/// Two tasks carry frames; both end with the connection.
fn open(stream: UnixStream) -> Option<Connection> {
    if !socket::is_ours(&stream) {
        tracing::warn!("a process of another user wanted to execute ranks: refused");
        return None;
    }
    let (mut reader, mut writer) = stream.into_split();
    let (outgoing, mut to_write) = mpsc::channel::<ToRanks>(FRAMES_MAX);
    let (read, incoming) = mpsc::channel(FRAMES_MAX);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Some(message) = to_write.recv().await {
            let frame = match socket::frame(&message) {
                Ok(frame) => frame,
                Err(error) => return tracing::error!(%error, "cannot say this to the ranks' container"),
            };
            if writer.write_all(&frame).await.is_err() {
                return;
            }
        }
    });
    tasks.spawn(async move {
        loop {
            match socket::read(&mut reader).await {
                Ok(message) => {
                    if read.send(message).await.is_err() {
                        return;
                    }
                }
                Err(error) => return tracing::debug!(%error, "the ranks' container says nothing more"),
            }
        }
    });
    Some(Connection { outgoing, incoming, _tasks: tasks })
}

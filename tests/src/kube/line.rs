//! The line between a controller and the API server, to be cut by a story: a relay to `kubectl proxy`, which speaks for the
//! administrator, so that requests pass here in the clear and can be counted.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use super::Rig;

/// What changes something.
const WRITES: [&str; 4] = ["POST ", "PUT ", "PATCH ", "DELETE "];
/// Writes that are no step of a job: who leads, and what is told about it.
const ASIDE: [&str; 2] = ["/leases", "/events"];

/// A line; gone when dropped.
#[derive(Debug)]
pub struct Line {
    proxy: Child,
    folder: TempDir,
    ends: Arc<Ends>,
    died: Receiver<String>,
}

#[derive(Debug)]
struct Ends {
    server: SocketAddr,
    state: Mutex<State>,
    dying: Sender<String>,
}

#[derive(Debug, Default)]
struct State {
    open: Vec<TcpStream>,
    /// Writes that still pass; the line is dead after the last.
    left: Option<u32>,
    is_dead: bool,
}

impl Rig {
    /// A line to this cluster's API server.
    #[must_use]
    pub fn line(&self) -> Line {
        let path = self.script(["path"]).stdout;
        let mut command = Command::new("kubectl");
        command.args(["proxy", "--port=0", "--accept-paths=.*"]);
        command.env("PATH", path.trim()).env("KUBECONFIG", self.kubeconfig());
        let mut proxy = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(proxy.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        let server = said.trim().rsplit(' ').next().unwrap().parse().unwrap();
        let (dying, died) = channel();
        let ends = Arc::new(Ends { server, state: Mutex::default(), dying });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config"), kubeconfig(address)).unwrap();
        let relay = Arc::clone(&ends);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                relay.join(client);
            }
        });
        Line { proxy, folder, ends, died }
    }
}

fn kubeconfig(address: SocketAddr) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "line",
        "contexts": [{"name": "line", "context": {"cluster": "line", "user": "line"}}],
        "clusters": [{"name": "line", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "line", "user": {}}],
    });
    config.to_string()
}

impl Line {
    /// Whoever uses it goes by this line.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("config")
    }

    /// Ends all connections; new ones are let through.
    pub fn cut(&self) {
        self.ends.state.lock().unwrap().cut();
    }

    /// Opens the line again, for so many writes (none: any number). The API server carries the last one out, and who asked
    /// for it never hears of that, nor of anything else.
    pub fn open(&self, writes: Option<u32>) {
        let mut state = self.ends.state.lock().unwrap();
        state.cut();
        (state.left, state.is_dead) = (writes, false);
        while self.died.try_recv().is_ok() {}
    }

    /// The last write that passed, if the line has died by now, or does within `limit`.
    #[must_use]
    pub fn died(&self, limit: Duration) -> Option<String> {
        self.died.recv_timeout(limit).ok()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.open(Some(0));
        self.proxy.kill().ok();
        self.proxy.wait().ok();
    }
}

impl State {
    fn cut(&mut self) {
        for end in self.open.drain(..) {
            end.shutdown(Shutdown::Both).ok();
        }
    }

    /// Whether a request passes; the last write that does takes all other connections with it.
    fn pass(&mut self, request: &str) -> Pass {
        if self.is_dead || self.left == Some(0) {
            return Pass::No;
        }
        let is_write = WRITES.iter().any(|word| request.starts_with(word));
        let is_step = is_write && !ASIDE.iter().any(|aside| request.contains(aside));
        match &mut self.left {
            Some(left) if is_step => {
                *left -= 1;
                self.is_dead = *left == 0;
                if self.is_dead { Pass::Last } else { Pass::Yes }
            }
            _ => Pass::Yes,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Yes,
    Last,
    No,
}

impl Ends {
    /// Two threads carry a connection's bytes, one for each way.
    fn join(self: &Arc<Self>, client: TcpStream) {
        let mut state = self.state.lock().unwrap();
        let Ok(server) = TcpStream::connect(self.server) else { return };
        if state.is_dead {
            return;
        }
        let copy = |stream: &TcpStream| stream.try_clone().unwrap();
        state.open.extend([copy(&client), copy(&server)]);
        let last = Arc::new(OnceLock::new());
        let (ends, of_asking) = (Arc::clone(self), Arc::clone(&last));
        let (from, to) = (copy(&client), copy(&server));
        std::thread::spawn(move || ends.ask(from, to, &of_asking));
        let ends = Arc::clone(self);
        std::thread::spawn(move || ends.answer(server, client, &last));
    }

    /// Requests begin where a piece begins: the client waits for each answer before it asks again.
    fn ask(&self, mut client: TcpStream, mut server: TcpStream, last: &OnceLock<String>) {
        let mut piece = vec![0; 1 << 16];
        while let Ok(length) = client.read(&mut piece)
            && length > 0
        {
            let text = String::from_utf8_lossy(&piece[..length.min(300)]);
            let line = text.lines().next().unwrap_or_default();
            match self.state.lock().unwrap().pass(line) {
                Pass::Yes => {}
                Pass::Last => last.set(line.trim_end_matches(" HTTP/1.1").to_owned()).unwrap(),
                // What follows the last write's head is still its body.
                Pass::No if last.get().is_some() => {}
                Pass::No => break,
            }
            if server.write_all(&piece[..length]).is_err() {
                break;
            }
        }
        server.shutdown(Shutdown::Both).ok();
        client.shutdown(Shutdown::Both).ok();
    }

    fn answer(&self, mut server: TcpStream, mut client: TcpStream, last: &OnceLock<String>) {
        let mut piece = vec![0; 1 << 16];
        while let Ok(length) = server.read(&mut piece)
            && length > 0
        {
            // It has been done, which nobody hears; and what others were told meanwhile ends here too.
            if let Some(last) = last.get() {
                self.state.lock().unwrap().cut();
                self.dying.send(last.clone()).ok();
                break;
            }
            if client.write_all(&piece[..length]).is_err() {
                break;
            }
        }
        server.shutdown(Shutdown::Both).ok();
        client.shutdown(Shutdown::Both).ok();
    }
}

//! The serving process: started by the asking one, told by lines on its standard input, ended by that input's end.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use benches::identities;
use datapath::transport::quic::tls::Identity;
use tokio::runtime::Runtime;

use crate::{Failure, Side, ours, quic, tls, work};

/// The name in the server's certificate.
pub(crate) const SERVER: &str = "server";
/// The name in the client's certificate.
pub(crate) const CLIENT: &str = "client";

/// The other process, as the asking one sees it.
pub(crate) struct Server {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    pub(crate) address: SocketAddr,
    /// This process's own.
    pub(crate) identity: Identity,
    /// The other's certificate, DER.
    pub(crate) certificate: Vec<u8>,
}

impl Server {
    pub(crate) fn start(side: &str, folder: &Path, threads: usize) -> Result<Self, Failure> {
        let [server, identity] = identities([SERVER, CLIENT])?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", side]).arg(folder).arg(threads.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut input = child.stdin.take().ok_or("no standard input")?;
        let mut output = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        let certificate = server.cert_der.clone();
        let both = serde_json::json!({ "server": server, "client": identity.cert_der });
        input.write_all(format!("{both}\n").as_bytes())?;
        let address = line(&mut output)?.parse()?;
        Ok(Self { child, input: Some(input), output, address, identity, certificate })
    }

    /// The CPU time that it has used so far.
    pub(crate) fn cpu_seconds(&mut self) -> Result<f64, Failure> {
        self.input.as_mut().ok_or("no standard input")?.write_all(b"cpu\n")?;
        Ok(line(&mut self.output)?.parse()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.input.take());
        drop(self.child.wait());
    }
}

/// The serving process's life.
pub(crate) fn serve(side: Side, folder: &Path, runtime: Runtime) -> Result<(), Failure> {
    let mut input = BufReader::new(std::io::stdin());
    let mut told: serde_json::Value = serde_json::from_str(&line(&mut input)?)?;
    let identity: Identity = serde_json::from_value(told["server"].take())?;
    let client: Vec<u8> = serde_json::from_value(told["client"].take())?;
    let mut plane = None;
    let address = match side {
        Side::Ours => {
            let ours = runtime.block_on(ours::serve(identity, &client, folder))?;
            plane.insert(ours).local_addr()
        }
        Side::Quinn { tuned, .. } => {
            let _inside = runtime.enter();
            quic::serve(&identity, folder, tuned)?
        }
        Side::Tls { .. } => tls::serve(&identity, folder)?,
    };
    // A single-threaded runtime only runs while somebody waits in it.
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    say(&address.to_string())?;
    while line(&mut input).is_ok_and(|asked| !asked.is_empty()) {
        say(&work::cpu_seconds().to_string())?;
    }
    // Its connections are gone with its client.
    drop(plane);
    Ok(())
}

fn say(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{text}\n").as_bytes())?;
    Ok(out.flush()?)
}

fn line(from: &mut impl BufRead) -> Result<String, Failure> {
    let mut text = String::new();
    from.read_line(&mut text)?;
    Ok(text.trim_end().to_owned())
}

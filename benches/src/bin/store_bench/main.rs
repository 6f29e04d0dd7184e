//! Torch's store protocol under load: our server beside torch's own, on one host, one after the other in each round.
//!
//! The client speaks the protocol raw, over polling in one thread, so that as little as possible of what is measured
//! is the client; its own CPU time is reported beside the server's. Servers are processes of their own and get a
//! fresh store for each case.
//!
//! `store_bench serve` is our server's process; `store_bench run --help` is the bench.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]

use std::error::Error;
use std::io::{BufRead, Write};
use std::net::{IpAddr, Ipv4Addr};

use worker::torch_store::{Limits, Server};

mod client;
mod load;
mod report;
mod server;

const USAGE: &str = "usage: store_bench serve
       store_bench run [--torch-python PYTHON --torch-script FILE] [--rounds N] [--json FILE] [--quick] [--only TEXT]

Without --torch-python only our server is measured.";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("serve") => serve(),
        Some("run") => run(&arguments[1..]),
        _ => Err(USAGE.into()),
    }
}

/// Our side of the bench's server protocol: a fresh store for each line of standard input.
fn serve() -> Result<(), Box<dyn Error>> {
    let mut store = None;
    for line in std::io::stdin().lock().lines() {
        line?;
        drop(store.take());
        let server = Server::open(IpAddr::V4(Ipv4Addr::LOCALHOST), Limits::default())?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", server.local_addr().port())?;
        out.flush()?;
        store = Some(server);
    }
    Ok(())
}

fn run(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let mut arguments = arguments.iter();
    let (mut python, mut script, mut json, mut only) = (None, None, None, "");
    let (mut rounds, mut quick) = (5, false);
    while let Some(name) = arguments.next() {
        if name == "--quick" {
            quick = true;
            continue;
        }
        let value = arguments.next().ok_or(USAGE)?;
        match name.as_str() {
            "--torch-python" => python = Some(value.as_str()),
            "--torch-script" => script = Some(value.as_str()),
            "--json" => json = Some(value.as_str()),
            "--only" => only = value.as_str(),
            "--rounds" => rounds = value.parse()?,
            _ => return Err(USAGE.into()),
        }
    }
    client::raise_descriptors();
    let mut servers = vec![server::Process::ours()?];
    if let Some(python) = python {
        servers.push(server::Process::torch(python, script.ok_or(USAGE)?)?);
    }
    let mut report = report::Report::default();
    for round in 0..rounds {
        for case in load::cases(quick).into_iter().filter(|case| case.title().contains(only)) {
            let mut order: Vec<_> = servers.iter_mut().collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for server in order {
                let measured = load::measure(case, server)?;
                report.add(case, server.name(), measured);
            }
        }
        writeln!(std::io::stderr(), "round {} of {rounds} done", round + 1)?;
    }
    write!(std::io::stdout(), "{}", report.table())?;
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_string_pretty(&report.json())?)?;
    }
    Ok(())
}

//! Whether a job makes sense: the contradictions and impossible values that a schema cannot see (pure).
//!
//! The rules look at the document's nodes, so that they can point at a line, and at fields whose shape is right, so
//! that one mistake is one fault. They run beside the schema's check, not after it.

use std::collections::BTreeSet;

use datapath::store::StoreError;
use datapath::store::address::Address;

pub mod build;
pub mod cluster;
mod pod;

use super::faults::{Fault, Place};
use super::schema::{Shape, join};
use super::source::{Node, Value};
use super::units::{Bytes, GpuMode, parse_duration};

/// Characters of a job's name: a DNS label has 63, and an id, a pod's index and a suffix are appended.
pub const NAME_CHARS_MAX: usize = 52;
/// Ranks of a job at the most: the rendezvous names each of them in one frame.
pub const RANKS_MAX: u64 = 1 << 20;
/// Shorter limits would take the time between two steps for a hang.
const HANG_MS_MIN: u128 = 1000;
/// The smallest huge page; amounts are multiples of it.
const HUGE_PAGE_BYTES: u64 = 2 << 20;
/// A data server with less holds no window of chunks beside its own needs.
const SERVER_MEMORY_MIN: u64 = 256 << 20;

/// Variables that Slipway sets for every rank (facts of torchrun's contract), besides `SLIPWAY_*` and `TORCHELASTIC_*`.
pub(crate) const OWN_VARIABLES: [&str; 10] = [
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
];

/// Those that it sets besides where the framework is jax.
const JAX_VARIABLES: [&str; 3] = ["JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"];

/// Every contradiction and impossible value in fields whose shape is right.
#[must_use]
pub fn check(root: &Node, shape: &Shape) -> Vec<Fault> {
    let mut rules = Rules::new(root, shape);
    rules.metadata();
    rules.workers();
    rules.run();
    rules.resources();
    rules.placement();
    rules.pod();
    if rules.find("spec.data").is_some() {
        rules.data();
    }
    rules.times();
    rules.faults
}

struct Rules<'a> {
    root: &'a Node,
    faulty: BTreeSet<&'a str>,
    faults: Vec<Fault>,
}

impl<'a> Rules<'a> {
    fn new(root: &'a Node, shape: &'a Shape) -> Self {
        let paths = shape.faults.iter().map(|fault| &fault.path).chain(&shape.guessed);
        let faulty = paths.filter(|path| !path.is_empty()).map(String::as_str).collect();
        Self { root, faulty, faults: Vec::new() }
    }

    fn metadata(&mut self) {
        if let Some((node, name)) = self.text("metadata.name")
            && let Err(hint) = dns_label(name, NAME_CHARS_MAX)
        {
            self.fault(&node.place, "metadata.name", format!("{name:?} is no name for a job"), hint);
        }
        for entry in entries(self.find("metadata.labels")) {
            let path = join("metadata.labels", &entry.key);
            if !is_label_key(&entry.key) {
                self.fault(
                    &entry.place,
                    &path,
                    "is no key of a label",
                    "letters, digits, - _ . and one prefix/",
                );
            }
            if let Value::Text(text) = &entry.node.value
                && !is_label_value(text)
            {
                let hint = "at most 63 letters, digits, - _ . with a letter or digit at both ends";
                self.fault(&entry.node.place, &path, "is no value of a label", hint);
            }
        }
    }

    fn workers(&mut self) {
        let count = self.integer("spec.workers.count", None);
        if let (Some(count), Some((node, min))) = (count, self.number("spec.workers.min"))
            && min > count
        {
            let message = format!("is {min}, more than the {count} workers of spec.workers.count");
            self.fault(&node.place, "spec.workers.min", message, "lower min or raise count");
        }
        let restarts = self.integer("spec.restarts.max", Some(3));
        if let (Some((node, spares @ 1..)), Some(0)) = (self.number("spec.workers.spares"), restarts) {
            let message = format!("is {spares}, but spares are never used while spec.restarts.max is 0");
            self.fault(&node.place, "spec.workers.spares", message, "remove the spares or allow restarts");
        }
        if let Some(ranks) = self.ranks()
            && ranks > RANKS_MAX
        {
            let place = self.place("spec.workers.count");
            let message = format!("makes {ranks} ranks, and {RANKS_MAX} are the limit");
            self.fault(&place, "spec.workers.count", message, "");
        }
    }

    fn run(&mut self) {
        let command = self.find("spec.run.command");
        if let Some(Node { value: Value::List(items), .. }) = command {
            if let Some(Node { place, value: Value::Text(program) }) = items.first() {
                self.program(place, program, items.len());
            }
            self.without_nul("spec.run.command", items.iter());
        }
        if let Some((node, _)) = self.text("spec.run.workdir") {
            self.without_nul("spec.run.workdir", std::iter::once(node));
        }
        let is_jax = self.text("spec.run.framework").is_some_and(|(_, framework)| framework == "jax");
        for entry in entries(self.find("spec.run.env")) {
            let path = join("spec.run.env", &entry.key);
            let name = entry.key.as_str();
            if name.is_empty() || name.contains(['=', '\0']) {
                self.fault(&entry.place, &path, "is no name for a variable", "it has no = and is not empty");
            } else if is_own_variable(name) || is_jax && JAX_VARIABLES.contains(&name) {
                self.fault(&entry.place, &path, "is set by Slipway for every rank", "remove it");
            }
            if matches!(&entry.node.value, Value::Text(text) if text.contains('\0')) {
                self.fault(&entry.node.place, &path, "contains a NUL character", "");
            }
        }
    }

    fn program(&mut self, place: &Place, program: &str, parts: usize) {
        let path = "spec.run.command[0]";
        if program.trim().is_empty() {
            self.fault(place, path, "is empty", "it names the program");
        } else if parts == 1 && program.contains(char::is_whitespace) {
            let words: Vec<&str> = program.split_whitespace().collect();
            let hint = format!("no shell splits it: write [{}]", words.join(", "));
            self.fault(place, path, "is one word, the program's name, and contains a space", hint);
        }
    }

    fn without_nul(&mut self, path: &str, nodes: impl Iterator<Item = &'a Node>) {
        for node in nodes {
            if matches!(&node.value, Value::Text(text) if text.contains('\0')) {
                self.fault(&node.place, path, "contains a NUL character", "");
            }
        }
    }

    fn resources(&mut self) {
        let gpus = self.integer("spec.resources.gpus", Some(0));
        let nics = self.integer("spec.resources.nics", Some(0));
        let cpus = self.integer("spec.resources.cpus", Some(0));
        let ranks = self.integer("spec.run.ranksPerWorker", Some(1));
        if let (Some((node, mode)), Some(0)) = (self.text("spec.resources.gpuMode"), gpus) {
            let message = format!("is {mode}, but the workers have no GPUs");
            self.fault(&node.place, "spec.resources.gpuMode", message, "set spec.resources.gpus");
        }
        let mode: Option<GpuMode> =
            self.text("spec.resources.gpuMode").and_then(|(_, text)| text.parse().ok());
        if let (Some(gpus @ 1..), Some(ranks)) = (gpus, ranks)
            && mode.unwrap_or_default() != GpuMode::Shared
            && gpus % ranks != 0
        {
            let place = self.place("spec.resources.gpus");
            let message = format!("{gpus} GPUs cannot be shared out evenly over {ranks} ranks");
            let hint = format!("make it a multiple of spec.run.ranksPerWorker ({ranks})");
            self.fault(&place, "spec.resources.gpus", message, hint);
        }
        if let (Some(cpus @ 1..), Some(ranks)) = (cpus, ranks)
            && cpus < ranks
        {
            let place = self.place("spec.resources.cpus");
            let message = format!("{cpus} CPUs are fewer than the worker's {ranks} ranks");
            self.fault(&place, "spec.resources.cpus", message, format!("at least {ranks}, or leave it out"));
        }
        let locality = self.text("spec.resources.locality").map(|(node, text)| (&node.place, text));
        match (locality, gpus, nics, cpus) {
            (Some((place, "pcie")), Some(gpus), Some(nics), _) if gpus == 0 || nics == 0 => {
                let message = "is pcie, which is about a GPU and a NIC, and the workers lack one of them";
                let hint = "set spec.resources.gpus and spec.resources.nics, or use numa";
                self.fault(place, "spec.resources.locality", message, hint);
            }
            (Some((place, "numa")), Some(0), Some(0), Some(0)) => {
                let message =
                    "is numa, but the workers have no GPUs, NICs or CPUs of their own to keep together";
                self.fault(
                    place,
                    "spec.resources.locality",
                    message,
                    "set spec.resources.cpus, gpus or nics",
                );
            }
            _ => {}
        }
        self.memory();
    }

    fn memory(&mut self) {
        if let Some((node, Bytes(0))) = self.quantity("spec.resources.memory") {
            self.fault(
                &node.place,
                "spec.resources.memory",
                "must be more than 0",
                "leave it out for no request",
            );
        }
        if let Some((node, Bytes(bytes))) = self.quantity("spec.resources.hugepages")
            && !bytes.is_multiple_of(HUGE_PAGE_BYTES)
        {
            let message = "must be a multiple of a huge page (2Mi)";
            self.fault(&node.place, "spec.resources.hugepages", message, "write for example 4Gi");
        }
    }

    fn placement(&mut self) {
        if let Some(Node { value: Value::List(hosts), .. }) = self.find("spec.placement.exclude") {
            let mut seen = BTreeSet::new();
            for (index, host) in hosts.iter().enumerate() {
                let Value::Text(name) = &host.value else { continue };
                let path = format!("spec.placement.exclude[{index}]");
                let label = |part: &str| dns_label(part, 63).is_ok();
                if name.len() > 253 || !name.split('.').all(label) {
                    self.fault(&host.place, &path, format!("{name:?} is no name of a host"), "");
                } else if !seen.insert(name) {
                    self.fault(&host.place, &path, format!("{name} is listed twice"), "remove one of them");
                }
            }
        }
        for path in ["spec.queue.name", "spec.queue.priority"] {
            if let Some((node, name)) = self.text(path)
                && let Err(hint) = name.split('.').try_for_each(|part| dns_label(part, 63))
            {
                self.fault(&node.place, path, format!("{name:?} is no name of a Kubernetes object"), hint);
            }
        }
    }

    fn data(&mut self) {
        if let (Some((node, batch)), Some(ranks)) = (self.number("spec.data.globalBatch"), self.ranks())
            && batch < ranks
        {
            let message = format!("{batch} samples a step are fewer than the job's {ranks} ranks");
            let hint = format!("every rank needs one: at least {ranks}, or use fewer ranks");
            self.fault(&node.place, "spec.data.globalBatch", message, hint);
        }
        if let (Some((node, _)), Some((_, "none"))) =
            (self.number("spec.data.shuffle.chunks"), self.text("spec.data.shuffle.mode"))
        {
            let message = "has no meaning while spec.data.shuffle.mode is none";
            self.fault(&node.place, "spec.data.shuffle.chunks", message, "remove it or use mode: window");
        }
        let gpus = self.integer("spec.resources.gpus", Some(0));
        if let (Some((node, memory @ ("gpu" | "pinned"))), Some(0)) = (self.text("spec.data.memory"), gpus) {
            let message = format!("is {memory}, but the workers have no GPUs");
            self.fault(
                &node.place,
                "spec.data.memory",
                message,
                "set spec.resources.gpus, or use auto or host",
            );
        }
        if let Some((node, source)) = self.text("spec.data.source") {
            if source.trim().is_empty() {
                self.fault(&node.place, "spec.data.source", "must not be empty", "name a folder of shards");
            }
            self.without_nul("spec.data.source", std::iter::once(node));
            if let Err(StoreError::BadAddress { what, .. }) = Address::parse(source) {
                self.fault(&node.place, "spec.data.source", "is no address", what);
            }
            self.data_secret(source);
        }
        self.local_tier();
        self.servers();
    }

    fn servers(&mut self) {
        for path in ["spec.data.servers.cpus", "spec.data.servers.memory", "spec.data.servers.nodeSelector"] {
            if let (Some(node), Some(0)) = (self.find(path), self.integer("spec.data.servers.count", None)) {
                let message = "has no meaning while spec.data.servers.count is 0";
                self.fault(&node.place, path, message, "remove it, or have servers");
            }
        }
        let path = "spec.data.servers.memory";
        if let Some((node, Bytes(bytes))) = self.quantity(path)
            && bytes < SERVER_MEMORY_MIN
        {
            let hint = "three quarters of it hold chunks; leave it out for the default of 4Gi";
            self.fault(&node.place, path, "must be at least 256Mi", hint);
        }
        self.node_selector("spec.data.servers.nodeSelector");
    }

    fn local_tier(&mut self) {
        if let Some((node, Bytes(0))) = self.quantity("spec.data.localTier.size") {
            let hint = "write for example 200Gi, or remove spec.data.localTier";
            self.fault(&node.place, "spec.data.localTier.size", "keeps nothing", hint);
        }
        let path = "spec.data.localTier.folder";
        if let Some((node, folder)) = self.text(path) {
            if folder.trim().is_empty() {
                self.fault(&node.place, path, "must not be empty", "name a folder, or remove it");
            }
            if folder.contains("://") {
                self.fault(&node.place, path, "is an address", "name a folder of a local disk");
            }
            self.without_nul(path, std::iter::once(node));
        }
    }

    /// The Secret with the store's credentials.
    fn data_secret(&mut self, source: &str) {
        let path = "spec.data.secret";
        let Some((node, name)) = self.text(path) else { return };
        self.object_name(&node.place, path, name);
        self.no_identities(&node.place, path, name);
        match Address::parse(source) {
            Ok(Address::Directory(_)) => {
                let hint = "make a volume of it in spec.pod.volumes, or remove it";
                self.fault(&node.place, path, "is for rados:// and s3://, and the source is a folder", hint);
            }
            Ok(address) if address.credentials().is_some() => {
                let message = "is one place of credentials, and the source names another";
                self.fault(&node.place, path, message, "remove one of them");
            }
            // What is wrong with the address is said of it.
            _ => {}
        }
    }

    fn times(&mut self) {
        let millis = |rules: &Self, path: &str, default: u128| match rules.text(path) {
            Some((_, text)) => parse_duration(text).ok().map(|duration| duration.as_millis()),
            None if rules.faulty.contains(path) => None,
            None => Some(default),
        };
        let max = self.integer("spec.restarts.max", Some(3));
        let window = millis(self, "spec.restarts.window", 3_600_000);
        let backoff = millis(self, "spec.restarts.backoff", 1000);
        if let (Some(1..), Some(window), Some(backoff)) = (max, window, backoff) {
            if window == 0 {
                let place = self.place("spec.restarts.window");
                let message = "must be more than 0 while restarts are allowed";
                self.fault(&place, "spec.restarts.window", message, "restarts older than this are forgotten");
            } else if backoff >= window {
                let place = self.place("spec.restarts.backoff");
                let message = "is no shorter than spec.restarts.window, so restarts would never run out";
                self.fault(&place, "spec.restarts.backoff", message, "shorten it or lengthen the window");
            }
        }
        if let (Some((node, _)), true) = (self.text("spec.hang.timeout"), self.is_known_absent("spec.data")) {
            let message = "has no meaning without spec.data: steps are seen only where they are fed";
            let hint =
                "remove it, or let spec.data feed the ranks; torch's own collectives have a timeout, too";
            self.fault(&node.place, "spec.hang.timeout", message, hint);
        }
        if millis(self, "spec.hang.timeout", u128::MAX).is_some_and(|timeout| timeout < HANG_MS_MIN) {
            let place = self.place("spec.hang.timeout");
            let hint = "it must be longer than the slowest step; leave it out for never";
            self.fault(&place, "spec.hang.timeout", "must be at least 1s", hint);
        }
    }

    /// Ranks of the whole job, if the numbers that make them are sound.
    fn ranks(&self) -> Option<u64> {
        let ranks = self.integer("spec.run.ranksPerWorker", Some(1))?;
        self.integer("spec.workers.count", None)?.checked_mul(ranks)
    }

    fn fault(&mut self, place: &Place, path: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.faults.push(Fault::new(place, path, message).hint(hint));
    }

    /// Whether a field, or a mapping that it is in, has the wrong shape.
    fn is_faulty(&self, path: &str) -> bool {
        let ends = path.match_indices('.').map(|(end, _)| end).chain([path.len()]);
        ends.into_iter().any(|end| self.faulty.contains(&path[..end]))
    }

    fn is_known_absent(&self, path: &str) -> bool {
        !self.is_faulty(path) && self.find(path).is_none()
    }

    /// A field's node, unless its shape is wrong.
    fn find(&self, path: &str) -> Option<&'a Node> {
        if self.is_faulty(path) {
            return None;
        }
        path.split('.').try_fold(self.root, |node, key| node.entry(key).map(|entry| &entry.node))
    }

    /// Where a field was written; else where the nearest part of its path was.
    fn place(&self, path: &str) -> Place {
        let mut node = self.root;
        for key in path.split('.') {
            match node.entry(key) {
                Some(entry) => node = &entry.node,
                None => break,
            }
        }
        node.place.clone()
    }

    fn text(&self, path: &str) -> Option<(&'a Node, &'a str)> {
        match self.find(path) {
            Some(node @ Node { value: Value::Text(text), .. }) => Some((node, text)),
            _ => None,
        }
    }

    fn number(&self, path: &str) -> Option<(&'a Node, u64)> {
        match self.find(path) {
            Some(node @ Node { value: Value::Integer(number), .. }) => {
                Some((node, u64::try_from(*number).ok()?))
            }
            _ => None,
        }
    }

    /// A number, or its default where it is not given; none where what is given is no such number.
    fn integer(&self, path: &str, default: Option<u64>) -> Option<u64> {
        match self.number(path) {
            Some((_, number)) => Some(number),
            None if self.is_known_absent(path) => default,
            None => None,
        }
    }

    fn quantity(&self, path: &str) -> Option<(&'a Node, Bytes)> {
        match self.find(path)? {
            node @ Node { value: Value::Text(text), .. } => Some((node, text.parse().ok()?)),
            node @ Node { value: Value::Integer(bytes), .. } => {
                Some((node, Bytes(u64::try_from(*bytes).ok()?)))
            }
            _ => None,
        }
    }
}

fn entries(node: Option<&Node>) -> &[super::source::Entry] {
    match node {
        Some(Node { value: Value::Map(entries), .. }) => entries,
        _ => &[],
    }
}

fn is_own_variable(name: &str) -> bool {
    OWN_VARIABLES.contains(&name) || name.starts_with("SLIPWAY_") || name.starts_with("TORCHELASTIC_")
}

/// RFC 1123, section 2.1, in lower case.
fn dns_label(name: &str, chars_max: usize) -> Result<(), String> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if !name.is_empty()
        && name.len() <= chars_max
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
    {
        return Ok(());
    }
    let mut proposal: String =
        name.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    proposal.truncate(chars_max);
    let proposal = proposal.trim_matches('-');
    if proposal.is_empty() {
        Err(format!("1 to {chars_max} lower-case letters, digits and -"))
    } else {
        Err(format!("1 to {chars_max} lower-case letters, digits and -; for example {proposal}"))
    }
}

/// A name for a job out of any text, such as a script's file name.
#[must_use]
pub fn name_from(text: &str) -> String {
    let mut name = String::new();
    for c in text.to_lowercase().chars() {
        match c {
            'a'..='z' | '0'..='9' => name.push(c),
            _ if !name.is_empty() && !name.ends_with('-') => name.push('-'),
            _ => {}
        }
    }
    name.truncate(NAME_CHARS_MAX);
    let name = name.trim_end_matches('-');
    if name.is_empty() { "job".to_owned() } else { name.to_owned() }
}

fn is_label_value(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_none_or(|b| b.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && edge(text.bytes().next())
        && edge(text.bytes().last())
}

fn is_label_key(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let prefix_is_sound = prefix.is_none_or(|prefix| {
        prefix.len() <= 253 && prefix.split('.').all(|part| dns_label(part, 63).is_ok())
    });
    !name.is_empty() && is_label_value(name) && prefix_is_sound
}

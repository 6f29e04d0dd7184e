//! What could not be found out, gathered by reason so that a thousand hosts make one line (pure).

use std::collections::{BTreeMap, BTreeSet};

/// Hosts that a line names; of the others it says how many.
const HOSTS_NAMED_MAX: usize = 3;

/// Reasons, each with the hosts that it holds for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unknown {
    reasons: BTreeMap<String, BTreeSet<String>>,
}

impl Unknown {
    /// Something that is not known of a host.
    pub fn of_host(&mut self, reason: impl Into<String>, host: &str) {
        self.reasons.entry(reason.into()).or_default().insert(host.to_owned());
    }

    /// Something that is not known of the cluster.
    pub fn of_all(&mut self, reason: impl Into<String>) {
        self.reasons.entry(reason.into()).or_default();
    }

    /// One line each, in order.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let line = |(reason, hosts): (&String, &BTreeSet<String>)| {
            if hosts.is_empty() { reason.clone() } else { format!("{reason}: {}", these(hosts)) }
        };
        self.reasons.iter().map(line).collect()
    }
}

/// `host a`, `2 hosts (a, b)`, `12 hosts (a, b, c and 9 more)`.
#[must_use]
pub fn these(hosts: &BTreeSet<String>) -> String {
    let named: Vec<&str> = hosts.iter().map(String::as_str).take(HOSTS_NAMED_MAX).collect();
    let more = hosts.len() - named.len();
    match (hosts.len(), more) {
        (1, _) => format!("host {}", named.join("")),
        (count, 0) => format!("{count} hosts ({})", named.join(", ")),
        (count, more) => format!("{count} hosts ({} and {more} more)", named.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_hosts_make_one_line() {
        let mut unknown = Unknown::default();
        unknown.of_all("b");
        unknown.of_host("a", "n1");
        assert_eq!(unknown.lines(), ["a: host n1", "b"]);
        for number in 0..1000 {
            unknown.of_host("a", &format!("n{number}"));
        }
        assert_eq!(unknown.lines(), ["a: 1000 hosts (n0, n1, n10 and 997 more)", "b"]);
    }
}

//! How a diagnosis is shown to people (pure): by locality, the one that asks least first.

use std::collections::BTreeMap;

use super::{Finding, LOCALITIES, Severity, Verdict};
use crate::job::spec::Locality;
use crate::topology::kubernetes::unknown::these;

/// The whole diagnosis. `fabric` is one line about the fabric's labels.
#[must_use]
pub fn render(findings: &[Finding], verdicts: &[Verdict], fabric: &str) -> String {
    let mut text = String::new();
    let mut by_locality: BTreeMap<Locality, Vec<&Finding>> = BTreeMap::new();
    for finding in findings {
        let first = finding.localities.first().copied().unwrap_or_default();
        by_locality.entry(first).or_default().push(finding);
    }
    for verdict in verdicts {
        let words = asks(verdict.locality);
        let name = name(verdict.locality);
        if verdict.works {
            text.push_str(&format!("locality {name} ({words}): works\n"));
        } else {
            let because = verdict.because.join(", ");
            text.push_str(&format!("locality {name} ({words}): does not work: {because}\n"));
        }
    }
    for locality in LOCALITIES {
        let Some(findings) = by_locality.get(&locality) else { continue };
        text.push_str(&format!("\n{}\n", concerns(locality)));
        findings.iter().for_each(|finding| text.push_str(&one(finding)));
    }
    text.push_str(&format!("\nfabric: {fabric}\n"));
    text
}

fn one(finding: &Finding) -> String {
    let Finding { code, severity, hosts, what, why, fix, .. } = finding;
    let severity = match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    };
    let on = if hosts.is_empty() { String::new() } else { format!(" on {}", these(hosts)) };
    format!("  {severity} {code}{on}: {what}\n    why: {why}\n    fix: {fix}\n")
}

/// The word of the job file.
#[must_use]
pub fn name(locality: Locality) -> &'static str {
    match locality {
        Locality::None => "none",
        Locality::Numa => "numa",
        Locality::Pcie => "pcie",
    }
}

fn asks(locality: Locality) -> &'static str {
    match locality {
        Locality::None => "devices anywhere on a host",
        Locality::Numa => "GPUs, NICs, CPUs and memory on one NUMA node",
        Locality::Pcie => "each GPU with a NIC behind one PCIe root",
    }
}

fn concerns(locality: Locality) -> &'static str {
    match locality {
        Locality::None => "every job:",
        Locality::Numa => "jobs that ask for locality: numa (or pcie):",
        Locality::Pcie => "jobs that ask for locality: pcie:",
    }
}

//! Checks of the control plane (pure): its version, our kind, the controller, and what we may do.

use super::{
    ADMISSION_POLICY, CLOSE, CONTROLLER, EVERY, Finding, NAMESPACE, RENDEZVOUS, Report, Severity, Source, crd,
};
use crate::backend::kubernetes::names::api_version;

/// Before this minor version of Kubernetes 1, init containers that stay (sidecars) are unknown or off.
const SIDECARS_MINOR: u32 = 29;
/// From this one on they are stable; before it, the kubelet's resource managers counted them wrongly.
const SIDECARS_STABLE_MINOR: u32 = 33;
/// Fields that a finding names.
const FIELDS_NAMED_MAX: usize = 5;

pub(super) fn examine(report: &Report, findings: &mut Vec<Finding>) {
    version(report, findings);
    kind(report, findings);
    access(report, findings);
    controller(report, findings);
    beside(report, findings);
}

fn version(report: &Report, findings: &mut Vec<Finding>) {
    let (major, minor) = report.version;
    if major > 1 || minor >= SIDECARS_STABLE_MINOR {
        return;
    }
    let what = format!("the API server is Kubernetes {major}.{minor}");
    findings.push(if minor < SIDECARS_MINOR {
        Finding::new(
            "server-too-old",
            Severity::Error,
            EVERY,
            what,
            "the sidecar must start before the ranks and outlive them, and this version has no such containers",
            format!("upgrade to 1.{SIDECARS_STABLE_MINOR} or newer"),
        )
    } else {
        Finding::new(
            "sidecars-unstable",
            Severity::Warning,
            CLOSE,
            what,
            "before 1.33 the kubelet's CPU, memory and topology managers counted sidecars wrongly",
            format!("upgrade to 1.{SIDECARS_STABLE_MINOR} or newer"),
        )
    });
}

fn kind(report: &Report, findings: &mut Vec<Finding>) {
    if !report.served.contains(&api_version()) {
        findings.push(Finding::new(
            "kind-missing",
            Severity::Error,
            EVERY,
            format!("the API server does not know TrainingJob ({})", api_version()),
            "there is nothing to submit a job as",
            "install Slipway: kubectl apply -k deploy/kustomize/base, or the Helm chart",
        ));
        return;
    }
    let Some(differences) = report.crd.known().and_then(crd::compare) else { return };
    let fix =
        |age: &str| format!("bring both to one version: the cluster's Slipway is {age} than this launcher");
    let named = |fields: &std::collections::BTreeSet<String>| {
        let named: Vec<&str> = fields.iter().map(String::as_str).take(FIELDS_NAMED_MAX).collect();
        let more = fields.len() - named.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{}{more}", named.iter().map(|field| format!("spec.{field}")).collect::<Vec<_>>().join(", "))
    };
    if !differences.missing.is_empty() {
        findings.push(Finding::new(
            "kind-older",
            Severity::Warning,
            EVERY,
            format!("the cluster's TrainingJob lacks {}", named(&differences.missing)),
            "a job that sets one of these fields is refused",
            fix("older"),
        ));
    } else if !differences.unknown.is_empty() {
        findings.push(Finding::new(
            "kind-newer",
            Severity::Note,
            EVERY,
            format!("this launcher does not know {}", named(&differences.unknown)),
            "a job file that sets one of these fields is refused here",
            fix("newer"),
        ));
    }
}

fn access(report: &Report, findings: &mut Vec<Finding>) {
    let denied = report.access.iter().filter(|access| !access.allowed);
    let denied: Vec<_> = denied.map(|access| format!("{} {}", access.verb, access.resource)).collect();
    if denied.is_empty() {
        return;
    }
    let namespace = &report.namespace;
    findings.push(Finding::new(
        "access-denied",
        Severity::Error,
        EVERY,
        format!("you may not {} in namespace {namespace}", denied.join(", ")),
        "submitting a job and following it needs each of these",
        format!(
            "ask for: kubectl create rolebinding NAME -n {namespace} --clusterrole slipway-submitter --user YOU"
        ),
    ));
}

/// A controller that renews its lease is there, wherever it runs: only without one is it asked why.
fn controller(report: &Report, findings: &mut Vec<Finding>) {
    let controller = &report.controller;
    let lease = controller.lease.known();
    let lives = lease.is_some_and(|lease| lease.renewed);
    let why = "jobs are accepted, and nobody starts them";
    let error = |code, what: String, fix: String| Finding::new(code, Severity::Error, EVERY, what, why, fix);
    let logs = format!("look at why: kubectl logs -n {NAMESPACE} deployment/{CONTROLLER}");
    let replicas = |field: &str| controller.deployment.known()?.pointer(field)?.as_i64();
    match (&controller.deployment, &controller.lease) {
        _ if lives => {}
        (Source::Absent, Source::Absent | Source::Known(_)) => {
            let what = format!(
                "there is no controller (no Deployment {CONTROLLER} in {NAMESPACE}, and no live lease)"
            );
            let fix = "install Slipway: kubectl apply -k deploy/kustomize/base, or the Helm chart";
            findings.push(error("controller-missing", what, fix.to_owned()));
            return;
        }
        (Source::Known(_), _) if replicas("/status/readyReplicas").unwrap_or(0) < 1 => {
            let wanted = replicas("/spec/replicas").unwrap_or(1);
            let what = format!("no controller is ready (0 of {wanted} in {NAMESPACE})");
            let fix = format!("kubectl describe pods -n {NAMESPACE} says why they do not start");
            findings.push(error("controller-not-ready", what, fix));
        }
        (Source::Known(_), Source::Absent) => {
            let what = format!("the controllers elected no leader (no Lease {CONTROLLER} in {NAMESPACE})");
            findings.push(error("lease-missing", what, logs));
        }
        (Source::Known(_), Source::Known(lease)) => {
            let what = format!(
                "the leader {:?} has not renewed its lease in {} s",
                lease.holder, lease.watched_seconds
            );
            findings.push(error("lease-stale", what, logs));
        }
        // What may not be read is not missing.
        (Source::Refused(_), _) | (_, Source::Refused(_)) => {}
    }
    if matches!(controller.service, Source::Absent) && matches!(controller.deployment, Source::Known(_)) {
        findings.push(Finding::new(
            "service-missing",
            Severity::Error,
            EVERY,
            format!("there is no Service {RENDEZVOUS} in {NAMESPACE}"),
            "workers meet through it: without it none finds the launcher",
            "install Slipway again: kubectl apply -k deploy/kustomize/base, or the Helm chart",
        ));
    }
}

/// What jobs run without, and worse.
fn beside(report: &Report, findings: &mut Vec<Finding>) {
    let controller = &report.controller;
    if matches!(controller.deployment, Source::Absent) {
        // Said already, and all the rest with it.
        return;
    }
    if matches!(controller.flow_schema, Source::Absent) {
        findings.push(Finding::new(
            "flow-schema-missing",
            Severity::Warning,
            EVERY,
            format!("there is no FlowSchema {CONTROLLER}"),
            "the controller's requests wait behind those of all other service accounts: large gangs start slowly",
            "kubectl apply -k deploy/kustomize/base has it, and its priority level",
        ));
    }
    if matches!(controller.admission_policy, Source::Absent) {
        findings.push(Finding::new(
            "admission-policy-missing",
            Severity::Warning,
            EVERY,
            format!("there is no ValidatingAdmissionPolicy {ADMISSION_POLICY}"),
            "whoever may patch pods may lift the gate and start half a gang",
            "kubectl apply -k deploy/kustomize/base has it, and its binding",
        ));
    }
    if !report.served.is_empty() && !report.serves("jobset.x-k8s.io") {
        findings.push(Finding::new(
            "jobset-missing",
            Severity::Note,
            EVERY,
            "JobSet is not installed",
            "jobs run as an Indexed Job with a headless Service; queues that only know JobSets do not see them",
            "install JobSet 0.12 or newer if you want it",
        ));
    }
}

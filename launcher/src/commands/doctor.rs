//! `launcher doctor`: reads a cluster, says what it lacks.

use serde::Serialize;

use crate::backend::kubernetes::client::connect;
use crate::cli::cluster::Doctor;
use crate::doctor::{Finding, Verdict, collect, examine, text, verdicts};
use crate::error::{ExitCode, Failure};
use crate::job::spec::Locality;
use crate::output::Printer;
use crate::topology::levels::Chosen;

/// What is printed.
#[derive(Serialize)]
struct Diagnosis {
    localities: Vec<Verdict>,
    findings: Vec<Finding>,
    fabric: Chosen,
    /// What placement does not know, in its own words.
    unknown: Vec<String>,
}

/// Runs it. A cluster on which no job can run is a code, since it has been told by then.
///
/// # Errors
/// When the cluster cannot be reached.
pub async fn run(flags: &Doctor, printer: Printer) -> Result<ExitCode, Failure> {
    let (client, namespace) = connect(&flags.cluster).await?;
    let report = collect::collect(&client, &namespace, flags.levels.levels()).await?;
    let findings = examine(&report);
    let localities = verdicts(&findings);
    let (cluster, fabric) = report.cluster();
    let diagnosis = Diagnosis { localities, findings, fabric, unknown: cluster.unknown };
    printer.data(&diagnosis, |diagnosis| {
        text::render(&diagnosis.findings, &diagnosis.localities, &diagnosis.fabric.to_string())
    })?;
    let runs = diagnosis.localities.iter().any(|one| one.locality == Locality::None && one.works);
    Ok(if runs { ExitCode::Ok } else { ExitCode::Unavailable })
}

//! `launcher crd`: the custom resource for a cluster.

use crate::backend::kubernetes::crd::definition;
use crate::error::{ExitCode, Failure};
use crate::output::{Printer, yaml};

/// Prints the definition, as YAML or as JSON.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(printer: Printer) -> Result<ExitCode, Failure> {
    let definition = definition();
    if printer.json {
        printer.json(&definition)?;
    } else {
        let text = yaml::documents(&[definition])
            .map_err(|error| Failure::new(ExitCode::Internal, "failed to print YAML").because(&error))?;
        printer.text(&text)?;
    }
    Ok(ExitCode::Ok)
}

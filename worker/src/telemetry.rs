//! The worker's own log: to standard error, as text or as one JSON object per line.

use tracing_subscriber::EnvFilter;

/// Chooses what is logged (tracing's filter syntax); `info` without it.
pub const FILTER_VARIABLE: &str = "SLIPWAY_LOG";
/// `json` for one JSON object per line, anything else for text.
pub const FORMAT_VARIABLE: &str = "SLIPWAY_LOG_FORMAT";

/// Sets the process's log up; a second call changes nothing. `variable` looks an environment variable up.
pub fn init(variable: impl Fn(&str) -> Option<String>) {
    let filter = variable(FILTER_VARIABLE)
        .and_then(|filter| EnvFilter::try_new(filter).ok())
        .unwrap_or_else(|| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Fails only when a subscriber is set already, as in a launcher that runs the agent in its own process.
    let _ = if variable(FORMAT_VARIABLE).as_deref() == Some("json") {
        builder.json().try_init()
    } else {
        builder.with_ansi(false).with_target(false).try_init()
    };
}

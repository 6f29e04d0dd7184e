//! How things are shown: data on standard output, everything else on standard error, readable without colour.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::cli::{ColorWhen, Global, OutputFormat};
use crate::config::Config;
use crate::error::{ExitCode, Failure};

pub mod job;
pub mod progress;
pub mod yaml;

/// What is said, and how.
#[derive(Clone, Copy, Debug)]
pub struct Printer {
    /// JSON instead of text.
    pub json: bool,
    /// Only data and errors.
    pub quiet: bool,
    /// Escape sequences on standard error.
    pub color: bool,
    /// Standard error is a terminal that can redraw lines.
    pub redraws: bool,
}

impl Printer {
    /// What the flags, the environment and the terminal say together.
    #[must_use]
    pub fn new(global: &Global, config: &Config) -> Self {
        let terminal = io::stderr().is_terminal();
        Self {
            json: global.output == OutputFormat::Json,
            quiet: global.quiet,
            color: match global.color {
                ColorWhen::Always => true,
                ColorWhen::Never => false,
                ColorWhen::Auto => config.color.unwrap_or(terminal),
            },
            redraws: terminal && !config.dumb_terminal,
        }
    }

    /// Data as text.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn text(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
    }

    /// Data as one JSON document.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| Failure::new(ExitCode::Internal, "failed to print JSON").because(&error))?;
        self.text(&format!("{text}\n"))
    }

    /// One of many values, as one line.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn json_line(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value)
            .map_err(|error| Failure::new(ExitCode::Internal, "failed to print JSON").because(&error))?;
        self.text(&format!("{text}\n"))
    }

    /// Text for people, or the same as JSON.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn data<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        if self.json { self.json(value) } else { self.text(&text(value)) }
    }

    /// A remark on standard error, unless nobody wants any.
    pub fn note(&self, text: impl fmt::Display) {
        if !self.quiet {
            self.error_text(&format!("{text}\n"));
        }
    }

    /// Something that must be seen, on standard error.
    pub fn error_text(&self, text: &str) {
        // There is nobody left to tell when standard error is gone.
        io::stderr().lock().write_all(self.painted(text).as_bytes()).ok();
    }

    /// A failure, once: on standard error, and in JSON mode also as a document on standard output.
    pub fn failure(&self, failure: &Failure) {
        if self.json {
            // There is nobody left to tell when standard output is gone, too.
            error_document(failure).ok();
        }
        self.error_text(&format!("{failure}\n"));
    }

    fn painted(&self, text: &str) -> String {
        if !self.color {
            return text.to_owned();
        }
        let paint = |line: &str| {
            let trimmed = line.trim_start();
            let indent = &line[..line.len() - trimmed.len()];
            for (word, color) in
                [("error:", "1;31"), ("warning:", "1;33"), ("hint:", "1;36"), ("because:", "1")]
            {
                if let Some(rest) = trimmed.strip_prefix(word) {
                    return format!("{indent}\x1b[{color}m{word}\x1b[0m{rest}");
                }
            }
            line.to_owned()
        };
        text.split('\n').map(paint).collect::<Vec<_>>().join("\n")
    }
}

/// Prints a failure as a JSON document on standard output.
///
/// # Errors
/// When that cannot be written.
pub fn error_document(failure: &Failure) -> io::Result<()> {
    let document = serde_json::json!({ "error": failure });
    writeln!(io::stdout().lock(), "{document:#}")
}

/// A reader that closes its end (`| head`) ends the command without a word.
fn written(result: io::Result<()>) -> Result<(), Failure> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::new(ExitCode::Ok, "the reader of standard output is gone"),
        _ => Failure::new(ExitCode::CannotCreate, "failed to write to standard output").because(&error),
    })
}

/// Bytes for people: `512 B`, `1.2 GiB`.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    let mut unit = "B";
    let mut value = as_f64(bytes);
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// Seconds for people: `0.8 s`, `3m12s`.
#[must_use]
pub fn seconds(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = std::time::Duration::try_from_secs_f64(seconds.round()).unwrap_or_default();
    crate::job::units::format_duration(whole)
}

#[expect(clippy::cast_precision_loss, reason = "shown with a few digits")]
pub(crate) fn as_f64(number: u64) -> f64 {
    number as f64
}

/// Columns, aligned; the last one is not padded.
#[must_use]
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(seconds(0.84), "0.8 s");
        assert_eq!(seconds(192.4), "3m12s");
        assert_eq!(seconds(f64::INFINITY), "0s");
    }

    #[test]
    fn columns_are_aligned_without_trailing_spaces() {
        let rows = [vec!["ID".to_owned(), "X".to_owned()], vec!["a".to_owned(), String::new()]];
        assert_eq!(table(&rows), "ID  X\na\n");
    }

    #[test]
    fn colour_is_only_around_words() {
        let printer = Printer { json: false, quiet: false, color: true, redraws: false };
        assert_eq!(
            printer.painted("error: x\n  hint: y"),
            "\x1b[1;31merror:\x1b[0m x\n  \x1b[1;36mhint:\x1b[0m y"
        );
    }
}

//! The progress of an attached job, on standard error: one line that is redrawn on a terminal, a plain line every few
//! seconds elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::job::{metrics, paths, phase, rate};
use super::{Printer, seconds};
use crate::backend::{Phase, Progress, ProgressEvent};

/// Between two plain lines: often enough to see that it lives, rare enough for a log file.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// Shows progress events.
#[derive(Debug)]
pub struct View {
    printer: Printer,
    bar: Option<ProgressBar>,
    shown: Option<Instant>,
}

impl View {
    /// Nothing is shown before the first event.
    #[must_use]
    pub fn new(printer: Printer) -> Self {
        let bar = (printer.redraws && !printer.quiet).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(style("{spinner} {msg}"));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { printer, bar, shown: None }
    }

    /// Shows one event.
    #[expect(clippy::disallowed_methods, reason = "the terminal's pace is this shell's own")]
    pub fn take(&mut self, event: &ProgressEvent) {
        if let ProgressEvent::Progress(progress) = event {
            let now = Instant::now();
            let due = self.shown.is_none_or(|shown| now.duration_since(shown) >= PLAIN_INTERVAL);
            match &self.bar {
                Some(bar) => draw(bar, progress),
                None if due => {
                    self.printer.note(plain(progress));
                    self.shown = Some(now);
                }
                None => {}
            }
            return;
        }
        let Some(text) = sentence(event) else { return };
        match &self.bar {
            Some(bar) => bar.suspend(|| self.printer.note(text)),
            None => self.printer.note(text),
        }
    }

    /// Clears the line, so that what follows begins at its start.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn draw(bar: &ProgressBar, progress: &Progress) {
    if let Some(total) = progress.steps_total
        && bar.length() != Some(total.0)
    {
        bar.set_length(total.0);
        bar.set_style(style("[{bar:24}] {pos}/{len} steps, {msg}"));
    }
    bar.set_position(progress.step.0);
    bar.set_message(numbers(progress));
}

fn plain(progress: &Progress) -> String {
    let steps = match progress.steps_total {
        Some(total) => format!("step {}/{total}", progress.step),
        None => format!("step {}", progress.step),
    };
    format!("{steps}, {}", numbers(progress))
}

fn numbers(progress: &Progress) -> String {
    let mut text = format!(
        "{:.1} samples/s, {}, from {}",
        progress.samples_per_second,
        rate(progress.bytes_per_second),
        paths(&progress.paths)
    );
    if !progress.reported.is_empty() {
        text.push_str("; ");
        text.push_str(&metrics(&progress.reported));
    }
    text
}

/// What an event says; none for those that are only drawn.
fn sentence(event: &ProgressEvent) -> Option<String> {
    match event {
        // On a cluster there is no folder.
        ProgressEvent::Submitted { id, folder } if folder.as_os_str().is_empty() => Some(format!("job {id}")),
        ProgressEvent::Submitted { id, folder } => {
            Some(format!("job {id}, state and logs in {}", folder.display()))
        }
        // Its end is told by the summary.
        ProgressEvent::Phase { phase, .. } if phase.is_over() => None,
        ProgressEvent::Phase { phase: Phase::Running, generation, .. } if generation.0 <= 1 => {
            Some("running".to_owned())
        }
        ProgressEvent::Phase { phase: now, generation, message } => {
            let name = phase(*now);
            let which = if generation.0 > 1 { format!(" (generation {generation})") } else { String::new() };
            let why = match now {
                _ if message.is_empty() => String::new(),
                Phase::Gathering | Phase::Preflight | Phase::Assigned | Phase::Joining => {
                    format!(": waiting for {message}")
                }
                _ => format!(": {message}"),
            };
            Some(format!("{name}{which}{why}"))
        }
        ProgressEvent::Restarting { cause, restart, restarts_max, backoff_ms, from_step } => {
            let who = cause.rank.map(|rank| format!("rank {rank}: ")).unwrap_or_default();
            let first = cause.message.lines().next().unwrap_or_default();
            let wait = seconds(super::as_f64(*backoff_ms) / 1000.0);
            Some(format!(
                "warning: {who}{first}; restart {restart} of {restarts_max} from step {from_step} in {wait}"
            ))
        }
        ProgressEvent::Warning { code, message } => Some(format!("warning: {message} ({code})")),
        ProgressEvent::Cancelling { now: false } => {
            Some("cancelling: the ranks are asked to stop; interrupt again to kill them".to_owned())
        }
        ProgressEvent::Cancelling { now: true } => Some("cancelling at once".to_owned()),
        ProgressEvent::Progress(_) | ProgressEvent::Reported { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use worker::units::{Generation, Rank, Step};

    use super::*;
    use crate::backend::{Cause, CauseCode, Paths};

    #[test]
    fn events_read_as_sentences() {
        let cause = Cause {
            code: CauseCode::Signal,
            rank: Some(Rank(1)),
            worker: None,
            host: None,
            generation: Generation(1),
            exit: None,
            message: "ended by signal 9 (SIGKILL)\nmore".to_owned(),
            hint: String::new(),
            log_tail: Vec::new(),
            seen_unix_ms: 0,
        };
        let phase = |phase, generation, message: &str| ProgressEvent::Phase {
            phase,
            generation: Generation(generation),
            message: message.to_owned(),
        };
        let events = [
            ProgressEvent::Submitted { id: "digits-1a2b".to_owned(), folder: "/jobs/digits-1a2b".into() },
            phase(Phase::Gathering, 1, "workers 2, 3"),
            phase(Phase::Running, 1, ""),
            ProgressEvent::Restarting {
                cause,
                restart: 1,
                restarts_max: 3,
                backoff_ms: 1500,
                from_step: Step(40),
            },
            phase(Phase::Running, 2, ""),
            ProgressEvent::Warning {
                code: "no_huge_pages".to_owned(),
                message: "small pages are used".to_owned(),
            },
            ProgressEvent::Cancelling { now: false },
            phase(Phase::Failed, 2, ""),
        ];
        let mut said = String::new();
        for event in &events {
            writeln!(said, "{}", sentence(event).unwrap_or_else(|| "(nothing)".to_owned())).unwrap();
        }
        insta::assert_snapshot!("sentences", said);
    }

    #[test]
    fn a_plain_line_has_the_numbers() {
        let progress = Progress {
            step: Step(120),
            steps_total: Some(Step(210)),
            samples_per_second: 436.87,
            bytes_per_second: 1.25e9,
            paths: Paths { local: 1, quic: 3, rdma: 0 },
            reported: [("loss".to_owned(), 0.25)].into(),
            ..Progress::default()
        };
        assert_eq!(
            plain(&progress),
            "step 120/210, 436.9 samples/s, 1.25 GB/s, from local 25%, quic 75%; loss 0.25"
        );
    }
}

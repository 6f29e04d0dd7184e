//! What the planes of these tests say: the reasons of their warnings, and of what they only mention.

use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Level, span};

/// Hears all of it.
#[derive(Debug)]
pub(in crate::plane::tests) struct Warnings;

static REASONS: Mutex<Vec<(Level, String)>> = Mutex::new(Vec::new());

fn heard(is_wanted: impl Fn(Level) -> bool) -> Vec<String> {
    let reasons = REASONS.lock().unwrap_or_else(PoisonError::into_inner);
    reasons.iter().filter(|(level, _)| is_wanted(*level)).map(|(_, reason)| reason.clone()).collect()
}

impl Warnings {
    /// From now on, and of nothing that was said before.
    pub(in crate::plane::tests) fn listen() {
        static ONCE: OnceLock<()> = OnceLock::new();
        ONCE.get_or_init(|| tracing::subscriber::set_global_default(Self).unwrap());
        REASONS.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The reasons of all warnings, in their order.
    pub(in crate::plane::tests) fn reasons() -> Vec<String> {
        heard(|level| level == Level::WARN)
    }

    /// The reasons of all that is worth no warning.
    pub(in crate::plane::tests) fn mentioned() -> Vec<String> {
        heard(|level| level == Level::INFO)
    }
}

/// One event, whose reason is kept.
struct Hearing(Level);

impl Visit for Hearing {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "reason" {
            REASONS.lock().unwrap_or_else(PoisonError::into_inner).push((self.0, value.to_owned()));
        }
    }

    fn record_debug(&mut self, _field: &Field, _value: &dyn fmt::Debug) {}
}

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut Hearing(*event.metadata().level()));
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

//! What `launcher serve` counts. Labels have few values (a phase, an outcome, a verb): names of jobs and nodes are not
//! among them, so the number of series does not grow with the cluster.

use std::sync::Mutex;
use std::sync::PoisonError;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Upper ends of the buckets for waits, in seconds: from what a person does not notice to an hour.
const WAIT_SECONDS: [f64; 12] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0];

/// A phase of a job.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PhaseLabel {
    /// As in the job's status.
    pub phase: &'static str,
}

/// What was asked of the API server.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct CallLabel {
    /// For what.
    pub purpose: Purpose,
}

/// What a call to the API server is for.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
pub enum Purpose {
    /// Create or change one of a job's objects.
    Object,
    /// Give a pod its place.
    Place,
    /// Delete a pod.
    Delete,
    /// Write the membership's memory.
    Memory,
    /// Write a job's status.
    Status,
}

/// All counters.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Jobs by phase.
    pub jobs: Family<PhaseLabel, Gauge>,
    /// Calls to the API server by purpose.
    pub calls: Family<CallLabel, Counter>,
    /// Calls that failed.
    pub call_failures: Family<CallLabel, Counter>,
    /// Restarts of all jobs.
    pub restarts: Counter,
    /// From a job's wish for places to having them, in seconds.
    pub placement_wait: Histogram,
    /// Of one pass of the solver over all waiting jobs, in seconds.
    pub solver: Histogram,
    /// From the last gated pod of a gang to the last gate lifted, in seconds.
    pub ungate: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("slipway");
        let metrics = Self {
            registry: Mutex::new(Registry::default()),
            jobs: Family::default(),
            calls: Family::default(),
            call_failures: Family::default(),
            restarts: Counter::default(),
            placement_wait: Histogram::new(WAIT_SECONDS),
            solver: Histogram::new(WAIT_SECONDS),
            ungate: Histogram::new(WAIT_SECONDS),
        };
        registry.register("jobs", "Jobs by phase", metrics.jobs.clone());
        registry.register("api_calls", "Calls to the API server by purpose", metrics.calls.clone());
        registry.register(
            "api_call_failures",
            "Calls to the API server that failed, by purpose",
            metrics.call_failures.clone(),
        );
        registry.register("job_restarts", "Restarts of all jobs", metrics.restarts.clone());
        let mut seconds = |name: &str, help: &str, histogram: &Histogram| {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        };
        seconds("placement_wait", "From a job's wish for places to having them", &metrics.placement_wait);
        seconds("solver", "One pass of the solver over all waiting jobs", &metrics.solver);
        seconds("gates", "From a gang's last gated pod to its last gate lifted", &metrics.ungate);
        *metrics.registry.lock().unwrap_or_else(PoisonError::into_inner) = registry;
        metrics
    }
}

impl Metrics {
    /// All of it, as Prometheus reads it.
    ///
    /// # Errors
    /// When a name cannot be written, which would be a fault of ours.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(text)
    }

    /// Counts a call and its result.
    pub fn called<T, E>(&self, purpose: Purpose, result: &Result<T, E>) {
        self.calls.get_or_create(&CallLabel { purpose }).inc();
        if result.is_err() {
            self.call_failures.get_or_create(&CallLabel { purpose }).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_told_with_its_unit() {
        let metrics = Metrics::default();
        metrics.called(Purpose::Place, &Ok::<(), ()>(()));
        metrics.called(Purpose::Place, &Err::<(), ()>(()));
        metrics.jobs.get_or_create(&PhaseLabel { phase: "running" }).set(2);
        metrics.solver.observe(0.02);
        let text = metrics.text().unwrap();
        for line in [
            "slipway_jobs{phase=\"running\"} 2",
            "slipway_api_calls_total{purpose=\"Place\"} 2",
            "slipway_api_call_failures_total{purpose=\"Place\"} 1",
            "slipway_solver_seconds_bucket{le=\"0.05\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
    }
}

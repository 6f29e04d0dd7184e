//! Which of several controllers acts: the holder of a Lease (pure decisions, and the shell that carries them out).
//!
//! The rules are those of Kubernetes' own components (client-go, `tools/leaderelection`): a lease is taken only when its
//! record has not changed for its whole duration *by the watcher's own clock*, so that clocks that disagree do no harm;
//! every write carries the record's version, so of two that try only one succeeds; a holder that cannot renew in time
//! stops being one before anybody else may begin.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;

use crate::backend::clock::clock;
use crate::error::in_full;

/// How long a record may stand unchanged before somebody else takes it.
const LEASE: Duration = Duration::from_secs(15);
/// A holder that has not renewed for this long stops: earlier than anybody may take over.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often a holder renews, and others look.
const RETRY: Duration = Duration::from_secs(2);
/// A request is given up after this, and made anew: two fit into the deadline.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// The name of the lease.
const NAME: &str = "slipway-controller";

/// What is known of the lease's record, and since when it has been as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    holder: String,
    version: String,
    /// By this process's own clock; none before the first look.
    since: Option<Duration>,
    /// When this process last renewed it.
    renewed: Option<Duration>,
}

/// What is to be done about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write our name (again).
    Take,
    /// Somebody else has it: look again.
    Watch,
}

impl Observed {
    /// Takes a look at the record in, at the moment `now`.
    pub fn look(&mut self, holder: &str, version: &str, now: Duration) {
        if self.version != version || self.since.is_none() {
            self.holder = holder.to_owned();
            self.version = version.to_owned();
            self.since = Some(now);
        }
    }

    /// What `me` does about it.
    #[must_use]
    pub fn step(&self, me: &str, now: Duration) -> Step {
        let is_free = self.holder.is_empty() || self.holder == me;
        let is_stale = self.since.is_some_and(|since| now >= since.saturating_add(LEASE));
        if is_free || is_stale { Step::Take } else { Step::Watch }
    }

    /// Our name has been written, by a request that was sent at `asked`.
    pub fn renewed(&mut self, me: &str, version: &str, asked: Duration) {
        self.holder = me.to_owned();
        self.version = version.to_owned();
        self.since = Some(asked);
        self.renewed = Some(asked);
    }

    /// How long a round of `me` may take from the moment `now`: a leader knows by its deadline whether it still is one.
    #[must_use]
    pub fn patience(&self, me: &str, now: Duration) -> Duration {
        match self.renewed {
            Some(renewed) if self.holder == me => {
                ANSWER_MAX.min(renewed.saturating_add(RENEW_DEADLINE).saturating_sub(now))
            }
            _ => ANSWER_MAX,
        }
    }

    /// Whether `me` may act.
    #[must_use]
    pub fn leads(&self, me: &str, now: Duration) -> bool {
        self.holder == me && self.renewed.is_some_and(|renewed| now < renewed.saturating_add(RENEW_DEADLINE))
    }
}

/// Tries for the lease for ever, and says whether this process has it. When it has lost it, it does not get it again:
/// the process is to end, since nobody can say what it was in the middle of.
pub async fn elect(leases: Api<Lease>, me: String, leading: watch::Sender<bool>) {
    let started = clock();
    let mut observed = Observed::default();
    let mut has_led = false;
    loop {
        let now = started.elapsed();
        let patience = observed.patience(&me, now);
        match tokio::time::timeout(patience, round(&leases, &me, &mut observed, started)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = in_full(&error), "cannot look after the leader's lease"),
            Err(_) => tracing::warn!("the leader's lease was not answered in time"),
        }
        let leads = observed.leads(&me, started.elapsed());
        if has_led && !leads {
            tracing::error!("the leader's lease is lost");
            leading.send_replace(false);
            return;
        }
        if leads && !has_led {
            tracing::info!(identity = me, "this process leads");
            has_led = true;
            leading.send_replace(true);
        }
        let pause = RETRY.saturating_sub(started.elapsed().saturating_sub(now));
        tokio::time::sleep(pause.min(observed.patience(&me, started.elapsed()))).await;
    }
}

/// Gives the lease back, so that a successor need not wait.
pub async fn resign(leases: &Api<Lease>, me: &str) {
    let given_back = async {
        let mut lease = leases.get(NAME).await?;
        if let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(me)) {
            spec.holder_identity = None;
            leases.replace(NAME, &PostParams::default(), &lease).await?;
        }
        Ok::<(), kube::Error>(())
    };
    // Without it the successor waits for the lease to run out, no more.
    if let Ok(Err(error)) = tokio::time::timeout(RETRY, given_back).await {
        tracing::warn!(error = in_full(&error), "cannot give the leader's lease back");
    }
}

async fn round(
    leases: &Api<Lease>,
    me: &str,
    observed: &mut Observed,
    started: Instant,
) -> Result<(), kube::Error> {
    let found = leases.get_opt(NAME).await?;
    let now = started.elapsed();
    let spec = found.as_ref().and_then(|lease| lease.spec.as_ref());
    let holder = spec.and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
    let version = found.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
    observed.look(&holder, version.as_deref().unwrap_or_default(), now);
    if observed.step(me, now) == Step::Watch {
        return Ok(());
    }
    let is_new = holder != me;
    let time = Some(MicroTime(Timestamp::now()));
    let changes = spec.and_then(|spec| spec.lease_transitions).unwrap_or(0);
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            resource_version: version.clone(),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(me.to_owned()),
            lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
            acquire_time: if is_new { time.clone() } else { spec.and_then(|spec| spec.acquire_time.clone()) },
            renew_time: time,
            lease_transitions: Some(if is_new { changes.saturating_add(1) } else { changes }),
            ..LeaseSpec::default()
        }),
    };
    let written = match version {
        Some(_) => leases.replace(NAME, &PostParams::default(), &lease).await,
        None => leases.create(&PostParams::default(), &lease).await,
    };
    match written {
        Ok(lease) => {
            let version = lease.metadata.resource_version.unwrap_or_default();
            // Counted from before the request: that is when others may have seen it.
            observed.renewed(me, &version, now);
            Ok(())
        }
        // Somebody else was quicker.
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_free_lease_is_taken_and_a_held_one_is_not() {
        let mut seen = Observed::default();
        seen.look("", "", s(0));
        assert_eq!(seen.step("me", s(0)), Step::Take);
        seen.look("other", "1", s(1));
        assert_eq!(seen.step("me", s(1)), Step::Watch);
        assert_eq!(seen.step("other", s(1)), Step::Take, "it renews");
    }

    #[test]
    fn only_a_record_that_stands_still_by_our_own_clock_is_taken_over() {
        let mut seen = Observed::default();
        for second in 0..60 {
            // Its times may say anything: what counts is that it changes.
            seen.look("other", &second.to_string(), s(second));
            assert_eq!(seen.step("me", s(second)), Step::Watch);
        }
        seen.look("other", "59", s(73));
        assert_eq!(seen.step("me", s(73)), Step::Watch);
        assert_eq!(seen.step("me", s(74)), Step::Take);
    }

    #[test]
    fn a_holder_stops_before_anybody_else_may_begin() {
        let (mut one, mut two) = (Observed::default(), Observed::default());
        one.look("", "", s(0));
        one.renewed("one", "1", s(0));
        two.look("one", "1", s(0));
        for second in 0..40 {
            let (leads, takes) = (one.leads("one", s(second)), two.step("two", s(second)) == Step::Take);
            assert!(!(leads && takes), "both at {second} s");
        }
        assert!(one.leads("one", s(9)) && !one.leads("one", s(10)));
        assert_eq!([0, 4, 8, 10, 20].map(|at| one.patience("one", s(at))), [5, 5, 2, 0, 0].map(s));
        assert_eq!(two.patience("two", s(20)), ANSWER_MAX);
        two.renewed("two", "2", s(15));
        one.look("two", "2", s(16));
        assert!(!one.leads("one", s(16)));
    }
}

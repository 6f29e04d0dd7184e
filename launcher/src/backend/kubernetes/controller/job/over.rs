//! An actor whose job is over: what still runs is ended, and in its time the job's object goes, with all that it owns.

use std::time::{Duration, Instant};

use super::live::FORCE_AFTER;
use super::places::Deletion;
use super::{Actor, Done, Stage, render};
use crate::backend::clock::{clock, unix_ms};
use crate::backend::kubernetes::controller::api::CallError;
use crate::backend::kubernetes::controller::pods::PodView;
use crate::backend::kubernetes::names;

/// Data servers end by themselves when they hear that the job is over, and leave their logs. Those that have not by then go with
/// what makes them.
const FAREWELL: Duration = Duration::from_secs(30);

/// What is left to do.
#[derive(Debug)]
pub(super) struct Over {
    since: Instant,
    /// Nothing of it runs, and all of its places are free again.
    is_released: bool,
    /// The deletion of the job is under way, or is not to be tried before then.
    deletes_again: Option<Instant>,
}

impl Actor {
    /// The job is over. What is left of it stays for whoever reads its logs, but nothing of it goes on running: an earlier
    /// controller may have died after it had written the end down, and before all pods had ended.
    pub(super) fn rest(&mut self) {
        self.teller.ends();
        self.inbound = None;
        self.stage = Stage::Over(Over { since: clock(), is_released: false, deletes_again: None });
        self.tend_over();
    }

    /// Ends pods, and gives the places back when the last has ended.
    pub(super) fn tend_over(&mut self) {
        let is_quiet = self.is_quiet();
        if matches!(self.stage, Stage::Held) {
            return self.tend_held();
        }
        let Stage::Over(over) = &mut self.stage else { return };
        let since = over.since;
        if is_quiet {
            if !std::mem::replace(&mut over.is_released, true) {
                self.release_all();
            }
            return;
        }
        // A call that was under way at the end may have started one.
        over.is_released = false;
        self.end_pods(since);
    }

    /// Data servers outlive the child when somebody else deletes that.
    fn tend_held(&mut self) {
        if self.roster.pods().any(|pod| pod.is_server && pod.is_alive()) {
            let since = *self.in_the_way.get_or_insert_with(clock);
            self.end_pods(since);
        }
    }

    /// Sees to it that whatever may run ends, as it was to since `since`.
    pub(super) fn end_pods(&mut self, since: Instant) {
        let alive = self.roster.pods().filter(|pod| pod.is_alive());
        let (servers, others): (Vec<PodView>, Vec<PodView>) = alive.cloned().partition(|pod| pod.is_server);
        for pod in others {
            self.end_pod(&pod, since, false);
        }
        if !servers.is_empty() && since.elapsed() >= FAREWELL {
            self.end_servers();
        }
        for pod in &servers {
            if is_given_up(pod, self.is_answering(pod), since.elapsed()) {
                self.delete_pod(pod, Deletion::WriteOff);
            }
        }
    }

    /// Data servers are not gated: whatever ended their pods would only have them replaced.
    fn end_servers(&mut self) {
        let now = clock();
        if self.unserved.is_some_and(|asked| now.saturating_duration_since(asked) < super::RETRY_MAX) {
            return;
        }
        self.unserved = Some(now);
        let (calls, key) = (self.context.calls.clone(), self.key.clone());
        self.tasks.spawn(async move {
            let (kind, name) = (render::servers_kind(), names::servers(&key.name));
            let ends = async {
                let found = calls.find(&kind, &key.namespace, &name).await?;
                match found.is_some_and(|found| key.has(&found.metadata)) {
                    true => calls.delete(&kind, &key.namespace, &name).await,
                    false => Ok(()),
                }
            };
            Done::Unserved(ends.await)
        });
    }

    /// Deletes the job when it has been over for as long as its owner wants to see it.
    pub(super) fn tick_over(&mut self) {
        let Stage::Over(over) = &mut self.stage else { return };
        let ttl = self.job.as_ref().and_then(|job| job.pod.ttl.as_ref());
        let Some(ttl) = ttl.and_then(|ttl| ttl.parse().ok()) else { return };
        let now = clock();
        if self.teller.is_over_for(unix_ms()) < ttl || over.deletes_again.is_some_and(|again| now < again) {
            return;
        }
        // It stays over until its watch tells that it is gone: what is deleted was not, for all that is known.
        over.deletes_again = Some(now + super::RETRY_MAX);
        tracing::info!(job = %self.key, "a job has been over for as long as it was to be kept, and is deleted");
        let (calls, key) = (self.context.calls.clone(), self.key.clone());
        self.tasks.spawn(async move { Done::Expired(calls.delete_job(&key).await) });
    }

    pub(super) fn expired(&mut self, result: Result<(), CallError>) {
        let Err(error) = result else { return };
        tracing::warn!(job = %self.key, %error, "cannot delete a job that is over");
        let again = clock() + self.longer();
        if let Stage::Over(over) = &mut self.stage {
            over.deletes_again = Some(again);
        }
    }
}

/// Whether nobody will say that a data server has ended that was to `waited` ago: the end of what makes it only marks its pod,
/// and no kubelet confirms that where the node is dead. A pod that has no node goes by itself.
fn is_given_up(pod: &PodView, is_answering: bool, waited: Duration) -> bool {
    pod.host.is_some() && !is_answering && waited >= FAREWELL + FORCE_AFTER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_server_on_a_dead_node_is_not_waited_for_without_end() {
        let pod = super::super::tests::pod(
            &serde_json::json!({"containers": [], "nodeName": "node-1"}),
            &serde_json::json!({}),
        );
        let at = FAREWELL + FORCE_AFTER;
        assert!(is_given_up(&pod, false, at));
        assert!(!is_given_up(&pod, false, FORCE_AFTER), "it is given its farewell");
        assert!(!is_given_up(&pod, true, at), "its kubelet says when it has ended");
        assert!(!is_given_up(&PodView { host: None, ..pod }, false, at));
    }
}

//! Who holds what of the cluster, and who waits for it (pure).
//!
//! Places are given out in the order in which jobs were created, each gang as a whole or not at all. A gang that does not
//! fit now does not keep later ones that do from starting: it waits with its reasons. Whatever has been given out counts
//! at once, long before a pod can be seen on a node, so two gangs are never promised the same device.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use worker::units::WorkerId;

use super::api::Key;
use crate::job::spec::Locality;
use crate::placement::{self, Need, Placement, Request, Unplaceable};
use crate::topology::kubernetes::Held;
use crate::topology::{Amounts, Cluster};

/// After a kubelet has taken a pod, a source that looks at the node itself counts what the pod holds: it looks every minute
/// (NFD's topology updater by default), and what it says has a way to go.
const IN_ZONES: Duration = Duration::from_secs(90);
/// A claim is allocated before its pod is bound; the two come by different watches.
const IN_CLAIMS: Duration = Duration::from_secs(5);

/// Where a worker is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The host.
    pub host: String,
    /// The NUMA node, where one was chosen.
    pub numa: Option<u32>,
    /// When its kubelet was first known to have taken its pod.
    pub admitted: Option<Duration>,
}

/// What one job holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// What each of its workers needs.
    pub need: Need,
    /// The name that its GPUs are asked for by.
    pub gpu_name: Option<String>,
    /// The name that its NICs are asked for by.
    pub nic_name: Option<String>,
    /// What of it has to lie together.
    pub locality: Locality,
    /// Of each worker that has one.
    pub places: BTreeMap<WorkerId, Place>,
}

impl Holding {
    /// What a placement that answers `request` holds.
    #[must_use]
    pub fn of(request: &Request, placement: &Placement) -> Self {
        let places = placement.workers.iter().map(|worker| {
            (worker.worker, Place { host: worker.host.clone(), numa: worker.numa_node, admitted: None })
        });
        Self {
            need: request.need.clone(),
            gpu_name: placement.gpu_name.clone(),
            nic_name: placement.nic_name.clone(),
            locality: request.locality,
            places: places.collect(),
        }
    }

    fn amounts(&self) -> Amounts {
        let need = &self.need;
        let devices = [(&self.gpu_name, need.gpus), (&self.nic_name, need.nics)];
        let devices = devices
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .filter_map(|(name, count)| Some((name.clone()?, count)));
        Amounts {
            cpu_millis: need.cpus.map_or(need.cpu_millis, |cpus| u64::from(cpus) * 1000),
            memory_bytes: need.memory_bytes,
            hugepage_bytes: need.hugepage_bytes,
            pods: 1,
            devices: devices.collect(),
        }
    }
}

/// The answer to a wish for places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Here they are; they are held until they are released.
    Granted(Placement),
    /// There is no room for all of them now.
    Refused(Unplaceable),
}

/// All holdings and wishes.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// What is free beside all holdings.
    cluster: Cluster,
    holdings: BTreeMap<Key, Holding>,
    /// Hosts of pods of which nobody knows what they hold: nothing is planned there.
    avoided: BTreeMap<Key, BTreeSet<String>>,
    /// By when the job was created.
    waiting: BTreeMap<(u64, Key), Request>,
    /// The last refusal that each waiting job was told: the same is not told again.
    refused: BTreeMap<Key, Unplaceable>,
    /// Jobs whose wish is new since the last pass.
    fresh: BTreeSet<Key>,
    /// Something was released, so that `cluster` says too little.
    is_stale: bool,
    /// When `cluster` was made.
    seen: Duration,
}

impl Ledger {
    /// What our pods hold by node at the moment `now`, for whoever makes the cluster anew.
    #[must_use]
    pub fn held(&self, now: Duration) -> BTreeMap<String, Vec<Held>> {
        let mut held: BTreeMap<String, Vec<Held>> = BTreeMap::new();
        for holding in self.holdings.values() {
            let amounts = holding.amounts();
            let pair = (&holding.gpu_name, &holding.nic_name);
            let pairs = match (holding.locality, pair) {
                (Locality::Pcie, (Some(gpu), Some(nic))) => Some((gpu.clone(), nic.clone())),
                _ => None,
            };
            for place in holding.places.values() {
                let is_past = |wait| place.admitted.is_some_and(|since: Duration| now >= since + wait);
                let one = Held {
                    numa: place.numa,
                    amounts: amounts.clone(),
                    shares_cpus: holding.need.cpus.is_none(),
                    pairs: pairs.clone(),
                    in_zones: is_past(IN_ZONES),
                    in_claims: is_past(IN_CLAIMS),
                };
                held.entry(place.host.clone()).or_default().push(one);
            }
        }
        held
    }

    /// The cluster as it is now, made with what [`Self::held`] said a moment ago.
    pub fn see(&mut self, cluster: Cluster, now: Duration) {
        self.cluster = cluster;
        self.is_stale = false;
        self.seen = now;
    }

    /// A kubelet has taken the pod of a worker.
    pub fn admitted(&mut self, key: &Key, worker: WorkerId, now: Duration) {
        let place = self.holdings.get_mut(key).and_then(|holding| holding.places.get_mut(&worker));
        if let Some(place) = place {
            place.admitted.get_or_insert(now);
        }
    }

    /// When the cluster is to be made anew, since sources will have seen more of our pods by then.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        let places = self.holdings.values().flat_map(|holding| holding.places.values());
        let moments = places.filter_map(|place| place.admitted);
        moments.flat_map(|since| [since + IN_CLAIMS, since + IN_ZONES]).filter(|due| *due > self.seen).min()
    }

    /// Whether the cluster must be made anew before anybody is refused.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.is_stale
    }

    /// What is free now.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// A job created at `created` (milliseconds since the Unix epoch) wants places. Its earlier wish is forgotten, and workers
    /// that are asked for give up the places that they had: else a job would wait for room beside its own.
    pub fn ask(&mut self, created: u64, key: Key, request: Request) {
        self.withdraw(&key);
        self.release(&key, Some(&request.workers.iter().copied().collect()));
        self.fresh.insert(key.clone());
        self.waiting.insert((created, key), request);
    }

    /// A job does not want places any more.
    pub fn withdraw(&mut self, key: &Key) {
        self.waiting.retain(|(_, waiting), _| waiting != key);
        self.refused.remove(key);
        self.fresh.remove(key);
    }

    /// A job holds this, whoever gave it out, and nothing else; it waits for nothing.
    pub fn hold(&mut self, key: Key, holding: Holding) {
        self.withdraw(&key);
        self.holdings.insert(key, holding);
        self.is_stale = true;
    }

    /// A worker has this place, whoever gave it out; `holding` says what the job's workers need.
    pub fn has(&mut self, key: &Key, holding: Holding) {
        self.add(key, holding);
        self.is_stale = true;
    }

    /// Its places come to those that the job has.
    fn add(&mut self, key: &Key, holding: Holding) {
        let known = self.holdings.entry(key.clone()).or_default();
        let mut places = std::mem::take(&mut known.places);
        places.extend(holding.places.clone());
        *known = Holding { places, ..holding };
    }

    /// Nothing is planned for these hosts while pods of this job may run there, of which nobody knows what they hold.
    pub fn avoid(&mut self, key: &Key, hosts: BTreeSet<String>) {
        let before = self.avoided.remove(key).unwrap_or_default();
        self.is_stale |= before != hosts;
        if !hosts.is_empty() {
            self.avoided.insert(key.clone(), hosts);
        }
    }

    /// Places that are free again; `None`: all of the job's, and it waits for none.
    pub fn release(&mut self, key: &Key, workers: Option<&BTreeSet<WorkerId>>) {
        if workers.is_none() {
            self.withdraw(key);
        }
        let Some(holding) = self.holdings.get_mut(key) else { return };
        let before = holding.places.len();
        match workers {
            Some(workers) => holding.places.retain(|worker, _| !workers.contains(worker)),
            None => holding.places.clear(),
        }
        self.is_stale |= holding.places.len() < before;
        if holding.places.is_empty() {
            self.holdings.remove(key);
        }
    }

    /// Whether anybody waits.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Gives out what fits, in order. A refusal is told once; with `only_fresh`, only wishes that are new are looked at,
    /// because nothing has changed for the others.
    pub fn pass(&mut self, only_fresh: bool) -> Vec<(Key, Answer)> {
        let mut answers = Vec::new();
        let turns: Vec<(u64, Key)> =
            self.waiting.keys().filter(|(_, key)| !only_fresh || self.fresh.contains(key)).cloned().collect();
        self.fresh.clear();
        for turn in turns {
            let Some(request) = self.waiting.get(&turn) else { continue };
            let key = turn.1.clone();
            let request = &*self.around_leftovers(request);
            match placement::place(&self.cluster, request) {
                Ok(placement) => {
                    self.cluster.take(&placement, request);
                    let new = Holding::of(request, &placement);
                    self.add(&key, new);
                    self.waiting.remove(&turn);
                    self.refused.remove(&key);
                    answers.push((key, Answer::Granted(placement)));
                }
                Err(refused) if self.refused.get(&key) != Some(&refused) => {
                    self.refused.insert(key.clone(), refused.clone());
                    answers.push((key, Answer::Refused(refused)));
                }
                Err(_) => {}
            }
        }
        answers
    }

    /// The request without the hosts that are avoided.
    fn around_leftovers<'a>(&self, request: &'a Request) -> Cow<'a, Request> {
        if self.avoided.is_empty() {
            return Cow::Borrowed(request);
        }
        let mut request = request.clone();
        for (key, hosts) in &self.avoided {
            let why = format!("runs what is left of job {key}, and nobody knows what that holds");
            request.shunned.extend(hosts.iter().map(|host| (host.clone(), why.clone())));
        }
        Cow::Owned(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::spec::{Rack, Strategy};
    use crate::topology::Host;

    const NOW: Duration = Duration::ZERO;

    fn cluster(hosts: u32) -> Cluster {
        let host = |number: u32| {
            let free = Amounts { cpu_millis: 4000, pods: 10, ..Amounts::default() };
            let name = format!("node-{number}");
            Host { name, free: free.clone(), capacity: free, ..Host::default() }
        };
        Cluster { hosts: (0..hosts).map(host).collect(), ..Cluster::default() }
    }

    fn key(name: &str) -> Key {
        Key { namespace: "n".to_owned(), name: name.to_owned(), uid: name.to_owned() }
    }

    fn request(workers: u32) -> Request {
        Request {
            workers: (0..workers).map(WorkerId).collect(),
            seated: workers,
            need: Need { cpus: Some(4), ..Need::default() },
            locality: Locality::None,
            strategy: Strategy::Pack,
            rack: Rack::Any,
            block: Rack::Any,
            exclude: BTreeMap::new(),
            shunned: BTreeMap::new(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            placed: BTreeMap::new(),
        }
    }

    fn said(answers: &[(Key, Answer)]) -> Vec<(&str, bool)> {
        answers
            .iter()
            .map(|(key, answer)| (key.name.as_str(), matches!(answer, Answer::Granted(_))))
            .collect()
    }

    #[test]
    fn a_job_that_asks_again_does_not_wait_for_room_beside_its_own_places() {
        let mut ledger = Ledger::default();
        ledger.see(cluster(2), NOW);
        ledger.ask(1, key("a"), request(2));
        assert_eq!(said(&ledger.pass(true)), [("a", true)]);
        ledger.ask(1, key("a"), request(2));
        assert!(ledger.is_stale() && ledger.held(NOW).is_empty());
        ledger.see(cluster(2), NOW);
        assert_eq!(said(&ledger.pass(true)), [("a", true)]);
        // One of its workers is planned anew; the other keeps its place.
        let mut one = request(2);
        one.workers.retain(|worker| worker.0 == 1);
        ledger.ask(1, key("a"), one);
        assert_eq!(ledger.held(NOW).values().map(Vec::len).sum::<usize>(), 1);
    }

    #[test]
    fn gangs_are_served_in_order_whole_and_never_from_what_another_holds() {
        let mut ledger = Ledger::default();
        ledger.see(cluster(3), NOW);
        ledger.ask(3, key("late"), request(1));
        ledger.ask(1, key("early"), request(2));
        ledger.ask(2, key("large"), request(2));
        // The large one waits, and a later one that fits passes it.
        assert_eq!(said(&ledger.pass(false)), [("early", true), ("large", false), ("late", true)]);
        // The late one has taken what the large one was told to be free.
        assert_eq!(said(&ledger.pass(false)), [("large", false)]);
        assert_eq!(said(&ledger.pass(false)), [], "the same refusal is not told again");
        assert_eq!(ledger.held(NOW).values().map(Vec::len).sum::<usize>(), 3);
        ledger.release(&key("early"), None);
        assert!(ledger.is_stale());
        let mut left = cluster(3);
        left.hosts.retain(|host| !ledger.held(NOW).contains_key(&host.name));
        ledger.see(left, NOW);
        assert_eq!(said(&ledger.pass(false)), [("large", true)]);
        assert!(!ledger.has_waiting());
    }

    #[test]
    fn a_wish_that_is_withdrawn_or_old_is_not_looked_at() {
        let mut ledger = Ledger::default();
        ledger.see(cluster(1), NOW);
        ledger.ask(1, key("a"), request(2));
        ledger.ask(2, key("b"), request(1));
        ledger.withdraw(&key("b"));
        assert_eq!(said(&ledger.pass(true)), [("a", false)]);
        ledger.ask(3, key("c"), request(1));
        assert_eq!(said(&ledger.pass(true)), [("c", true)]);
    }

    #[test]
    fn one_worker_may_be_released_and_placed_again() {
        let mut ledger = Ledger::default();
        ledger.see(cluster(2), NOW);
        ledger.ask(1, key("a"), request(1));
        ledger.pass(false);
        let again = Request { workers: vec![WorkerId(1)], ..request(1) };
        ledger.ask(1, key("a"), again);
        assert_eq!(said(&ledger.pass(false)), [("a", true)]);
        assert_eq!(ledger.held(NOW).len(), 2, "both are held");
        ledger.release(&key("a"), Some(&BTreeSet::from([WorkerId(0)])));
        assert_eq!(ledger.held(NOW).len(), 1);
    }

    #[test]
    fn a_job_has_one_wish_and_none_after_it_gave_everything_back() {
        let mut ledger = Ledger::default();
        ledger.see(cluster(1), NOW);
        ledger.ask(7, key("a"), request(2));
        // Its plan made anew comes before everybody's turn, and instead of its earlier wish.
        ledger.ask(0, key("a"), request(1));
        assert_eq!(said(&ledger.pass(false)), [("a", true)]);
        assert!(!ledger.has_waiting());
        // One of its workers wants another place when the job is suspended: nothing may be held for it later.
        ledger.ask(7, key("a"), Request { workers: vec![WorkerId(1)], ..request(1) });
        assert_eq!(said(&ledger.pass(false)), [("a", false)]);
        ledger.release(&key("a"), None);
        assert!(!ledger.has_waiting());
    }

    #[test]
    fn hosts_of_pods_that_nobody_can_count_are_avoided_until_those_are_gone() {
        let mut ledger = Ledger::default();
        ledger.see(cluster(2), NOW);
        ledger.avoid(&key("left"), ["node-0".to_owned(), "node-1".to_owned()].into());
        ledger.ask(1, key("a"), request(1));
        assert_eq!(said(&ledger.pass(false)), [("a", false)]);
        ledger.avoid(&key("left"), ["node-0".to_owned()].into());
        assert!(ledger.is_stale());
        assert_eq!(said(&ledger.pass(false)), [("a", true)]);
        assert!(ledger.held(NOW).contains_key("node-1"));
        ledger.see(cluster(1), NOW);
        ledger.avoid(&key("left"), BTreeSet::new());
        ledger.ask(2, key("b"), request(1));
        assert_eq!(said(&ledger.pass(false)), [("b", true)]);
    }

    #[test]
    fn a_pod_that_is_elsewhere_than_planned_is_held_where_it_is() {
        let mut ledger = Ledger::default();
        ledger.see(cluster(2), NOW);
        ledger.ask(1, key("a"), request(2));
        ledger.pass(false);
        let place = Place { host: "node-7".to_owned(), ..Place::default() };
        let holding = Holding { places: [(WorkerId(1), place)].into(), ..Holding::default() };
        ledger.has(&key("a"), holding.clone());
        let hosts = |ledger: &Ledger| ledger.held(NOW).into_keys().collect::<Vec<_>>();
        assert_eq!(hosts(&ledger), ["node-0", "node-7"]);
        ledger.has(&key("b"), holding);
        ledger.release(&key("a"), None);
        assert_eq!(hosts(&ledger), ["node-7"]);
    }

    #[test]
    fn sources_are_given_time_to_see_a_pod_once_its_kubelet_has_it() {
        let mut ledger = Ledger::default();
        ledger.see(cluster(1), NOW);
        ledger.ask(1, key("a"), request(1));
        ledger.pass(false);
        let at = Duration::from_secs;
        let seen = |ledger: &Ledger, now: u64| {
            let held = &ledger.held(at(now))["node-0"][0];
            (held.in_claims, held.in_zones)
        };
        assert_eq!((seen(&ledger, 1000), ledger.due()), ((false, false), None), "it may still be on its way");
        ledger.admitted(&key("a"), WorkerId(0), at(1000));
        ledger.admitted(&key("a"), WorkerId(0), at(1003));
        ledger.admitted(&key("a"), WorkerId(7), at(1003));
        assert_eq!((seen(&ledger, 1004), ledger.due()), ((false, false), Some(at(1005))));
        ledger.see(cluster(1), at(1005));
        assert_eq!((seen(&ledger, 1005), ledger.due()), ((true, false), Some(at(1090))));
        ledger.see(cluster(1), at(1090));
        assert_eq!((seen(&ledger, 1090), ledger.due()), ((true, true), None));
    }
}

//! Many gangs on a cluster that has room for few of them: all of a gang is placed or nothing, whoever waits says why, and
//! everybody's turn comes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::kube::played::{self, list};
use tests::kube::{Rig, Training};
use tests::leftovers::{now, pause};
use tests::program::root;

use crate::Story;

pub(crate) const STORIES: &[Story] = &[("gangs_compete_all_or_nothing_and_everybody_gets_a_turn", compete)];

const GANGS: u32 = 50;
const WORKERS: u32 = 3;
/// Gangs that fit at a time: a worker takes a whole node.
const ROOM: u32 = 10;
const NODES: u32 = ROOM * WORKERS;
/// The gates of one gang are lifted one by one, so that a look may come in between, and so may a controller's death, after
/// which the next one waits for the lease. It does not stay so for longer.
const HALF_MAX: Duration = Duration::from_secs(90);
/// A round of ten gangs, from the deletion of those before them.
const ROUND_MAX: Duration = Duration::from_secs(300);
/// The round in which the controller is killed while gates are lifted.
const KILLED_IN: usize = 1;
/// Looks at those that are placed, to see that they stay and nobody joins them.
const LOOKS: u32 = 5;
/// From a node's arrival to the last gate. It takes far less than a second; compilers beside it do not.
const ARRIVAL_MAX: Duration = Duration::from_secs(20);
/// Keeps real pods away from played nodes.
const TAINT: &str = "slipway.test/played";

fn compete() {
    let rig = Rig::start(root().join("tests/.cache/kubernetes/gangs"));
    rig.with_kwok();
    rig.create(&(0..NODES).map(node).collect::<Vec<_>>());
    let training = rig.controlled("gangs", "job");
    let names: BTreeSet<String> = (0..GANGS).map(|number| format!("gang-{number:02}")).collect();
    let gangs: Vec<Value> = names.iter().map(|name| gang(name, WORKERS)).collect();
    training.space.apply(&list(&gangs));

    let mut looker = Looker { training, halves: BTreeMap::new() };
    let mut done = BTreeSet::new();
    for round in 0.. {
        if round == KILLED_IN {
            looker.kill_between_gates(&done);
        }
        let placed = looker.round(&done);
        check_waiting(&looker.training, &placed);
        for _ in 0..LOOKS {
            assert_eq!(looker.placed(), placed, "they stay, and nobody joins them");
        }
        let mut words = vec!["delete", "trainingjob", "--wait=false"];
        words.extend(placed.iter().map(String::as_str));
        looker.training.space.kubectl(&words).code(0);
        done.extend(placed);
        if done == names {
            break;
        }
    }
    looker.training.space.assert_empty();
    one_node_arrives(&rig, &looker.training);
}

/// What is seen of the gangs, look by look.
struct Looker<'a> {
    training: Training<'a>,
    /// Since when a gang is seen with some of its pods placed and not all.
    halves: BTreeMap<String, Instant>,
}

impl Looker<'_> {
    /// Waits until as many gangs are placed as fit, beside those that were deleted; checks each look.
    fn round(&mut self, before: &BTreeSet<String>) -> BTreeSet<String> {
        let deadline = now() + ROUND_MAX;
        loop {
            let placed = self.placed();
            if placed.len() == ROOM as usize && placed.is_disjoint(before) {
                return placed;
            }
            assert!(now() < deadline, "{placed:?} are placed, after {before:?}");
            self.training.care();
            pause();
        }
    }

    /// Kills the controller when some gang of this round has its first place, and starts it again.
    fn kill_between_gates(&mut self, before: &BTreeSet<String>) {
        let deadline = now() + ROUND_MAX;
        while self.placed().is_subset(before) && self.halves.is_empty() {
            assert!(now() < deadline, "nobody comes after {before:?}");
            self.training.care();
        }
        self.training.kill_controller();
        self.training.start();
    }

    /// The gangs all of whose pods are placed. No other has a pod placed, no two pods are on one node, and no gang that
    /// has no places yet has any pod.
    fn placed(&mut self) -> BTreeSet<String> {
        let mut gangs: BTreeMap<String, u32> = BTreeMap::new();
        let mut nodes = BTreeSet::new();
        let mut all = BTreeSet::new();
        for pod in self.training.space.pods("slipway.dev/job") {
            let name = pod["metadata"]["labels"]["slipway.dev/job"].as_str().unwrap().to_owned();
            all.insert(name.clone());
            if pod["spec"]["schedulingGates"].is_array() {
                continue;
            }
            let node = pod["spec"]["nodeSelector"]["kubernetes.io/hostname"].as_str().unwrap().to_owned();
            assert!(nodes.insert(node.clone()), "two pods are to run on {node}");
            // One that is being deleted still holds its node, and is no part of a gang that starts.
            if pod["metadata"]["deletionTimestamp"].is_null() {
                *gangs.entry(name).or_default() += 1;
            }
        }
        assert!(all.len() <= 2 * ROOM as usize, "only who has places, or ends, has pods: {all:?}");
        let (whole, half): (BTreeMap<_, _>, BTreeMap<_, _>) =
            gangs.into_iter().partition(|(_, count)| *count == WORKERS);
        assert!(whole.len() <= ROOM as usize, "{whole:?}");
        self.halves.retain(|name, _| half.contains_key(name));
        for (name, count) in half {
            let since = *self.halves.entry(name.clone()).or_insert_with(now);
            assert!(
                since.elapsed() < HALF_MAX,
                "{count} of {WORKERS} pods of {name} are placed, and stay so"
            );
        }
        whole.into_keys().collect()
    }
}

/// Whoever is not placed has no pod, and says why.
fn check_waiting(training: &Training<'_>, placed: &BTreeSet<String>) {
    let jobs = training.space.get(&["trainingjobs"]).unwrap();
    for job in jobs["items"].as_array().unwrap() {
        let name = job["metadata"]["name"].as_str().unwrap();
        if placed.contains(name) || !job["metadata"]["deletionTimestamp"].is_null() {
            continue;
        }
        let reasons = training.until(name, |status| {
            status["reasons"].as_array().filter(|reasons| !reasons.is_empty()).cloned()
        });
        let says = |word: &str| reasons.iter().any(|reason| reason.as_str().unwrap().contains(word));
        assert!(says("CPU") || says("cpu"), "{name}: {reasons:?}");
    }
}

/// A gang that lacks one node starts when it comes: soon, with nobody looking again by a clock.
#[expect(clippy::print_stderr, reason = "the measured time is a result of the story")]
fn one_node_arrives(rig: &Rig, training: &Training<'_>) {
    training.care();
    training.space.apply(&gang("late", NODES + 1).to_string());
    training.until("late", |status| status["reasons"].as_array().filter(|all| !all.is_empty()).map(|_| ()));
    assert_eq!(training.pods("late"), Vec::<Value>::new(), "nothing of it is made before it fits");
    let ungated =
        Watch::start(rig, training, r#"{.metadata.name}{" "}{.spec.schedulingGates[*].name}{"\n"}"#, "pods");
    let began = now();
    rig.create(&[node(NODES)]);
    let created = now();
    let mut names = BTreeSet::new();
    while names.len() <= NODES as usize {
        let line = ungated.line(ARRIVAL_MAX);
        if let [name] = line.split_whitespace().collect::<Vec<_>>()[..] {
            names.insert(name.to_owned());
        }
    }
    let (whole, after) = (began.elapsed(), created.elapsed());
    eprintln!(
        "a gang of {} that lacked one node: last gate lifted {after:.2?} after kubectl had created the node ({whole:.2?} \
         after kubectl began)",
        NODES + 1
    );
    assert!(whole < ARRIVAL_MAX, "{whole:?}");
    training.delete_and_look("late");
}

/// `kubectl get --watch`, line by line.
struct Watch {
    child: Child,
    lines: Receiver<String>,
}

impl Watch {
    fn start(rig: &Rig, training: &Training<'_>, template: &str, kind: &str) -> Self {
        let path = rig.script(["path"]).stdout;
        let mut command = Command::new("kubectl");
        command.args(["get", kind, "--watch", "--namespace", training.space.name()]);
        command.arg(format!("--output=jsonpath={template}"));
        command.env("PATH", path.trim()).env("KUBECONFIG", rig.kubeconfig());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let (send, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, lines }
    }

    fn line(&self, limit: Duration) -> String {
        self.lines.recv_timeout(limit).expect("something changes within the limit")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub(crate) fn node(number: u32) -> Value {
    let amounts = json!({"cpu": "4", "memory": "16Gi", "pods": "10"});
    let mut node = played::node(&format!("played-{number}"), &amounts, &json!({}));
    node["spec"] = json!({"taints": [{"key": TAINT, "effect": "NoSchedule"}]});
    node
}

/// Each of its workers takes a node as a whole: three CPUs for the rank and one for the sidecar.
pub(crate) fn gang(name: &str, workers: u32) -> Value {
    json!({
        "apiVersion": "slipway.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {
            "workers": {"count": workers},
            "run": {"command": ["train"]},
            "resources": {"cpus": 3, "memory": "1Gi"},
            "pod": {"image": "slipway.test/none:1", "tolerations": [{"key": TAINT, "operator": "Exists"}]},
        },
    })
}

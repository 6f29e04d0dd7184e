//! Pods as the API server tells of them, and what each change means.

use serde_json::json;

use super::*;

/// A pod of worker 3; `spec` and `status` as in the API.
fn pod(name: &str, uid: &str, spec: &serde_json::Value, status: &serde_json::Value) -> PodView {
    let pod = json!({
        "metadata": {
            "name": name, "uid": uid,
            "labels": {names::LABEL_INDEX: "3", names::LABEL_JOB: "digits"},
        },
        "spec": spec, "status": status,
    });
    PodView::of(&serde_json::from_value(pod).unwrap()).unwrap()
}

fn gated() -> serde_json::Value {
    json!({"containers": [], "schedulingGates": [{"name": names::GATE}]})
}

fn placed() -> serde_json::Value {
    json!({"containers": [], "nodeSelector": {names::LABEL_HOSTNAME: "node1"}})
}

fn running() -> serde_json::Value {
    json!({"phase": "Pending", "initContainerStatuses": [{
        "name": names::SIDECAR, "image": "", "imageID": "", "ready": true, "restartCount": 0,
        "state": {"running": {}},
    }]})
}

#[test]
fn a_pod_is_launched_once_and_gone_once() {
    let mut roster = Roster::default();
    let worker = WorkerId(3);
    assert_eq!(roster.update(pod("a", "1", &gated(), &json!({}))), []);
    assert_eq!(roster.gated().keys().copied().collect::<Vec<_>>(), [worker]);
    assert_eq!(roster.alive(worker).count(), 0, "nothing of a gated pod can run");
    assert_eq!(roster.update(pod("a", "1", &placed(), &json!({}))), []);
    assert!(roster.gated().is_empty());
    assert_eq!(roster.placed()[&worker].host.as_deref(), Some("node1"));
    assert_eq!(roster.alive(worker).count(), 1, "a kubelet may start it at any moment");
    let number = process_number("1");
    assert_eq!(roster.update(pod("a", "1", &placed(), &running())), [Change::Launched { worker, number }]);
    assert_eq!(roster.update(pod("a", "1", &placed(), &running())), []);
    let ended = json!({"phase": "Failed", "containerStatuses": [{
        "name": names::RANKS, "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
    }]});
    let how = "its pod failed (container ranks: OOMKilled, exit code 137)".to_owned();
    assert_eq!(roster.update(pod("a", "1", &placed(), &ended)), [Change::Gone { worker, number, how }]);
    assert_eq!(roster.remove("a"), []);
    assert!(roster.current(worker).is_none());
}

#[test]
fn a_pod_that_ran_is_gone_when_its_kubelet_does_not_admit_it_again() {
    let mut roster = Roster::default();
    let (worker, number) = (WorkerId(3), process_number("1"));
    roster.update(pod("a", "1", &placed(), &running()));
    let refused = json!({"phase": "Failed", "reason": "NodeAffinity", "message": "m"});
    let changes = roster.update(pod("a", "1", &placed(), &refused));
    assert!(
        matches!(&changes[0], Change::Gone { worker: gone, number: process, .. } if (*gone, *process) == (worker, number))
    );
    assert!(matches!(&changes[1], Change::Rejected { host, .. } if host == "node1"), "{changes:?}");
    assert_eq!(roster.remove("a"), []);
}

#[test]
fn a_placed_pod_is_on_the_node_that_was_meant_whatever_the_nodes_label_says() {
    let mut seen = json!({
        "metadata": {"name": "a", "uid": "1", "labels": {names::LABEL_INDEX: "3"}, "annotations": {}},
        "spec": placed(),
    });
    seen["metadata"]["annotations"][names::ANNOTATION_PLACED] = json!({"host": "n1"}).to_string().into();
    let view = PodView::of(&serde_json::from_value(seen.clone()).unwrap()).unwrap();
    assert_eq!(view.host.as_deref(), Some("n1"));
    seen["spec"]["nodeName"] = "n2".into();
    let view = PodView::of(&serde_json::from_value(seen).unwrap()).unwrap();
    assert_eq!(view.host.as_deref(), Some("n2"), "that is where it runs");
}

#[test]
fn a_deleted_pod_is_gone_also_when_another_has_its_name() {
    let mut roster = Roster::default();
    let worker = WorkerId(3);
    roster.update(pod("a", "1", &placed(), &running()));
    let gone = |uid: &str| Change::Gone {
        worker,
        number: process_number(uid),
        how: "its pod was deleted".to_owned(),
    };
    let changes = roster.update(pod("a", "2", &placed(), &running()));
    assert_eq!(changes, [gone("1"), Change::Launched { worker, number: process_number("2") }]);
    assert_eq!(roster.remove("a"), [gone("2")]);
}

#[test]
fn a_launched_pod_that_is_deleted_is_leaving_once() {
    let mut roster = Roster::default();
    let worker = WorkerId(3);
    roster.update(pod("a", "1", &placed(), &running()));
    let leaving = PodView { is_leaving: true, ..pod("a", "1", &placed(), &running()) };
    let number = process_number("1");
    assert_eq!(roster.update(leaving.clone()), [Change::Leaving { worker, number }]);
    assert_eq!(roster.update(leaving), []);
    assert!(roster.current(worker).is_none(), "its successor is the worker now");
    assert_eq!(roster.alive(worker).count(), 1);
}

#[test]
fn a_pod_that_cannot_run_where_it_was_placed_is_rejected_once() {
    let mut roster = Roster::default();
    let failed = json!({"phase": "Failed", "reason": "TopologyAffinityError", "message": "cannot align"});
    let rejected = |pod: &str, why: &str| Change::Rejected {
        pod: pod.to_owned(),
        worker: WorkerId(3),
        host: "node1".to_owned(),
        why: why.to_owned(),
    };
    let expected = [rejected("a", "TopologyAffinityError: cannot align")];
    assert_eq!(roster.update(pod("a", "1", &placed(), &failed)), expected);
    assert_eq!(roster.update(pod("a", "1", &placed(), &failed)), []);
    assert_eq!(roster.alive(WorkerId(3)).count(), 0);
    let unschedulable = json!({"phase": "Pending", "conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no CPUs",
    }]});
    assert_eq!(roster.update(pod("b", "2", &placed(), &unschedulable)), [], "it may pass");
    roster.update(pod("c", "3", &gated(), &unschedulable));
    let waiting: Vec<_> = roster.unschedulable().map(|(pod, why)| (pod.name.as_str(), why)).collect();
    assert_eq!(waiting, [("b", "no CPUs")], "the other has no place yet");
}

#[test]
fn an_ended_job_was_where_its_last_pods_were() {
    let mut roster = Roster::default();
    let at = |name: &str, host: &str, created: i64, status: serde_json::Value| PodView {
        host: Some(host.to_owned()),
        placed: Some(json!({"numaNode": created}).to_string()),
        created,
        ..pod(name, name, &placed(), &status)
    };
    let failed = || json!({"phase": "Failed"});
    let not_admitted = json!({"phase": "Failed", "reason": "TopologyAffinityError"});
    let told = |roster: &Roster| {
        let last = roster.last_placed();
        last.values().map(|pod| (pod.host.clone().unwrap(), pod.numa_node())).collect::<Vec<_>>()
    };
    roster.update(at("z", "first", 1, failed()));
    roster.update(at("a", "second", 2, failed()));
    roster.update(at("zz", "refuses", 3, not_admitted));
    assert_eq!(told(&roster), [("second".to_owned(), Some(2))], "whatever their names are");
    roster.update(at("b", "now", 0, running()));
    assert_eq!(told(&roster), [("now".to_owned(), Some(0))]);
}

#[test]
fn what_keeps_a_container_from_starting_is_told() {
    let status = json!({"phase": "Pending", "containerStatuses": [{
        "name": names::RANKS, "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
    }]});
    assert_eq!(
        pod("a", "1", &placed(), &status).trouble,
        "container ranks waits: ImagePullBackOff no such image"
    );
    let status = json!({"phase": "Pending", "containerStatuses": [{
        "name": names::RANKS, "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": "PodInitializing"}},
    }]});
    assert_eq!(pod("a", "1", &placed(), &status).trouble, "");
}

#[test]
fn workers_are_counted_once_and_found_by_their_pods() {
    let mut roster = Roster::default();
    let worker = WorkerId(3);
    roster.update(pod("a", "1", &placed(), &json!({"phase": "Failed"})));
    roster.update(pod("b", "2", &placed(), &running()));
    roster.update(pod("c", "3", &gated(), &json!({})));
    assert_eq!(roster.workers_with(4, PodView::is_current), 1, "two pods of one worker");
    assert_eq!(roster.workers_with(3, PodView::is_current), 0, "worker 3 is not one of three");
    assert_eq!(roster.worker_of("c"), Some(worker));
    assert_eq!(roster.placed_of(worker).map(|pod| pod.name.as_str()), Some("b"));
    roster.remove("b");
    assert!(roster.placed_of(worker).is_none(), "one has ended, one is gated");
    assert_eq!(roster.worker_of("b"), None);
    assert_eq!(roster.current(worker).map(|pod| pod.name.as_str()), Some("c"));
    roster.remove("a");
    roster.remove("c");
    assert!(roster.current(worker).is_none());
}

#[test]
fn a_data_server_is_a_worker_after_the_others_and_nobodys_place() {
    let server = |node: Option<&str>, status: serde_json::Value| {
        let pod = json!({
            "metadata": {
                "name": "s", "uid": "9",
                "labels": {
                    names::LABEL_INDEX: "1", names::LABEL_JOB: "digits", names::LABEL_ROLE: names::ROLE_SERVER,
                },
                "annotations": {names::ANNOTATION_FIRST_WORKER: "4"},
            },
            "spec": {"containers": [], "nodeName": node}, "status": status,
        });
        PodView::of(&serde_json::from_value(pod).unwrap()).unwrap()
    };
    let mut roster = Roster::default();
    let (worker, number) = (WorkerId(5), process_number("9"));
    let refused = json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node"},
    ]});
    assert_eq!(roster.update(server(None, refused)), []);
    assert_eq!(roster.unschedulable().count(), 0, "its scheduler goes on looking");
    let runs = json!({"phase": "Running", "containerStatuses": [{
        "name": names::SIDECAR, "image": "", "imageID": "", "ready": true, "restartCount": 0,
        "state": {"running": {}},
    }]});
    assert_eq!(roster.update(server(Some("node1"), runs)), [Change::Launched { worker, number }]);
    assert!(roster.placed().is_empty(), "it holds no devices");
    assert_eq!(roster.workers_with(4, PodView::is_current), 0);
    let evicted = json!({"phase": "Failed", "reason": "OutOfcpu", "message": "none"});
    let how = "its kubelet ended it (OutOfcpu: none)".to_owned();
    assert_eq!(
        roster.update(server(Some("node1"), evicted)),
        [Change::Gone { worker, number, how }],
        "and no host is blamed for it"
    );
}

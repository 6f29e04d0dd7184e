//! What an actor does when calls fail again and again, hosts refuse its pods, or pods come when they should not.

use super::*;

/// Another pod of the only worker.
fn another(name: &str, spec: &Value, status: &Value) -> PodView {
    PodView { name: name.to_owned(), uid: format!("uid-{name}"), ..pod(spec, status) }
}

/// A pod that `host` did not take.
fn refused_by(host: &str, name: &str) -> PodView {
    let status = json!({"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no device"});
    let pod = another(name, &json!({"containers": [], "nodeName": host}), &status);
    PodView { host: Some(host.to_owned()), ..pod }
}

fn cancelled(now: bool) -> TrainingJob {
    let mut resource = resource();
    let word = if now { "now" } else { "yes" };
    resource.metadata.annotations = Some([(names::ANNOTATION_CANCEL.to_owned(), word.to_owned())].into());
    resource
}

#[tokio::test]
async fn a_deleted_job_holds_what_its_pods_have_also_when_its_memory_goes_first() {
    let mut rig = Rig::open().await;
    rig.remembers(None, 1);
    let permits = rig.api.delay(Method::PUT, MEMORY);
    let handle = rig.start(&resource(), &[running()]).await;
    rig.called(Method::PUT, MEMORY).await;
    tell(&handle, Signal::Deleted).await;
    rig.api.remove(MEMORY);
    tokio::time::sleep(A_WHILE).await;
    permits.add_permits(1);
    tokio::time::sleep(A_WHILE).await;
    assert!(!handle.is_over() && !rig.is_free().await, "its pod runs");
    tell(&handle, Signal::PodGone("a-0-x".to_owned())).await;
    rig.becomes_free().await;
    rig.wait("it ends", || handle.is_done()).await;
}

/// Such calls about pods fail: the next ones come half a second later, and a second.
async fn come_ever_later(rig: &Rig, method: Method, pod: PodView, code: StatusCode) {
    rig.api.refuse(method.clone(), PODS, 100, code);
    let _handle = rig.start(&resource(), &[pod]).await;
    rig.wait("three attempts", || rig.api.calls(&method, PODS).len() == 3).await;
    let times = rig.api.times(&method, PODS);
    assert!(times[1] - times[0] >= RETRY_FIRST && times[2] - times[1] >= 2 * RETRY_FIRST);
}

#[tokio::test]
async fn a_gate_that_cannot_be_lifted_is_tried_again_after_a_while() {
    let rig = Rig::open().await;
    rig.remembers(None, 0);
    come_ever_later(&rig, Method::PATCH, gated(), StatusCode::INTERNAL_SERVER_ERROR).await;
}

#[tokio::test]
async fn a_deletion_that_fails_is_tried_again_after_a_while() {
    let rig = Rig::open().await;
    rig.remembers(Some(Outcome::Succeeded), 1);
    come_ever_later(&rig, Method::DELETE, running(), StatusCode::FORBIDDEN).await;
}

#[tokio::test]
async fn while_a_queue_keeps_a_job_back_others_use_its_places() {
    let mut rig = Rig::open().await;
    let mut queued = resource();
    queued.spec["queue"] = json!({"name": "research"});
    let handle = rig.start(&queued, &[]).await;
    rig.called(Method::PATCH, "/jobs/a").await;
    rig.becomes_free().await;
    let told = |rig: &Rig| rig.status()["reasons"].to_string();
    rig.wait("it says what it waits for", || told(&rig).contains("queue research has not admitted it")).await;
    // It is admitted.
    tell(&handle, Signal::Pod(Box::new(gated()))).await;
    rig.called(Method::PATCH, PODS).await;
    assert!(!rig.is_free().await);
    // Before all of its workers have their places the queue takes it back.
    tell(&handle, Signal::Pod(Box::new(PodView { is_leaving: true, ..running() }))).await;
    tokio::time::sleep(A_WHILE).await;
    assert!(!rig.is_free().await, "it still runs");
    assert_eq!(rig.api.calls(&Method::DELETE, "/jobs/a"), Vec::<Value>::new());
}

#[tokio::test]
async fn what_a_host_refuses_at_once_is_one_refusal() {
    let rig = Rig::open().await;
    rig.remembers(None, 0);
    let handle = rig.start(&resource(), &[]).await;
    rig.called(Method::GET, "/jobs/a").await;
    for number in 0..40 {
        tell(&handle, Signal::Pod(Box::new(refused_by("node-1", &format!("a-0-{number}"))))).await;
    }
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(rig.status()["phase"], "Pending", "{}", rig.status());
    assert_eq!(rig.api.calls(&Method::DELETE, "/jobs/a"), Vec::<Value>::new());
}

/// In both stages: while gates are lifted, and while the membership waits for its workers.
#[tokio::test]
async fn a_job_that_too_many_hosts_refuse_fails_and_says_which() {
    for is_live in [false, true] {
        let rig = Rig::open().await;
        rig.remembers(None, 0);
        let placed = another("a-0-placed", &bound().0, &json!({}));
        let pods = if is_live { vec![placed] } else { Vec::new() };
        let handle = rig.start(&resource(), &pods).await;
        rig.called(Method::GET, "/jobs/a").await;
        tokio::time::sleep(A_WHILE).await;
        let phase = if is_live { "Gathering" } else { "Pending" };
        rig.wait(phase, || rig.status()["phase"] == phase).await;
        for number in 0..16 {
            let (host, name) = (format!("node-{number}"), format!("a-0-{number}"));
            tell(&handle, Signal::Pod(Box::new(refused_by(&host, &name)))).await;
        }
        rig.called(Method::DELETE, "/jobs/a").await;
        for name in (0..16).map(|number| number.to_string()).chain(["placed".to_owned()]) {
            tell(&handle, Signal::PodGone(format!("a-0-{name}"))).await;
        }
        rig.wait("it fails", || rig.status()["phase"] == "Failed").await;
        let told = rig.status()["cause"].to_string();
        assert!(told.contains("refused pods 16 times") && told.contains("node-15: refused"), "{told}");
    }
}

#[tokio::test]
async fn nobody_gets_a_place_in_a_job_that_is_ending() {
    let rig = Rig::new(&json!({"nvidia.com/gpu": "2"}));
    rig.context.planner.tell(planner::Wish::Open).await;
    rig.remembers(None, 1);
    let handle = rig.start(&resource(), &[running()]).await;
    rig.called(Method::GET, "/jobs/a").await;
    tell(&handle, Signal::Resource(Box::new(cancelled(true)))).await;
    rig.wait("it ends", || rig.status()["phase"] == "Fencing").await;
    let replaced =
        another("a-0-y", &json!({"containers": [], "schedulingGates": [{"name": names::GATE}]}), &json!({}));
    tell(&handle, Signal::Pod(Box::new(replaced))).await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(rig.api.calls(&Method::PATCH, PODS), Vec::<Value>::new());
}

#[tokio::test]
async fn a_pod_that_starts_after_the_end_is_held_and_ended() {
    let mut rig = Rig::open().await;
    rig.remembers(Some(Outcome::Succeeded), 1);
    let handle = rig.start(&resource(), &[]).await;
    rig.wait("it is over", || rig.status()["phase"] == "Succeeded").await;
    tell(&handle, Signal::Pod(Box::new(running()))).await;
    rig.called(Method::DELETE, PODS).await;
    assert!(!rig.is_free().await, "it runs");
    tell(&handle, Signal::PodGone("a-0-x".to_owned())).await;
    rig.becomes_free().await;
}

#[tokio::test]
async fn what_nobody_deletes_of_a_gang_that_is_given_up_is_deleted() {
    let rig = Rig::open().await;
    rig.remembers(None, 0);
    let two = changed(resource(), "workers", json!({"count": 2}));
    let handle = rig.start(&two, &[running()]).await;
    rig.wait("the other one is missed", || {
        rig.status()["reasons"].to_string().contains("1 of 2 pods are not there")
    })
    .await;
    let mut suspended = changed(two, "suspend", true.into());
    suspended.metadata.generation = Some(3);
    tell(&handle, Signal::Resource(Box::new(suspended))).await;
    rig.called(Method::DELETE, "/jobs/a").await;
    // No garbage collector deletes it here.
    rig.called(Method::DELETE, PODS).await;
    tell(&handle, Signal::PodGone("a-0-x".to_owned())).await;
    rig.wait("it is suspended", || rig.status()["phase"] == "Suspended").await;
}

#[tokio::test]
async fn what_runs_of_a_job_that_is_none_any_more_is_counted_and_can_be_ended() {
    let mut rig = Rig::open().await;
    rig.remembers(None, 1);
    let mut none = cancelled(true);
    none.spec["run"]["command"] = json!([]);
    let mut kept = none.clone();
    kept.metadata.annotations = None;
    let handle = rig.start(&kept, &[running()]).await;
    rig.wait("it is told", || rig.status()["phase"] == "Failed").await;
    assert!(!rig.is_free().await, "its pod runs");
    tell(&handle, Signal::Resource(Box::new(none))).await;
    rig.called(Method::DELETE, PODS).await;
    tell(&handle, Signal::PodGone("a-0-x".to_owned())).await;
    rig.becomes_free().await;
}

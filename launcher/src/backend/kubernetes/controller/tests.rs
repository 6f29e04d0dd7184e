//! A controller without watches: what it makes of their events.

use futures_util::stream;
use serde_json::json;

use super::*;
use job::tests::{Rig, bound, ours, resource};

fn controller(rig: &Rig) -> Controller {
    Controller {
        context: Arc::clone(&rig.context),
        jobs: Jobs::default(),
        pods: Pods::default(),
        trainings: stream::pending().boxed(),
        workers: stream::pending().boxed(),
        is_open: false,
    }
}

/// A running pod of job `a`, made by a Job.
fn pod() -> Pod {
    let mut meta = ours("a-0-x");
    meta["uid"] = "pod-1".into();
    meta["labels"][names::LABEL_INDEX] = "0".into();
    let note = json!({"host": "node-1", "numaNode": null, "gpu": "nvidia.com/gpu", "nic": null});
    meta["annotations"] = json!({names::ANNOTATION_PLACED: note.to_string()});
    let owner =
        json!({"apiVersion": "batch/v1", "kind": "Job", "name": "a", "uid": "job-1", "controller": true});
    meta["ownerReferences"] = json!([owner]);
    let (spec, status) = bound();
    serde_json::from_value(json!({"metadata": meta, "spec": spec, "status": status})).unwrap()
}

impl Controller {
    async fn list(&mut self, jobs: &[TrainingJob], pods: &[Pod]) {
        self.training(Event::Init).await;
        for job in jobs {
            self.training(Event::InitApply(job.clone())).await;
        }
        self.training(Event::InitDone).await;
        self.worker(Event::Init).await;
        for pod in pods {
            self.worker(Event::InitApply(pod.clone())).await;
        }
        self.worker(Event::InitDone).await;
    }
}

#[tokio::test]
async fn pods_whose_job_was_deleted_while_nobody_led_keep_their_host() {
    let mut rig = Rig::new(&json!({"nvidia.com/gpu": "1"}));
    let mut controller = controller(&rig);
    controller.list(&[], &[pod()]).await;
    assert!(!rig.is_free().await, "it still runs");
    controller.worker(Event::Delete(pod())).await;
    rig.becomes_free().await;
}

#[tokio::test]
async fn a_pod_that_lost_its_owner_is_still_its_jobs() {
    let mut rig = Rig::new(&json!({"nvidia.com/gpu": "1"}));
    rig.remembers(None, 1);
    let mut controller = controller(&rig);
    controller.list(&[resource()], &[pod()]).await;
    let mut orphan = pod();
    orphan.metadata.owner_references = None;
    controller.worker(Event::Apply(orphan.clone())).await;
    assert!(!rig.is_free().await, "it still runs");
    controller.list(&[resource()], std::slice::from_ref(&orphan)).await;
    assert!(!rig.is_free().await, "also when everything is listed again");
    let mut stranger = orphan.clone();
    stranger.metadata.uid = Some("pod-2".to_owned());
    assert!(controller.known(&stranger).is_none(), "anybody may write labels");
    controller.training(Event::Delete(resource())).await;
    controller.worker(Event::Delete(orphan)).await;
    rig.becomes_free().await;
}

#[tokio::test]
async fn a_job_that_was_deleted_when_its_actor_was_lost_is_waited_for_by_the_next() {
    let mut rig = Rig::new(&json!({"nvidia.com/gpu": "1"}));
    rig.remembers(None, 1);
    let mut controller = controller(&rig);
    controller.list(&[resource()], &[pod()]).await;
    let id = ("research".to_owned(), "uid-a".to_owned());
    controller.training(Event::Delete(resource())).await;
    // It ends in whatever way, with the signal unheard.
    drop(controller.jobs.handles.remove(&id));
    assert!(!rig.is_free().await, "its pod runs");
    controller.care().await;
    assert!(controller.jobs.handles.contains_key(&id) && !rig.is_free().await);
    controller.worker(Event::Delete(pod())).await;
    rig.becomes_free().await;
    let over = |controller: &Controller| controller.jobs.handles.values().all(Handle::is_over);
    while !over(&controller) {
        tokio::task::yield_now().await;
    }
    controller.care().await;
    assert!(controller.jobs.leaving.is_empty() && controller.jobs.handles.is_empty());
}

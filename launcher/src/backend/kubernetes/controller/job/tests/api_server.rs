//! An API server of a few lines, for what a real one cannot be made to do at a chosen moment: to carry a call out and lose its
//! answer, or to answer one after something else has happened. Stories run against the real one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::backend::clock::clock;

/// What happens to calls whose method and path match.
struct Fault {
    method: Method,
    part: &'static str,
    times: u32,
    what: What,
}

enum What {
    /// Nothing is done, and the answer is this.
    Refused(StatusCode),
    /// It is done, and the answer says that it was not.
    Lost,
    /// It is done once there is a permit.
    Late(Arc<Semaphore>),
}

struct Call {
    method: Method,
    path: String,
    body: Value,
    at: Instant,
}

#[derive(Default)]
struct Store {
    objects: BTreeMap<String, Value>,
    calls: Vec<Call>,
    faults: Vec<Fault>,
    version: u64,
}

/// The server; clones are the same one.
#[derive(Clone, Default)]
pub(super) struct ApiServer(Arc<Mutex<Store>>);

impl ApiServer {
    pub(super) fn client(&self) -> Client {
        Client::new(Router::new().fallback(answer).with_state(self.clone()), "default")
    }

    fn locked<T>(&self, look: impl FnOnce(&mut Store) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn put(&self, path: &str, object: Value) {
        self.locked(|store| store.keep(path, object));
    }

    pub(super) fn remove(&self, path: &str) {
        self.locked(|store| store.objects.remove(path));
    }

    pub(super) fn refuse(&self, method: Method, part: &'static str, times: u32, code: StatusCode) {
        self.fault(Fault { method, part, times, what: What::Refused(code) });
    }

    pub(super) fn lose_answer(&self, method: Method, part: &'static str) {
        self.fault(Fault { method, part, times: 1, what: What::Lost });
    }

    /// The next such call waits for a permit of what is returned.
    pub(super) fn delay(&self, method: Method, part: &'static str) -> Arc<Semaphore> {
        let permits = Arc::new(Semaphore::new(0));
        self.fault(Fault { method, part, times: 1, what: What::Late(Arc::clone(&permits)) });
        permits
    }

    fn fault(&self, fault: Fault) {
        self.locked(|store| store.faults.push(fault));
    }

    fn matching<T>(&self, method: &Method, part: &str, what: impl Fn(&Call) -> T) -> Vec<T> {
        self.locked(|store| {
            let matching =
                store.calls.iter().filter(|call| call.method == *method && call.path.contains(part));
            matching.map(what).collect()
        })
    }

    /// The bodies of such calls until now.
    pub(super) fn calls(&self, method: &Method, part: &str) -> Vec<Value> {
        self.matching(method, part, |call| call.body.clone())
    }

    /// When they came.
    pub(super) fn times(&self, method: &Method, part: &str) -> Vec<Instant> {
        self.matching(method, part, |call| call.at)
    }

    /// All calls until now, for whoever has waited for another in vain.
    pub(super) fn history(&self) -> Vec<String> {
        self.locked(|store| store.calls.iter().map(|call| format!("{} {}", call.method, call.path)).collect())
    }
}

impl Store {
    fn keep(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    fn fault(&mut self, method: &Method, path: &str) -> Option<What> {
        let at = self.faults.iter().position(|fault| fault.method == method && path.contains(fault.part))?;
        let fault = self.faults.get_mut(at)?;
        fault.times -= 1;
        let what = match &fault.what {
            What::Refused(code) => What::Refused(*code),
            What::Lost => What::Lost,
            What::Late(permits) => What::Late(Arc::clone(permits)),
        };
        if fault.times == 0 {
            self.faults.remove(at);
        }
        Some(what)
    }

    fn carry_out(&mut self, method: &Method, path: &str, body: Value) -> Result<Value, StatusCode> {
        match *method {
            Method::GET => self.objects.get(path).cloned().ok_or(StatusCode::NOT_FOUND),
            Method::POST => {
                let path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap());
                if self.objects.contains_key(&path) {
                    Err(StatusCode::CONFLICT)
                } else {
                    Ok(self.keep(&path, body))
                }
            }
            Method::PUT => {
                let there = self.objects.get(path).ok_or(StatusCode::NOT_FOUND)?;
                if there["metadata"]["resourceVersion"] == body["metadata"]["resourceVersion"] {
                    Ok(self.keep(path, body))
                } else {
                    Err(StatusCode::CONFLICT)
                }
            }
            Method::DELETE => {
                let status = json!({"apiVersion": "v1", "kind": "Status", "status": "Success"});
                self.objects.remove(path).map(|_| status).ok_or(StatusCode::NOT_FOUND)
            }
            _ => Ok(self.keep(path, body)),
        }
    }
}

async fn answer(State(server): State<ApiServer>, method: Method, uri: Uri, body: Bytes) -> Response {
    let path = uri.path().to_owned();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let fault = server.locked(|store| {
        store.calls.push(Call {
            method: method.clone(),
            path: path.clone(),
            body: body.clone(),
            at: clock(),
        });
        store.fault(&method, &path)
    });
    if let Some(What::Late(permits)) = &fault {
        permits.acquire().await.unwrap().forget();
    }
    let answered = match &fault {
        Some(What::Refused(code)) => Err(*code),
        _ => server.locked(|store| store.carry_out(&method, &path, body)),
    };
    match (answered, fault) {
        (_, Some(What::Lost)) => refusal(StatusCode::INTERNAL_SERVER_ERROR),
        (Ok(object), _) => json_of(StatusCode::OK, &object),
        (Err(code), _) => refusal(code),
    }
}

fn refusal(code: StatusCode) -> Response {
    let reason = match code {
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::CONFLICT => "Conflict",
        _ => "InternalError",
    };
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": "as the test wants it", "reason": reason, "code": code.as_u16(),
    });
    json_of(code, &status)
}

fn json_of(code: StatusCode, value: &Value) -> Response {
    (code, [(CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

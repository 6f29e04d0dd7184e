//! Ranks that hang, that leave before the others, and that join in another way than torch's.

use serde_json::Value;
use tests::program::{Finished, User};
use tests::{dataset, leftovers};

use crate::Story;

pub(crate) const STORIES: &[Story] = &[
    ("ranks::one_that_stops_stepping_hangs", stops_stepping),
    ("ranks::one_that_never_steps_hangs", never_steps),
    ("ranks::one_that_leaves_its_share_behind_fails_the_job", leaves_early),
    ("ranks::all_may_stop_before_the_end_of_the_data", all_stop_early),
    ("ranks::jax_finds_its_coordinator", jax),
];

/// What every trainer here begins with. Without collectives ranks do not wait for each other.
const LOOP: &str = "import time\nimport slipway\nloader = slipway.loader()\nfor batch in loader:\n    ";

fn stops_stepping() {
    let user = User::new();
    let trainer = format!("{LOOP}time.sleep(600 if (slipway.job.rank, batch.step) == (1, 3) else 0)\n");
    let status = train(&user, &trainer, &["--hang-timeout", "3s", "--max-restarts", "1"]).code(124).json();
    assert_eq!(status["cause"]["code"], "hang", "{status:#}");
    assert_eq!(status["cause"]["rank"], 1, "{status:#}");
    assert!(text(&status, "/cause/message").contains("the last one was 2"), "{status:#}");
    assert_eq!(status["restarts"], 1, "the budget is used up first: {status:#}");
    leftovers::assert_none(&user);
}

fn never_steps() {
    let user = User::new();
    let trainer = "import time; time.sleep(600)";
    let status = train(&user, trainer, &["--hang-timeout", "1s", "--max-restarts", "0"]).code(124).json();
    assert_eq!(status["cause"]["code"], "hang", "{status:#}");
    assert!(text(&status, "/cause/message").starts_with("no step in the "), "{status:#}");
    leftovers::assert_none(&user);
}

fn leaves_early() {
    let user = User::new();
    let trainer = format!("{LOOP}if (slipway.job.rank, batch.step) == (1, 3): break\n");
    let status = train(&user, &trainer, &["--max-restarts", "0"]).code(1).json();
    assert_eq!(status["cause"]["rank"], 1, "{status:#}");
    let message = text(&status, "/cause/message");
    assert!(message.contains("rank 1 returned 0 at step 3") && message.contains("lost"), "{status:#}");
    leftovers::assert_none(&user);
}

fn all_stop_early() {
    let user = User::new();
    let trainer = format!("{LOOP}if batch.step == 5: break\n");
    let status = train(&user, &trainer, &["--max-restarts", "0"]).code(0).json();
    assert_eq!(status["summary"]["steps"], 5, "what was not acknowledged does not count: {status:#}");
    leftovers::assert_none(&user);
}

/// A stand-in for `jax.distributed`: rank 0 serves the coordinator's address, the others come to it.
fn jax() {
    let user = User::new();
    let program = r#"
import os, socket, time
host, port = os.environ["JAX_COORDINATOR_ADDRESS"].rsplit(":", 1)
rank, world = int(os.environ["JAX_PROCESS_ID"]), int(os.environ["JAX_NUM_PROCESSES"])
assert "MASTER_PORT" not in os.environ and host in os.environ["no_grpc_proxy"]
if rank == 0:
    time.sleep(0.2)
    server = socket.create_server((host, int(port)))
    print("met", sorted(server.accept()[0].recv(1)[0] for _ in range(world - 1)))
else:
    while True:
        try:
            peer = socket.create_connection((host, int(port)))
            break
        except ConnectionRefusedError:
            time.sleep(0.01)
    peer.send(bytes([rank]))
"#;
    let path = user.write("meet.py", program);
    let args = ["job", "submit", "--workers", "3", "--set", "spec.run.framework=jax", "--", "python3"];
    user.run([&args[..], &[path.to_str().unwrap()]].concat()).code(0);
    let logs = user.run(["job", "logs", &user.jobs()[0]]).code(0).stdout;
    assert!(logs.contains("met [1, 2]"), "{logs}");
    leftovers::assert_none(&user);
}

/// Two workers, 20 steps.
fn train(user: &User, trainer: &str, more: &[&str]) -> Finished {
    let data = dataset::tokens(user, "tokens", 2, 100, 16);
    let trainer = user.write("train.py", trainer);
    let mut args =
        vec!["job", "submit", "--output", "json", "--workers", "2", "--data", data.to_str().unwrap()];
    args.extend(["--record", "u16:16", "--global-batch", "10"]);
    args.extend(more);
    args.extend(["--", "python3", trainer.to_str().unwrap()]);
    user.run(args)
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_else(|| panic!("no text at {pointer}: {value:#}"))
}

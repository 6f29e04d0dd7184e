//! `worker probe` on that machine: every virtual function with its physical one, its NUMA node and its RDMA device, and the lanes
//! that follow from where it is asked.

use std::process::Command;

use serde_json::Value;

use crate::Story;

pub(crate) const STORIES: &[Story] = &[
    ("probe::every_function_is_paired_with_its_pf_its_node_and_its_device", pairs),
    ("probe::the_lane_of_each_device_depends_on_where_it_is_asked", lanes),
];

/// What `worker probe` prints, bound to these CPUs.
fn probe(cpus: &str, output: &str) -> String {
    #[expect(clippy::disallowed_methods, reason = "the harness's setting")]
    let worker = std::env::var("SLIPWAY_WORKER").unwrap();
    let mut command = Command::new("taskset");
    let ran = command.args(["--cpu-list", cpus, &worker, "probe", "--output", output]).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap()
}

fn json(cpus: &str) -> Value {
    serde_json::from_str(&probe(cpus, "json")).unwrap()
}

fn pairs() {
    let found = json("0-3");
    let functions: Vec<(&str, &str, u64, &Value)> = found["nics"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|nic| {
            let place = (nic["id"].as_str()?, nic["vf_of"].as_str()?, nic["node"].as_u64()?);
            Some((place.0, place.1, place.2, &nic["rdma"]))
        })
        .collect();
    let device = |name: &str| serde_json::json!([{ "name": name }]);
    let none = serde_json::json!([]);
    assert_eq!(
        functions,
        [
            ("0000:11:10.0", "0000:11:00.0", 0, &device("rxe_a")),
            ("0000:11:10.2", "0000:11:00.0", 0, &none),
            ("0000:41:10.0", "0000:41:00.0", 1, &device("rxe_b")),
            ("0000:41:10.2", "0000:41:00.0", 1, &none),
        ],
        "{found:#}"
    );
    for (at, name, nic, node, address) in
        [(0, "rxe_a", "0000:11:10.0", 0, "10.9.0.1"), (1, "rxe_b", "0000:41:10.0", 1, "10.9.0.2")]
    {
        let device = &found["rdma"]["devices"][at];
        assert_eq!((&device["name"], &device["nic"]), (&name.into(), &nic.into()), "{device:#}");
        assert_eq!((&device["node"], &device["mtu"]), (&node.into(), &4200.into()), "{device:#}");
        let port = &device["ports"][0];
        assert_eq!(port["state"], "ACTIVE");
        let chosen: Vec<_> =
            port["gids"].as_array().unwrap().iter().filter(|gid| gid["is_chosen"] == true).collect();
        assert_eq!((chosen.len(), &chosen[0]["gid"]), (1, &address.into()), "{port:#}");
        // Soft-RoCE of this kernel registers no memory of other devices.
        assert_eq!(
            (&device["says"]["packet_bytes"], &device["says"]["dma_buf"]),
            (&4096.into(), &false.into())
        );
    }
    let table = probe("0-3", "table");
    for line in [
        "RDMA        rxe_b of 0000:41:10.0 (vb), node 1, VF of 0000:41:00.0\n",
        "MTU         rxe_b: 4200, 4096 bytes of data in a packet\n",
        "dma-buf     rxe_b: no\n",
    ] {
        assert!(table.contains(line), "{table}");
    }
}

fn lanes() {
    for (cpus, near, far) in [("0-1", "rxe_a", "rxe_b"), ("2-3", "rxe_b", "rxe_a")] {
        let found = json(cpus);
        let lane = |device: &str| {
            let lanes = found["rdma"]["lanes"].as_array().unwrap().iter();
            let lane = lanes.clone().find(|lane| lane["from"] == "CPUs" && lane["device"] == device).unwrap();
            (lane["lane"].as_str().unwrap(), lane["reason"].as_str())
        };
        assert_eq!(lane(near), ("rdma", None), "{found:#}");
        assert_eq!(lane(far), ("quic", Some("wrong_numa")), "{found:#}");
    }
    let anywhere = json("0-3");
    let lanes = anywhere["rdma"]["lanes"].as_array().unwrap();
    assert!(lanes.len() == 2 && lanes.iter().all(|lane| lane["lane"] == "rdma"), "{anywhere:#}");
}

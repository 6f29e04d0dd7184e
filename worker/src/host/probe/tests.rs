//! Hosts and containers made of files.

use std::os::unix::fs::symlink;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// Two nodes, a GPU and a VF on each, and the console of the board.
fn host(cpus: &str, memory: &str) -> TempDir {
    let root = TempDir::new().unwrap();
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write(
        "proc/self/status",
        &format!("Name:\tworker\nCpus_allowed_list:\t{cpus}\nMems_allowed_list:\t{memory}\n"),
    );
    write("proc/self/numa_maps", "55a0 default file=/usr/bin/worker mapped=3\n");
    write(
        "proc/self/limits",
        "Limit                     Soft Limit           Hard Limit           Units     \n\
         Max locked memory         8388608              8388608              bytes     \n",
    );
    write("sys/devices/system/node/node0/cpulist", "0-3\n");
    write("sys/devices/system/node/node1/cpulist", "4-7\n");
    write("sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages", "64\n");
    write("sys/devices/system/node/node1/hugepages/hugepages-2048kB/free_hugepages", "60\n");
    let device = |id: &str, class: &str, vendor: &str, node: &str| {
        let folder = format!("sys/bus/pci/devices/{id}");
        write(&format!("{folder}/class"), class);
        write(&format!("{folder}/vendor"), vendor);
        write(&format!("{folder}/device"), "0x2330\n");
        write(&format!("{folder}/numa_node"), node);
    };
    device("0000:01:00.0", "0x030000\n", "0x1a03\n", "0\n");
    device("0000:17:00.0", "0x030200\n", "0x10de\n", "0\n");
    device("0000:97:00.0", "0x030200\n", "0x10de\n", "1\n");
    device("0000:98:00.0", "0x020000\n", "0x15b3\n", "1\n");
    device("0000:98:00.1", "0x020000\n", "0x15b3\n", "1\n");
    device("0000:18:00.1", "0x020000\n", "0x15b3\n", "-1\n");
    symlink("../0000:98:00.0", root.path().join("sys/bus/pci/devices/0000:98:00.1/physfn")).unwrap();
    write("sys/bus/pci/devices/0000:98:00.1/net/net1/mtu", "9000\n");
    write("sys/bus/pci/devices/0000:98:00.1/infiniband/mlx5_7/node_guid", "x\n");
    write("sys/class/infiniband/mlx5_7/ports/1/state", "4: ACTIVE\n");
    write("sys/class/infiniband/mlx5_7/ports/1/link_layer", "Ethernet\n");
    for (index, gid) in ["fe80::1", "::ffff:10.9.0.3"].into_iter().enumerate() {
        let place = |folder: &str| format!("sys/class/infiniband/mlx5_7/ports/1/{folder}/{index}");
        write(&place("gids"), gid);
        write(&place("gid_attrs/types"), "RoCE v2\n");
        write(&place("gid_attrs/ndevs"), "net1\n");
    }
    symlink("../../../bus/pci/devices/0000:98:00.1", root.path().join("sys/class/infiniband/mlx5_7/device"))
        .unwrap();
    write("sys/class/net/net1/mtu", "9000\n");
    write("proc/net/fib_trie", "Local:\n  |-- 10.9.0.3\n     /32 host LOCAL\n");
    write(
        "proc/net/route",
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
         net1\t0000090A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n",
    );
    root
}

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

const VF: (&str, &str) = ("PCIDEVICE_NVIDIA_COM_VF", "0000:98:00.1");
const GPU: (&str, &str) = ("PCIDEVICE_NVIDIA_COM_GPU", "0000:97:00.0");

#[test]
fn a_bay_lies_on_one_node_and_says_so() {
    let root = host("4-7", "1");
    let info = ("PCIDEVICE_NVIDIA_COM_VF_INFO", "{\"0000:98:00.1\":{}}");
    let probe = read(root.path(), &env(&[VF, GPU, info]));
    assert_eq!(probe.verdict.node, Some(1));
    let expected = "\
CPUs        4-7 (node 1)
memory      node 1, policy default
huge pages  node 1: 60 of 64 free, 2048 KiB each
memlock     8388608 bytes
grant       PCIDEVICE_NVIDIA_COM_GPU: 0000:97:00.0
grant       PCIDEVICE_NVIDIA_COM_VF: 0000:98:00.1
GPU         0000:17:00.0 (10de:2330), node 0
GPU         0000:97:00.0 (10de:2330), node 1, granted
NIC         0000:18:00.1 (no interface here), node ?
NIC         0000:98:00.0 (no interface here), node 1
NIC         0000:98:00.1 (net1), node 1, VF of 0000:98:00.0, 10.9.0.3, granted
RDMA        mlx5_7 of 0000:98:00.1 (net1), node 1, VF of 0000:98:00.0, granted
port        mlx5_7 1: ACTIVE Ethernet, 10.9.0.3 at 1 of 2 addresses
MTU         mlx5_7: 9000
dma-buf     mlx5_7: not known: this is not the machine itself
peer memory no module for it
lane        CPUs with mlx5_7: rdma (from 10.9.0.3 at port 1)
lane        GPU 0000:17:00.0 with mlx5_7: rdma (wrong_numa, it is on NUMA node 1, not on 0; it is used, as there is no nearer one; with locality numa or pcie it is QUIC)
lane        GPU 0000:97:00.0 with mlx5_7: rdma (from 10.9.0.3 at port 1)
verdict     on one NUMA node, 1: CPUs, memory, GPUs, VFs
";
    assert_eq!(table(&probe), expected);
    let json: serde_json::Value = serde_json::to_value(&probe).unwrap();
    assert_eq!(json["verdict"]["node"], 1);
    assert_eq!(json["nics"][2]["vf_of"], "0000:98:00.0");
    assert_eq!(json["nics"][2]["addresses"][0], "10.9.0.3");
    assert_eq!(json["nics"][2]["rdma"][0]["name"], "mlx5_7");
    let device = &json["rdma"]["devices"][0];
    assert_eq!((device["nic"].as_str(), device["node"].as_u64()), (Some("0000:98:00.1"), Some(1)));
    assert_eq!(device["ports"][0]["gids"][1]["is_chosen"], true);
    assert_eq!(device["says"]["unknown"], "this is not the machine itself");
    assert_eq!(json["rdma"]["lanes"][1]["reason"], "wrong_numa");
    assert_eq!(json["rdma"]["lanes"][1]["lane"], "rdma");
}

#[test]
fn devices_are_those_of_the_functions_that_were_given() {
    let root = host("4-7", "1");
    let of = |pairs: &[(&str, &str)]| pci::granted_rdma(root.path(), &env(pairs));
    assert_eq!(of(&[VF]), Some(BTreeSet::from(["mlx5_7".to_owned()])));
    assert_eq!(of(&[GPU]), None, "nobody said which");
    assert_eq!(of(&[("PCIDEVICE_X", "0000:18:00.1")]), Some(BTreeSet::new()), "what was given has none");
}

#[test]
fn what_lies_apart_is_named_with_its_node() {
    let verdict = |cpus: &str, memory: &str, env: &BTreeMap<String, String>| {
        read(host(cpus, memory).path(), env).verdict
    };
    let apart = verdict("0-1", "0-1", &env(&[VF, GPU]));
    assert_eq!(apart.node, None);
    assert_eq!(apart.text, "not on one NUMA node: CPUs on 0, memory on 0+1, GPUs on 1, VFs on 1");
    let unknown = verdict("0-1", "0", &env(&[("PCIDEVICE_X", "0000:18:00.1")]));
    assert_eq!(unknown.text, "not on one NUMA node: CPUs on 0, memory on 0, VFs on ?");
    let stand_in = verdict("0-1", "0", &env(&[(STAND_IN_VARIABLE, "gpu0@0")]));
    assert_eq!(stand_in.text, "on one NUMA node, 0: CPUs, memory, GPUs");
    let whole_host = verdict("0-7", "0-1", &env(&[]));
    assert_eq!(whole_host.text, "not on one NUMA node: CPUs on 0+1, memory on 0+1, GPUs on 0+1, VFs on 1");
}

#[test]
fn the_data_plane_takes_the_address_of_the_function_that_was_given() {
    let root = host("4-7", "1");
    let of = |pairs: &[(&str, &str)]| pci::granted_address(root.path(), &env(pairs));
    assert_eq!(of(&[GPU, VF]), Some("10.9.0.3".parse().unwrap()));
    assert_eq!(of(&[GPU]), None, "a GPU has no address");
    assert_eq!(of(&[("PCIDEVICE_X", "0000:18:00.1")]), None, "it has no interface here");
    assert_eq!(of(&[("PCIDEVICE_X", "0000:00:00.0, ,")]), None);
    assert_eq!(of(&[]), None);
    let own = |pod_ip: &str| pci::own_address(root.path(), pod_ip.parse().unwrap());
    assert_eq!(
        own("10.244.0.9"),
        Some("10.9.0.3".parse().unwrap()),
        "what is in a pod's network is the pod's"
    );
    assert_eq!(own("10.9.0.3"), None, "this is the host's network");
}

#[test]
fn a_folder_with_nothing_in_it_is_a_host_that_says_nothing() {
    let root = TempDir::new().unwrap();
    let probe = read(root.path(), &BTreeMap::new());
    assert_eq!(probe.verdict.text, "not known: this host says nothing of NUMA nodes");
    assert!(table(&probe).starts_with("CPUs        ? (node ?)\n"));
}

#[test]
fn this_host_has_cpus_and_memory() {
    let probe = read(Path::new("/"), &BTreeMap::new());
    assert!(!probe.cpus.is_empty());
}

proptest! {
    #[test]
    fn ranges_are_read_back_as_they_were(numbers in proptest::collection::btree_set(0_u32..500, 1..60)) {
        let numbers: Vec<u32> = numbers.into_iter().collect();
        prop_assert_eq!(sysfs::cpu_list(&sysfs::ranges(&numbers)), Some(numbers));
    }
}

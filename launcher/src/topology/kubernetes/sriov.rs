//! What a SriovNetworkNodeState says (pure): which physical functions the virtual functions of a pool come from.
//!
//! `sriovnetwork.openshift.io/v1`: `spec.interfaces[]{pciAddress, numVfs, vfGroups[]{resourceName, vfRange}}` is what is
//! asked for, `status.interfaces[]{pciAddress, Vfs[]{pciAddress, vfID}}` what is there, `status.syncStatus` whether the
//! two agree. No NUMA node is named: PCI addresses are joined with a source that knows them.

use std::collections::BTreeMap;

use serde_json::Value;

/// The pools of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pools {
    /// By `resourceName`, which has no prefix: how many VFs each physical function gives.
    pub pools: BTreeMap<String, Vec<Function>>,
    /// Why what is asked for is not what is there.
    pub fault: Option<String>,
}

/// A physical function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// PCI addresses by which another source may know where it is: its own, then its VFs'.
    pub addresses: Vec<String>,
    /// VFs of the pool.
    pub count: u32,
}

/// Reads one object.
#[must_use]
pub fn read(object: &Value) -> Pools {
    let sync = object.pointer("/status/syncStatus").and_then(Value::as_str).unwrap_or("unknown");
    let error = object.pointer("/status/lastSyncError").and_then(Value::as_str).unwrap_or_default();
    let mut read = Pools::default();
    if sync != "Succeeded" {
        let because = if error.is_empty() { String::new() } else { format!(", {error}") };
        read.fault = Some(format!("its VFs are not as the SR-IOV operator wants them ({sync}{because})"));
        return read;
    }
    for interface in list(object, "/spec/interfaces") {
        let Some(address) = interface["pciAddress"].as_str() else { continue };
        let is_this = |status: &&Value| status["pciAddress"] == address;
        let status = list(object, "/status/interfaces").find(is_this).unwrap_or(&Value::Null);
        let vfs = list(status, "/Vfs").filter_map(|vf| vf["pciAddress"].as_str());
        let addresses: Vec<String> = [address].into_iter().chain(vfs).map(str::to_lowercase).collect();
        for group in list(interface, "/vfGroups") {
            let (Some(name), Some(count)) = (group["resourceName"].as_str(), vfs_of(group)) else { continue };
            let function = Function { addresses: addresses.clone(), count };
            read.pools.entry(name.to_owned()).or_default().push(function);
        }
    }
    read
}

fn list<'a>(value: &'a Value, path: &str) -> impl Iterator<Item = &'a Value> {
    value.pointer(path).and_then(Value::as_array).into_iter().flatten()
}

/// VFs of a group: `vfRange` is `0-3`.
fn vfs_of(group: &Value) -> Option<u32> {
    let (first, last) = group["vfRange"].as_str()?.split_once('-')?;
    let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    last.checked_sub(first)?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pools_come_from_physical_functions() {
        let state = json!({
            "spec": {"interfaces": [
                {"pciAddress": "0000:03:00.0", "numVfs": 4, "vfGroups": [
                    {"resourceName": "rdma_a", "vfRange": "0-1"}, {"resourceName": "plain", "vfRange": "2-3"},
                    {"resourceName": "odd", "vfRange": "3-2"},
                ]},
                {"pciAddress": "0000:83:00.0", "numVfs": 2, "vfGroups": [{"resourceName": "rdma_a", "vfRange": "0-1"}]},
            ]},
            "status": {"syncStatus": "Succeeded", "interfaces": [
                {"pciAddress": "0000:03:00.0", "Vfs": [{"pciAddress": "0000:03:00.A", "vfID": 0}]}
            ]}
        });
        let function = |addresses: &[&str], count| Function {
            addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
            count,
        };
        let first = function(&["0000:03:00.0", "0000:03:00.a"], 2);
        let pools = BTreeMap::from([
            ("plain".to_owned(), vec![first.clone()]),
            ("rdma_a".to_owned(), vec![first, function(&["0000:83:00.0"], 2)]),
        ]);
        assert_eq!(read(&state), Pools { pools, fault: None });
    }

    #[test]
    fn what_is_not_in_step_is_not_believed() {
        let state = json!({"spec": {"interfaces": [{"pciAddress": "0", "vfGroups": [{"resourceName": "a", "vfRange": "0-1"}]}]},
            "status": {"syncStatus": "Failed", "lastSyncError": "no such device"}});
        let read = read(&state);
        assert!(read.pools.is_empty());
        assert_eq!(
            read.fault.as_deref(),
            Some("its VFs are not as the SR-IOV operator wants them (Failed, no such device)")
        );
    }
}

//! Which CPUs each local rank is bound to (pure).
//!
//! A rank stays inside one NUMA node as long as there are at least as many CPUs as ranks; nodes get ranks in
//! proportion to their CPUs. With fewer CPUs than ranks nobody is bound: the scheduler shares better than we do.

use std::collections::BTreeMap;

/// CPUs of every local rank, in local-rank order; empty for a rank that is not bound.
#[must_use]
pub fn plan(cpus: &[u32], numa: &BTreeMap<u32, Vec<u32>>, ranks: usize) -> Vec<Vec<u32>> {
    let nodes = by_node(cpus, numa);
    if nodes.iter().map(Vec::len).sum::<usize>() < ranks {
        return vec![Vec::new(); ranks];
    }
    let shares = share_ranks(&nodes, ranks);
    let mut plan = Vec::with_capacity(ranks);
    for (node, share) in nodes.iter().zip(shares) {
        plan.extend((0..share).map(|index| {
            let (from, to) = (index * node.len() / share, (index + 1) * node.len() / share);
            node[from..to].to_vec()
        }));
    }
    plan
}

/// The wanted CPUs, grouped; those of no known node form a group of their own at the end.
fn by_node(cpus: &[u32], numa: &BTreeMap<u32, Vec<u32>>) -> Vec<Vec<u32>> {
    let mut left: Vec<u32> = cpus.to_vec();
    left.sort_unstable();
    left.dedup();
    let mut nodes = Vec::new();
    for members in numa.values() {
        let (here, elsewhere) = left.into_iter().partition(|cpu| members.contains(cpu));
        nodes.push(here);
        left = elsewhere;
    }
    nodes.push(left);
    nodes.retain(|node: &Vec<u32>| !node.is_empty());
    nodes
}

/// How many ranks each node gets. One by one, to the node where a rank would have most CPUs; of equal
/// ones to that with fewer ranks, so that none stays unused.
fn share_ranks(nodes: &[Vec<u32>], ranks: usize) -> Vec<usize> {
    let mut shares = vec![0_usize; nodes.len()];
    for _ in 0..ranks {
        // Compare len/(share+1) without division: a/b > c/d as a*d > c*b.
        let best = (0..nodes.len()).reduce(|best, next| {
            let (here, there) =
                (nodes[next].len() * (shares[best] + 1), nodes[best].len() * (shares[next] + 1));
            let better = here > there || (here == there && shares[next] < shares[best]);
            if better { next } else { best }
        });
        if let Some(best) = best {
            shares[best] += 1;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn two_nodes() -> BTreeMap<u32, Vec<u32>> {
        BTreeMap::from([(0, vec![0, 1, 2, 3]), (1, vec![4, 5, 6, 7])])
    }

    #[test]
    fn ranks_are_spread_over_nodes() {
        let cpus: Vec<u32> = (0..8).collect();
        assert_eq!(plan(&cpus, &two_nodes(), 2), [vec![0, 1, 2, 3], vec![4, 5, 6, 7]]);
        assert_eq!(plan(&cpus, &two_nodes(), 3), [vec![0, 1], vec![2, 3], vec![4, 5, 6, 7]]);
        assert_eq!(plan(&[0, 1, 2, 4], &two_nodes(), 3), [vec![0], vec![1, 2], vec![4]]);
    }

    #[test]
    fn without_nodes_the_list_is_cut_in_order() {
        assert_eq!(plan(&[3, 1, 2], &BTreeMap::new(), 2), [vec![1], vec![2, 3]]);
    }

    #[test]
    fn too_few_cpus_bind_nobody() {
        assert_eq!(plan(&[0], &two_nodes(), 2), [Vec::<u32>::new(), Vec::new()]);
        assert_eq!(plan(&[], &two_nodes(), 1), [Vec::<u32>::new()]);
        assert_eq!(plan(&[0, 1], &two_nodes(), 0), Vec::<Vec<u32>>::new());
    }

    proptest! {
        #[test]
        fn every_rank_has_cpus_of_one_node_and_nobody_shares(
            cpus in proptest::collection::btree_set(0_u32..64, 1..64),
            width in 1_u32..17,
            ranks in 1_usize..64,
        ) {
            let cpus: Vec<u32> = cpus.into_iter().collect();
            let numa = (0..64 / width).map(|node| (node, (node * width..(node + 1) * width).collect())).collect();
            let plan = plan(&cpus, &numa, ranks);
            prop_assert_eq!(plan.len(), ranks);
            if cpus.len() >= ranks {
                let mut all: Vec<u32> = plan.concat();
                prop_assert!(plan.iter().all(|rank| !rank.is_empty()));
                let node = |cpu: &u32| (cpu / width).min(64 / width);
                prop_assert!(plan.iter().all(|rank| rank.iter().all(|cpu| node(cpu) == node(&rank[0]))));
                all.sort_unstable();
                all.dedup();
                prop_assert_eq!(all.len(), plan.iter().map(Vec::len).sum::<usize>());
                prop_assert!(all.iter().all(|cpu| cpus.contains(cpu)));
            }
        }
    }
}

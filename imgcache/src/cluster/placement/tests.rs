//! Properties of placement: little moves, weights count, all nodes are used, reading is balanced.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const KEYS: u64 = 20_000;

fn key(seed: u64, number: u64) -> IndexKey {
    IndexKey::of(format!("{seed}/{number}").as_bytes())
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n}")).collect()
}

fn placement(names: &[String], replicas: usize) -> Placement {
    Placement::new(names.iter().enumerate().map(|(n, name)| (n, name.as_str(), 1)), replicas)
}

fn share(part: u64, whole: u64) -> f64 {
    f64::from(u32::try_from(part).unwrap()) / f64::from(u32::try_from(whole).unwrap())
}

#[test]
fn few_nodes_hold_fewer_replicas_and_none_hold_none() {
    for (nodes, replicas, expected) in [(0, 2, 0), (1, 2, 1), (2, 2, 2), (9, 9, MAX_REPLICAS)] {
        let placement = placement(&names("n", nodes), replicas);
        assert_eq!(placement.replicas_of(&key(0, 0)).as_slice().len(), expected);
    }
    let only = Placement::new([(7, "a", 1), (8, "b", 0)], 2);
    assert_eq!(only.replicas_of(&key(0, 0)).as_slice(), [7]);
}

#[test]
fn weights_are_respected() {
    let nodes = [(0, "a", 1), (1, "b", 2), (2, "c", 5)];
    let placement = Placement::new(nodes, 1);
    let mut held = [0; 3];
    for number in 0..KEYS {
        held[placement.replicas_of(&key(1, number)).as_slice()[0]] += 1;
    }
    for (node, _, weight) in nodes {
        let expected = f64::from(weight) / 8.0;
        let found = share(held[node], KEYS);
        assert!((found / expected - 1.0).abs() < 0.06, "node {node}: {found} of {expected}");
    }
}

#[test]
fn equal_weights_place_alike_whatever_they_are() {
    let names = names("n", 8);
    let ones = placement(&names, 2);
    let sevens = Placement::new(names.iter().enumerate().map(|(n, s)| (n, s.as_str(), 7)), 2);
    // The same lots by the way of the logarithm.
    let slow = Placement { equal: false, ..sevens.clone() };
    for number in 0..1000 {
        let key = key(2, number);
        assert_eq!(ones.replicas_of(&key), sevens.replicas_of(&key));
        assert_eq!(ones.replicas_of(&key), slow.replicas_of(&key));
    }
}

/// 300 MB in chunks of 256 KiB over 8 nodes: the fullest node is read at most 2 % more than the mean.
#[test]
fn reading_is_balanced_by_the_less_loaded_replica() {
    const CHUNKS: u64 = 1145;
    const SIZE: u64 = 256 << 10;
    for image in 0..200 {
        let placement = placement(&names("node-", 8), 2);
        let replicas: Vec<_> = (0..CHUNKS).map(|n| placement.replicas_of(&key(image, n))).collect();
        let items: Vec<_> = replicas.iter().map(|r| (SIZE, r.as_slice())).collect();
        let start = usize::try_from(image * 37).unwrap();
        let chosen = balance(&items, &[1.0; 8], start);
        let mut load = [0; 8];
        for (node, (_, nodes)) in chosen.iter().zip(&items) {
            let node = node.unwrap();
            assert!(nodes.contains(&node));
            load[node] += 1;
        }
        let imbalance = share(*load.iter().max().unwrap() * 8, CHUNKS);
        assert!(imbalance <= 1.02, "image {image}: {imbalance}");
    }
}

#[test]
fn work_is_shared_by_weight_and_what_no_node_holds_gets_none() {
    let both = [0, 1];
    let items: Vec<_> = (0..300).map(|_| (1000, &both[..])).chain([(1, &[][..])]).collect();
    let chosen = balance(&items, &[1.0, 2.0], 5);
    let count = |node| chosen.iter().filter(|chosen| **chosen == node).count();
    assert_eq!((count(Some(0)), count(Some(1)), count(None)), (100, 200, 1));
    assert!(balance(&[], &[1.0], 3).is_empty());
    assert_eq!(balance(&[(1, &[9])], &[1.0], 0), [None]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_ninth_node_moves_little_more_than_its_share(prefix in "[a-z]{1,8}", seed: u64) {
        let names = names(&prefix, 9);
        let (eight, nine) = (placement(&names[..8], 2), placement(&names, 2));
        let mut moved = 0;
        for number in 0..KEYS {
            let key = key(seed, number);
            let (before, after) = (eight.replicas_of(&key), nine.replicas_of(&key));
            let gained: Vec<_> =
                after.as_slice().iter().filter(|n| !before.as_slice().contains(n)).collect();
            // Only the new node gains anything.
            prop_assert!(gained.iter().all(|node| **node == 8));
            moved += u64::try_from(gained.len()).unwrap();
        }
        let ideal = 2.0 / 9.0;
        prop_assert!(share(moved, KEYS) <= 1.2 * ideal, "{} of {ideal}", share(moved, KEYS));
    }

    #[test]
    fn the_order_of_the_list_does_not_matter(
        mut nodes in proptest::collection::btree_set("[a-z]{1,6}", 1..12)
            .prop_map(|set| set.into_iter().collect::<Vec<_>>()).prop_shuffle(),
        weights in proptest::collection::vec(1u32..4, 12),
        seed: u64,
    ) {
        let weight = |name: &str| weights[usize::from(name.as_bytes()[0]) % 12];
        let named = |nodes: &[String], number| -> Vec<String> {
            let seats = nodes.iter().enumerate().map(|(n, name)| (n, name.as_str(), weight(name)));
            let placement = Placement::new(seats, 3);
            let replicas = placement.replicas_of(&key(seed, number));
            replicas.as_slice().iter().map(|node| nodes[*node].clone()).collect()
        };
        let before: Vec<_> = (0..50).map(|number| named(&nodes, number)).collect();
        nodes.sort();
        for (number, replicas) in (0..50).zip(before) {
            let distinct: BTreeSet<_> = replicas.iter().collect();
            prop_assert_eq!(distinct.len(), replicas.len());
            prop_assert_eq!(named(&nodes, number), replicas);
        }
    }

    #[test]
    fn all_nodes_are_used(prefix in "[a-z]{1,8}", count in 1usize..20, seed: u64) {
        let placement = placement(&names(&prefix, count), 2);
        let mut held = vec![0_u32; count];
        for number in 0..2000 {
            for node in placement.replicas_of(&key(seed, number)).as_slice() {
                held[*node] += 1;
            }
        }
        prop_assert!(held.iter().all(|held| *held > 0), "{held:?}");
    }
}

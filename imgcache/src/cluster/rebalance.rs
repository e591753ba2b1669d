//! What must move so that every item is where its placement says, and what may then go.
//!
//! The plan is made from a survey: who holds what now. It never asks for the removal of an item
//! that is not at all its places yet, so a plan that is carried out in part, or twice, loses
//! nothing; a later survey plans the rest.

use super::placement::Placement;
use crate::index::IndexKey;

/// An item, and the nodes that hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surveyed {
    /// The item.
    pub key: IndexKey,
    /// Its length in bytes.
    pub bytes: u64,
    /// Numbers of the nodes that hold it, as the placement numbers them.
    pub holders: Vec<usize>,
}

/// An item to be copied to a node that lacks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Its position in the survey.
    pub item: usize,
    /// Where it is to be.
    pub to: usize,
}

/// What a survey comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// What is to be copied.
    pub moves: Vec<Move>,
    /// Bytes of these.
    pub move_bytes: u64,
    /// (position in the survey, node): copies that the placement does not ask for, of items that
    /// are at all their places.
    pub superfluous: Vec<(usize, usize)>,
    /// Positions of items that no node holds: the origin has them, or another push.
    pub lost: Vec<usize>,
}

/// Plans for `items`; nodes for which `reachable` is false are neither written to nor counted on.
pub fn plan(items: &[Surveyed], placement: &Placement, reachable: &[bool]) -> Plan {
    let is_up = |node: usize| reachable.get(node).copied().unwrap_or(false);
    let mut plan = Plan::default();
    for (item, surveyed) in items.iter().enumerate() {
        let holders: Vec<usize> =
            surveyed.holders.iter().copied().filter(|node| is_up(*node)).collect();
        if holders.is_empty() {
            plan.lost.push(item);
            continue;
        }
        let replicas = placement.replicas_of(&surveyed.key);
        let places = replicas.as_slice();
        let missing = || places.iter().copied().filter(|node| !holders.contains(node));
        for to in missing().filter(|node| is_up(*node)) {
            plan.moves.push(Move { item, to });
            plan.move_bytes = plan.move_bytes.saturating_add(surveyed.bytes);
        }
        if missing().next().is_none() {
            let extra = holders.iter().copied().filter(|node| !places.contains(node));
            plan.superfluous.extend(extra.map(|node| (item, node)));
        }
    }
    plan
}

/// How many of `items` each of `nodes` nodes is the only one to hold: where that is 0, the node can
/// be stopped and nothing is lost.
pub fn sole_copies(items: &[Surveyed], reachable: &[bool]) -> Vec<u64> {
    let mut sole = vec![0; reachable.len()];
    for surveyed in items {
        let mut up = surveyed.holders.iter().filter(|n| reachable.get(**n) == Some(&true));
        if let (Some(only), None) = (up.next(), up.next())
            && let Some(count) = sole.get_mut(*only)
        {
            *count += 1;
        }
    }
    sole
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(n: u64) -> IndexKey {
        IndexKey::of(&n.to_le_bytes())
    }

    fn placement(nodes: &[usize], replicas: usize) -> Placement {
        let names: Vec<String> = nodes.iter().map(|node| format!("node{node}")).collect();
        let seats = nodes.iter().zip(&names).map(|(node, name)| (*node, name.as_str(), 1));
        Placement::new(seats, replicas)
    }

    /// Items where `placement` wants them.
    fn settled(count: u64, placement: &Placement) -> Vec<Surveyed> {
        let item = |n| {
            let holders = placement.replicas_of(&key(n)).as_slice().to_vec();
            Surveyed { key: key(n), bytes: 100, holders }
        };
        (0..count).map(item).collect()
    }

    fn carry_out(items: &mut [Surveyed], plan: &Plan) {
        for step in &plan.moves {
            items[step.item].holders.push(step.to);
        }
        for (item, node) in &plan.superfluous {
            items[*item].holders.retain(|holder| holder != node);
        }
    }

    #[test]
    fn a_ninth_node_gets_its_share_and_no_more() {
        let (eight, nine): (Vec<_>, Vec<_>) = ((0..8).collect(), (0..9).collect());
        let items = settled(10_000, &placement(&eight, 2));
        let plan = plan(&items, &placement(&nine, 2), &[true; 9]);
        assert!(plan.moves.iter().all(|step| step.to == 8), "only the new node gets something");
        // The ideal is its share of all copies: 2 * 10000 / 9.
        assert!(plan.moves.len() * 9 * 10 <= 2 * 10_000 * 12, "{}", plan.moves.len());
        assert!(plan.superfluous.is_empty(), "nothing goes before its copy has come");
    }

    #[test]
    fn a_node_that_holds_an_item_alone_is_told() {
        let items = [
            Surveyed { key: key(1), bytes: 1, holders: vec![0, 1] },
            Surveyed { key: key(2), bytes: 1, holders: vec![1] },
            Surveyed { key: key(3), bytes: 1, holders: vec![1, 2] },
        ];
        assert_eq!(sole_copies(&items, &[true, true, true]), [0, 1, 0]);
        // With node 2 gone, node 1 is alone with the third item too.
        assert_eq!(sole_copies(&items, &[true, true, false]), [0, 2, 0]);
    }

    proptest! {
        #[test]
        fn what_is_held_is_never_lost_and_ends_where_it_belongs(
            before in prop::collection::btree_set(0_usize..9, 1..9),
            after in prop::collection::btree_set(0_usize..9, 1..9),
            down in prop::collection::btree_set(0_usize..9, 0..3),
            replicas in 1_usize..4,
        ) {
            let before: Vec<_> = before.into_iter().collect();
            let after: Vec<_> = after.into_iter().collect();
            let (old, new) = (placement(&before, replicas), placement(&after, replicas));
            let reachable: Vec<bool> = (0..9).map(|node| !down.contains(&node)).collect();
            let mut items = settled(200, &old);
            let held: Vec<bool> = items
                .iter()
                .map(|item| item.holders.iter().any(|node| reachable[*node]))
                .collect();
            // The first plan copies, the second clears away.
            for _ in 0..2 {
                let plan = plan(&items, &new, &reachable);
                for (index, item) in items.iter().enumerate() {
                    prop_assert_eq!(plan.lost.contains(&index), !held[index]);
                    for step in plan.moves.iter().filter(|step| step.item == index) {
                        prop_assert!(reachable[step.to] && !item.holders.contains(&step.to));
                    }
                }
                carry_out(&mut items, &plan);
                for (index, item) in items.iter().enumerate().filter(|(index, _)| held[*index]) {
                    prop_assert!(item.holders.iter().any(|n| reachable[*n]), "item {} lost", index);
                }
            }
            let last = plan(&items, &new, &reachable);
            prop_assert!(last.moves.is_empty() && last.superfluous.is_empty());
            for (item, _) in items.iter().zip(&held).filter(|(_, held)| **held) {
                for place in new.replicas_of(&item.key).as_slice() {
                    prop_assert!(item.holders.contains(place) || !reachable[*place]);
                }
            }
        }
    }
}

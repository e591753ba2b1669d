//! Slots never overlap, none is lost.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[test]
fn classes_are_powers_of_two() {
    assert_eq!(Class::all().count(), CLASSES);
    let class = |length| Class::for_length(length).map(Class::slot_bytes);
    assert_eq!(class(0), Some(256));
    assert_eq!(class(256), Some(256));
    assert_eq!(class(257), Some(512));
    assert_eq!(class(1 << 20), Some(1 << 20));
    assert_eq!(class((1 << 20) + 1), None);
    assert!(Class::all().all(|class| class.slots() * class.slot_bytes() == SLAB_BYTES));
}

#[test]
fn an_emptied_slab_is_anyones() {
    let mut slabs = Slabs::new(1);
    let (large, small) = (Class(12), Class(0));
    let places = [slabs.allocate(large).unwrap(), slabs.allocate(large).unwrap()];
    assert_eq!((slabs.allocate(large), slabs.allocate(small)), (None, None));
    assert!(places.into_iter().all(|place| slabs.release(place)));
    assert!(!slabs.release(places[0]), "only once");
    assert!(slabs.allocate(small).is_some());
    assert_eq!(slabs.used_bytes(), 256);
}

#[test]
fn a_slab_that_is_emptied_gives_nothing_out_until_it_is_free() {
    let mut slabs = Slabs::new(1);
    let large = Class(12);
    let place = slabs.allocate(large).unwrap();
    slabs.set_emptied(0);
    assert_eq!((slabs.emptied(), slabs.is_emptied(0)), (1, true));
    assert_eq!(
        (slabs.allocate(large), slabs.adopt(Place { slot: 1, ..place }, large)),
        (None, None)
    );
    slabs.release(place);
    assert_eq!((slabs.emptied(), slabs.is_emptied(0), slabs.free_slabs()), (0, false, 1));
    assert!(slabs.allocate(large).is_some() && slabs.allocate(large).is_some());
}

#[derive(Debug, Clone)]
enum Step {
    Allocate(u8),
    Adopt(u8, u32, u16),
    Release(usize),
    Own(usize, u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let class = prop_oneof![Just(0_u8), 6..13_u8];
    prop::collection::vec(
        prop_oneof![
            4 => class.clone().prop_map(Step::Allocate),
            1 => (class, 0..6_u32, 0..40_u16).prop_map(|(c, s, n)| Step::Adopt(c, s, n)),
            2 => any::<usize>().prop_map(Step::Release),
            1 => (any::<usize>(), 0..9_u32).prop_map(|(n, owner)| Step::Own(n, owner)),
        ],
        1..200,
    )
}

proptest! {
    #[test]
    fn slots_never_overlap_and_none_is_lost(steps in steps()) {
        let mut slabs = Slabs::new(4);
        let mut held: HashMap<Place, (Class, Option<u32>)> = HashMap::new();
        for step in steps {
            let pick = |n: usize| {
                let mut places: Vec<Place> = held.keys().copied().collect();
                places.sort_unstable();
                places.get(n % places.len().max(1)).copied()
            };
            match step {
                Step::Allocate(class) => {
                    let class = Class(class);
                    if let Some(place) = slabs.allocate(class) {
                        prop_assert_eq!(held.insert(place, (class, None)), None);
                    } else {
                        prop_assert_eq!((slabs.free_slabs(), slabs.free_of(class)), (0, 0));
                    }
                }
                Step::Adopt(class, slab, slot) => {
                    let (class, place) = (Class(class), Place { slab, slot });
                    let fits = slab < 4
                        && usize::from(slot) < class.slots()
                        && !held.contains_key(&place)
                        && held.iter().all(|(p, (c, _))| p.slab != slab || *c == class);
                    prop_assert_eq!(slabs.adopt(place, class).is_some(), fits);
                    if fits {
                        held.insert(place, (class, None));
                    }
                }
                Step::Release(n) => if let Some(place) = pick(n) {
                    prop_assert!(slabs.release(place));
                    held.remove(&place);
                },
                Step::Own(n, owner) => if let Some(place) = pick(n) {
                    slabs.set_owner(place, Some(owner));
                    held.get_mut(&place).unwrap().1 = Some(owner);
                },
            }
            let mut ranges: Vec<_> = held
                .iter()
                .map(|(place, (class, _))| (Slabs::offset(*place, *class), class.slot_bytes()))
                .collect();
            ranges.sort_unstable();
            prop_assert!(ranges.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0));
            prop_assert!(ranges.last().is_none_or(|last| last.0 + last.1 <= 4 * SLAB_BYTES));
            let bytes: usize = ranges.iter().map(|range| range.1).sum();
            prop_assert_eq!(slabs.used_bytes(), bytes as u64);
            let mut owners: Vec<_> = (0..4).flat_map(|slab| slabs.owners(slab)).collect();
            let mut expected: Vec<_> = held.values().map(|(_, owner)| *owner).collect();
            owners.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(owners, expected);
            for (place, (class, _)) in &held {
                prop_assert_eq!(Slabs::locate(Slabs::offset(*place, *class), *class), Some(*place));
            }
        }
    }
}

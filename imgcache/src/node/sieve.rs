//! SIEVE: which item goes when there is no room (Zhang et al., "SIEVE is Simpler than LRU", NSDI
//! 2024).
//!
//! A queue in the order of arrival and a hand that moves from the oldest to the newest: it clears the
//! mark of what was visited since it came by, and takes the first without a mark. An access sets the
//! mark and moves nothing.

/// No node.
pub const NONE: u32 = u32::MAX;

/// The neighbours of a node in its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Links {
    /// The next newer one, or [`NONE`].
    pub newer: u32,
    /// The next older one, or [`NONE`].
    pub older: u32,
}

impl Links {
    /// Of a node that is in no queue, or alone in one.
    pub const ALONE: Self = Self { newer: NONE, older: NONE };
}

/// What queues are made of. Each node is in one queue at most.
pub trait Nodes {
    /// The neighbours of `id`.
    fn links(&mut self, id: u32) -> &mut Links;
    /// Clears the mark of `id`, and returns whether it was set.
    fn take_visited(&mut self, id: u32) -> bool;
    /// Whether `id` may go: nobody uses or holds it.
    fn evictable(&self, id: u32) -> bool;
}

/// What a search for a node that may go ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// This one is to go.
    Found(u32),
    /// None of those that were looked at may; the next search goes on behind them.
    LimitReached,
    /// None may.
    None,
}

/// A queue.
#[derive(Debug, Clone, Copy)]
pub struct Queue {
    newest: u32,
    oldest: u32,
    hand: u32,
    length: usize,
}

impl Default for Queue {
    fn default() -> Self {
        Self { newest: NONE, oldest: NONE, hand: NONE, length: 0 }
    }
}

impl Queue {
    /// How many nodes are in it.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The oldest node.
    pub fn oldest(&self) -> Option<u32> {
        Some(self.oldest).filter(|id| *id != NONE)
    }

    /// Puts a node in as the newest.
    pub fn push(&mut self, nodes: &mut impl Nodes, id: u32) {
        *nodes.links(id) = Links { newer: NONE, older: self.newest };
        match self.newest {
            NONE => self.oldest = id,
            newest => nodes.links(newest).newer = id,
        }
        self.newest = id;
        self.length += 1;
    }

    /// Takes a node out that is in this queue.
    pub fn remove(&mut self, nodes: &mut impl Nodes, id: u32) {
        let Links { newer, older } = std::mem::replace(nodes.links(id), Links::ALONE);
        match newer {
            NONE => self.newest = older,
            newer => nodes.links(newer).older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => nodes.links(older).newer = newer,
        }
        if self.hand == id {
            self.hand = newer;
        }
        self.length = self.length.saturating_sub(1);
    }

    /// Which node is to go, looking at `limit` nodes at most; it stays in the queue until it is
    /// removed. If all that were looked at had been visited, it is the first of them that may go.
    pub fn victim(&mut self, nodes: &mut impl Nodes, limit: usize) -> Victim {
        let mut visited = None;
        // Twice round: the first time may be for clearing marks only.
        let all = self.length.saturating_mul(2);
        for _ in 0..limit.min(all) {
            let id = if self.hand == NONE { self.oldest } else { self.hand };
            self.hand = nodes.links(id).newer;
            if !nodes.evictable(id) {
                continue;
            }
            if !nodes.take_visited(id) {
                return Victim::Found(id);
            }
            visited = visited.or(Some(id));
        }
        match visited {
            Some(id) => Victim::Found(id),
            None if limit < all => Victim::LimitReached,
            None => Victim::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    struct Node {
        links: Links,
        visited: bool,
        pinned: bool,
    }

    struct Arena(Vec<Node>);

    impl Arena {
        fn node(&mut self, id: u32) -> &mut Node {
            &mut self.0[usize::try_from(id).unwrap()]
        }
    }

    impl Nodes for Arena {
        fn links(&mut self, id: u32) -> &mut Links {
            &mut self.node(id).links
        }
        fn take_visited(&mut self, id: u32) -> bool {
            std::mem::take(&mut self.node(id).visited)
        }
        fn evictable(&self, id: u32) -> bool {
            !self.0[usize::try_from(id).unwrap()].pinned
        }
    }

    /// The paper's words: a list from the oldest to the newest and an index into it.
    #[derive(Default)]
    struct Model {
        list: Vec<(u32, bool, bool)>,
        hand: Option<u32>,
    }

    impl Model {
        fn at(&mut self, id: u32) -> Option<&mut (u32, bool, bool)> {
            self.list.iter_mut().find(|node| node.0 == id)
        }

        fn position(&self, id: u32) -> Option<usize> {
            self.list.iter().position(|node| node.0 == id)
        }

        fn remove(&mut self, id: u32) {
            let at = self.position(id).unwrap();
            if self.hand == Some(id) {
                self.hand = self.list.get(at + 1).map(|node| node.0);
            }
            self.list.remove(at);
        }

        fn victim(&mut self) -> Option<u32> {
            if self.list.iter().all(|node| node.2) {
                return None;
            }
            loop {
                let at = self.hand.and_then(|id| self.position(id)).unwrap_or(0);
                self.hand = self.list.get(at + 1).map(|node| node.0);
                let (id, visited, pinned) = &mut self.list[at];
                if !*pinned && !std::mem::take(visited) {
                    return Some(*id);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn the_queue_does_what_the_paper_says(
            steps in prop::collection::vec((0..6_u8, 0..24_u32), 1..300),
        ) {
            let fresh = Node { links: Links::ALONE, visited: false, pinned: false };
            let mut arena = Arena(vec![fresh; 24]);
            let (mut queue, mut model) = (Queue::default(), Model::default());
            for (step, id) in steps {
                match (step, model.position(id).is_some()) {
                    (0 | 1, false) => {
                        *arena.node(id) = fresh;
                        queue.push(&mut arena, id);
                        model.list.push((id, false, false));
                    }
                    (2, true) => {
                        queue.remove(&mut arena, id);
                        model.remove(id);
                    }
                    (0 | 1 | 3, true) => {
                        arena.node(id).visited = true;
                        model.at(id).unwrap().1 = true;
                    }
                    (4, true) => {
                        arena.node(id).pinned ^= true;
                        model.at(id).unwrap().2 ^= true;
                    }
                    (5, _) => {
                        let victim = match queue.victim(&mut arena, usize::MAX) {
                            Victim::Found(id) => Some(id),
                            other => {
                                prop_assert_eq!(other, Victim::None);
                                None
                            }
                        };
                        prop_assert_eq!(victim, model.victim());
                        if let Some(id) = victim {
                            queue.remove(&mut arena, id);
                            model.remove(id);
                        }
                    }
                    _ => (),
                }
                prop_assert_eq!(queue.len(), model.list.len());
                prop_assert_eq!(queue.oldest(), model.list.first().map(|node| node.0));
            }
        }

        #[test]
        fn a_short_look_gives_what_may_go(count in 1..20_u32, limit in 1..10_usize, free in 0..20_u32) {
            let node = Node { links: Links::ALONE, visited: true, pinned: true };
            let mut arena = Arena(vec![node; 20]);
            let mut queue = Queue::default();
            (0..count).for_each(|id| queue.push(&mut arena, id));
            arena.node(free).pinned = false;
            // Every look goes on where the last one ended, so the free one is found.
            let looks = (0..=count).find_map(|_| match queue.victim(&mut arena, limit) {
                Victim::Found(id) => Some(id),
                Victim::LimitReached | Victim::None => None,
            });
            prop_assert_eq!(looks, (free < count).then_some(free));
        }
    }

    #[test]
    fn a_look_that_was_too_short_is_told_from_one_that_found_nothing() {
        let node = Node { links: Links::ALONE, visited: false, pinned: true };
        let mut arena = Arena(vec![node; 20]);
        let mut queue = Queue::default();
        assert_eq!(queue.victim(&mut arena, 5), Victim::None);
        (0..20).for_each(|id| queue.push(&mut arena, id));
        assert_eq!(queue.victim(&mut arena, 39), Victim::LimitReached);
        assert_eq!(queue.victim(&mut arena, 40), Victim::None);
    }
}

//! The largest of many numbers, kept current under single changes in logarithmic time.

use super::nodes::Slot;

/// A complete binary tree; leaves from `width` on, each inner place the larger of its two children.
pub struct Tournament {
    width: usize,
    tree: Vec<u64>,
}

impl Tournament {
    pub fn new(keys: Vec<u64>) -> Self {
        let width = keys.len().next_power_of_two();
        let mut tree = vec![0; width * 2];
        tree[width..width + keys.len()].copy_from_slice(&keys);
        for place in (1..width).rev() {
            tree[place] = tree[place * 2].max(tree[place * 2 + 1]);
        }
        Self { width, tree }
    }

    pub fn get(&self, slot: Slot) -> u64 {
        if slot < self.width { self.tree[self.width + slot] } else { 0 }
    }

    pub fn set(&mut self, slot: Slot, key: u64) {
        if slot >= self.width {
            let mut keys = self.tree.split_off(self.width);
            keys.resize(slot + 1, 0);
            keys[slot] = key;
            *self = Self::new(keys);
            return;
        }
        let mut place = self.width + slot;
        self.tree[place] = key;
        while place > 1 {
            place /= 2;
            let larger = self.tree[place * 2].max(self.tree[place * 2 + 1]);
            if self.tree[place] == larger {
                break;
            }
            self.tree[place] = larger;
        }
    }

    /// The slot of the largest key; `None` when all are 0.
    pub fn best(&self) -> Option<Slot> {
        let largest = self.tree[1];
        if largest == 0 {
            return None;
        }
        let mut place = 1;
        while place < self.width {
            place *= 2;
            if self.tree[place] != largest {
                place += 1;
            }
        }
        Some(place - self.width)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_scan(
            start in prop::collection::vec(0u64..5, 0..20),
            sets in prop::collection::vec((0usize..40, 0u64..5), 0..60),
        ) {
            let mut plain = start.clone();
            let mut tree = Tournament::new(start);
            for (slot, key) in sets {
                if slot >= plain.len() {
                    plain.resize(slot + 1, 0);
                }
                plain[slot] = key;
                tree.set(slot, key);
                let largest = plain.iter().copied().max().unwrap_or(0);
                match tree.best() {
                    None => prop_assert_eq!(largest, 0),
                    Some(best) => prop_assert_eq!(plain[best], largest),
                }
                prop_assert!(plain.iter().enumerate().all(|(slot, key)| tree.get(slot) == *key));
            }
        }
    }
}

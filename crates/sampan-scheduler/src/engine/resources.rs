//! Amounts of resources a pod asks for.

use std::collections::BTreeMap;

pub const CPU: &str = "cpu";
pub const MEMORY: &str = "memory";
pub const EPHEMERAL_STORAGE: &str = "ephemeral-storage";
pub const PODS: &str = "pods";

/// CPU in thousandths of a core, everything else in whole units (bytes, devices). Sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Requests(Vec<(Box<str>, i64)>);

impl From<BTreeMap<String, i64>> for Requests {
    fn from(amounts: BTreeMap<String, i64>) -> Self {
        Self(amounts.into_iter().map(|(name, amount)| (name.into_boxed_str(), amount)).collect())
    }
}

impl Requests {
    fn entry(&mut self, name: &str) -> &mut i64 {
        let at = match self.0.binary_search_by(|(one, _)| (**one).cmp(name)) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, (name.into(), 0));
                at
            }
        };
        &mut self.0[at].1
    }

    /// 0 when the resource is not named.
    pub fn get(&self, name: &str) -> i64 {
        self.0.binary_search_by(|(one, _)| (**one).cmp(name)).map_or(0, |at| self.0[at].1)
    }

    pub fn set(&mut self, name: &str, amount: i64) {
        *self.entry(name) = amount;
    }

    pub fn set_if_absent(&mut self, name: &str, amount: i64) {
        if self.0.binary_search_by(|(one, _)| (**one).cmp(name)).is_err() {
            self.set(name, amount);
        }
    }

    pub fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let entry = self.entry(name);
            *entry = entry.saturating_add(*amount);
        }
    }

    /// The larger of both, resource by resource.
    pub fn raise_to(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let entry = self.entry(name);
            *entry = (*entry).max(*amount);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        self.0.iter().map(|(name, amount)| (&**name, *amount))
    }
}

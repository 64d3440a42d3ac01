//! The nodes in columns: each has a slot, each resource a dimension, each topology key a column of domain numbers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::requirements::{HostPort, Requirements};
use super::resources::{CPU, MEMORY, PODS};
use crate::view::Node;

/// The place of a node in every column. It is kept while the node or a pod on it is known.
pub type Slot = usize;

#[derive(Default)]
pub struct Nodes {
    slots: HashMap<String, Slot>,
    names: Vec<String>,
    /// `None`: pods name this node, but it does not exist (or not yet, or no more).
    shapes: Vec<Option<Arc<Node>>>,
    present: usize,
    dimensions: HashMap<String, usize>,
    /// By dimension, then slot.
    allocatable: Vec<Vec<i64>>,
    used: Vec<Vec<i64>>,
    scored_cpu: Vec<i64>,
    scored_memory: Vec<i64>,
    ports: Vec<Vec<HostPort>>,
    /// By hash of the image name: on how many nodes it is.
    image_nodes: HashMap<String, u32>,
    /// By topology key.
    columns: BTreeMap<String, Column>,
    no_column: Column,
}

/// One topology key: which domain each slot is in.
#[derive(Default)]
pub struct Column {
    /// 0: the node lacks the label.
    pub domain: Vec<u32>,
    numbers: HashMap<String, u32>,
}

impl Column {
    /// Domain numbers are below this.
    pub fn width(&self) -> usize {
        self.numbers.len() + 1
    }

    fn set(&mut self, slot: Slot, value: Option<&String>) {
        if self.domain.len() <= slot {
            self.domain.resize(slot + 1, 0);
        }
        self.domain[slot] = match value {
            None => 0,
            Some(value) => match self.numbers.get(value) {
                Some(number) => *number,
                None => {
                    let number = u32::try_from(self.numbers.len() + 1).unwrap_or(u32::MAX);
                    self.numbers.insert(value.clone(), number);
                    number
                }
            },
        };
    }
}

impl Nodes {
    /// How many slots there are, empty ones included.
    pub fn len(&self) -> usize {
        self.shapes.len()
    }

    /// How many nodes exist.
    pub fn count(&self) -> usize {
        self.present
    }

    pub fn present(&self) -> impl Iterator<Item = Slot> {
        self.shapes.iter().enumerate().filter(|(_, shape)| shape.is_some()).map(|(slot, _)| slot)
    }

    pub fn name(&self, slot: Slot) -> Option<&str> {
        self.shapes.get(slot)?.as_ref().map(|node| node.name.as_str())
    }

    pub fn shape(&self, slot: Slot) -> Option<&Node> {
        self.shapes.get(slot)?.as_deref()
    }

    pub fn slot(&mut self, name: &str) -> Slot {
        if let Some(slot) = self.slots.get(name) {
            return *slot;
        }
        let slot = self.shapes.len();
        self.slots.insert(name.to_owned(), slot);
        self.names.push(name.to_owned());
        self.shapes.push(None);
        for column in self.allocatable.iter_mut().chain(&mut self.used) {
            column.push(0);
        }
        self.scored_cpu.push(0);
        self.scored_memory.push(0);
        self.ports.push(Vec::new());
        for column in self.columns.values_mut() {
            column.set(slot, None);
        }
        slot
    }

    pub fn dimension(&mut self, resource: &str) -> usize {
        if let Some(dimension) = self.dimensions.get(resource) {
            return *dimension;
        }
        let dimension = self.allocatable.len();
        self.dimensions.insert(resource.to_owned(), dimension);
        let amount = |shape: &Option<Arc<Node>>| {
            shape.as_ref().and_then(|node| node.allocatable.get(resource)).copied().unwrap_or(0)
        };
        self.allocatable.push(self.shapes.iter().map(amount).collect());
        self.used.push(vec![0; self.shapes.len()]);
        dimension
    }

    pub fn resource_name(&self, dimension: usize) -> &str {
        self.dimensions.iter().find(|(_, one)| **one == dimension).map_or("", |(name, _)| name)
    }

    pub fn set(&mut self, node: Arc<Node>) -> Slot {
        let slot = self.slot(&node.name);
        for resource in [CPU, MEMORY, PODS] {
            self.dimension(resource);
        }
        for resource in node.allocatable.keys() {
            self.dimension(resource);
        }
        for (resource, dimension) in &self.dimensions {
            self.allocatable[*dimension][slot] = node.allocatable.get(resource).copied().unwrap_or(0);
        }
        for (key, column) in &mut self.columns {
            column.set(slot, node.labels.get(key));
        }
        self.count_images(slot, false);
        if self.shapes[slot].is_none() {
            self.present += 1;
        }
        self.shapes[slot] = Some(node);
        self.count_images(slot, true);
        slot
    }

    pub fn unset(&mut self, name: &str) -> Option<Slot> {
        let slot = *self.slots.get(name)?;
        self.count_images(slot, false);
        if self.shapes[slot].take().is_some() {
            self.present -= 1;
        }
        for column in self.columns.values_mut() {
            column.set(slot, None);
        }
        Some(slot)
    }

    fn count_images(&mut self, slot: Slot, add: bool) {
        let Some(node) = &self.shapes[slot] else { return };
        for name in node.images.iter().flat_map(|image| &image.names) {
            let count = self.image_nodes.entry(name.clone()).or_default();
            *count = if add { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                self.image_nodes.remove(name);
            }
        }
    }

    /// On how many nodes an image is.
    pub fn image_nodes(&self, name: &str) -> u32 {
        self.image_nodes.get(name).copied().unwrap_or(0)
    }

    /// Adds (`sign` 1) or takes away (-1) one pod.
    pub fn account(&mut self, slot: Slot, requirements: &Requirements, wants: &[(usize, i64)], sign: i64) {
        let pods = self.dimension(PODS);
        self.used[pods][slot] += sign;
        for (dimension, amount) in wants {
            self.used[*dimension][slot] += sign * amount;
        }
        self.scored_cpu[slot] += sign * requirements.scored_cpu;
        self.scored_memory[slot] += sign * requirements.scored_memory;
        for port in &requirements.ports {
            if sign > 0 {
                self.ports[slot].push(port.clone());
            } else if let Some(at) = self.ports[slot].iter().position(|one| one == port) {
                self.ports[slot].swap_remove(at);
            }
        }
    }

    pub fn free(&self, slot: Slot, dimension: usize) -> i64 {
        self.allocatable[dimension][slot] - self.used[dimension][slot]
    }

    /// How many more pods the node takes.
    pub fn free_pods(&self, slot: Slot) -> i64 {
        self.dimensions.get(PODS).map_or(0, |dimension| self.free(slot, *dimension))
    }

    pub fn ports(&self, slot: Slot) -> &[HostPort] {
        &self.ports[slot]
    }

    /// Allocatable and the sum used for scores, of CPU and of memory.
    pub fn balance(&self, slot: Slot) -> [(i64, i64); 2] {
        let allocatable =
            |resource| self.dimensions.get(resource).map_or(0, |one: &usize| self.allocatable[*one][slot]);
        [(allocatable(CPU), self.scored_cpu[slot]), (allocatable(MEMORY), self.scored_memory[slot])]
    }

    /// Makes sure that there is a column for this topology key.
    pub fn want_column(&mut self, key: &str) {
        if self.columns.contains_key(key) {
            return;
        }
        let mut column = Column::default();
        for (slot, shape) in self.shapes.iter().enumerate() {
            column.set(slot, shape.as_ref().and_then(|node| node.labels.get(key)));
        }
        self.columns.insert(key.to_owned(), column);
    }

    /// Without a column no node has the label.
    pub fn column(&self, key: &str) -> &Column {
        self.columns.get(key).unwrap_or(&self.no_column)
    }
}

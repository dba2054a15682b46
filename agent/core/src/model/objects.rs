//! The objects that were read, in their order: what a change adds comes last, what replaces something takes its place.
//!
//! A place is a number with room to both sides, so that objects can come in between without moving the others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::object::{Object, ObjectKey};
use crate::input::{InputError, Problem, Report};
use crate::map::Map;

/// Between neighbours, at first.
const ROOM: u64 = 1 << 32;

/// Objects in their order. A copy costs nothing.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    ordered: Map<u64, Arc<Object>>,
    places: Map<ObjectKey, u64>,
}

/// One object before and after a change; they are not the same.
#[derive(Clone, Debug)]
pub(super) struct Changed {
    pub(super) old: Option<Arc<Object>>,
    pub(super) new: Option<Arc<Object>>,
}

impl Objects {
    /// In order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Object> + Clone {
        self.ordered.values().map(Arc::as_ref)
    }

    /// In order, shared.
    pub fn shared(&self) -> impl Iterator<Item = Arc<Object>> {
        self.ordered.values().cloned()
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.ordered.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ordered.is_empty()
    }

    /// An object by kind and name.
    pub fn get(&self, key: &ObjectKey) -> Option<&Object> {
        self.ordered.get(self.places.get(key)?).map(Arc::as_ref)
    }

    /// A copy of each.
    pub fn to_vec(&self) -> Vec<Object> {
        self.iter().cloned().collect()
    }

    pub(super) fn contains(&self, key: &ObjectKey) -> bool {
        self.places.contains_key(key)
    }

    /// Objects of a kind, in order.
    pub(super) fn of_kind(&self, kind: &'static str) -> Vec<&Object> {
        let from = ObjectKey { kind, name: super::Name::new("", "") };
        let own = self.places.range_from(&from).take_while(|(key, _)| key.kind == kind);
        let places: BTreeSet<u64> = own.map(|(_, place)| *place).collect();
        places.iter().filter_map(|place| self.ordered.get(place)).map(Arc::as_ref).collect()
    }

    /// Changes in the order of the objects.
    pub(super) fn sort(&self, changes: &mut [Changed]) {
        changes.sort_by_cached_key(|change| change.new.as_ref().and_then(|new| self.places.get(&new.key()).copied()));
    }

    /// Adds an object, or puts it in the place of the one with its name.
    pub(super) fn put(&mut self, object: Arc<Object>) -> Changed {
        let key = object.key();
        if let Some(place) = self.places.get(&key) {
            let old = self.ordered.insert(*place, Arc::clone(&object));
            return Changed { old, new: Some(object) };
        }
        let place = self.ordered.last().map_or(ROOM, |(last, _)| last + ROOM);
        self.ordered.insert(place, Arc::clone(&object));
        self.places.insert(key, place);
        Changed { old: None, new: Some(object) }
    }

    /// Removes an object.
    pub(super) fn remove(&mut self, key: &ObjectKey) -> Option<Changed> {
        let place = self.places.remove(key)?;
        Some(Changed { old: self.ordered.remove(&place), new: None })
    }

    /// These, and no others. Two objects with one name are an error.
    pub(super) fn of(objects: Vec<Arc<Object>>, report: &mut Report) -> Self {
        let mut all = Self::default();
        for object in objects {
            all.add(object, report);
        }
        all
    }

    fn add(&mut self, object: Arc<Object>, report: &mut Report) {
        match self.places.get(&object.key()).and_then(|place| self.ordered.get(place)) {
            Some(first) => report.add(taken(&object, first)),
            None => {
                self.put(object);
            }
        }
    }

    /// Makes these the objects. Returns what has changed, and whether objects whose order matters have changed places.
    pub(super) fn replace(&mut self, objects: Vec<Arc<Object>>, report: &mut Report) -> (Vec<Changed>, bool) {
        // Most are where they were: a change of one file is in the middle of what stays.
        let same = |(old, new): &(&Arc<Object>, &Arc<Object>)| Arc::ptr_eq(old, new) || old == new;
        let first = self.ordered.values().zip(&objects).take_while(same).count();
        let most = self.len().min(objects.len()) - first;
        let last = self.ordered.values().rev().zip(objects.iter().rev()).take(most).take_while(same).count();
        let stay = self.len() - first - last;
        let old: Vec<(u64, Arc<Object>)> =
            self.ordered.iter().skip(first).take(stay).map(|(place, object)| (*place, Arc::clone(object))).collect();
        let behind = self.ordered.iter().nth(first + stay).map(|(place, _)| *place);
        let before =
            first.checked_sub(1).and_then(|index| self.ordered.iter().nth(index)).map_or(0, |(place, _)| *place);
        let new: Vec<Arc<Object>> = objects.get(first..objects.len() - last).unwrap_or_default().to_vec();
        let was: BTreeMap<ObjectKey, (usize, Arc<Object>)> =
            old.iter().enumerate().map(|(index, (_, object))| (object.key(), (index, Arc::clone(object)))).collect();
        for (place, object) in &old {
            self.ordered.remove(place);
            self.places.remove(&object.key());
        }
        let step = behind.map_or(ROOM, |behind| (behind - before) / (u64::try_from(new.len()).unwrap_or(u64::MAX) + 1));
        if step == 0 {
            // No room left in between: all places anew.
            let (ahead, after): (Vec<_>, Vec<_>) = self
                .ordered
                .iter()
                .map(|(place, object)| (*place, Arc::clone(object)))
                .partition(|(at, _)| *at <= before);
            let all = ahead.into_iter().map(|(_, object)| object).chain(new.iter().cloned());
            *self = Self::of(all.chain(after.into_iter().map(|(_, object)| object)).collect(), report);
        } else {
            let mut place = before;
            for object in &new {
                place += step;
                match self.places.insert(object.key(), place) {
                    None => {
                        self.ordered.insert(place, Arc::clone(object));
                    }
                    Some(other) => report.extend(self.ordered.get(&other).map(|first| taken(object, first))),
                }
            }
        }
        let (mut changed, mut moved, mut order) = (Vec::new(), false, 0);
        let mut left = was;
        for object in new {
            match left.remove(&object.key()) {
                Some((index, old)) => {
                    // Of these, the order tells who is given the first free address.
                    moved |= index < order && matters(&object);
                    order = order.max(index);
                    if old != object {
                        changed.push(Changed { old: Some(old), new: Some(object) });
                    }
                }
                None => changed.push(Changed { old: None, new: Some(object) }),
            }
        }
        changed.extend(left.into_values().map(|(_, old)| Changed { old: Some(old), new: None }));
        (changed, moved)
    }
}

fn matters(object: &Object) -> bool {
    matches!(object, Object::Node(_) | Object::Service(_) | Object::Workload(_) | Object::Pod(_))
}

fn taken(object: &Object, first: &Object) -> InputError {
    InputError::new(
        object.meta().position.clone(),
        "metadata.name",
        Problem::Taken { what: object.key().to_string(), first: first.meta().position.clone() },
    )
}

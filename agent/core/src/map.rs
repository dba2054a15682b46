//! An ordered map that costs next to nothing to copy: copies share what they have in common.
//!
//! The entries stand in order in chunks of at most [`MOST`]; a copy shares the chunks, a change copies one of them. So a
//! cluster and its successor can both be kept, and [`Map::diff`] finds where they differ without a look at what they share.
//!
//! Invariant: no chunk is empty or holds more than [`MOST`] entries, and keys grow within chunks and from one to the next.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::ops::Index;
use std::sync::Arc;

/// Entries of a chunk. Smaller: changes are cheaper; larger: copies and diffs are.
const MOST: usize = 32;

type Chunk<K, V> = Arc<Vec<(K, V)>>;

/// See the module.
#[derive(Clone)]
pub struct Map<K, V> {
    chunks: Arc<Vec<Chunk<K, V>>>,
    len: usize,
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self { chunks: Arc::default(), len: 0 }
    }
}

impl<K, V> Map<K, V> {
    /// Without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Entries in order.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter { chunks: &self.chunks, entries: &[], last: &[] }
    }

    /// Keys in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// Values in the order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> + Clone {
        self.iter().map(|(_, value)| value)
    }

    /// The first entry.
    pub fn first(&self) -> Option<(&K, &V)> {
        self.iter().next()
    }

    /// The last entry.
    pub fn last(&self) -> Option<(&K, &V)> {
        self.iter().next_back()
    }

    /// Whether one is an unchanged copy of the other. `false` says nothing.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.chunks, &other.chunks)
    }
}

impl<K: Ord, V> Map<K, V> {
    /// The chunk that holds a key or would, and the key's place in it.
    fn find<Q: Ord + ?Sized>(&self, key: &Q) -> (usize, Result<usize, usize>)
    where
        K: Borrow<Q>,
    {
        let after = self.chunks.partition_point(|chunk| chunk.first().is_some_and(|(first, _)| first.borrow() <= key));
        let place = after.saturating_sub(1);
        let found = self.chunks.get(place).map(|chunk| chunk.binary_search_by(|(own, _)| own.borrow().cmp(key)));
        (place, found.unwrap_or(Err(0)))
    }

    /// The value under a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.get_key_value(key).map(|(_, value)| value)
    }

    /// The entry under a key.
    pub fn get_key_value<Q: Ord + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        let (chunk, place) = self.find(key);
        self.chunks.get(chunk)?.get(place.ok()?).map(|(key, value)| (key, value))
    }

    /// Whether there is an entry under a key.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.find(key).1.is_ok()
    }

    /// Entries from a key on.
    pub fn range_from<Q: Ord + ?Sized>(&self, key: &Q) -> Iter<'_, K, V>
    where
        K: Borrow<Q>,
    {
        let (chunk, place) = self.find(key);
        let (Ok(place) | Err(place)) = place;
        let entries = self.chunks.get(chunk).and_then(|entries| entries.get(place..)).unwrap_or_default();
        Iter { chunks: self.chunks.get(chunk + 1..).unwrap_or_default(), entries, last: &[] }
    }

    /// The last entry before a key.
    pub fn before<Q: Ord + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        let (chunk, place) = self.find(key);
        let (Ok(place) | Err(place)) = place;
        let entries = self.chunks.get(chunk).and_then(|entries| entries.get(..place)).unwrap_or_default();
        // The chunk is the last one that begins at or before the key: if nothing of it is before, look at the one before.
        let earlier = || self.chunks.get(chunk.checked_sub(1)?)?.last();
        entries.last().or_else(earlier).map(|(key, value)| (key, value))
    }
}

impl<K: Ord + Clone, V: Clone> Map<K, V> {
    /// The value under a key, to be changed.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let (chunk, place) = self.find(key);
        let place = place.ok()?;
        let entries = Arc::make_mut(Arc::make_mut(&mut self.chunks).get_mut(chunk)?);
        entries.get_mut(place).map(|(_, value)| value)
    }

    /// Adds or replaces an entry; returns the value before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (chunk, place) = self.find(&key);
        let chunks = Arc::make_mut(&mut self.chunks);
        let Some(shared) = chunks.get_mut(chunk) else {
            chunks.push(Arc::new(vec![(key, value)]));
            self.len += 1;
            return None;
        };
        let entries = Arc::make_mut(shared);
        match place {
            Ok(place) => entries.get_mut(place).map(|(_, old)| std::mem::replace(old, value)),
            Err(place) => {
                entries.insert(place.min(entries.len()), (key, value));
                self.len += 1;
                if entries.len() > MOST {
                    // What comes in order fills chunks; what comes in between halves them.
                    let at = if place == MOST { MOST } else { MOST / 2 };
                    let rest = entries.split_off(at);
                    chunks.insert(chunk + 1, Arc::new(rest));
                }
                None
            }
        }
    }

    /// Removes an entry; returns its value.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let (chunk, place) = self.find(key);
        let place = place.ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let entries = Arc::make_mut(chunks.get_mut(chunk)?);
        let (_, value) = entries.remove(place);
        self.len -= 1;
        let left = entries.len();
        let fits = |other: Option<&Chunk<K, V>>| other.is_some_and(|other| other.len() + left <= MOST / 2);
        let first = if fits(chunks.get(chunk + 1)) {
            Some(chunk)
        } else {
            chunk.checked_sub(1).filter(|before| fits(chunks.get(*before)))
        };
        match first {
            _ if left == 0 => {
                chunks.remove(chunk);
            }
            Some(first) => {
                let second = chunks.remove(first + 1);
                if let Some(shared) = chunks.get_mut(first) {
                    Arc::make_mut(shared).extend(second.iter().cloned());
                }
            }
            None => {}
        }
        Some(value)
    }

    /// The value under a key, put there if there is none.
    pub fn get_or_default(&mut self, key: &K) -> Option<&mut V>
    where
        V: Default,
    {
        if !self.contains_key(key) {
            self.insert(key.clone(), V::default());
        }
        self.get_mut(key)
    }
}

impl<K: Ord, V: PartialEq> Map<K, V> {
    /// Keys whose values differ, with both, in order: this map's first, then the other's.
    pub fn diff<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (&'a K, Option<&'a V>, Option<&'a V>)> {
        let (mut ours, mut theirs) = (self.iter(), other.iter());
        if self.is_same(other) {
            (ours, theirs) = (Iter::none(), Iter::none());
        }
        std::iter::from_fn(move || {
            loop {
                ours.skip_shared(&mut theirs);
                let (Some((key, own)), Some((other_key, other))) = (ours.peek(), theirs.peek()) else {
                    let own = ours.next().map(|(key, own)| (key, Some(own), None));
                    return own.or_else(|| theirs.next().map(|(key, other)| (key, None, Some(other))));
                };
                match key.cmp(other_key) {
                    Ordering::Less => return ours.next().map(|(key, own)| (key, Some(own), None)),
                    Ordering::Greater => return theirs.next().map(|(key, other)| (key, None, Some(other))),
                    Ordering::Equal => {
                        ours.next();
                        theirs.next();
                        if own != other {
                            return Some((key, Some(own), Some(other)));
                        }
                    }
                }
            }
        })
    }
}

/// Entries in order; see [`Map::iter`].
pub struct Iter<'a, K, V> {
    /// Chunks between those that have been begun.
    chunks: &'a [Chunk<K, V>],
    /// What is left of the first one.
    entries: &'a [(K, V)],
    /// What is left of the last one, taken from the end.
    last: &'a [(K, V)],
}

impl<K, V> Clone for Iter<'_, K, V> {
    fn clone(&self) -> Self {
        Self { chunks: self.chunks, entries: self.entries, last: self.last }
    }
}

impl<'a, K, V> Iter<'a, K, V> {
    fn none() -> Self {
        Self { chunks: &[], entries: &[], last: &[] }
    }

    fn peek(&self) -> Option<(&'a K, &'a V)> {
        self.clone().next()
    }

    /// Where both stand before the same chunk, both go behind it.
    fn skip_shared(&mut self, other: &mut Self) {
        while self.entries.is_empty()
            && other.entries.is_empty()
            && let (Some((own, rest)), Some((others, others_rest))) =
                (self.chunks.split_first(), other.chunks.split_first())
            && Arc::ptr_eq(own, others)
        {
            (self.chunks, other.chunks) = (rest, others_rest);
        }
    }
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        if self.entries.is_empty() {
            match self.chunks.split_first() {
                Some((first, rest)) => (self.entries, self.chunks) = (first, rest),
                None => self.entries = std::mem::take(&mut self.last),
            }
        }
        let ((key, value), rest) = self.entries.split_first()?;
        self.entries = rest;
        Some((key, value))
    }
}

impl<K, V> DoubleEndedIterator for Iter<'_, K, V> {
    fn next_back(&mut self) -> Option<Self::Item> {
        if self.last.is_empty() {
            match self.chunks.split_last() {
                Some((last, rest)) => (self.last, self.chunks) = (last, rest),
                None => self.last = std::mem::take(&mut self.entries),
            }
        }
        let ((key, value), rest) = self.last.split_last()?;
        self.last = rest;
        Some((key, value))
    }
}

impl<'a, K, V> IntoIterator for &'a Map<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for Map<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for Map<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        map.extend(entries);
        map
    }
}

impl<K: Ord + Borrow<Q>, V, Q: Ord + ?Sized> Index<&Q> for Map<K, V> {
    type Output = V;

    /// Panics without an entry, as every `Index` does; [`Map::get`] does not.
    fn index(&self, key: &Q) -> &V {
        let (chunk, place) = self.find(key);
        &self.chunks[chunk][place.unwrap_or(usize::MAX)].1
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for Map<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || (self.len == other.len && self.iter().eq(other.iter()))
    }
}

impl<K: Eq, V: Eq> Eq for Map<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Map<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Number of chunks that are not shared.
    fn own_chunks(map: &Map<u16, u16>, other: &Map<u16, u16>) -> usize {
        let shared = |chunk: &&Chunk<u16, u16>| other.chunks.iter().any(|own| Arc::ptr_eq(own, chunk));
        map.chunks.iter().filter(|chunk| !shared(chunk)).count()
    }

    #[test]
    fn a_change_copies_one_chunk() {
        let map: Map<u16, u16> = (0..10_000).map(|n| (n * 2, n)).collect();
        let mut changed = map.clone();
        changed.insert(4001, 0);
        assert!(own_chunks(&changed, &map) <= 2);
        assert_eq!(changed.diff(&map).collect::<Vec<_>>(), [(&4001, Some(&0), None)]);
        assert_eq!((map.len(), changed.len()), (10_000, 10_001));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(u16, u16),
        Remove(u16),
        Copy,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0_u16..400, 0_u16..4).prop_map(|(key, value)| Step::Put(key, value)),
            4 => (0_u16..400).prop_map(Step::Remove),
            1 => Just(Step::Copy),
        ];
        proptest::collection::vec(step, 0..600)
    }

    proptest! {
        #[test]
        fn it_does_what_a_btreemap_does(steps in steps()) {
            let (mut map, mut plain) = (Map::new(), BTreeMap::new());
            let mut copies = vec![(map.clone(), plain.clone())];
            for step in steps {
                match step {
                    Step::Put(key, value) => prop_assert_eq!(map.insert(key, value), plain.insert(key, value)),
                    Step::Remove(key) => prop_assert_eq!(map.remove(&key), plain.remove(&key)),
                    Step::Copy => copies.push((map.clone(), plain.clone())),
                }
            }
            copies.push((map.clone(), plain.clone()));
            for (copy, plain_copy) in &copies {
                prop_assert!(copy.iter().eq(plain_copy.iter()));
                prop_assert!(copy.iter().rev().eq(plain_copy.iter().rev()));
                prop_assert_eq!(copy.len(), plain_copy.len());
                prop_assert!(copy.chunks.iter().all(|chunk| (1..=MOST).contains(&chunk.len())));
                let keys = copy.keys().chain(map.keys()).copied().collect::<std::collections::BTreeSet<u16>>();
                let differ = keys.iter().filter(|key| copy.get(key) != map.get(key));
                let expected: Vec<_> = differ.map(|key| (key, copy.get(key), map.get(key))).collect();
                prop_assert_eq!(copy.diff(&map).collect::<Vec<_>>(), expected);
            }
            for key in 0..401 {
                prop_assert_eq!(map.get(&key), plain.get(&key));
                prop_assert!(map.range_from(&key).eq(plain.range(key..)));
                prop_assert_eq!(map.before(&key), plain.range(..key).next_back());
            }
            // From both ends at once.
            let (mut iter, mut expected) = (map.iter(), plain.iter());
            for turn in 0..plain.len() + 1 {
                if turn % 3 == 0 {
                    prop_assert_eq!(iter.next_back(), expected.next_back());
                } else {
                    prop_assert_eq!(iter.next(), expected.next());
                }
            }
        }
    }
}

//! Tags: names by which many entries are invalidated at once, in constant time.
//!
//! Nothing lists the entries of a tag. A count of all invalidations of tags stands here, and each tag notes which one
//! was its last; an entry notes the count from before its value was read. A tag that was invalidated since then has a
//! higher number than the entry, and the entry is no longer good. Counters cannot run backwards as clocks do.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering, fence},
    },
};

/// How many tags are remembered beside those that entries hold, before the unused are let go.
const SPARE: usize = 1024;

#[derive(Default)]
pub(crate) struct Tags {
    count: AtomicU64,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    tags: HashMap<Arc<str>, Arc<Tag>>,
    /// The highest number that a forgotten tag had: a tag that comes anew may be one of those.
    floor: u64,
    /// At how many tags the unused are let go.
    limit: usize,
}

pub(crate) struct Tag {
    name: Arc<str>,
    /// The number of its last invalidation.
    changed: AtomicU64,
}

/// What an entry holds of its tags.
pub(crate) struct TagSet {
    seen: u64,
    tags: Box<[Arc<Tag>]>,
}

impl Tags {
    /// To be taken before a value is read, for [`Tags::set`].
    pub(crate) fn now(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    pub(crate) fn set(&self, seen: u64, names: &[Arc<str>]) -> Option<Arc<TagSet>> {
        if names.is_empty() {
            return None;
        }
        let tags = names.iter().map(|name| self.tag(name)).collect();
        Some(Arc::new(TagSet { seen, tags }))
    }

    pub(crate) fn invalidate(&self, name: &Arc<str>) {
        // The tag is found first and numbered afterwards: who takes the count in between sees the old state, and is
        // invalidated with the rest.
        let tag = self.tag(name);
        let number = self.count.fetch_add(1, Ordering::SeqCst) + 1;
        tag.changed.fetch_max(number, Ordering::SeqCst);
    }

    fn tag(&self, name: &Arc<str>) -> Arc<Tag> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tag) = known.tags.get(name) {
            return Arc::clone(tag);
        }
        if known.tags.len() >= known.limit.max(SPARE) {
            known.let_go();
        }
        let tag = Arc::new(Tag { name: Arc::clone(name), changed: AtomicU64::new(known.floor) });
        known.tags.insert(Arc::clone(name), Arc::clone(&tag));
        tag
    }
}

impl Known {
    fn let_go(&mut self) {
        let floor = &mut self.floor;
        self.tags.retain(|_, tag| {
            let used = Arc::strong_count(tag) > 1;
            if !used {
                // The count says that who invalidated it is done, and this that its number is seen.
                fence(Ordering::Acquire);
                *floor = tag.changed.load(Ordering::SeqCst).max(*floor);
            }
            used
        });
        // Doubling keeps the price of a sweep constant for each tag that came since the last one.
        self.limit = self.tags.len() * 2;
    }
}

impl TagSet {
    pub(crate) fn names(&self) -> Vec<Arc<str>> {
        self.tags.iter().map(|tag| Arc::clone(&tag.name)).collect()
    }

    pub(crate) fn is_current(&self) -> bool {
        self.tags.iter().all(|tag| tag.changed.load(Ordering::SeqCst) <= self.seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names<const N: usize>(names: [&str; N]) -> [Arc<str>; N] {
        names.map(Arc::from)
    }

    #[test]
    fn an_entry_falls_with_any_of_its_tags() {
        let (tags, [red, blue]) = (Tags::default(), names(["red", "blue"]));
        let both = tags.set(tags.now(), &[red.clone(), blue.clone()]).unwrap();
        let one = tags.set(tags.now(), &[red]).unwrap();
        assert!(both.is_current() && one.is_current());
        tags.invalidate(&blue);
        assert!(!both.is_current());
        assert!(one.is_current(), "another tag's entry stays");
        assert!(tags.set(tags.now(), &[blue]).unwrap().is_current(), "what is read later is good");
        assert!(tags.set(tags.now(), &[]).is_none());
    }

    #[test]
    fn a_tag_invalidated_during_a_load_is_not_missed_though_it_was_unknown() {
        let (tags, [red]) = (Tags::default(), names(["red"]));
        let seen = tags.now();
        tags.invalidate(&red);
        assert!(!tags.set(seen, &[red]).unwrap().is_current());
    }

    #[test]
    fn forgotten_tags_do_not_come_back_as_innocent() {
        let (tags, [red]) = (Tags::default(), names(["red"]));
        let seen = tags.now();
        tags.invalidate(&red);
        for number in 0..4 * SPARE {
            let _ = tags.set(tags.now(), &[Arc::from(number.to_string())]);
        }
        assert!(tags.known.lock().unwrap().tags.len() <= 2 * SPARE, "unused tags are let go");
        assert!(!tags.set(seen, std::slice::from_ref(&red)).unwrap().is_current());
        assert!(tags.set(tags.now(), &[red]).unwrap().is_current());
    }
}

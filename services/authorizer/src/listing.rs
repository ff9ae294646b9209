//! What does a getDevices answer look like? The device API's JSON, rendered once for all who read the same.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use rpc::DeviceId;

/// The beginning of a list, as JSON text.
#[derive(Debug, Default)]
pub struct Listing {
    text: Vec<u8>,
    /// The devices, and where the entry of each ends in the text.
    entries: Vec<(DeviceId, usize)>,
    /// Nothing follows.
    is_whole: bool,
}

impl Listing {
    /// Of the first `most` of these, which are in the order of the list.
    pub fn of<N: AsRef<str>>(mut peers: impl Iterator<Item = (N, DeviceId)>, most: usize) -> Self {
        let mut listing = Listing::default();
        for (name, id) in peers.by_ref().take(most) {
            if !listing.text.is_empty() {
                listing.text.push(b',');
            }
            entry(&mut listing.text, id, name.as_ref(), None);
            listing.entries.push((id, listing.text.len()));
        }
        listing.is_whole = peers.next().is_none();
        listing.text.shrink_to_fit();
        listing.entries.shrink_to_fit();
        listing
    }

    /// The list for `caller`, itself left out: at most `limit`, those behind `after` if given. None when this beginning
    /// does not tell.
    pub fn page(&self, caller: DeviceId, after: Option<DeviceId>, limit: usize) -> Option<Vec<u8>> {
        let place_of = |device| self.entries.iter().position(|(id, _)| *id == device);
        let first = match after {
            Some(after) => place_of(after)? + 1,
            None => 0,
        };
        let own = place_of(caller).filter(|own| *own >= first);
        let wanted = limit.saturating_add(usize::from(own.is_some_and(|own| own - first < limit)));
        let end = first.saturating_add(wanted);
        if end > self.entries.len() && !self.is_whole {
            return None;
        }
        let end = end.min(self.entries.len());
        let (before, behind) = match own.filter(|own| *own < end) {
            Some(own) => (self.text_of(first, own), self.text_of(own + 1, end)),
            None => (self.text_of(first, end), &[][..]),
        };
        let comma: &[u8] = if before.is_empty() || behind.is_empty() { b"" } else { b"," };
        Some([b"[", before, comma, behind, b"]"].concat())
    }

    /// The entries from `first` up to `end`.
    fn text_of(&self, first: usize, end: usize) -> &[u8] {
        let end_of =
            |count: usize| count.checked_sub(1).and_then(|last| self.entries.get(last)).map(|it| it.1);
        match (first < end, end_of(end)) {
            // Behind the comma.
            (true, Some(end)) => {
                self.text.get(end_of(first).map_or(0, |end| end + 1)..end).unwrap_or_default()
            }
            _ => &[],
        }
    }

    fn bytes(&self) -> usize {
        self.text.len() + self.entries.len() * size_of::<(DeviceId, usize)>()
    }
}

/// Listings that are kept until what they list changes; at most `MAX_BYTES` of them.
#[derive(Debug)]
pub struct Listings<K, const MAX_BYTES: usize> {
    by: HashMap<K, Arc<Listing>>,
    bytes: usize,
}

impl<K, const MAX_BYTES: usize> Default for Listings<K, MAX_BYTES> {
    fn default() -> Self {
        Listings { by: HashMap::new(), bytes: 0 }
    }
}

impl<K: Eq + Hash, const MAX_BYTES: usize> Listings<K, MAX_BYTES> {
    /// The one of `key`, if it is kept.
    pub fn get(&self, key: &K) -> Option<Arc<Listing>> {
        self.by.get(key).cloned()
    }

    /// Keeps one; where there is no room, all others go: they are soon made again by whoever asks.
    pub fn keep(&mut self, key: K, listing: &Arc<Listing>) {
        if listing.bytes() > MAX_BYTES {
            return;
        }
        if self.bytes + listing.bytes() > MAX_BYTES {
            self.clear();
        }
        self.bytes += listing.bytes();
        if let Some(before) = self.by.insert(key, Arc::clone(listing)) {
            self.bytes -= before.bytes();
        }
    }

    /// What that one lists has changed.
    pub fn forget(&mut self, key: &K) {
        if let Some(listing) = self.by.remove(key) {
            self.bytes -= listing.bytes();
        }
    }

    /// What all of them list has changed.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// A list with who is online.
pub fn render<N: AsRef<str>>(peers: impl Iterator<Item = (N, DeviceId, Option<bool>)>) -> Vec<u8> {
    let mut list = vec![b'['];
    for (name, id, online) in peers {
        if list.len() > 1 {
            list.push(b',');
        }
        entry(&mut list, id, name.as_ref(), online);
    }
    list.push(b']');
    list
}

fn entry(list: &mut Vec<u8>, id: DeviceId, name: &str, online: Option<bool>) {
    list.extend_from_slice(br#"{"id":""#);
    let mut text = uuid::Uuid::encode_buffer();
    list.extend_from_slice(id.0.as_hyphenated().encode_lower(&mut text).as_bytes());
    list.extend_from_slice(br#"","name":"#);
    // Writing a string to memory cannot fail.
    let _ = serde_json::to_writer(&mut *list, name);
    match online {
        Some(true) => list.extend_from_slice(br#","online":true"#),
        Some(false) => list.extend_from_slice(br#","online":false"#),
        None => {}
    }
    list.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn id(id: u128) -> DeviceId {
        DeviceId(Uuid::from_u128(id))
    }

    #[test]
    fn a_list_is_the_device_apis_json() {
        let text = |list| String::from_utf8(list).unwrap();
        assert_eq!(render::<&str>(std::iter::empty()), b"[]");
        assert_eq!(Listing::of::<&str>(std::iter::empty(), 9).page(id(1), None, 9).unwrap(), b"[]");
        let peers = [("A\"1\"\u{1F600}", id(1)), ("B", id(0xabc))];
        assert_eq!(
            text(Listing::of(peers.into_iter(), 9).page(id(7), None, 9).unwrap()),
            "[{\"id\":\"00000000-0000-0000-0000-000000000001\",\"name\":\"A\\\"1\\\"\u{1F600}\"},\
             {\"id\":\"00000000-0000-0000-0000-000000000abc\",\"name\":\"B\"}]"
        );
        assert_eq!(
            text(render([("A", id(1), Some(true)), ("B", id(2), Some(false))].into_iter())),
            "[{\"id\":\"00000000-0000-0000-0000-000000000001\",\"name\":\"A\",\"online\":true},\
             {\"id\":\"00000000-0000-0000-0000-000000000002\",\"name\":\"B\",\"online\":false}]"
        );
    }

    #[test]
    fn listings_take_no_more_memory_than_they_may() {
        let listing = Arc::new(Listing::of((0..10).map(|it| ("A", id(it))), 99));
        assert!((600..1_000).contains(&listing.bytes()), "{}", listing.bytes());
        let mut listings = Listings::<i32, 2_000>::default();
        for key in 0..2 {
            listings.keep(key, &listing);
        }
        assert!(listings.get(&0).is_some() && listings.get(&1).is_some());
        listings.keep(1, &listing);
        assert!(listings.get(&0).is_none(), "there was no room for a third");
        listings.keep(3, &listing);
        assert!(listings.get(&1).is_some() && listings.get(&3).is_some());
        listings.forget(&3);
        listings.forget(&9);
        assert_eq!(listings.bytes, listings.by.values().map(|it| it.bytes()).sum::<usize>());
        listings.keep(4, &Arc::new(Listing::of((0..50).map(|it| ("A", id(it))), 99)));
        assert!(listings.get(&4).is_none(), "what is too large is made anew each time");
    }

    proptest! {
        /// A page out of a listing is what whoever asked would have been rendered, or none.
        #[test]
        fn a_page_is_its_part_of_the_list(
            count in 0u128..12,
            most in 0usize..14,
            caller in 0u128..13,
            after in proptest::option::of(0u128..13),
            limit in 0usize..14,
        ) {
            let listing = Listing::of((0..count).map(|it| (it.to_string(), id(it))), most);
            let page = listing.page(id(caller), after.map(id), limit);
            let is_known = after.is_none_or(|after| after < count);
            let behind = (0..count).filter(|it| after.is_none_or(|after| *it > after) && *it != caller);
            let expected = render(behind.take(limit).map(|it| (it.to_string(), id(it), None)));
            match page {
                Some(page) => prop_assert_eq!(page, expected),
                None => prop_assert!(!is_known || (most as u128) < count),
            }
        }
    }
}

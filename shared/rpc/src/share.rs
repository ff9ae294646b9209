//! How much of what all share may one hold? A part: who has it hears so, and nobody else notices.

use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;

use minicbor::{Decode, Encode};
use parking_lot::Mutex;

use crate::{CustomerId, QuickMap, TenantId};

/// Memory for so many holders is kept, whoever has gone.
const KEPT_HOLDERS: usize = 1_024;

/// Who has a share: a customer, or those devices of a tenant that belong to none. Short, since calls bear it: of
/// 100,000 customers about one shares its part with another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Party(#[n(0)] u32);

impl Party {
    /// The party of a device that stands there.
    pub fn of(tenant: TenantId, customer: Option<CustomerId>) -> Self {
        let customer = customer.map_or(0, |customer| customer.0.as_u128());
        // Odd, with its bits well mixed: every bit of an id moves the highest ones.
        let spread = |id: u128| id.wrapping_mul(0xDA94_2042_E4DD_58B5_0F06_8B2C_9A7E_41D3);
        let mixed = spread(spread(tenant.0.as_u128()).rotate_left(64) ^ customer);
        Party(
            spread(mixed ^ (mixed >> 64)).to_be_bytes().first_chunk().copied().map_or(0, u32::from_be_bytes),
        )
    }
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// Whoever asks has his part.
    Part,
    /// All are taken.
    Any,
}

/// Places that many share, of which none holds more than a part. Clones share them. In memory stand those alone that
/// hold one.
#[derive(Debug)]
pub struct Shares<K: Eq + Hash + Copy>(Arc<Places<K>>);

#[derive(Debug)]
struct Places<K> {
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    max: usize,
    part: usize,
    all: usize,
    by: QuickMap<K, usize>,
}

/// A place that is taken until this is dropped.
#[derive(Debug)]
pub struct Place<K: Eq + Hash + Copy> {
    of: Arc<Places<K>>,
    holder: K,
}

impl<K: Eq + Hash + Copy> Shares<K> {
    /// `max` places, of which one may hold `percent`, and at least one.
    pub fn percent(max: usize, percent: u16) -> Self {
        Shares::new(max, percent_of(max, percent))
    }

    /// `max` places, of which one may hold `part`.
    pub fn new(max: usize, part: usize) -> Self {
        let taken = Mutex::new(Taken { max, part, all: 0, by: QuickMap::default() });
        Shares(Arc::new(Places { taken }))
    }

    /// From now on there are as many places as there, and one may hold as many. Who holds more keeps them.
    pub fn resize_as(&self, other: &Shares<K>) {
        let (max, part) = {
            let other = other.0.taken.lock();
            (other.max, other.part)
        };
        let mut taken = self.0.taken.lock();
        (taken.max, taken.part) = (max, part);
    }

    /// Takes a place for `holder`.
    ///
    /// # Errors
    /// When he has his part, or all are taken.
    pub fn take(&self, holder: K) -> Result<Place<K>, NoPlace> {
        let mut taken = self.0.taken.lock();
        // Where a part is all there is, nobody has had more than his.
        if taken.all >= taken.max {
            return Err(NoPlace::Any);
        }
        let part = taken.part;
        match taken.by.entry(holder) {
            Entry::Occupied(mut held) if *held.get() < part => *held.get_mut() += 1,
            Entry::Vacant(none) if part > 0 => {
                none.insert(1);
            }
            Entry::Occupied(_) | Entry::Vacant(_) => return Err(NoPlace::Part),
        }
        taken.all += 1;
        Ok(Place { of: Arc::clone(&self.0), holder })
    }

    /// How many places are taken.
    pub fn taken(&self) -> usize {
        self.0.taken.lock().all
    }
}

impl<K: Eq + Hash + Copy> Clone for Shares<K> {
    fn clone(&self) -> Self {
        Shares(Arc::clone(&self.0))
    }
}

impl<K: Eq + Hash + Copy> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock();
        taken.all -= 1;
        if let Entry::Occupied(mut held) = taken.by.entry(self.holder) {
            *held.get_mut() -= 1;
            if *held.get() == 0 {
                held.remove();
                if taken.by.capacity() > KEPT_HOLDERS && taken.by.len() < taken.by.capacity() / 8 {
                    taken.by.shrink_to(KEPT_HOLDERS);
                }
            }
        }
    }
}

/// So many percent of `max`, and at least one.
pub fn percent_of(max: usize, percent: u16) -> usize {
    let part = max as u128 * u128::from(percent) / 100;
    usize::try_from(part).unwrap_or(max).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;
    use uuid::Uuid;

    #[test]
    fn who_has_his_part_is_refused_and_nobody_else() {
        let shares = Shares::percent(20, 10);
        let held: Vec<_> = (0..2).map(|_| shares.take("greedy").unwrap()).collect();
        assert_eq!(shares.take("greedy").unwrap_err(), NoPlace::Part);
        let two_each = ["a", "b", "c", "d", "e", "f", "g", "h", "i"].into_iter().flat_map(|it| [it; 2]);
        let others: Vec<_> = two_each.map(|it| shares.take(it).unwrap()).collect();
        assert_eq!(shares.take("j").unwrap_err(), NoPlace::Any);
        assert_eq!(shares.taken(), 20);
        drop((held, others));
        assert_eq!(shares.taken(), 0);
        assert!(shares.0.taken.lock().by.is_empty());
        assert!(shares.take("greedy").is_ok());
    }

    #[test]
    fn who_has_more_than_his_new_part_keeps_it() {
        let shares = Shares::new(4, 2);
        let held: Vec<_> = (0..2).map(|_| shares.take("a").unwrap()).collect();
        shares.resize_as(&Shares::new(3, 1));
        assert_eq!(shares.take("a").unwrap_err(), NoPlace::Part);
        let _b = shares.take("b").unwrap();
        assert_eq!(shares.take("c").unwrap_err(), NoPlace::Any);
        drop(held);
        assert!(shares.take("a").is_ok());
    }

    #[test]
    fn a_part_is_one_at_least() {
        let table = [(1, 10, 1), (9, 10, 1), (65_536, 10, 6_553), (7, 100, 7), (usize::MAX, 100, usize::MAX)];
        for (max, percent, part) in table {
            assert_eq!(percent_of(max, percent), part, "{percent} % of {max}");
        }
    }

    #[test]
    fn parties_are_spread_whatever_their_ids() {
        let id = |id| TenantId(Uuid::from_u128(id));
        let customer = |id| Some(CustomerId(Uuid::from_u128(id)));
        let counted = (0..100u128).flat_map(|t| (0..100u128).map(move |c| (t, c)));
        let parties = counted.map(|(t, c)| Party::of(id(t << 64 | 7), customer(c + 1)));
        let parties: HashSet<_> = parties.collect();
        assert!(parties.len() > 9_995, "{} of 10,000", parties.len());
        assert_ne!(Party::of(id(1), None), Party::of(id(2), None));
        assert_ne!(Party::of(id(1), customer(2)), Party::of(id(2), customer(1)));
    }

    proptest! {
        /// However many come and go: nobody holds more than his part, all together no more than there are, and who
        /// is below both is never refused.
        #[test]
        fn a_place_is_refused_for_its_reason_alone(
            max in 1usize..40,
            percent in 1u16..=100,
            steps in proptest::collection::vec((0u8..8, any::<bool>()), 0..300),
        ) {
            let shares = Shares::percent(max, percent);
            let part = percent_of(max, percent);
            let mut held: Vec<(u8, Place<u8>)> = Vec::new();
            for (holder, takes) in steps {
                let of_holder = held.iter().filter(|(it, _)| *it == holder).count();
                if !takes {
                    if let Some(place) = held.iter().position(|(it, _)| *it == holder) {
                        held.swap_remove(place);
                    }
                } else {
                    match shares.take(holder) {
                        Ok(place) => {
                            prop_assert!(of_holder < part && held.len() < max);
                            held.push((holder, place));
                        }
                        Err(NoPlace::Part) => prop_assert_eq!(of_holder, part),
                        Err(NoPlace::Any) => prop_assert_eq!(held.len(), max),
                    }
                }
                let holders: HashSet<u8> = held.iter().map(|(it, _)| *it).collect();
                prop_assert_eq!(shares.taken(), held.len());
                prop_assert_eq!(shares.0.taken.lock().by.len(), holders.len());
            }
        }
    }
}

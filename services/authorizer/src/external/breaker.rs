//! Is an external decision point asked at all? Not while it keeps failing, and not for what it has answered already.
//! Pure: handed `now`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::question::{Answer, Class};

/// So many questions in a row without an answer, and it is not asked for a while.
pub const MAX_MISSES: u32 = 20;
/// For how long; then one question tries.
pub const OPEN_FOR: Duration = Duration::from_secs(1);
/// Answers that are remembered of one point.
pub const MAX_REMEMBERED: usize = 10_000;

/// Stops asking who does not answer.
#[derive(Debug, Default)]
pub struct Breaker {
    /// In a row.
    misses: u32,
    /// Set while it is open: until then nobody asks, and from then on one does.
    tries_at: Option<Instant>,
}

/// What a breaker does at an answer, or at the lack of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turned {
    /// It lets through what it let through before.
    Nothing,
    /// From now on it lets nothing through.
    Open,
    /// From now on it lets everything through.
    Closed,
}

impl Breaker {
    /// Whether to ask. While it is open, it lets one through every [`OPEN_FOR`].
    pub fn lets_through(&mut self, now: Instant) -> bool {
        match self.tries_at {
            None => true,
            Some(tries_at) if now >= tries_at => {
                self.tries_at = Some(now + OPEN_FOR);
                true
            }
            Some(_) => false,
        }
    }

    /// An answer came, whatever it said.
    pub fn answered(&mut self) -> Turned {
        self.misses = 0;
        if self.tries_at.take().is_some() { Turned::Closed } else { Turned::Nothing }
    }

    /// No answer came in time, or none that can be read.
    pub fn missed(&mut self, now: Instant) -> Turned {
        self.misses = self.misses.saturating_add(1);
        if self.misses < MAX_MISSES {
            return Turned::Nothing;
        }
        if self.tries_at.replace(now + OPEN_FOR).is_none() { Turned::Open } else { Turned::Nothing }
    }
}

/// Answers for as long as they hold.
#[derive(Debug, Default)]
pub struct Remembered {
    answers: HashMap<Class, (Arc<Answer>, Instant)>,
}

impl Remembered {
    /// The answer to such a question.
    pub fn get(&self, class: &Class, now: Instant) -> Option<Arc<Answer>> {
        let (answer, ends) = self.answers.get(class)?;
        (now < *ends).then(|| Arc::clone(answer))
    }

    /// An answer to a question that was asked at `asked`: it holds from then on.
    pub fn put(&mut self, class: Class, answer: Arc<Answer>, asked: Instant) {
        if answer.ttl.is_zero() {
            self.answers.remove(&class);
            return;
        }
        if self.answers.len() >= MAX_REMEMBERED {
            self.answers.retain(|_, (_, ends)| *ends > asked);
        }
        if self.answers.len() >= MAX_REMEMBERED {
            self.answers.clear();
        }
        let ends = asked + answer.ttl;
        self.answers.insert(class, (answer, ends));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(ttl_ms: u64) -> Arc<Answer> {
        Arc::new(Answer { is_allowed: true, ttl: Duration::from_millis(ttl_ms), reason: String::new() })
    }

    #[test]
    fn twenty_misses_in_a_row_open_it_and_one_answer_closes_it() {
        let start = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 1..MAX_MISSES {
            assert_eq!(breaker.missed(start), Turned::Nothing);
        }
        assert_eq!((breaker.answered(), breaker.lets_through(start)), (Turned::Nothing, true));
        let turned: Vec<_> = (0..MAX_MISSES).map(|_| breaker.missed(start)).collect();
        assert_eq!(turned.last(), Some(&Turned::Open));
        assert_eq!(turned.iter().filter(|turned| **turned != Turned::Nothing).count(), 1);
        assert!(!breaker.lets_through(start));
        let later = start + OPEN_FOR;
        assert!(breaker.lets_through(later), "one tries");
        assert!(!breaker.lets_through(later), "and no other meanwhile");
        assert_eq!(breaker.missed(later), Turned::Nothing);
        assert!(!breaker.lets_through(later + OPEN_FOR / 2));
        assert!(breaker.lets_through(later + OPEN_FOR));
        assert_eq!(breaker.answered(), Turned::Closed);
        assert!(breaker.lets_through(later));
        assert_eq!(breaker.missed(later), Turned::Nothing, "and it counts anew");
    }

    #[test]
    fn a_trial_that_is_never_heard_of_is_followed_by_another() {
        let start = Instant::now();
        let mut breaker = Breaker::default();
        (0..MAX_MISSES).for_each(|_| assert_ne!(breaker.missed(start), Turned::Closed));
        assert!(breaker.lets_through(start + OPEN_FOR));
        assert!(breaker.lets_through(start + 2 * OPEN_FOR));
    }

    #[test]
    fn answers_hold_for_their_time_and_no_longer() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut remembered = Remembered::default();
        remembered.put([1; 32], answer(0), start);
        assert_eq!(remembered.get(&[1; 32], start), None);
        remembered.put([1; 32], answer(100), start);
        assert!(remembered.get(&[1; 32], at(99)).is_some());
        assert_eq!((remembered.get(&[1; 32], at(100)), remembered.get(&[2; 32], start)), (None, None));
        remembered.put([1; 32], answer(0), at(50));
        assert_eq!(
            remembered.get(&[1; 32], at(51)),
            None,
            "what holds for one question ends what held before"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

        #[test]
        fn never_more_are_remembered_than_the_limit(ttls in proptest::collection::vec(1u64..50, 1..40)) {
            let start = Instant::now();
            let mut remembered = Remembered::default();
            for (number, ttl) in ttls.iter().cycle().take(MAX_REMEMBERED + 500).enumerate() {
                let mut class = [0; 32];
                class[..8].copy_from_slice(&number.to_be_bytes());
                remembered.put(class, answer(*ttl), start + Duration::from_micros(number as u64));
                prop_assert!(remembered.answers.len() <= MAX_REMEMBERED);
            }
        }
    }
}

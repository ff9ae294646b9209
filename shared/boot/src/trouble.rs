//! Does something still not work? Said when it begins, when its cause changes, each time that it is twice as old, and
//! when it is over; meanwhile it is tried less and less often.

use std::time::{Duration, Instant};

/// The age at which a cause is said for the second time, and the longest time between two.
const SAID_AGAIN_AFTER: Duration = Duration::from_secs(10);
const SAID_EVERY: Duration = Duration::from_secs(600);

/// What is tried again until it works. Pure: attempts, pauses and the log are its caller's.
#[derive(Debug)]
pub struct Trouble {
    longest_pause: Duration,
    pause: Duration,
    begun: Option<Begun>,
}

#[derive(Debug)]
struct Begun {
    at: Instant,
    cause: String,
    say_at: Instant,
}

/// An attempt has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    /// How long to wait before the next.
    pub pause: Duration,
    /// How old the trouble is, in seconds, where it is to be said now.
    pub say_age_s: Option<u64>,
}

impl Trouble {
    /// None yet. The first pause is `pause`, each further one twice as long, up to `longest_pause`.
    pub const fn new(pause: Duration, longest_pause: Duration) -> Self {
        Trouble { longest_pause, pause, begun: None }
    }

    /// An attempt has failed, for this cause.
    pub fn failed(&mut self, cause: &str, now: Instant) -> Failed {
        let begun = self.begun.get_or_insert_with(|| Begun { at: now, cause: String::new(), say_at: now });
        let age = now.saturating_duration_since(begun.at);
        let is_said = now >= begun.say_at || cause != begun.cause;
        if is_said {
            cause.clone_into(&mut begun.cause);
            begun.say_at = now + age.clamp(SAID_AGAIN_AFTER, SAID_EVERY);
        }
        let pause = self.pause;
        self.pause = self.longest_pause.min(pause * 2);
        Failed { pause, say_age_s: is_said.then_some(age.as_secs()) }
    }

    /// It works. For how long it has not, in seconds, if it has not.
    pub fn over(&mut self, now: Instant) -> Option<u64> {
        self.begun.take().map(|begun| now.saturating_duration_since(begun.at).as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_cause_that_stays_is_said_with_its_age_and_tried_less_and_less_often() {
        let start = Instant::now();
        let (mut trouble, mut now) = (Trouble::new(100 * MS, 2_000 * MS), start);
        assert_eq!(trouble.over(now), None);
        let (mut said, mut pauses) = (Vec::new(), Vec::new());
        while now < start + Duration::from_secs(3_600) {
            let failed = trouble.failed("nobody is there", now);
            said.extend(failed.say_age_s);
            pauses.push(failed.pause.as_millis());
            now += failed.pause;
        }
        assert_eq!(pauses[..7], [100, 200, 400, 800, 1_600, 2_000, 2_000]);
        assert!(said.len() <= 14 && said.windows(2).all(|it| it[1] >= it[0] + 10), "{said:?}");
        assert_eq!(trouble.failed("another", now).say_age_s, Some(3_601));
        assert_eq!(trouble.failed("another", now).say_age_s, None);
        assert_eq!((trouble.over(now), trouble.over(now)), (Some(3_601), None));
    }
}

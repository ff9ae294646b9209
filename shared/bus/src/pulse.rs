//! How old may be what is read from the connection? Told by messages to itself that come back, one a second. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rpc::faults::{Fault, is};

/// Between two messages to itself.
pub const PULSE_EVERY: Duration = Duration::from_secs(1);
/// A gap in what comes back from which on it counts: a message to itself is this far behind in no healthy connection.
const COUNTS_FROM: Duration = Duration::from_millis(1_500);
/// So many in a row that have not come back end the connection when nothing else has come in either.
const MAX_MISSED: u32 = 2;
/// And so many when something has: they may stand behind a load of the registry.
const MAX_MISSED_BEHIND: u32 = 15;
/// Those that may still be under way are remembered.
const MAX_UNDER_WAY: usize = 8;

/// What is to be done at a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// Send this one.
    Send(u64),
    /// They do not come back: close the connection and open another.
    Reconnect,
}

/// The messages that a process sends itself through NATS.
///
/// What comes in behind one of them was sent by NATS after it, so it is no older than that one; nothing else bounds the
/// time that a message spent in a dead connection, or in the socket of a process that slept.
#[derive(Debug)]
pub struct Pulse {
    under_way: VecDeque<(u64, Instant)>,
    last_number: u64,
    missed: u32,
    /// When the last one that is back was sent.
    confirmed: Instant,
    /// The last gap that counted: since when, and when it was over.
    late: Option<(Instant, Instant)>,
}

impl Pulse {
    /// Of a connection that has just been made.
    pub fn new(now: Instant) -> Self {
        Pulse { under_way: VecDeque::new(), last_number: 0, missed: 0, confirmed: now, late: None }
    }

    /// Called once a [`PULSE_EVERY`] while connected; `has_heard`: something has come in since the last time. A process
    /// that slept misses one at most by that.
    pub fn tick(&mut self, has_heard: bool, now: Instant) -> Beat {
        self.missed = if self.under_way.is_empty() { 0 } else { self.missed + 1 };
        let most = if has_heard { MAX_MISSED_BEHIND } else { MAX_MISSED };
        if self.missed >= most && !is(Fault::CutUnnoticed) {
            self.disconnected();
            return Beat::Reconnect;
        }
        self.last_number += 1;
        if self.under_way.len() >= MAX_UNDER_WAY {
            self.under_way.pop_front();
        }
        self.under_way.push_back((self.last_number, now));
        Beat::Send(self.last_number)
    }

    /// There is no connection, or a new one: what was under way is lost.
    pub fn disconnected(&mut self) {
        self.missed = 0;
        self.under_way.clear();
    }

    /// One is back. False when it is none that is waited for.
    pub fn returned(&mut self, number: u64, now: Instant) -> bool {
        let Some(place) = self.under_way.iter().position(|&(sent, _)| sent == number) else { return false };
        let Some(&(_, sent)) = self.under_way.get(place) else { return false };
        self.under_way.drain(..=place);
        if now.saturating_duration_since(self.confirmed) > COUNTS_FROM {
            self.late = Some((self.confirmed, now));
        }
        self.confirmed = sent;
        self.missed = 0;
        true
    }

    /// How long ago at most was sent what is handled `now` and was not there yet at `not_yet`; zero, unless there was
    /// a gap in between.
    pub fn age(&self, not_yet: Instant, now: Instant) -> Duration {
        let open = now.saturating_duration_since(self.confirmed);
        let closed = self.late.filter(|&(_, over)| over >= not_yet);
        let closed = closed.map_or(Duration::ZERO, |(since, _)| now.saturating_duration_since(since));
        if open > COUNTS_FROM { open.max(closed) } else { closed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_healthy_connection_makes_nothing_older() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        for second in 1..20 {
            let now = start + second * PULSE_EVERY;
            let Beat::Send(number) = pulse.tick(false, now) else { panic!("all are back") };
            assert_eq!(pulse.age(now, now + ms(20)), Duration::ZERO);
            assert!(pulse.returned(number, now + ms(30)));
            assert!(!pulse.returned(number, now + ms(31)), "once");
        }
    }

    #[test]
    fn what_comes_after_a_gap_is_older_by_it_until_it_has_all_been_read() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        let Beat::Send(before) = pulse.tick(false, start) else { panic!() };
        // Asleep for twenty seconds, what came meanwhile is in the socket.
        let woken = start + ms(20_000);
        assert_eq!(pulse.age(start, woken), ms(20_000));
        let Beat::Send(_) = pulse.tick(false, woken) else { panic!("it was not there to hear them") };
        assert!(pulse.returned(before, woken + ms(10)));
        let after = woken + ms(20);
        assert_eq!(pulse.age(start, after), ms(20_020), "queued since before the sleep");
        assert_eq!(pulse.age(woken + ms(11), woken + ms(12)), ms(20_012), "that one was sent before it");
        let Beat::Send(_) = pulse.tick(false, woken + ms(1_000)) else { panic!() };
    }

    #[test]
    fn the_gap_is_over_with_the_first_that_was_sent_after_it() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        let Beat::Send(first) = pulse.tick(false, start + ms(20_000)) else { panic!() };
        assert!(pulse.returned(first, start + ms(20_005)));
        assert_eq!(pulse.age(start + ms(19_999), start + ms(20_010)), ms(20_010));
        assert_eq!(pulse.age(start + ms(20_006), start + ms(20_010)), Duration::ZERO);
    }

    #[test]
    fn two_that_do_not_come_back_end_the_connection() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        assert_eq!(pulse.tick(false, start), Beat::Send(1));
        assert_eq!(pulse.tick(false, start + ms(1_000)), Beat::Send(2));
        assert_eq!(pulse.tick(false, start + ms(2_000)), Beat::Reconnect);
        assert!(!pulse.returned(1, start + ms(2_100)));
        assert_eq!(pulse.age(start + ms(2_100), start + ms(2_100)), ms(2_100));
        let Beat::Send(3) = pulse.tick(false, start + ms(3_000)) else { panic!() };
        pulse.disconnected();
        assert_eq!(pulse.tick(false, start + ms(4_000)), Beat::Send(4));
        assert!(pulse.returned(4, start + ms(4_001)));
    }

    #[test]
    fn a_load_that_they_stand_behind_does_not_end_it() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        let beats = |pulse: &mut Pulse| (0..MAX_MISSED_BEHIND).map(|_| pulse.tick(true, start)).last();
        assert!(matches!(beats(&mut pulse), Some(Beat::Send(_))));
        assert_eq!(pulse.tick(true, start), Beat::Reconnect, "but for ever nothing can be sent");
    }

    #[test]
    fn a_process_that_wakes_does_not_end_its_connection() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        let Beat::Send(first) = pulse.tick(false, start) else { panic!() };
        let Beat::Send(second) = pulse.tick(false, start + ms(60_000)) else { panic!() };
        assert!(pulse.returned(first, start + ms(60_001)));
        assert!(pulse.returned(second, start + ms(60_002)));
        assert!(matches!(pulse.tick(false, start + ms(61_000)), Beat::Send(_)));
    }
}

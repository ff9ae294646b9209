//! Which of a device's polls hears which call? A pure machine: polls, calls, answers and time go in; what is to be
//! handed to polls and done by the loop comes out.
//!
//! A device that polls is callable from its first poll until `grace` after its last. Calls wait in the order in which
//! they came; each poll takes one. A call that was given to a poll whose client did not get it goes back to the front.
//! A poll in doubt, whose client sends no more and may have gone altogether, gets one only when no other waits.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rpc::{Budget, CallId, Limit};

use crate::device::mailbox::EndReason;
use crate::device::target::{AnswerTaken, Caller, Conclusion, Incoming, Numbers, Target, TargetLimits};

/// The settings that a lease obeys.
#[derive(Debug, Clone, Copy)]
pub struct LeaseLimits {
    /// Polls that may wait.
    pub max_polls: usize,
    /// What may wait for a poll, and be taken and not answered.
    pub target: TargetLimits,
    /// How long the device stays callable without a poll.
    pub grace: Duration,
    /// Whether messages name the caller.
    pub tells_caller: bool,
}

/// Names one poll of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollId(u64);

/// Why a poll is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotPolled {
    /// As many polls wait as may.
    Full,
    /// The node is shutting down, or the device is no longer what it was.
    Over,
}

/// What a poll is told, `C` being how it is handed a call.
#[derive(Debug, PartialEq, Eq)]
pub enum Told<C> {
    /// A call. Whoever writes it says so with [`Lease::written`], or gives it back with [`Lease::unwritten`].
    Call(C),
    /// That none comes.
    End(PollEnd),
}

/// A call for a poll.
#[derive(Debug)]
pub struct Handed {
    /// The call's number, for the answer.
    pub number: u32,
    /// What the device reads.
    pub text: Bytes,
    /// The call's id.
    pub call: CallId,
    /// Who calls, where it is told.
    pub caller: Option<Caller>,
    /// What is left of the call's time.
    pub expires: Budget,
    /// W3C trace context, as the caller gave it.
    pub traceparent: Option<String>,
}

/// Why a poll ends without a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PollEnd {
    /// Its time is over.
    TimedOut,
    /// The device could not be made callable.
    Unavailable,
    /// The node ends this.
    Ended(EndReason),
}

/// What the loop is to do, in order.
#[derive(Debug)]
pub enum Effect<R> {
    /// Make the device callable, then call [`Lease::claimed`].
    Claim,
    /// The device is no longer callable: release its claim.
    Release,
    /// A call to the device is over: tell its router.
    Conclude(Conclusion<R>),
    /// A limit was hit: to be counted.
    LimitHit(Limit),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Not callable.
    Silent,
    /// The claim is being written.
    Claiming,
    /// The claim stands.
    Callable,
}

#[derive(Debug)]
struct WaitingPoll<P> {
    id: PollId,
    until: Instant,
    in_doubt: bool,
    handle: P,
}

/// What one device that polls is owed. `P` is how a poll is reached, `R` how a router is answered.
#[derive(Debug)]
pub struct Lease<P, R> {
    limits: LeaseLimits,
    standing: Standing,
    /// Those in doubt behind all others.
    polls: VecDeque<WaitingPoll<P>>,
    last_poll: u64,
    target: Target<R>,
    /// Calls that are being written to polls.
    in_hand: usize,
    /// When the last poll ended.
    quiet_since: Instant,
    over: bool,
    handovers: VecDeque<(P, Told<Handed>)>,
    effects: VecDeque<Effect<R>>,
}

impl<P, R: 'static> Lease<P, R> {
    /// Nothing waits, and nobody can call. Where `numbers` begin must not be guessable: an answer says no more than its
    /// call's number, and one that comes from before a restart must not meet another call.
    pub fn new(limits: LeaseLimits, numbers: Numbers, now: Instant) -> Self {
        Lease {
            limits,
            standing: Standing::Silent,
            polls: VecDeque::new(),
            last_poll: 0,
            target: Target::new(limits.target, numbers),
            in_hand: 0,
            quiet_since: now,
            over: false,
            handovers: VecDeque::new(),
            effects: VecDeque::new(),
        }
    }

    /// What polls are to be told.
    pub fn next_handover(&mut self) -> Option<(P, Told<Handed>)> {
        self.handovers.pop_front()
    }

    /// What is to be done, in order.
    pub fn next_effect(&mut self) -> Option<Effect<R>> {
        // A claim goes first, so that whoever asks again does not find it.
        let next = self.effects.pop_front();
        if next.is_none() && self.effects.capacity() > 0 {
            // A device that waits keeps no room for what is done.
            self.effects = VecDeque::new();
        }
        next.or_else(|| self.target.next_conclusion().map(Effect::Conclude))
    }

    /// True when the loop has something to do.
    pub fn has_effects(&self) -> bool {
        !self.effects.is_empty() || self.target.has_conclusions()
    }

    /// A poll that waits until then for a call. The device becomes callable with it.
    ///
    /// # Errors
    /// Says why it may not wait.
    pub fn poll(&mut self, handle: P, until: Instant, now: Instant) -> Result<PollId, NotPolled> {
        if self.over {
            return Err(NotPolled::Over);
        }
        let sound = self.polls.iter().position(|poll| poll.in_doubt).unwrap_or(self.polls.len());
        if self.polls.len() >= self.limits.max_polls {
            // Clients that closed their sockets leave their polls behind: those make room.
            let Some(oldest) = self.polls.remove(sound) else {
                self.effects.push_back(Effect::LimitHit(Limit::Polls));
                return Err(NotPolled::Full);
            };
            self.handovers.push_back((oldest.handle, Told::End(PollEnd::TimedOut)));
        }
        self.last_poll += 1;
        let id = PollId(self.last_poll);
        self.polls.insert(sound, WaitingPoll { id, until, in_doubt: false, handle });
        if self.standing == Standing::Silent {
            self.standing = Standing::Claiming;
            self.target.becomes_callable();
            self.effects.push_back(Effect::Claim);
        }
        self.hand_over(now);
        Ok(id)
    }

    /// The poll's client sends no more: it may have gone, or read on. It is waited for no longer than a device that is
    /// between two polls, so that one that has gone is not called online for a whole poll's time.
    pub fn poll_in_doubt(&mut self, id: PollId, now: Instant) {
        let at = self.polls.iter().position(|poll| poll.id == id);
        if let Some(poll) = at.and_then(|at| self.polls.remove(at)) {
            let until = poll.until.min(now + self.limits.grace);
            self.polls.push_back(WaitingPoll { until, in_doubt: true, ..poll });
        }
    }

    /// The poll's client has gone. What it was being told is given back apart from this.
    pub fn poll_gone(&mut self, id: PollId, now: Instant) {
        let before = self.polls.len();
        self.polls.retain(|poll| poll.id != id);
        if self.polls.len() < before {
            self.quiet_since = now;
        }
    }

    /// Whether the claim of an [`Effect::Claim`] stands.
    pub fn claimed(&mut self, stands: bool, now: Instant) {
        if self.standing != Standing::Claiming {
            return;
        }
        if stands {
            self.standing = Standing::Callable;
            self.end_polls_in_time(now);
        } else {
            self.standing = Standing::Silent;
            self.end_polls(PollEnd::Unavailable, now);
            self.target.falls_silent();
        }
    }

    /// A call for the device.
    pub fn deliver(&mut self, call: Box<Incoming<R>>, now: Instant) {
        self.target.deliver(call, now);
        self.hand_over(now);
    }

    /// The connection has taken the call that was handed to a poll.
    pub fn written(&mut self, number: u32, now: Instant) {
        self.put_down(now);
        self.target.written(number);
    }

    /// The connection has not taken it: the next poll gets it, before all others that wait.
    pub fn unwritten(&mut self, number: u32, now: Instant) {
        self.put_down(now);
        self.target.put_back(number);
        self.hand_over(now);
    }

    /// The device answers call `number`.
    pub fn answer(&mut self, number: u32, body: &Bytes, now: Instant) -> AnswerTaken {
        self.target.answer(number, body, true, now)
    }

    /// Time has passed: ends the polls whose time is over, and the lease once its grace is.
    pub fn tick(&mut self, now: Instant) {
        self.target.expire(now);
        self.end_polls_in_time(now);
        if self.grace_ends().is_some_and(|end| now >= end) {
            self.fall_silent();
        }
    }

    /// When to call [`tick`](Self::tick) next; none when nothing runs out.
    pub fn next_tick(&self) -> Option<Instant> {
        let poll = match self.standing {
            Standing::Callable => self.polls.iter().map(|poll| poll.until).min(),
            Standing::Silent | Standing::Claiming => None,
        };
        [poll, self.target.next_expiry(), self.grace_ends()].into_iter().flatten().min()
    }

    /// A newer session of the device became callable, or the node ends everything: nobody reaches the device here.
    /// A call that it has taken is lost; one that it has not, it never saw.
    pub fn end(&mut self, reason: EndReason, now: Instant) {
        self.over |= reason != EndReason::TakenOver;
        self.end_polls(PollEnd::Ended(reason), now);
        self.fall_silent();
        self.target.end();
    }

    /// The node sends the device away: nobody can call it here any more; what it has taken it may still answer.
    pub fn leave(&mut self, reason: EndReason, now: Instant) {
        self.over = true;
        self.end_polls(PollEnd::Ended(reason), now);
        self.fall_silent();
    }

    /// True when it takes no poll any more.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// True when forgetting the lease would change nothing.
    pub fn is_at_rest(&self) -> bool {
        self.standing == Standing::Silent
            && self.polls.is_empty()
            && self.in_hand == 0
            && self.target.is_idle()
            && !self.has_effects()
    }

    /// Gives waiting calls to waiting polls, both in the order in which they came.
    fn hand_over(&mut self, now: Instant) {
        while !self.polls.is_empty()
            && let Some((number, call)) = self.target.next(now)
            && let Some(poll) = self.polls.pop_front()
        {
            self.in_hand += 1;
            let handed = Handed {
                number,
                text: call.message(Some(number), self.limits.tells_caller, now),
                call: call.call,
                caller: call.caller.clone(),
                expires: call.deadline.remaining(now),
                traceparent: call.traceparent.clone(),
            };
            self.handovers.push_back((poll.handle, Told::Call(handed)));
        }
    }

    fn put_down(&mut self, now: Instant) {
        self.in_hand = self.in_hand.saturating_sub(1);
        self.quiet_since = now;
    }

    /// Not before the claim stands: a device that has heard the end of a poll knows that it can be called.
    fn end_polls_in_time(&mut self, now: Instant) {
        if self.standing == Standing::Claiming {
            return;
        }
        for poll in std::mem::take(&mut self.polls) {
            if now >= poll.until {
                self.handovers.push_back((poll.handle, Told::End(PollEnd::TimedOut)));
                self.quiet_since = now;
            } else {
                self.polls.push_back(poll);
            }
        }
    }

    fn end_polls(&mut self, end: PollEnd, now: Instant) {
        for poll in self.polls.drain(..) {
            self.handovers.push_back((poll.handle, Told::End(end)));
            self.quiet_since = now;
        }
    }

    fn fall_silent(&mut self) {
        if self.standing != Standing::Silent {
            self.standing = Standing::Silent;
            self.effects.push_back(Effect::Release);
        }
        self.target.falls_silent();
    }

    fn grace_ends(&self) -> Option<Instant> {
        let quiet = self.standing == Standing::Callable && self.polls.is_empty() && self.in_hand == 0;
        quiet.then(|| self.quiet_since + self.limits.grace)
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;

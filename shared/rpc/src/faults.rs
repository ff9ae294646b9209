//! Which fault is built in? None, unless the feature `faults` is on and a test says so: it then sees whether the
//! simulation finds it. Without the feature every question is a constant.

use std::fmt;

/// What can be got wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The store writes whatever stands there.
    LostCompareAndSet,
    /// A session that is taken over is not told.
    UntoldTakeover,
    /// A release removes whatever stands there.
    ReleaseOfAnySession,
    /// Nobody looks at tickets.
    SkippedTicketCheck,
    /// A renewal is not compared.
    BlindRenewal,
    /// A directory decides however old it is.
    StaleDirectory,
    /// Clocks say which session is newer.
    ClocksDecide,
    /// No responders are taken for no node, though its lease stands.
    NoRespondersIsOffline,
    /// A miss is not looked up in the store.
    MissIsOffline,
    /// A call is delivered, and delivered.
    DeliveredTwice,
    /// What came late is carried out all the same.
    AgeIsIgnored,
    /// A sleeping router believes what it knew.
    SleeperSweeps,
    /// A router that has heard nobody for long enough takes nodes for dead all the same.
    DeafSweeps,
    /// A device is told that it is callable before its claim stands.
    ToldBeforeItStands,
    /// A session that claims again wins over whatever stands there.
    ReclaimAlwaysWins,
    /// Messages to itself may stay away for ever.
    CutUnnoticed,
    /// A call that waits is not told that its target has come.
    ArrivalUntold,
    /// Calls that wait end with their router.
    WaitsNotHandedOver,
    /// A node that has not answered in time is taken for none.
    ExpiredIsNoNode,
    /// What stood in a store that was lost is taken to stand.
    LostStoreStands,
    /// Nobody looks how long after a beat a message's time is over.
    BeatsIgnored,
    /// Whom a router does not find is offline, also where nodes hold more than it knows.
    LackIsOffline,
    /// A store that counts anew is taken for the one before.
    OldRevisionsCount,
    /// Whom his node has sent away is offline at once.
    MovingIsOffline,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 24] = [
        Fault::LostCompareAndSet,
        Fault::UntoldTakeover,
        Fault::ReleaseOfAnySession,
        Fault::SkippedTicketCheck,
        Fault::BlindRenewal,
        Fault::StaleDirectory,
        Fault::ClocksDecide,
        Fault::NoRespondersIsOffline,
        Fault::MissIsOffline,
        Fault::DeliveredTwice,
        Fault::AgeIsIgnored,
        Fault::SleeperSweeps,
        Fault::DeafSweeps,
        Fault::ToldBeforeItStands,
        Fault::ReclaimAlwaysWins,
        Fault::CutUnnoticed,
        Fault::ArrivalUntold,
        Fault::WaitsNotHandedOver,
        Fault::ExpiredIsNoNode,
        Fault::LostStoreStands,
        Fault::BeatsIgnored,
        Fault::LackIsOffline,
        Fault::OldRevisionsCount,
        Fault::MovingIsOffline,
    ];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::LostCompareAndSet => "a lost compare-and-set",
            Fault::UntoldTakeover => "a takeover that is not told",
            Fault::ReleaseOfAnySession => "a release that removes whatever stands there",
            Fault::SkippedTicketCheck => "tickets that nobody looks at",
            Fault::BlindRenewal => "renewals that are not compared",
            Fault::StaleDirectory => "a directory that decides however old it is",
            Fault::ClocksDecide => "clocks that say who is newer",
            Fault::NoRespondersIsOffline => "no responders taken for no node",
            Fault::MissIsOffline => "a miss that is not looked up",
            Fault::DeliveredTwice => "a call delivered twice",
            Fault::AgeIsIgnored => "age ignored",
            Fault::SleeperSweeps => "a router that slept and sweeps",
            Fault::DeafSweeps => "a router that has heard nobody and sweeps",
            Fault::ToldBeforeItStands => "a device told before its claim stands",
            Fault::ReclaimAlwaysWins => "a claim that always wins when it is claimed again",
            Fault::CutUnnoticed => "a silent cut that goes unnoticed",
            Fault::ArrivalUntold => "an arrival that a waiting call is not told of",
            Fault::WaitsNotHandedOver => "a router that stops and hands no waiting call over",
            Fault::ExpiredIsNoNode => "no answer in time taken for no node",
            Fault::LostStoreStands => "what stood in a lost store taken to stand",
            Fault::LackIsOffline => "offline said by a router that lacks what nodes hold",
            Fault::OldRevisionsCount => "a store that counts anew taken for the one before",
            Fault::MovingIsOffline => "offline said of whom his node has sent away",
            Fault::BeatsIgnored => "beats ignored, so that what a dead connection held up is young",
        })
    }
}

#[cfg(feature = "faults")]
mod switch {
    use std::cell::Cell;

    use super::Fault;

    thread_local! {
        static FAULT: Cell<Option<Fault>> = const { Cell::new(None) };
        static WALL_MS: Cell<u64> = const { Cell::new(0) };
    }

    /// Whether it is built in.
    pub fn is(fault: Fault) -> bool {
        FAULT.get() == Some(fault)
    }

    /// Does something with a fault built in.
    pub fn with<T>(fault: Option<Fault>, run: impl FnOnce() -> T) -> T {
        let before = FAULT.replace(fault);
        let done = run();
        FAULT.set(before);
        done
    }

    /// What a process would read from its wall clock.
    pub fn wall_ms() -> u64 {
        WALL_MS.get()
    }

    /// Sets that.
    pub fn set_wall_ms(ms: u64) {
        WALL_MS.set(ms);
    }
}

#[cfg(feature = "faults")]
pub use switch::{is, set_wall_ms, wall_ms, with};

/// Whether it is built in: none is.
#[cfg(not(feature = "faults"))]
pub const fn is(_: Fault) -> bool {
    false
}

/// What a process would read from its wall clock.
#[cfg(not(feature = "faults"))]
pub const fn wall_ms() -> u64 {
    0
}

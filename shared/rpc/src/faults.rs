//! Which fault is built in? None, unless the feature `faults` is on and a test says so: it then sees whether the
//! simulation finds it. Without the feature every question is a constant.

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
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 15] = [
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
    ];
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

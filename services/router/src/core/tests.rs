//! Each thing that can be told to a router, and what it does then.

use super::*;
use proptest::prelude::*;
use rpc::{Budget, HeldClaim, Protocol, SessionEnd, SessionId, Tally, TenantId};
use uuid::Uuid;

const LEASE: Duration = Duration::from_secs(12);
const HANDOVER: Duration = Duration::from_secs(3);
const TARGET: DeviceId = DeviceId(Uuid::from_u128(1));

fn party(tenant: u128) -> Party {
    Party::of(TenantId(Uuid::from_u128(tenant)), None)
}

type TestCore = Core<&'static str, &'static str>;

/// A router that has heard its nodes for a whole lease, and whose map is loaded.
struct Bench {
    core: TestCore,
    now: Instant,
}

type Done = Vec<Action<&'static str, &'static str>>;

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        let mut bench = Bench { core: Core::new(LEASE, HANDOVER, Shares::new(4, 2), now), now };
        bench.core.hears(true, now);
        bench.core.reset(false, 0);
        bench.core.loaded(now);
        bench.pass_s(12);
        bench
    }

    fn told(&mut self, tell: impl FnOnce(&mut TestCore, Instant, &mut Done)) -> Done {
        let mut actions = Vec::new();
        tell(&mut self.core, self.now, &mut actions);
        actions
    }

    /// Time passes, tick by tick.
    fn pass_s(&mut self, seconds: u64) -> Done {
        self.pass_ms(seconds * 1_000)
    }

    fn pass_ms(&mut self, ms: u64) -> Done {
        let end = self.now + Duration::from_millis(ms);
        let mut done = Vec::new();
        while self.now < end {
            self.now = self.core.next_tick(self.now).clamp(self.now, end);
            self.core.tick(self.now, &mut done);
            if self.now < end && self.core.next_tick(self.now) <= self.now {
                self.now += Duration::from_millis(1);
            }
        }
        done
    }

    fn live(&mut self, node: u64) {
        let tally = self.core.map().tally(NodeId(node));
        let renewal = LeaseRenewal {
            node: NodeId(node),
            tally,
            newest: Generation(0),
            ends: false,
            mends: None,
            sheds: false,
        };
        assert!(self.told(|core, now, done| core.renew(&renewal, now, done)).is_empty());
    }

    fn stands(&mut self, node: u64, revision: u64) -> Found {
        let found = Found { claim: claim(node, revision), revision };
        let done = self.told(|core, now, done| core.put(TARGET, found, now, done));
        assert!(done.is_empty(), "{done:?}");
        found
    }

    fn call(&mut self, ms: u32, connect_ms: u32) -> Done {
        let deadlines = [ms, connect_ms].map(|ms| Budget::from_ms(ms).starting(self.now));
        let call = Underway::new(CALL, TARGET, party(1), deadlines.into(), "it");
        self.told(|core, now, done| core.call(call, now, done))
    }

    /// Delivers, and hears that it led nowhere.
    fn refute(&mut self, done: Done, by: Refutation) -> Done {
        let (call, found) = delivered(done);
        self.told(|core, now, done| core.refuted(call, found, by, now, done))
    }

    fn claim(&mut self, request: ClaimRequest) -> Done {
        let deadline = self.now + Duration::from_secs(5);
        self.told(|core, now, done| core.claim(request, deadline, "node", now, done))
    }
}

const CALL: CallId = CallId { node: NodeId(7), serial: 1 };

fn claim(node: u64, generation: u64) -> Claim {
    let (node, session) = (NodeId(node), SessionId(1));
    Claim { node, session, protocol: Protocol::Mqtt, generation: Generation(generation), since_ms: None }
}

fn request(node: u64, generation: Option<u64>) -> ClaimRequest {
    super::claims::tests::asked(TARGET, node, 1, generation)
}

fn one(mut done: Done) -> Action<&'static str, &'static str> {
    assert_eq!(done.len(), 1, "{done:?}");
    done.remove(0)
}

fn delivered(done: Done) -> (Underway<&'static str>, Found) {
    match one(done) {
        Action::Deliver(call, found) => (call, found),
        other => panic!("{other:?}"),
    }
}

fn looked_up(done: Done) -> Underway<&'static str> {
    match one(done) {
        Action::LookUp(call) => call,
        other => panic!("{other:?}"),
    }
}

fn ended(done: Done) -> Outcome {
    match one(done) {
        Action::End(_, outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

fn written(done: Done) -> (Claiming<&'static str>, Write) {
    match one(done) {
        Action::Write(claiming, write) => (claiming, write),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_call_goes_where_the_map_says() {
    let mut bench = Bench::new();
    let found = bench.stands(1, 10);
    assert_eq!(delivered(bench.call(1_000, 0)).1, found);
}

#[test]
fn nobody_is_offline_before_the_store_has_said_so() {
    let mut bench = Bench::new();
    let call = looked_up(bench.call(1_000, 0));
    assert_eq!(
        ended(bench.told(|core, now, done| core.looked_up(call, Ok(None), now, done))),
        Outcome::Offline
    );
    let call = looked_up(bench.call(1_000, 0));
    let done = bench.told(|core, now, done| core.looked_up(call, Err(()), now, done));
    assert_eq!(ended(done), Outcome::Unavailable, "no word is not 'nobody'");
    let call = looked_up(bench.call(1_000, 0));
    let found = Found { claim: claim(1, 10), revision: 10 };
    let done = bench.told(|core, now, done| core.looked_up(call, Ok(Some(found)), now, done));
    assert_eq!(delivered(done).1, found);
}

#[test]
fn a_call_that_is_still_allowed_goes_where_the_store_said() {
    let mut bench = Bench::new();
    let call = looked_up(bench.call(5_000, 0));
    let found = Found { claim: claim(1, 5), revision: 5 };
    let done = bench.told(|core, now, done| core.looked_up(call, Ok(Some(found)), now, done));
    let (call, found) = delivered(done);
    // The router has it judged again first, since the store took its time.
    let (call, again) = delivered(bench.told(|core, now, done| core.allowed(call, found, now, done)));
    assert_eq!(again, found, "it is not looked up again");
    let newer = bench.stands(2, 9);
    let (call, again) = delivered(bench.told(|core, now, done| core.allowed(call, found, now, done)));
    assert_eq!(again, newer, "the device has moved meanwhile");
    bench.now += Duration::from_secs(5);
    let done = bench.told(|core, now, done| core.allowed(call, found, now, done));
    assert_eq!(ended(done), Outcome::Unavailable);
}

#[test]
fn a_session_that_is_not_there_is_looked_for_in_the_store_and_its_claim_removed() {
    let mut bench = Bench::new();
    bench.live(1);
    let found = bench.stands(1, 10);
    let done = bench.call(1_000, 0);
    let call = looked_up(bench.refute(done, Refutation::NoSession));
    let mut done = bench.told(|core, now, done| core.looked_up(call, Ok(Some(found)), now, done));
    assert_eq!(ended(vec![done.remove(1)]), Outcome::Offline);
    assert!(matches!(one(done), Action::Remove(TARGET, Found { revision: 10, .. }, Removal::SessionGone)));
    // One that has moved meanwhile is found.
    let done = bench.call(1_000, 0);
    let call = looked_up(bench.refute(done, Refutation::NoSession));
    let newer = Found { claim: claim(2, 11), revision: 11 };
    let done = bench.told(|core, now, done| core.looked_up(call, Ok(Some(newer)), now, done));
    assert_eq!(delivered(done).1, newer);
}

#[test]
fn a_claim_that_the_store_lacks_is_gone_only_once_it_has_told_so() {
    let mut bench = Bench::new();
    bench.live(1);
    let found = bench.stands(1, 10);
    let none =
        |bench: &mut Bench, call| bench.told(|core, now, done| core.looked_up(call, Ok(None), now, done));
    let done = bench.call(1_000, 0);
    let call = looked_up(bench.refute(done, Refutation::NoSession));
    assert!(none(&mut bench, call).is_empty(), "its feed may be silent, and the store have lost it");
    let call = looked_up(bench.pass_ms(50));
    bench.core.gone(TARGET, found.revision + 1, bench.now);
    assert_eq!(ended(none(&mut bench, call)), Outcome::Offline);
    // Without a word nothing is said of the device.
    bench.stands(1, 20);
    let done = bench.call(1_000, 0);
    let mut call = looked_up(bench.refute(done, Refutation::NoSession));
    for pause in [50, 100, 200, 400] {
        assert!(none(&mut bench, call).is_empty());
        call = looked_up(bench.pass_ms(pause));
    }
    assert!(none(&mut bench, call).is_empty());
    assert_eq!(ended(bench.pass_ms(800)), Outcome::Unavailable);
}

#[test]
fn a_node_that_reconnects_is_tried_again_and_its_devices_are_not_offline() {
    let mut bench = Bench::new();
    bench.live(1);
    let found = bench.stands(1, 10);
    let mut done = bench.call(2_000, 0);
    let mut tries = 0;
    let started = bench.now;
    loop {
        let (call, at) = delivered(done);
        assert_eq!(at, found);
        tries += 1;
        assert!(
            bench.told(|core, now, done| core.refuted(call, at, Refutation::NoNode, now, done)).is_empty()
        );
        done = loop {
            let done = bench.pass_ms(1);
            if !done.is_empty() {
                break done;
            }
        };
        if matches!(done.first(), Some(Action::End(..))) {
            break;
        }
    }
    assert_eq!(ended(done), Outcome::Unavailable);
    let took = bench.now - started;
    assert!((1_999..2_020).contains(&took.as_millis()), "{took:?}");
    assert!((4..=8).contains(&tries), "{tries} tries");
}

#[test]
fn a_node_whose_lease_ends_meanwhile_is_gone() {
    let mut bench = Bench::new();
    bench.live(1);
    let found = bench.stands(1, 10);
    let done = bench.call(20_000, 0);
    assert!(bench.refute(done, Refutation::NoNode).is_empty());
    let renewal = LeaseRenewal {
        node: NodeId(1),
        tally: Tally::default(),
        newest: Generation(0),
        ends: true,
        mends: None,
        sheds: false,
    };
    assert!(bench.told(|core, now, done| core.renew(&renewal, now, done)).is_empty());
    let call = looked_up(bench.pass_ms(60));
    let mut done = bench.told(|core, now, done| core.looked_up(call, Ok(Some(found)), now, done));
    assert_eq!(ended(vec![done.remove(1)]), Outcome::Offline);
    assert!(matches!(one(done), Action::Remove(TARGET, Found { revision: 10, .. }, Removal::NodeGone)));
}

#[test]
fn a_call_that_waits_goes_on_when_its_target_comes_and_ends_when_it_does_not() {
    let mut bench = Bench::new();
    let call = looked_up(bench.call(5_000, 1_000));
    assert!(bench.told(|core, now, done| core.looked_up(call, Ok(None), now, done)).is_empty());
    assert_eq!(bench.core.waiting(), 1);
    let found = Found { claim: claim(1, 10), revision: 10 };
    assert_eq!(delivered(bench.told(|core, now, done| core.put(TARGET, found, now, done))).1, found);
    bench.core.gone(TARGET, 11, bench.now);

    let call = looked_up(bench.call(5_000, 1_000));
    assert!(bench.told(|core, now, done| core.looked_up(call, Ok(None), now, done)).is_empty());
    assert!(bench.pass_ms(999).is_empty());
    assert_eq!(ended(bench.pass_ms(1)), Outcome::Offline);
    assert_eq!(bench.core.waiting(), 0);
}

#[test]
fn a_call_whose_caller_is_gone_waits_no_longer() {
    let mut bench = Bench::new();
    let call = looked_up(bench.call(5_000, 5_000));
    assert!(bench.told(|core, now, done| core.looked_up(call, Ok(None), now, done)).is_empty());
    let other = CancelRequest { call: CallId { serial: 2, ..CALL }, target: TARGET };
    assert!(bench.core.cancel(&other).is_none());
    assert!(bench.core.cancel(&CancelRequest { call: CALL, ..other }).is_some());
    assert!(bench.pass_s(6).is_empty());
    assert_eq!(bench.core.next_tick(bench.now), bench.now + TICK, "nothing is left");
}

#[test]
fn an_attempt_that_is_carried_out_late_writes_nothing() {
    let mut bench = Bench::new();
    let late = bench.now;
    let done = bench.told(|core, now, done| core.claim(request(2, None), late, "node", now, done));
    assert!(matches!(one(done), Action::Reply("node", ClaimReply::Unavailable)), "its node has asked again");
}

#[test]
fn a_call_that_comes_too_late_says_nothing_of_its_target() {
    assert_eq!(ended(Bench::new().call(0, 0)), Outcome::Unavailable);
}

#[test]
fn a_claim_over_another_is_written_and_the_other_told() {
    let mut bench = Bench::new();
    let older = bench.stands(1, 10);
    let (claiming, write) = written(bench.claim(request(2, None)));
    assert_eq!((write.claim, write.expected), (claim(2, 11), Expected::Revision(10)));
    let mut done = bench.told(|core, now, done| core.written(claiming, write, Ok(12), now, done));
    assert!(matches!(done.remove(0), Action::TakeOver(TARGET, claim) if claim == older.claim));
    assert!(matches!(
        one(done),
        Action::Reply("node", ClaimReply::Held { generation: Generation(11), over: Some(Protocol::Mqtt) })
    ));
    assert_eq!(bench.core.map().get(TARGET), Some(Found { claim: write.claim, revision: 12 }));
}

#[test]
fn a_session_that_claims_again_tells_the_one_it_overtakes() {
    let mut bench = Bench::new();
    let older = bench.stands(1, 10);
    let (claiming, write) = written(bench.claim(request(2, Some(15))));
    assert_eq!(write.claim, claim(2, 15));
    let done = bench.told(|core, now, done| core.written(claiming, write, Ok(12), now, done));
    assert!(matches!(done.first(), Some(Action::TakeOver(TARGET, claim)) if *claim == older.claim));
    // What becomes callable afterwards is newer still.
    let (_, write) = written(bench.claim(request(3, None)));
    assert_eq!(write.claim, claim(3, 16));
}

#[test]
fn what_stood_in_a_lost_store_is_written_again_and_never_said_to_stand() {
    let mut bench = Bench::new();
    bench.stands(1, 10);
    bench.core.reset(true, 20);
    bench.core.loaded(bench.now);
    for generation in [Some(10), None] {
        let (_, write) = written(bench.claim(request(1, generation)));
        assert_eq!((write.claim, write.expected), (claim(1, 10), Expected::Nothing));
    }
    // One that becomes callable over it is newer, and the older is told.
    let (claiming, write) = written(bench.claim(request(2, None)));
    assert_eq!(write.expected, Expected::Nothing);
    let done = bench.told(|core, now, done| core.written(claiming, write, Ok(30), now, done));
    assert!(matches!(done.first(), Some(Action::TakeOver(TARGET, older)) if *older == claim(1, 10)));
}

#[test]
fn an_empty_store_gives_no_generation_that_was_given_before() {
    let mut bench = Bench::new();
    bench.core.reset(true, 5_000);
    bench.core.loaded(bench.now);
    assert_eq!(written(bench.claim(request(1, None))).1.claim.generation, Generation(5_001));
    // Its numbers may have begun anew: nodes know what they were given.
    let renewal = LeaseRenewal {
        node: NodeId(9),
        tally: Tally::default(),
        newest: Generation(9_000),
        ends: false,
        mends: None,
        sheds: false,
    };
    bench.told(|core, now, done| core.renew(&renewal, now, done));
    assert_eq!(written(bench.claim(request(1, None))).1.claim.generation, Generation(9_001));
}

#[test]
fn a_write_into_a_store_that_counts_anew_is_made_again_with_a_higher_generation() {
    let mut bench = Bench::new();
    let older = bench.stands(1, 50);
    let (claiming, write) = written(bench.claim(request(2, None)));
    // What stood there at 50 may have been another writing of that number.
    let done = bench.told(|core, now, done| core.written(claiming, write, Ok(51 - 48), now, done));
    let (claiming, write) = written(done);
    assert_eq!((write.claim, write.expected), (claim(2, 52), Expected::Revision(3)));
    let done = bench.told(|core, now, done| core.written(claiming, write, Ok(4), now, done));
    assert!(matches!(done.first(), Some(Action::TakeOver(TARGET, claim)) if *claim == older.claim));
    assert_eq!(bench.core.map().standing(TARGET), Some(Found { claim: write.claim, revision: 4 }));
}

#[test]
fn nobody_is_offline_for_a_router_that_lacks_what_a_node_holds() {
    let now = Instant::now();
    let mut bench = Bench { core: Core::new(LEASE, HANDOVER, Shares::new(4, 2), now), now };
    let [held, gone] = [2, 3].map(|device| DeviceId(Uuid::from_u128(device)));
    let mut tally = Tally::default();
    tally.add(held, SessionId(1), Generation(10));
    let renewal = LeaseRenewal {
        node: NodeId(1),
        tally,
        newest: Generation(10),
        ends: false,
        mends: None,
        sheds: false,
    };
    let call = |bench: &mut Bench| {
        let call = looked_up(bench.call(1_000, 0));
        ended(bench.told(|core, now, done| core.looked_up(call, Ok(None), now, done)))
    };
    bench.core.hears(true, now);
    bench.told(|core, now, done| core.renew(&renewal, now, done));
    bench.core.reset(false, 0);
    bench.core.loaded(now);
    assert_eq!(call(&mut bench), Outcome::Unavailable, "the store has lost what the node holds");
    bench.told(|core, now, done| core.put(gone, Found { claim: claim(1, 10), revision: 11 }, now, done));
    assert_eq!(call(&mut bench), Outcome::Unavailable, "as many are known, and others");
    bench.told(|core, now, done| core.put(held, Found { claim: claim(1, 10), revision: 12 }, now, done));
    assert_eq!(call(&mut bench), Outcome::Unavailable, "more are known");
    bench.core.gone(gone, 13, bench.now);
    assert_eq!(call(&mut bench), Outcome::Offline, "what the node said is known");
    bench.core.gone(held, 14, bench.now);
    bench.told(|core, now, done| core.renew(&renewal, now, done));
    assert_eq!(call(&mut bench), Outcome::Offline, "it was known; what differs since is on its way");
    // Lost while it did not look on: the node is to say anew what it holds.
    bench.core.hears(false, bench.now);
    bench.core.hears(true, bench.now);
    bench.core.reset(true, 20);
    bench.core.loaded(bench.now);
    assert!(bench.core.doubts(bench.now));
    assert_eq!(call(&mut bench), Outcome::Unavailable);
    bench.told(|core, now, done| core.renew(&renewal, now, done));
    assert_eq!(call(&mut bench), Outcome::Unavailable);
    bench.pass_s(12);
    assert_eq!(call(&mut bench), Outcome::Offline, "not for ever");
}

#[test]
fn nobody_is_offline_before_a_node_has_claimed_all_again() {
    let mut bench = Bench::new();
    let remembered = DeviceId(Uuid::from_u128(2));
    let found = Found { claim: claim(1, 10), revision: 10 };
    bench.told(|core, now, done| core.put(remembered, found, now, done));
    let call = |bench: &mut Bench| {
        let call = looked_up(bench.call(1_000, 0));
        ended(bench.told(|core, now, done| core.looked_up(call, Ok(None), now, done)))
    };
    let renewal = |mends| {
        let mut tally = Tally::default();
        tally.add(remembered, SessionId(1), Generation(10));
        LeaseRenewal {
            node: NodeId(1),
            tally,
            newest: Generation(10),
            ends: false,
            mends: Some(mends),
            sheds: false,
        }
    };
    bench.core.reset(true, 0);
    bench.core.loaded(bench.now);
    // For longer than a lease it goes on, since there are many.
    for _ in 0..5 {
        bench.told(|core, now, done| core.renew(&renewal(true), now, done));
        bench.pass_s(4);
        assert_eq!(call(&mut bench), Outcome::Unavailable);
        assert_eq!(bench.core.map().get(remembered), Some(found), "and calls go where they went");
    }
    bench.told(|core, now, done| core.renew(&renewal(false), now, done));
    bench.pass_s(1);
    assert_eq!(call(&mut bench), Outcome::Offline, "it is done");
    assert_eq!(bench.core.map().get(remembered), None);
}

#[test]
fn no_session_ends_on_the_word_of_a_map_that_may_lag() {
    let mut bench = Bench::new();
    bench.stands(1, 10);
    let Action::Read(claiming) = one(bench.claim(request(2, Some(5)))) else { panic!("the store is asked") };
    let standing = Standing { claim: Some(claim(1, 10)), expected: Expected::Revision(10) };
    let done = bench.told(|core, now, done| core.read(claiming, Ok(standing), now, done));
    assert!(matches!(one(done), Action::Reply("node", ClaimReply::TakenOver)));
}

#[test]
fn a_claim_that_others_come_in_between_is_read_and_tried_again_and_not_for_ever() {
    let mut bench = Bench::new();
    let (mut claiming, mut write) = written(bench.claim(request(2, None)));
    let mut reads = 0;
    loop {
        let done = bench
            .told(|core, now, done| core.written(claiming, write, Err(NotWritten::Contended), now, done));
        let again = match one(done) {
            Action::Read(again) => again,
            Action::Reply("node", ClaimReply::Unavailable) => break,
            other => panic!("{other:?}"),
        };
        reads += 1;
        let standing = Standing { claim: Some(claim(1, reads)), expected: Expected::Revision(reads) };
        (claiming, write) = written(bench.told(|core, now, done| core.read(again, Ok(standing), now, done)));
        assert!(write.claim.generation > Generation(reads));
        assert_eq!(write.expected, Expected::Revision(reads));
    }
    assert_eq!(reads, u64::from(MAX_ATTEMPTS));
}

#[test]
fn a_release_removes_its_own_claim_alone() {
    let mut bench = Bench::new();
    let found = bench.stands(1, 10);
    let release = ReleaseRequest {
        device: TARGET,
        node: NodeId(1),
        session: SessionId(1),
        reason: Some(SessionEnd::Fault),
    };
    let other = ReleaseRequest { session: SessionId(2), ..release.clone() };
    assert_eq!(TestCore::release(&other, Some(found)), None);
    assert_eq!(TestCore::release(&release, None), None);
    let removal = Removal::Released(Some(SessionEnd::Fault));
    assert_eq!(TestCore::release(&release, Some(found)), Some((found, removal)));
    bench.core.removed(TARGET, 10, Some(11), bench.now);
    assert!(bench.core.map().is_empty());
}

#[test]
fn who_comes_back_at_once_is_written_over_the_marker_unless_the_store_may_count_anew() {
    let leaves: [fn(&mut Bench); 2] = [
        |bench| bench.core.removed(TARGET, 10, Some(11), bench.now),
        |bench| bench.core.gone(TARGET, 11, bench.now),
    ];
    for leave in leaves {
        let mut bench = Bench::new();
        bench.stands(1, 10);
        leave(&mut bench);
        let (_, write) = written(bench.claim(request(2, None)));
        assert_eq!((write.claim, write.expected), (claim(2, 12), Expected::Revision(11)));
        bench.core.reset(false, 12);
        let (_, write) = written(bench.claim(request(2, None)));
        assert_eq!(write.expected, Expected::Nothing);
    }
    // What a lost store had is not there, whatever marker is.
    let mut bench = Bench::new();
    bench.stands(1, 10);
    bench.core.reset(true, 3);
    bench.core.loaded(bench.now);
    bench.core.gone(TARGET, 4, bench.now);
    let (_, write) = written(bench.claim(request(1, Some(10))));
    assert_eq!((write.claim, write.expected), (claim(1, 10), Expected::Nothing));
}

/// Node 1 says that it sends sessions away, or no longer.
fn sheds(bench: &mut Bench, sheds: bool) {
    let tally = bench.core.map().tally(NodeId(1));
    let renewal =
        LeaseRenewal { node: NodeId(1), tally, newest: Generation(0), ends: false, mends: None, sheds };
    bench.told(|core, now, done| core.renew(&renewal, now, done));
}

#[test]
fn a_call_waits_for_who_was_sent_away_however_that_was_heard() {
    let ways: [fn(&mut Bench, Found) -> Done; 3] = [
        |bench, _| {
            bench.core.gone(TARGET, 11, bench.now);
            bench.call(10_000, 0)
        },
        |bench, _| {
            bench.core.removed(TARGET, 10, Some(11), bench.now);
            bench.call(10_000, 0)
        },
        // The router has yet to hear that the claim is gone.
        |bench, _| {
            let done = bench.call(10_000, 0);
            bench.refute(done, Refutation::NoSession)
        },
    ];
    for left in ways {
        for comes_back in [true, false] {
            let mut bench = Bench::new();
            let found = bench.stands(1, 10);
            sheds(&mut bench, false);
            sheds(&mut bench, true);
            let call = looked_up(left(&mut bench, found));
            assert!(bench.told(|core, now, done| core.looked_up(call, Ok(None), now, done)).is_empty());
            assert!(bench.pass_ms(2_900).is_empty());
            if comes_back {
                let there = Found { claim: claim(2, 20), revision: 20 };
                let done = bench.told(|core, now, done| core.put(TARGET, there, now, done));
                let (call, found) = delivered(done);
                assert_eq!((call.has_waited, found), (true, there));
            } else {
                assert_eq!(ended(bench.pass_ms(200)), Outcome::Offline);
            }
        }
    }
}

#[test]
fn only_who_was_sent_away_is_waited_for_and_no_longer_than_the_call_has() {
    let mut bench = Bench::new();
    for (says, ms, waits_ms) in [(false, 10_000, 0), (true, 1_000, 1_000), (true, 10_000, 3_000)] {
        let revision = bench.core.map().revision() + 1;
        bench.stands(1, revision);
        sheds(&mut bench, says);
        bench.core.gone(TARGET, revision + 1, bench.now);
        let call = looked_up(bench.call(ms, 0));
        let mut done = bench.told(|core, now, done| core.looked_up(call, Ok(None), now, done));
        if waits_ms > 0 {
            assert!(done.is_empty() && bench.pass_ms(waits_ms - 100).is_empty());
            done = bench.pass_ms(200);
        }
        assert_eq!(ended(done), Outcome::Offline, "after {waits_ms} ms");
    }
    // A moment later nobody is expected any more.
    bench.pass_ms(3_000);
    let call = looked_up(bench.call(10_000, 0));
    assert_eq!(
        ended(bench.told(|core, now, done| core.looked_up(call, Ok(None), now, done))),
        Outcome::Offline
    );
}

#[test]
fn a_router_that_begins_while_sessions_are_sent_away_waits_for_who_had_left() {
    let mut bench = Bench::new();
    bench.pass_s(2 * LEASE.as_secs());
    sheds(&mut bench, true);
    let call = looked_up(bench.call(10_000, 0));
    assert!(bench.told(|core, now, done| core.looked_up(call, Ok(None), now, done)).is_empty());
    assert!(bench.pass_ms(2_900).is_empty());
    assert_eq!(ended(bench.pass_ms(200)), Outcome::Offline);
}

#[test]
fn a_node_that_differs_hears_so_and_in_what() {
    let mut bench = Bench::new();
    bench.stands(1, 10);
    let held = |number: u128, generation: u64| HeldClaim {
        device: DeviceId(Uuid::from_u128(number)),
        session: SessionId(1),
        generation: Generation(generation),
    };
    let mut tally = Tally::default();
    let renewal = LeaseRenewal {
        node: NodeId(1),
        tally,
        newest: Generation(0),
        ends: false,
        mends: None,
        sheds: false,
    };
    let done = bench.told(|core, now, done| core.renew(&renewal, now, done));
    assert!(matches!(one(done), Action::TellDiffers(NodeId(1))));
    tally.add(TARGET, SessionId(1), Generation(10));
    let renewal = LeaseRenewal { tally, ..renewal };
    assert!(bench.told(|core, now, done| core.renew(&renewal, now, done)).is_empty());

    let compare = |held| CompareRequest { node: NodeId(1), part: 0, parts: 1, held };
    assert_eq!(bench.core.compare(&compare(vec![held(1, 10)])), CompareReply::default());
    let reply = bench.core.compare(&compare(vec![held(1, 9), held(2, 3)]));
    assert_eq!(reply.lacking, [held(1, 9).device, held(2, 3).device]);
    assert_eq!(bench.core.compare(&compare(vec![])).foreign, [held(1, 10)]);
}

#[test]
fn a_dead_nodes_claims_are_swept_unless_it_comes_back() {
    let mut bench = Bench::new();
    bench.live(1);
    for number in 0..100u64 {
        let found = Found { claim: claim(1 + number % 2, number + 1), revision: number + 1 };
        let device = DeviceId(Uuid::from_u128(number.into()));
        bench.told(|core, now, done| core.put(device, found, now, done));
    }
    bench.live(1);
    let swept = bench.pass_s(4);
    assert_eq!(swept.len(), 50, "those of node 2, which never was heard");
    assert!(
        swept
            .iter()
            .all(|action| matches!(action, Action::Remove(_, Found { revision, .. }, Removal::NodeGone)
        if revision % 2 == 0))
    );
    assert!(
        bench.pass_s(4).iter().all(
            |action| matches!(action, Action::Remove(_, Found { revision, .. }, _) if revision % 2 == 0)
        )
    );
    bench.live(2);
    bench.live(1);
    assert!(bench.pass_s(4).is_empty(), "both are there");
}

#[test]
fn a_router_that_slept_sweeps_nothing() {
    let mut bench = Bench::new();
    bench.live(1);
    bench.stands(1, 10);
    bench.now += Duration::from_secs(60);
    assert!(bench.core.whereabouts(TARGET, bench.now).is_some());
    assert!(bench.pass_s(11).is_empty(), "it has heard nobody for a whole lease");
    bench.live(1);
    assert!(bench.pass_s(11).is_empty());
}

proptest! {
    /// Whatever the store and the nodes say, each call is in one place: being delivered, looked up, waiting, or ended.
    #[test]
    fn no_call_is_lost_or_ended_twice(steps in proptest::collection::vec((0u8..8, 0u64..4, 1u64..30), 1..120)) {
        let mut bench = Bench::new();
        let (mut begun, mut ended) = (0, 0);
        let mut underway: Done = Vec::new();
        for (what, node, number) in steps {
            let done = match what {
                0 | 1 => {
                    begun += 1;
                    bench.call(3_000, 1_000 * node as u32)
                }
                2 => {
                    let found = Found { claim: claim(node, number), revision: number };
                    bench.told(|core, now, done| core.put(TARGET, found, now, done))
                }
                3 => {
                    bench.core.gone(TARGET, number, bench.now);
                    Vec::new()
                }
                4 => {
                    let (node, tally, newest) = (NodeId(node), Tally::default(), Generation(0));
                    let (ends, sheds) = (number % 3 == 0, number % 5 == 0);
                    let renewal = LeaseRenewal { node, tally, newest, ends, mends: None, sheds };
                    bench.told(|core, now, done| core.renew(&renewal, now, done))
                }
                5 => bench.pass_ms(number * 40),
                _ if underway.is_empty() => Vec::new(),
                _ => {
                    let action = underway.swap_remove(number as usize % underway.len());
                    bench.told(|core, now, done| match action {
                        Action::Deliver(call, found) => match number % 3 {
                            0 => done.push(Action::End(call, Outcome::Answered)),
                            1 => core.refuted(call, found, Refutation::NoSession, now, done),
                            _ => core.refuted(call, found, Refutation::NoNode, now, done),
                        },
                        Action::LookUp(call) => {
                            let stored = core.map().get(TARGET).filter(|_| number % 2 == 0);
                            core.looked_up(call, Ok(stored), now, done);
                        }
                        other => panic!("{other:?}"),
                    })
                }
            };
            for action in done {
                match action {
                    Action::End(..) => ended += 1,
                    Action::Deliver(..) | Action::LookUp(..) => underway.push(action),
                    _ => {}
                }
            }
            prop_assert_eq!(begun, ended + underway.len() + bench.core.waiting());
        }
    }
}

#[test]
fn one_partys_waiting_calls_leave_room_for_anothers() {
    let mut bench = Bench::new();
    let wait = |bench: &mut Bench, serial, tenant| {
        let id = CallId { serial, ..CALL };
        let deadlines = [5_000, 5_000].map(|ms| Budget::from_ms(ms).starting(bench.now));
        let call = Underway::new(id, TARGET, party(tenant), deadlines.into(), "it");
        let looking = bench.told(|core, now, done| core.call(call, now, done));
        let Some(Action::LookUp(call)) = looking.into_iter().next() else { panic!("it is looked up") };
        bench.told(|core, now, done| core.looked_up(call, Ok(None), now, done))
    };
    let ended_as = |done: Done| match done.into_iter().next() {
        Some(Action::End(_, outcome)) => Some(outcome),
        None => None,
        other => panic!("{other:?}"),
    };
    for serial in 0..2 {
        assert_eq!(ended_as(wait(&mut bench, serial, 1)), None);
    }
    assert_eq!(ended_as(wait(&mut bench, 2, 1)), Some(Outcome::Busy(Limit::CustomerWaits)));
    for serial in 3..5 {
        assert_eq!(ended_as(wait(&mut bench, serial, 2)), None);
    }
    assert_eq!(ended_as(wait(&mut bench, 5, 3)), Some(Outcome::Busy(Limit::Waits)));
    // Whoever is gone, delivered or out of time has left his place.
    assert!(
        bench.core.cancel(&CancelRequest { call: CallId { serial: 0, ..CALL }, target: TARGET }).is_some()
    );
    assert_eq!(ended_as(wait(&mut bench, 6, 1)), None);
    let found = Found { claim: claim(1, 1), revision: 1 };
    let delivered = bench.told(|core, now, done| core.put(TARGET, found, now, done));
    assert_eq!((delivered.len(), bench.core.places.taken()), (4, 0));
}

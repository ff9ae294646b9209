use rpc::{Budget, CallId, DeviceId, HopFilter, Station};

use super::*;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A tracer whose spans come back instead of being sent.
fn tracer(per_million: u32, per_second: u32, queue: usize) -> (Tracer, mpsc::Receiver<Finished>) {
    let (queue, finished) = mpsc::channel(queue);
    let shared = Shared {
        queue,
        per_million,
        pace: (per_second > 0).then(|| Pace::new(per_second)),
        draws: AtomicU64::new(7),
        queue_full: Counter::noop(),
        over_limit: Counter::noop(),
    };
    (Traces { shared: Some(Arc::new(shared)), journal_hops: 10 }.tracer("test", 1), finished)
}

fn recorded(finished: &mut mpsc::Receiver<Finished>) -> Vec<otlp::Span> {
    std::iter::from_fn(|| finished.try_recv().ok()).map(|it| it.span).collect()
}

fn noted<'a>(span: &'a otlp::Span, key: &str) -> Vec<&'a str> {
    let of_key = span.attributes.iter().filter(|noted| noted.key == key);
    of_key
        .filter_map(|noted| {
            let value = noted.value.as_ref()?.value.as_ref();
            value.map(|Value::String(text)| text.as_str())
        })
        .collect()
}

#[test]
fn a_hop_takes_its_parents_place_in_the_head() {
    let (tracer, mut finished) = tracer(0, 0, 10);
    let mut traceparent = Some(PARENT.to_owned());
    let first = tracer.begin("sendMsg", Hop::Asked, &mut traceparent);
    let second = tracer.follow("decide", Hop::Taken, &mut traceparent);
    let last: TraceContext = traceparent.unwrap().parse().unwrap();
    second.end(&Outcome::Answered);
    first.end(&Outcome::Answered);

    let spans = recorded(&mut finished);
    let [second, first] = spans.as_slice() else { panic!("{spans:?}") };
    let device: TraceContext = PARENT.parse().unwrap();
    assert_eq!(first.trace_id, device.trace.to_be_bytes());
    assert_eq!(first.parent_span_id, device.span.to_be_bytes());
    assert_eq!((&second.trace_id, &second.parent_span_id), (&first.trace_id, &first.span_id));
    assert_eq!((last.trace, last.sampled), (device.trace, true));
    assert_eq!(second.span_id, last.span.to_be_bytes());
    assert!(first.start_time_unix_nano <= second.start_time_unix_nano);
    assert!(second.end_time_unix_nano <= first.end_time_unix_nano);
}

#[test]
fn what_is_not_traced_stays_as_it_is() {
    let (on, mut finished) = tracer(0, 0, 10);
    let unsampled = PARENT.replace("-01", "-00");
    for (tracer, texts) in [
        (&on, [None, Some(unsampled.as_str()), Some("00-1-2-01")]),
        (&Tracer::default(), [None, Some(PARENT), Some("00-1-2-01")]),
    ] {
        for text in texts {
            let given = text.map(str::to_owned);
            let at = given.as_ref().map(|text| text.as_ptr());
            let mut traceparent = given;
            assert!(tracer.begin("sendMsg", Hop::Asked, &mut traceparent).traced.is_none());
            assert!(tracer.follow("route", Hop::Taken, &mut traceparent).traced.is_none());
            assert_eq!(traceparent.as_deref(), text);
            assert_eq!(traceparent.as_ref().map(|text| text.as_ptr()), at, "nothing was allocated");
        }
    }
    assert_eq!(recorded(&mut finished), []);
}

#[test]
fn a_call_without_a_parent_begins_a_trace_if_it_is_drawn() {
    let (all, mut finished) = tracer(1_000_000, 0, 10_000);
    for mut traceparent in [None, Some("00-1-2-01".to_owned())] {
        drop(all.begin("sendMsg", Hop::Asked, &mut traceparent));
        let context: TraceContext = traceparent.unwrap().parse().unwrap();
        let spans = recorded(&mut finished);
        assert_eq!((spans[0].parent_span_id.len(), spans[0].span_id.len()), (0, 8));
        assert_eq!(spans[0].trace_id, context.trace.to_be_bytes());
    }
    let (some, mut finished) = tracer(100_000, 0, 10_000);
    (0..10_000).for_each(|_| drop(some.begin("sendMsg", Hop::Asked, &mut None)));
    let count = recorded(&mut finished).len();
    assert!((900..=1_100).contains(&count), "{count} of 10,000 at one in ten");
}

#[test]
fn beyond_the_limit_a_call_goes_on_untraced_on_every_hop() {
    let (tracer, mut finished) = tracer(0, 2, 10);
    let mut traceparent = None;
    for _ in 0..3 {
        traceparent = Some(PARENT.to_owned());
        drop(tracer.begin("sendMsg", Hop::Asked, &mut traceparent));
    }
    assert_eq!(traceparent, Some(PARENT.replace("-01", "-00")));
    assert_eq!(recorded(&mut finished).len(), 2);
    // Hops behind obey.
    drop(tracer.follow("route", Hop::Taken, &mut Some(PARENT.to_owned())));
    assert_eq!(recorded(&mut finished).len(), 1);

    let pace = Pace::new(1);
    let now = Instant::now();
    let later = now + std::time::Duration::from_secs(2);
    assert_eq!([now, now, later, later].map(|now| pace.admits(now)), [true, false, true, false]);
}

#[test]
fn a_span_says_how_its_hop_ended_once() {
    let (tracer, mut finished) = tracer(0, 0, 20);
    let open = || {
        let mut span = tracer.follow("deliver", Hop::Asks, &mut Some(PARENT.to_owned()));
        span.unless_told(HopEnd::TimedOut);
        span.note("switchboard.node", 1);
        span.note("switchboard.node", 2);
        span
    };
    drop(open());
    open().end(&Outcome::Offline);
    open().end(&Outcome::Lost);
    open().end_delivery(&DeliveryReply::NotHere);
    open().end_delivery(&DeliveryReply::Ended(Outcome::Answered));
    let error = i32::from(StatusCode::Error);
    for (span, (outcome, failed)) in recorded(&mut finished).iter().zip([
        ("timed_out", true),
        ("offline", false),
        ("lost", true),
        ("not_here", false),
        ("answered", false),
    ]) {
        assert_eq!(noted(span, "switchboard.outcome"), [outcome]);
        assert_eq!(noted(span, "error.type"), if failed { vec![outcome] } else { vec![] });
        assert_eq!(span.status.as_ref().map(|status| status.code), failed.then_some(error), "{outcome}");
        assert_eq!(noted(span, "switchboard.node"), ["2"]);
    }
}

#[test]
fn a_full_queue_drops_spans_and_holds_nobody_up() {
    let (tracer, mut finished) = tracer(0, 0, 1);
    for _ in 0..3 {
        drop(tracer.follow("route", Hop::Taken, &mut Some(PARENT.to_owned())));
    }
    assert_eq!(recorded(&mut finished).len(), 1);
}

#[test]
fn a_span_is_its_hops_record_in_the_journal_traced_or_not() {
    let (tracer, mut finished) = tracer(0, 0, 10);
    let call = CallId { node: NodeId(1), serial: 7 };
    let (from, budget_ms): (DeviceId, _) =
        ("00000000-0000-0000-0000-000000000001".parse().unwrap(), Budget::from_ms(1_000));
    let (to, party, protocol) = (Some(from), None, None);
    for traceparent in [None, Some(PARENT.to_owned())] {
        let mut span = tracer.follow("route", Hop::Taken, &mut traceparent.clone());
        let of = HopOf { station: Station::Router, call, from, to, party, budget_ms, protocol };
        tracer.record(&mut span, of, HopEnd::CutOff, Instant::now());
        span.handed_to(NodeId(9));
        span.end(&Outcome::Offline);
    }
    let mut cut_off = Span::default();
    let of = HopOf { station: Station::Target, call, from, to, party, budget_ms, protocol };
    tracer.record(&mut cut_off, of, HopEnd::CutOff, Instant::now());
    cut_off.spoken(Protocol::Coap);
    drop(cut_off);
    let hops = tracer.journal().find(&HopFilter::default(), 10);
    let told: Vec<_> = hops.iter().map(|it| (it.station, it.end, it.node, it.protocol)).collect();
    let routed = (Station::Router, HopEnd::Offline, Some(NodeId(9)), None);
    assert_eq!(told, [(Station::Target, HopEnd::CutOff, None, Some(Protocol::Coap)), routed, routed]);
    let [span] = recorded(&mut finished).try_into().unwrap();
    assert_eq!(noted(&span, "switchboard.call"), [call.to_string()]);
}

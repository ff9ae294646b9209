//! Are policies read, judged, remembered and explained as they are written?

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may fail by panicking; clippy knows only those who bear the attribute, not their helpers"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use bus::registry::App;
use proptest::prelude::*;
use rpc::{AppId, CustomerId, DeviceId, Protocol, Role};
use switchboard_authorizer::listing::render;
use switchboard_authorizer::policy::set::{MAX_POLICIES, MAX_SET_BYTES};
use switchboard_authorizer::policy::*;
use uuid::Uuid;

fn id(number: u128) -> DeviceId {
    DeviceId(Uuid::from_u128(number))
}

fn device(number: u128, customer: Option<u128>, labels: &[(&str, &str)]) -> Facts {
    Facts {
        id: id(number),
        name: format!("Device {number}").into(),
        kind: "default".into(),
        customer: customer.map(|customer| CustomerId(Uuid::from_u128(customer))),
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    }
}

fn set(text: &str) -> PolicySet {
    PolicySet::read(&[("test".to_owned(), text.to_owned())]).unwrap_or_else(|faults| panic!("{}", faults[0]))
}

fn faults(text: &str) -> Vec<Fault> {
    PolicySet::read(&[("test".to_owned(), text.to_owned())]).unwrap_err()
}

fn noon() -> Context {
    Context::of_call(false, 10_000, 10, 1_795_694_400, 0).over(Some(Protocol::Mqtt))
}

fn app(number: u128, role: Role, customers: Option<&[u128]>) -> (AppId, Arc<App>) {
    let customers: Option<BTreeSet<_>> =
        customers.map(|all| all.iter().map(|it| CustomerId(Uuid::from_u128(*it))).collect());
    let app = App {
        tenant: rpc::TenantId(Uuid::from_u128(100)),
        name: format!("App {number}"),
        role,
        all_tenants: false,
        customers,
        labels: BTreeMap::new(),
        methods: None,
        networks: None,
        keys: BTreeMap::new(),
    };
    (AppId(Uuid::from_u128(number)), Arc::new(app))
}

const IN_ROOM: &str = r#"permit (principal is Device, action, resource) when {
  principal.hasTag("room") && resource.hasTag("room") && principal.getTag("room") == resource.getTag("room")
};"#;

#[test]
fn the_built_in_written_as_cedar_is_the_rule_in_rust() {
    let built_in = set(BUILT_IN);
    for (caller, target) in [
        (device(1, Some(1), &[]), device(2, Some(1), &[])),
        (device(1, Some(1), &[]), device(2, Some(2), &[])),
        (device(1, None, &[]), device(2, None, &[])),
        (device(1, Some(1), &[]), device(2, None, &[])),
        (device(1, None, &[]), device(2, Some(1), &[])),
        (device(1, Some(1), &[]), device(1, Some(1), &[])),
        (device(1, None, &[]), device(1, None, &[])),
    ] {
        let expected = caller.customer.is_some() && caller.customer == target.customer;
        for action in Action::ALL {
            let verdict = built_in.evaluate(&caller, action, &target, &noon());
            assert_eq!(verdict.is_allowed, expected, "{caller:?} {target:?}");
            assert!(verdict.failed.is_empty());
        }
    }
}

#[test]
fn what_is_not_accepted_is_told_with_its_place_and_what_to_write_instead() {
    let cases = [
        ("permit (principal, action, resource)", 1, "unexpected end of input", ""),
        ("\npermit (principal, action == Action::\"cal\", resource);", 2, "cal", "Action::\"call\""),
        (
            "permit (principal is Device, action, resource)\n  when { principal.getTag(\"room\") == \"12\" };",
            2,
            "room",
            "hasTag",
        ),
        (
            "permit (principal is Device, action, resource)\nwhen { principal.customer == resource.customer };",
            2,
            "customer",
            "x has customer",
        ),
        ("permit (principal, action, resource) when { context.hours < 7 };", 1, "hours", "hour, weekday"),
        ("permit (principal, action, resource) when { context.hour < \"7\" };", 1, "expected", ""),
        ("permit (principal is Devise, action, resource);", 1, "Devise", "Device::"),
        ("permit (principal == ?principal, action, resource);", 0, "template", ""),
        ("permit (principal, action, resource) when { \"a\" };", 1, "", ""),
    ];
    for (text, line, problem, instead) in cases {
        let found = faults(text);
        let fault = &found[0];
        assert_eq!(fault.line, line, "{text}: {fault}");
        assert!(fault.problem.contains(problem), "{text}: {fault}");
        assert!(fault.instead.as_deref().unwrap_or_default().contains(instead), "{text}: {fault}");
    }
}

#[test]
fn what_is_too_much_is_refused_by_the_name_of_its_limit() {
    let policy = "permit (principal, action, resource);\n";
    let long = |inner: &str| format!("permit (principal, action, resource) when {{ {inner} }};");
    let cases = [
        ("// ".to_owned() + &"x".repeat(MAX_SET_BYTES), "at most 262144"),
        (policy.repeat(MAX_POLICIES + 1), "1001 policies: a tenant may have at most 1000"),
        (long(&"(".repeat(100_000)), "nested deeper than 32"),
        (long(&"!".repeat(100_000)), "longer than 4096 bytes"),
        (long(&("true".to_owned() + &" && true".repeat(30_000))), "longer than 4096 bytes"),
        (long(&("context.hour".to_owned() + &".hour".repeat(30_000))), "longer than 4096 bytes"),
        ("permit ".repeat(30_000), "longer than 4096 bytes"),
    ];
    for (text, limit) in cases {
        let started = Instant::now();
        let found = faults(&text);
        assert!(found[0].problem.contains(limit), "{limit}: {}", found[0]);
        assert!(started.elapsed().as_secs() < 20, "{limit}: {:?}", started.elapsed());
    }
    // Within the limits, as deep as it goes: read, or refused in words.
    for inner in [
        "true".to_owned() + &" && true".repeat(500),
        "1".to_owned() + &"+1".repeat(1_900) + " == 1",
        "if true then ".repeat(30) + "true" + &" else false".repeat(30),
        "(".repeat(30) + "true" + &")".repeat(30),
        "!".repeat(3_000) + "true",
        "[".repeat(30) + &"]".repeat(30) + ".isEmpty()",
    ] {
        let read = PolicySet::read(&[("test".to_owned(), long(&inner))]);
        if let Ok(set) = read {
            let a = device(1, None, &[]);
            set.evaluate(&a, Action::Call, &a, &noon());
        }
    }
    assert!(
        PolicySet::read(&[("a b".to_owned(), String::new())]).unwrap_err()[0].problem.contains("A-Z a-z")
    );
}

#[test]
fn a_policy_that_fails_denies_even_beside_one_that_permits() {
    let set = set("permit (principal, action, resource);\n\
        forbid (principal, action, resource) when { context.timeout + 9223372036854775807 < 0 };");
    let a = device(1, None, &[]);
    let verdict = set.evaluate(&a, Action::Call, &a, &noon());
    assert!(!verdict.is_allowed);
    assert_eq!(verdict.failed.len(), 1);
}

#[test]
fn places_are_those_of_the_text() {
    let set = set("// first\n@id(\"one\") permit (principal, action, resource)\nwhen { true };\n\n\
        // permit (principal, action, resource);\nforbid (principal, action, resource) when { false };");
    let sources: Vec<_> = set.policies(Action::Call).map(|(source, _)| source.to_string()).collect();
    assert_eq!(sources, ["permit test:2 \"one\"", "forbid test:6"]);
}

#[test]
fn devices_of_one_class_are_judged_once() {
    let rooms = ["1", "2", "3", "4"];
    let devices =
        (0..1_000u128).map(|it| device(it, None, &[("room", rooms[(it % 4) as usize]), ("other", "x")]));
    let judge = Judge::new(Some(Arc::new(set(IN_ROOM))), 1, 0, devices);
    let listed = judge.list(id(0), None, 10_000, &noon()).unwrap();
    assert_eq!(listed.len(), 249);
    assert_eq!(judge.take_asked().evaluated, 4);
    assert_eq!(judge.list(id(4), None, 10, &noon()).unwrap().len(), 10);
    assert_eq!(judge.take_asked().evaluated, 0, "another device of the same class");
    judge.put(device(4, None, &[("room", "2")]));
    assert!(!judge.allows(id(0), Action::Call, id(4), &noon()), "never stale");
    assert!(judge.allows(id(1), Action::Call, id(4), &noon()));
    judge.remove(id(4));
    assert!(!judge.allows(id(1), Action::Call, id(4), &noon()));
    let unreadable = Judge::new(None, 2, 0, [device(1, None, &[])]);
    assert!(!unreadable.allows(id(1), Action::Call, id(1), &noon()), "never all");
    assert_eq!(unreadable.list(id(1), None, 10, &noon()), Some(Vec::new()));
}

#[test]
fn a_shadow_decides_nothing_and_every_difference_counts() {
    let devices = || {
        let rooms = ["1", "2"];
        (0..4u128).map(|it| device(it, Some(1), &[("room", rooms[(it % 2) as usize])])).collect::<Vec<_>>()
    };
    let shadow = || Some(Arc::new(set(IN_ROOM)));
    for live in [Live::BuiltIn, Live::Set(Arc::new(set(BUILT_IN)))] {
        let judge = Judge::with_shadow(live, shadow(), 1, 0, devices());
        for _ in 0..3 {
            assert!(judge.allows(id(0), Action::Call, id(1), &noon()), "another room, and one customer");
            assert!(judge.allows(id(0), Action::Call, id(2), &noon()));
        }
        let asked = judge.take_asked();
        assert_eq!((asked.evaluated, asked.shadow_denies, asked.shadow_allows), (2, 3, 0));
        let samples = judge.take_samples();
        assert_eq!(samples.len(), 3);
        assert_eq!((samples[0].caller, samples[0].target, samples[0].shadow_allows), (id(0), id(1), false));
        // Labels are read by the shadow alone: they make classes all the same.
        judge.put(device(1, Some(1), &[("room", "1")]));
        assert!(judge.allows(id(0), Action::Call, id(1), &noon()));
        assert_eq!(judge.take_asked().shadow_denies, 0);
    }
    let judge = Judge::with_shadow(Live::Unreadable, shadow(), 1, 0, devices());
    assert!(!judge.allows(id(0), Action::Call, id(2), &noon()), "a shadow opens nothing");
    assert_eq!(judge.take_asked().shadow_allows, 1);
}

fn any_condition() -> impl Strategy<Value = String> {
    let role = prop_oneof![Just("principal"), Just("resource")];
    prop_oneof![
        (role.clone(), "[ab]").prop_map(|(role, value)| format!(
            "({role}.hasTag(\"k\") && {role}.getTag(\"k\") == \"{value}\")"
        )),
        Just(
            "(principal.hasTag(\"k\") && resource.hasTag(\"k\") && principal.getTag(\"k\") == resource.getTag(\"k\"))"
                .to_owned()
        ),
        (role.clone(), 0u128..4).prop_map(|(role, it)| format!("{role} == Device::\"{}\"", id(it))),
        role.clone().prop_map(|role| format!("{role} has customer")),
        role.clone().prop_map(|role| format!("{role} in Customer::\"{}\"", Uuid::from_u128(1))),
        (role.clone(), 0u128..4).prop_map(|(role, it)| format!("{role}.name == \"Device {it}\"")),
        Just("principal == resource".to_owned()),
        Just("(principal has customer && resource has customer && principal.customer == resource.customer)".to_owned()),
        (0u32..3, prop_oneof![Just("<"), Just("<="), Just("=="), Just(">=")])
            .prop_map(|(cut, op)| format!("context.timeout {op} {cut}")),
        Just("context.size + 1 > context.timeout".to_owned()),
        Just("context.oneway".to_owned()),
        Just("!context.oneway".to_owned()),
        Just("context.protocol == \"http\"".to_owned()),
        (role.clone(), "[ab]").prop_map(|(role, kind)| format!("{role}.type == \"{kind}\"")),
        Just("principal.type != resource.type".to_owned()),
        Just("[\"a\", \"c\"].contains(resource.type)".to_owned()),
        (role.clone(), "[ab]").prop_map(|(role, value)| format!("{role} in Group::\"k={value}\"")),
        (role.clone(), 0u128..4).prop_map(|(role, it)| format!("{role} in Device::\"{}\"", id(it))),
        (role.clone(), "[ab]").prop_map(|(role, value)| format!(
            "!({role}.hasTag(\"k\") && {role}.getTag(\"k\") == \"{value}\")"
        )),
        (role.clone(), "[ab]").prop_map(|(role, value)| format!(
            "(!{role}.hasTag(\"k\") || {role}.getTag(\"k\") != \"{value}\")"
        )),
        Just("(if context.oneway then context.hour == 1 else principal == resource)".to_owned()),
        // It fails where sizes are not 0, and there it denies.
        Just("context.size * 9223372036854775807 + 1 > 0".to_owned()),
        (0u8..3).prop_map(|hour| format!("context.hour != {hour}")),
        Just("context.method == \"sendMsg\"".to_owned()),
        Just("[Device::\"00000000-0000-0000-0000-000000000001\", resource].contains(principal)".to_owned()),
    ]
}

fn any_policy() -> impl Strategy<Value = String> {
    let effect = prop_oneof![3 => Just("permit"), 1 => Just("forbid")];
    let action = prop_oneof![
        2 => Just("action"),
        1 => Just("action == Action::\"call\""),
        1 => Just("action == Action::\"list\""),
    ];
    let scope = prop_oneof![
        4 => Just(("principal is Device".to_owned(), "resource".to_owned())),
        1 => (0u128..4).prop_map(|it| (format!("principal == Device::\"{}\"", id(it)), "resource".to_owned())),
        1 => Just(("principal is Device in Group::\"k=a\"".to_owned(), "resource".to_owned())),
        2 => Just(("principal".to_owned(), "resource in Group::\"k=a\"".to_owned())),
        1 => Just(("principal is App".to_owned(), "resource".to_owned())),
        1 => (0u128..2).prop_map(|it| (
            format!("principal == App::\"{}\"", Uuid::from_u128(it)),
            "resource".to_owned(),
        )),
        1 => (0u128..2).prop_map(|it| (
            format!("principal in Customer::\"{}\"", Uuid::from_u128(it)),
            "resource".to_owned(),
        )),
        1 => Just(("principal is Device".to_owned(), "resource in Group::\"k=b\"".to_owned())),
        1 => (0u128..2).prop_map(|it| (
            "principal is Device".to_owned(),
            format!("resource in Customer::\"{}\"", Uuid::from_u128(it)),
        )),
    ];
    (effect, action, scope, proptest::collection::vec((any::<bool>(), any_condition()), 0..3)).prop_map(
        |(effect, action, (principal, resource), conditions)| {
            let mut policy = format!("{effect} ({principal}, {action}, {resource})");
            for (is_when, condition) in conditions {
                policy += &format!(" {} {{ {condition} }}", if is_when { "when" } else { "unless" });
            }
            policy + ";\n"
        },
    )
}

fn any_device(number: u128) -> impl Strategy<Value = Facts> {
    let any = (proptest::option::of(0u128..3), proptest::option::of("[abc]"), "[abc]");
    any.prop_map(move |(customer, label, kind)| {
        let mut facts = device(number, customer, &[]);
        facts.kind = kind.into();
        facts.labels = label.map(|label| ("k".to_owned(), label)).into_iter().collect::<BTreeMap<_, _>>();
        facts
    })
}

fn any_context() -> impl Strategy<Value = Context> {
    (any::<bool>(), 0u32..4, 0u32..4, 0u8..4, any::<bool>()).prop_map(
        |(oneway, timeout_ms, size_bytes, hour, http)| Context {
            method: "sendMsg".into(),
            protocol: if http { "http" } else { "" },
            oneway,
            timeout_ms,
            size_bytes,
            hour,
            weekday: 1,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// A remembered decision is the one that the policies make, whatever was asked before and however devices change.
    #[test]
    fn classes_never_differ_from_the_policies_themselves(
        policies in proptest::collection::vec(any_policy(), 1..5),
        devices in (any_device(0), any_device(1), any_device(2), any_device(3)),
        changed in (any_device(1), any_device(2)),
        contexts in proptest::collection::vec(any_context(), 1..6),
    ) {
        // Some conditions can never hold together: strict validation refuses those sets.
        let Ok(set) = PolicySet::read(&[("test".to_owned(), policies.concat())]) else { return Ok(()) };
        let set = Arc::new(set);
        let mut devices = vec![devices.0, devices.1, devices.2, devices.3];
        let judge = Judge::new(Some(Arc::clone(&set)), 1, 0, devices.clone());
        for round in 0..2 {
            if round == 1 {
                for facts in [changed.0.clone(), changed.1.clone()] {
                    judge.put(facts.clone());
                    let place = devices.iter().position(|other| other.id == facts.id).unwrap();
                    devices[place] = facts;
                }
            }
            for (context, target) in contexts.iter().flat_map(|it| devices.iter().map(move |of| (it, of))) {
                for (number, role, customers) in
                    [(0, Role::Caller, None), (1, Role::Admin, Some(&[0, 1][..])), (1, Role::Caller, Some(&[2]))]
                {
                    let ((id, app), context) = (app(number, role, customers), context.clone().by_method("blink"));
                    let facts = AppFacts::of(id, &app);
                    for action in Action::ALL {
                        let all = set.evaluate_all(&facts, action, target, &context);
                        prop_assert_eq!(&set.evaluate(&facts, action, target, &context), &all, "{:?}", policies);
                        let allowed = judge.allows_app(id, &app, action, target.id, &context);
                        prop_assert_eq!(allowed, all.is_allowed, "{:?}", policies);
                    }
                }
            }
            for context in &contexts {
                for caller in &devices {
                    let page = judge.listing(caller.id, 100, context).page(caller.id, None, 100);
                    let list = judge.list(caller.id, None, 100, context).unwrap();
                    let rendered = render(list.iter().map(|(name, id)| (name, *id, None)));
                    prop_assert_eq!(page, Some(rendered), "{:?}", policies);
                    for target in &devices {
                        for action in Action::ALL {
                            let all = set.evaluate_all(caller, action, target, context);
                            prop_assert_eq!(&set.evaluate(caller, action, target, context), &all, "{:?}", policies);
                            let expected = all.is_allowed;
                            let allowed = judge.allows(caller.id, action, target.id, context);
                            prop_assert_eq!(allowed, expected, "{:?}", policies);
                            if action == Action::List && caller.id != target.id {
                                let is_listed = list.iter().any(|(_, id)| *id == target.id);
                                prop_assert_eq!(is_listed, expected, "list of {:?}", policies);
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn an_explanation_reads_every_value_and_its_changes_do_change_it() {
    let rooms = set(&(IN_ROOM.to_owned()
        + "\n@id(\"night\") forbid (principal, action == Action::\"call\", resource) when { context.hour >= 22 };"));
    let (a, b) = (device(1, None, &[("room", "12")]), device(2, None, &[("room", "14")]));
    let why = explain(&rooms, &a, Action::Call, &b, &noon());
    assert!(!why.allowed && why.decided_by.is_empty());
    let told: Vec<_> = why.policies[0].conditions.iter().map(|it| (it.holds, it.read.join(", "))).collect();
    assert_eq!(
        told,
        [
            (Some(true), String::new()),
            (Some(true), "principal room = \"12\"".to_owned()),
            (Some(true), "resource room = \"14\"".to_owned()),
            (Some(false), "principal room = \"12\", resource room = \"14\"".to_owned()),
        ]
    );
    assert_eq!(
        why.would_change_it,
        [["give \"Device 2\" the label room=12"], ["give \"Device 1\" the label room=14"]]
    );
    let late = Context { hour: 23, ..noon() };
    let why = explain(&rooms, &a, Action::Call, &device(3, None, &[("room", "12")]), &late);
    assert_eq!(why.decided_by, ["forbid test:4 \"night\""]);
    assert_eq!(why.would_change_it, [["call with hour 0"]]);
    let why = explain(&rooms, &a, Action::Call, &b, &late);
    assert_eq!(why.would_change_it[0], ["give \"Device 2\" the label room=12", "call with hour 0"]);
    let why = explain(&rooms, &a, Action::List, &device(3, None, &[("room", "12")]), &late);
    assert!(why.allowed && why.decided_by[0].starts_with("permit test:1"));
}

#[test]
fn searches_and_differences_count_every_pair() {
    let devices: Vec<_> = (0..40u128)
        .map(|it| device(it, Some(it % 2), &[("room", ["1", "2", "3", "4"][(it % 4) as usize])]))
        .collect();
    let (old, new) = (set(BUILT_IN), set(IN_ROOM));
    for one in &devices {
        let may =
            |caller: &Facts, target: &Facts| new.evaluate(caller, Action::Call, target, &noon()).is_allowed;
        let others = || devices.iter().filter(|other| other.id != one.id);
        let expected: Vec<_> = others().filter(|other| may(one, other)).collect();
        assert_eq!(survey::whom(&new, &devices, one, Action::Call, &noon()), expected);
        let expected: Vec<_> = others().filter(|other| may(other, one)).collect();
        assert_eq!(survey::who(&new, &devices, one, Action::Call, &noon()), expected);
    }
    let difference = survey::difference(&old, &new, &devices, &[(Action::Call, noon())]);
    assert_eq!((difference.more, difference.fewer), (0, 40 * 19 - 40 * 9));
    assert_eq!(difference.examples.len(), 20);
    let back = survey::difference(&new, &old, &devices, &[(Action::Call, noon()), (Action::List, noon())]);
    assert_eq!((back.more, back.fewer), (800, 0));
}

/// Below a heading of README.md, what stands in its first block of that kind.
fn block<'a>(section: &'a str, kind: &str) -> &'a str {
    let (_, rest) = section.split_once(&format!("```{kind}\n")).unwrap();
    rest.split_once("```").unwrap().0
}

#[test]
fn the_five_policies_of_the_page_are_explained_as_it_says() {
    let named = |number, name: &str, customer, labels: &[(&str, &str)]| Facts {
        name: name.into(),
        ..device(number, customer, labels)
    };
    let late = Context { hour: 23, ..noon() };
    let cases = [
        (
            "Two rooms",
            "rooms",
            named(1, "lamp", None, &[("room", "12")]),
            named(2, "door", None, &[("room", "14")]),
            noon(),
        ),
        (
            "A control panel that calls and is never called",
            "panel",
            named(1, "panel-1", None, &[("kind", "panel")]),
            named(2, "panel-2", None, &[("kind", "panel")]),
            noon(),
        ),
        ("Night hours", "night", named(1, "a", Some(1), &[]), named(2, "b", Some(1), &[]), late),
        (
            "One method only",
            "meter",
            named(1, "meter-1", None, &[("kind", "meter")]),
            named(2, "collector", None, &[]),
            noon(),
        ),
        (
            "A maintenance customer",
            "maintenance",
            named(1, "van", Some(9), &[]),
            named(2, "pump", Some(1), &[]),
            noon(),
        ),
    ];
    let page = include_str!("../README.md");
    let mut wrong = Vec::new();
    for (heading, file, caller, target, context) in cases {
        let section = page.split_once(&format!("### {heading}\n")).unwrap().1;
        let texts = [(file.to_owned(), block(section, "cedar").to_owned())];
        let set = PolicySet::read(&texts).unwrap_or_else(|faults| panic!("{heading}: {}", faults[0]));
        let why = explain(&set, &caller, Action::Call, &target, &context);
        assert!(!why.allowed, "{heading}");
        if why.to_string() != block(section, "text").trim_end() {
            wrong.push(why.to_string());
        }
    }
    assert!(wrong.is_empty(), "README.md does not say:\n{}", wrong.join("\n\n"));
}

fn any_text() -> impl Strategy<Value = String> {
    let token = prop_oneof![
        4 => any_policy(),
        2 => any_condition(),
        2 => proptest::sample::select(vec![
            "permit", "forbid", "(", ")", "{", "}", "[", "]", ";", "when", "unless", "&&", "||", "!", "-", "==", "in",
            "is", "has", "like", "if", "then", "else", "principal", "resource", "context", "action", "\"", "\\",
            "//", "\n", "@id", "?principal", "9223372036854775808", "::", ".getTag(", ".hasTag(",
        ]).prop_map(str::to_owned),
        1 => ".{0,8}",
    ];
    proptest::collection::vec(token, 0..12).prop_map(|tokens| tokens.join(" "))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever is put is accepted, and then can be asked and explained, or refused at a place that the text has.
    #[test]
    fn any_text_is_accepted_or_refused_in_words(text in any_text()) {
        match PolicySet::read(&[("any".to_owned(), text.clone())]) {
            Ok(set) => {
                let (a, b) = (device(1, Some(1), &[("k", "a")]), device(2, None, &[]));
                let why = explain(&set, &a, Action::Call, &b, &noon());
                prop_assert_eq!(why.allowed, set.evaluate(&a, Action::Call, &b, &noon()).is_allowed);
                prop_assert!(!why.to_string().is_empty());
            }
            Err(faults) => {
                prop_assert!(!faults.is_empty());
                for fault in faults {
                    prop_assert!(!fault.problem.is_empty());
                    prop_assert!(fault.line <= text.matches('\n').count() + 1, "{}: {}", fault, text);
                }
            }
        }
    }
}

#[test]
fn an_application_may_what_no_policy_forbids_and_a_permit_is_not_asked_for() {
    let (target, secret) = (device(1, Some(1), &[]), device(2, Some(2), &[("secret", "yes")]));
    let (caller, admin) = (app(1, Role::Caller, Some(&[1])), app(2, Role::Admin, None));
    let blink = noon().by_method("blink");
    let allows = |text: &str, (id, app): &(AppId, Arc<App>), target: &Facts, context: &Context| {
        let set = Arc::new(set(text));
        let judge = Judge::new(Some(Arc::clone(&set)), 1, 0, [target.clone()]);
        let asked = || judge.allows_app(*id, app, Action::Call, target.id, context);
        let allowed = asked();
        assert_eq!((asked(), judge.take_asked().remembered), (allowed, 1), "{text}");
        assert_eq!(explain(&set, &AppFacts::of(*id, app), Action::Call, target, context).allowed, allowed);
        allowed
    };
    let of_its_customers = "forbid (principal is App, action, resource)
        unless { resource has customer && principal in resource.customer };";
    let unless_admin = "forbid (principal is App, action, resource) unless { principal.role == \"admin\" };";
    for (text, by, target, expected) in [
        (BUILT_IN, &caller, &target, true),
        (IN_ROOM, &caller, &target, true),
        ("forbid (principal is Device, action, resource);", &caller, &target, true),
        ("forbid (principal, action, resource);", &caller, &target, false),
        (unless_admin, &caller, &target, false),
        (unless_admin, &admin, &target, true),
        (
            "forbid (principal is App, action, resource) when { context.method == \"blink\" };",
            &admin,
            &target,
            false,
        ),
        (
            "forbid (principal is App, action, resource) when { context.method == \"sendMsg\" };",
            &admin,
            &target,
            true,
        ),
        ("forbid (principal, action, resource in Group::\"secret=yes\");", &admin, &secret, false),
        ("forbid (principal, action, resource in Group::\"secret=yes\");", &admin, &target, true),
        (
            "forbid (principal is App, action, resource) when { principal has customers };",
            &caller,
            &target,
            false,
        ),
        (
            "forbid (principal is App, action, resource) when { principal has customers };",
            &admin,
            &target,
            true,
        ),
        (of_its_customers, &caller, &target, true),
        (of_its_customers, &admin, &target, false),
        // What cannot be evaluated denies.
        (
            "forbid (principal is App, action, resource) when { context.timeout * 9223372036854775807 > 0 };",
            &admin,
            &target,
            false,
        ),
    ] {
        assert_eq!(allows(text, by, target, &blink), expected, "{text} {}", by.1.name);
    }
    let unreadable = Judge::new(None, 1, 0, [target.clone()]);
    assert!(!unreadable.allows_app(admin.0, &admin.1, Action::Call, target.id, &blink));
    let judge = Judge::new(Some(Arc::new(set(BUILT_IN))), 1, 0, []);
    assert!(!judge.allows_app(admin.0, &admin.1, Action::Call, target.id, &blink), "nobody");

    // It is another one once it has changed.
    let judge = Judge::new(Some(Arc::new(set(unless_admin))), 1, 0, [target.clone()]);
    assert!(!judge.allows_app(caller.0, &caller.1, Action::Call, target.id, &blink));
    let promoted = app(1, Role::Admin, None);
    assert!(judge.allows_app(caller.0, &promoted.1, Action::Call, target.id, &blink));
}

#[test]
fn what_an_application_is_forbidden_is_explained_and_found_in_a_difference() {
    let secret = device(2, Some(2), &[("secret", "yes")]);
    let (id, app) = app(1, Role::Caller, None);
    let facts = AppFacts::of(id, &app);
    let text = "@id(\"secrets\") forbid (principal is App, action, resource) when {
  resource.hasTag(\"secret\") && principal.role != \"admin\"
};";
    let (old, new) = (set(BUILT_IN), set(&format!("{BUILT_IN}{text}")));
    let why = explain(&new, &facts, Action::Call, &secret, &noon().by_method("blink"));
    assert!(!why.allowed);
    assert_eq!(why.decided_by, ["forbid test:8 \"secrets\""]);
    let told = why.to_string();
    assert!(told.contains("principal.role = \"caller\""), "{told}");
    assert!(told.contains("give \"App 1\" the role admin"), "{told}");
    assert!(told.contains("take the label secret from \"Device 2\""), "{told}");
    let devices = [device(1, Some(1), &[]), secret];
    let at = [(Action::Call, noon().by_method("blink")), (Action::List, noon().as_list())];
    let found = survey::app_difference(&old, &new, &facts, &devices, &at);
    assert_eq!(found, [(Action::Call, devices[1].id, false), (Action::List, devices[1].id, false)]);
}

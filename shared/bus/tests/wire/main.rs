//! Do two builds that follow each other understand each other? Samples of what each writes are kept, and are read by
//! today's code with the meaning that they had; and what it writes has the shape that the build before reads.
//!
//! A new field or message fails here until its sample is recorded:
//! `UPDATE_WIRE=1 cargo test -p switchboard-bus --test wire`. A line that is not new in `current.txt`, and is another
//! now, is a break: old copies are still there while services are replaced. When a version is released, `current.txt`
//! becomes `previous.txt`, and `tests/upgrade/previous` names its commit.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may fail by panicking; clippy knows only those who bear the attribute, not their helpers"
)]

mod kept;
mod samples;
mod shape;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use kept::{Kept, meaning, says};
use proptest::prelude::*;
use samples::{Sample, heads, records};
use shape::{Cbor, misread, misread_json};

const TYPE_THIS: &str = "UPDATE_WIRE=1 cargo test -p switchboard-bus --test wire";
const SAMPLES: &str = "shared/bus/tests/wire/samples.rs";

/// What the previous build does not read of today's, and what becomes of it.
const NOT_READ: &[(&str, &str)] = &[
    (
        "AppCaller, least",
        "a call over NATS, which names no key: routers are replaced before authorizers, which make it",
    ),
    (
        "Limit::AppGroups",
        "the API's alone: it tells applications, and keeps it with messages that came with it",
    ),
    ("Limit::ApiListeners", "the same"),
    ("SessionEnd in JSON", "in session events, which no service hears but the API that came with it"),
];

/// What is neither stored nor sent from one service to another.
const NEITHER: &[&str] = &["DeviceChange"];

fn all() -> Vec<Sample> {
    heads().into_iter().chain(records()).collect()
}

fn type_of(title: &str) -> &str {
    title.split([':', ',']).next().unwrap_or_default()
}

fn cbor(bytes: &[u8]) -> Cbor {
    Cbor::of(bytes)
}

#[test]
fn what_is_written_is_as_it_was_recorded() {
    let (samples, file) = (all(), kept::file("current.txt"));
    let text = kept::text(&samples);
    if std::env::var_os("UPDATE_WIRE").is_some() {
        fs::write(&file, &text).unwrap();
    }
    let recorded = fs::read_to_string(&file).unwrap_or_default();
    let differs = recorded.lines().zip(text.lines()).find(|(was, is)| was != is);
    assert!(recorded == text, "{} has other samples, first {differs:?}; {TYPE_THIS}", file.display());
}

#[test]
fn each_message_and_record_has_a_sample() {
    let titles: BTreeSet<_> = all().into_iter().map(|it| it.title).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut missing = Vec::new();
    for file in rust_files(&root.join("../rpc/src")).into_iter().chain(rust_files(&root.join("src"))) {
        for wanted in declared(&fs::read_to_string(&file).unwrap()) {
            let is_there = titles.contains(&wanted) || titles.contains(&format!("{wanted} in JSON"));
            if !is_there && !NEITHER.contains(&wanted.as_str()) {
                missing.push(wanted);
            }
        }
    }
    assert!(missing.is_empty(), "no sample in {SAMPLES} of {missing:?}; add them, then {TYPE_THIS}");
}

#[test]
fn each_subject_is_in_its_sample() {
    let samples = records();
    let sample = samples.iter().find(|it| it.title == "Subjects").unwrap();
    let source = include_str!("../../../rpc/src/subjects.rs");
    let declared = source.lines().filter(|line| line.ends_with("-> String {"));
    let names = declared.filter_map(|line| line.trim().strip_prefix("pub fn ")?.split('(').next());
    let missing: Vec<_> = names.filter(|name| !sample.means.contains(&format!(": \"{name}\","))).collect();
    assert!(missing.is_empty(), "no sample in {SAMPLES} of subjects {missing:?}; add them, then {TYPE_THIS}");
}

#[test]
fn a_whole_sample_leaves_nothing_out() {
    for it in all().iter().filter(|it| !it.title.contains(", least")) {
        let left_out: Vec<_> = it.means.lines().filter(|line| !says(line)).collect();
        assert!(left_out.is_empty(), "{} in {SAMPLES} says nothing in {left_out:?}", it.title);
    }
}

#[test]
fn what_was_written_is_read_with_its_meaning() {
    let samples = all();
    for file in ["previous.txt", "current.txt"] {
        for Kept { title, bytes, means } in kept::read(file) {
            let reader = samples.iter().find(|it| type_of(&it.title) == type_of(&title));
            let reader = reader.unwrap_or_else(|| panic!("nothing reads the {title} of {file} any more"));
            let (now, again) =
                (reader.read)(&bytes).unwrap_or_else(|error| panic!("{title} of {file}: {error}"));
            assert_eq!(
                meaning(&now),
                means,
                "{title} of {file} means something else; if only a name is new, write it there"
            );
            let (once_more, _) = (reader.read)(&again).unwrap();
            assert_eq!(now, once_more, "{title} of {file}, written again");
        }
    }
}

#[test]
fn the_previous_build_reads_what_is_written() {
    let previous = kept::read("previous.txt");
    assert!(!previous.is_empty(), "{} has no samples", kept::file("previous.txt").display());
    let known: BTreeSet<_> = previous.iter().map(|it| type_of(&it.title)).collect();
    let mut faults = Vec::new();
    for now in all() {
        let title = now.title.clone();
        // Where it could not leave anything out, nothing may be left out.
        let whole = title.trim_end_matches(", least");
        let before = [title.as_str(), whole].iter().find_map(|of| previous.iter().find(|it| it.title == *of));
        let fault = match before {
            Some(before) if now.is_json => {
                let json = |bytes: &[u8]| serde_json::from_slice(bytes).unwrap();
                misread_json(&title, &json(&before.bytes), &json(&now.bytes))
            }
            Some(before) => misread(&title, &cbor(&before.bytes), &cbor(&now.bytes)),
            // A message of which it knows nothing goes where it does not listen.
            None if !known.contains(type_of(&title)) => None,
            None => Some(format!("{title}: the previous build does not know of it")),
        };
        faults.extend(fault.map(|fault| (title, fault)));
    }
    let is_known = |title: &str| NOT_READ.iter().any(|(it, _)| *it == title);
    let new: Vec<_> = faults.iter().filter(|(title, _)| !is_known(title)).map(|(_, fault)| fault).collect();
    assert!(
        new.is_empty(),
        "{new:#?}: a copy of the build before misreads it; if it is sent none, NOT_READ says so"
    );
    let read = NOT_READ.iter().find(|(title, _)| !faults.iter().any(|(it, _)| it == title));
    assert!(read.is_none(), "{read:?} is read by now: out of NOT_READ with it");
}

proptest! {
    #[test]
    fn what_a_later_build_adds_is_skipped(
        which in any::<proptest::sample::Index>(),
        added in prop::collection::vec(prop_oneof![
            Just(Cbor::Null),
            any::<bool>().prop_map(Cbor::Bool),
            any::<u64>().prop_map(Cbor::Int),
            ".*".prop_map(Cbor::Text),
            Just(Cbor::Array(vec![Cbor::Map(vec![(Cbor::Int(1), Cbor::Bytes(vec![0xff]))])])),
        ], 1..4),
    ) {
        let heads = heads();
        let it = which.get(&heads);
        let mut longer = cbor(&it.bytes);
        // A struct is an array of its fields, a variant its number and that; what is neither is one of a closed list.
        let fields = match &mut longer {
            Cbor::Array(both) if it.title.contains("::") => both.get_mut(1),
            whole => Some(whole),
        };
        if let Some(Cbor::Array(fields)) = fields {
            let is_place = |line: &&str| line.starts_with("    ") && !line.starts_with("     ");
            let places = it.means.lines().filter(is_place).count();
            // Behind all that there is, also where the last of it is none and was not written.
            fields.resize(fields.len().max(places), Cbor::Null);
            fields.extend(added);
            let (means, again) = (it.read)(&longer.bytes()).unwrap();
            prop_assert_eq!((&means, &again), (&it.means, &it.bytes), "{}", &it.title);
        }
    }
}

fn rust_files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(rust_files(&path)),
            false if path.extension().is_some_and(|it| it == "rs") => files.push(path),
            false => {}
        }
    }
    files.sort();
    files
}

/// The public types in a source that are written and read, and the variants of those that have any.
fn declared(source: &str) -> Vec<String> {
    let (mut found, mut is_written, mut is_bare) = (Vec::new(), false, false);
    let mut lines = source.split("#[cfg(test)]").next().unwrap_or_default().lines();
    while let Some(line) = lines.next() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if text.starts_with("#[derive(") {
            let derives = if text.ends_with(']') {
                text.to_owned()
            } else {
                text.to_owned() + lines.next().unwrap_or_default()
            };
            is_written = derives.contains("Decode") || derives.contains("Deserialize");
        } else if text.contains("transparent") {
            is_bare = true;
        } else if let Some((kind, rest)) = text.strip_prefix("pub ").and_then(|rest| rest.split_once(' ')) {
            let name: String = rest.chars().take_while(|letter| letter.is_alphanumeric()).collect();
            let is_wanted =
                std::mem::take(&mut is_written) && !std::mem::take(&mut is_bare) && !name.is_empty();
            match kind {
                "struct" if is_wanted => found.push(name),
                "enum" if is_wanted => {
                    let variants =
                        lines.by_ref().take_while(|line| line.trim_end() != " ".repeat(indent) + "}");
                    let is_one = |line: &&str| {
                        line.len() > indent + 4
                            && line[..indent + 4].trim().is_empty()
                            && line[indent + 4..].starts_with(|letter: char| letter.is_ascii_uppercase())
                    };
                    let variants: Vec<_> = variants.filter(is_one).collect();
                    found.extend(variants.iter().map(|line| {
                        let variant: String =
                            line.trim().chars().take_while(|it| it.is_alphanumeric()).collect();
                        format!("{name}::{variant}")
                    }));
                }
                _ => {}
            }
        }
    }
    found
}

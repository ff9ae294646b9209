//! Is every statement of the standards that concerns us tested? The tables in `standard.md` say by what.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const TABLES: &str = include_str!("standard.md");

/// The names of all functions below `folder`, in files that end so.
fn functions(folder: &Path, ending: &str, keyword: &str, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, ending, keyword, names);
        } else if path.extension().is_some_and(|it| it == ending) {
            let text = std::fs::read_to_string(&path).unwrap();
            let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix(keyword));
            names.extend(lines.filter_map(|line| Some(line.split_once('(')?.0.to_owned())));
        }
    }
}

/// Statements, and what is said of them, of each row of one standard's table.
fn rows(section: &str) -> Vec<(Vec<&str>, &str)> {
    let rows = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
    rows.skip(1)
        .map(|line| match line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>()[..] {
            [statements, about, said] if !about.is_empty() => (statements.split(", ").collect(), said),
            _ => panic!("{line}"),
        })
        .collect()
}

#[test]
fn every_statement_comes_once_and_has_a_test_that_exists_or_a_reason() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeSet::new();
    functions(&root.join("src"), "rs", "fn ", &mut tests);
    for entry in std::fs::read_dir(root.join("../../tests")).unwrap() {
        let path = entry.unwrap().path();
        let is_test = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("test_"));
        let text = if is_test { std::fs::read_to_string(&path).unwrap() } else { String::new() };
        let lines = text.lines().filter_map(|line| line.strip_prefix("def "));
        tests.extend(lines.filter_map(|line| Some(line.split_once('(')?.0.to_owned())));
    }
    let (_, tables) = TABLES.split_once("## MQTT 3.1.1").unwrap();
    let (old, new) = tables.split_once("## MQTT 5").unwrap();
    for (section, least) in [(old, 120), (new, 200)] {
        let mut seen = BTreeSet::new();
        for (statements, said) in rows(section) {
            for statement in statements {
                let number = statement.replace(['.', '-'], "");
                assert!(number.len() >= 3 && number.bytes().all(|it| it.is_ascii_digit()), "{statement}");
                assert!(seen.insert(statement), "{statement} comes twice");
            }
            let named: Vec<_> = said.split('`').skip(1).step_by(2).collect();
            assert!(!named.is_empty() || said.split(' ').count() >= 4, "{said}: neither a test nor a reason");
            for test in named {
                assert!(tests.contains(test), "there is no test {test}");
            }
        }
        assert!(seen.len() >= least, "{} statements", seen.len());
    }
}

//! How settings are shown to people: those in force, the sample file and the reference table.

use super::Settings;
use super::limit::Limit;
use super::load::{Loaded, Source, env_name};
use super::readers::{in_words, of_section, readers};
use super::value::Value;

const SAMPLE_HEAD: &str = "\
# Settings of Switchboard: one file for all services, a section for each.
#
# Every setting stands here with its default, commented out; remove the # before its name to change it.
# Stronger than this file is the environment (SWITCHBOARD_MQTT__LISTEN=127.0.0.1:1884), stronger still are
# flags (--set mqtt.listen=127.0.0.1:1884). Unknown settings are refused. `switchboard config check` reports
# everything that is wrong at once; `switchboard config print` shows what is in force, and where it came from.
#
# Services look at this file again every admin.reload_check_ms and at SIGHUP, and take over what says so; what else has
# changed waits for their next start, and `switchboard config check --against OLD` names it. A faulty file changes
# nothing.
";

/// Widest line of a comment in the sample.
const SAMPLE_WIDTH_CHARS: usize = 110;

/// One setting as a person reads of it.
pub(super) struct Entry {
    section: &'static str,
    name: &'static str,
    doc: String,
    expected: String,
    default: Option<String>,
    value: Option<String>,
    is_reloaded: bool,
}

impl Entry {
    pub(super) fn of<T: Value>(
        section: &'static str,
        name: &'static str,
        doc: &[&str],
        default: &T,
        value: &T,
        limit: &impl Limit<T>,
        is_reloaded: bool,
    ) -> Self {
        Self {
            section,
            name,
            doc: joined(doc),
            expected: limit.expected(),
            default: default.to_toml(),
            value: value.to_toml(),
            is_reloaded,
        }
    }

    fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }
}

/// The settings in force as a TOML file, with the source of each that somebody gave. Secrets read `"(set)"`.
pub fn print(loaded: &Loaded) -> String {
    let entries = loaded.settings.entries();
    sections(&entries, |out, entry| {
        let origin = match loaded.source(&entry.path()) {
            Source::Default => String::new(),
            given => format!("  # {given}"),
        };
        match &entry.value {
            Some(value) => out.push_str(&format!("{} = {value}{origin}\n", entry.name)),
            None => out.push_str(&format!("#{} = \"\"{origin}\n", entry.name)),
        }
    })
}

/// The settings that are not as they are by default, each with its value in TOML. Secrets read `"(set)"`.
pub fn changed(settings: &Settings) -> Vec<(String, String)> {
    let entries = settings.entries();
    let changed = entries.iter().filter(|it| it.value != it.default);
    changed.map(|it| (it.path(), it.value.clone().unwrap_or_default())).collect()
}

/// The sample configuration: every setting with its documentation and its default, commented out.
pub fn sample() -> String {
    let entries = Settings::default().entries();
    let mut out = SAMPLE_HEAD.to_owned();
    for (section, doc) in Settings::SECTIONS {
        out.push('\n');
        comment(&mut out, &joined(doc));
        comment(&mut out, &format!("Read by {}.", in_words(of_section(section))));
        out.push_str(&format!("[{section}]\n"));
        for entry in entries.iter().filter(|entry| entry.section == *section) {
            out.push('\n');
            comment(&mut out, &entry.doc);
            let reloaded = if entry.is_reloaded { " Taken over while running." } else { "" };
            comment(&mut out, &format!("Expects {}.{reloaded}", entry.expected));
            let own = readers(&entry.path());
            if own != of_section(section) {
                comment(&mut out, &format!("Read by {}.", in_words(own)));
            }
            out.push_str(&format!("#{} = {}\n", entry.name, entry.default.as_deref().unwrap_or("\"\"")));
        }
    }
    out
}

/// All settings as a Markdown table: path, default, what is expected, what it does.
pub fn reference() -> String {
    let mut out = "| setting | default | expects | |\n| --- | --- | --- | --- |\n".to_owned();
    for entry in Settings::default().entries() {
        let default = entry.default.as_ref().map_or("none".to_owned(), |default| format!("`{default}`"));
        let cells = [format!("`{}`", entry.path()), default, entry.expected, entry.doc];
        let cells = cells.map(|cell| cell.replace('|', "\\|"));
        out.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    out
}

/// Environment variables of all settings, for `--help` texts and documentation.
pub fn env_names() -> impl Iterator<Item = String> {
    Settings::PATHS.iter().map(|path| env_name(path))
}

fn sections(entries: &[Entry], mut each: impl FnMut(&mut String, &Entry)) -> String {
    let mut out = String::new();
    for (section, _) in Settings::SECTIONS {
        out.push_str(&format!("{}[{section}]\n", if out.is_empty() { "" } else { "\n" }));
        entries.iter().filter(|entry| entry.section == *section).for_each(|entry| each(&mut out, entry));
    }
    out
}

fn joined(doc: &[&str]) -> String {
    doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

fn comment(out: &mut String, text: &str) {
    let mut width_chars = 0;
    for word in text.split(' ') {
        let word_chars = word.chars().count() + 1;
        if width_chars + word_chars > SAMPLE_WIDTH_CHARS {
            out.push('\n');
            width_chars = 0;
        }
        out.push_str(if width_chars == 0 { "# " } else { " " });
        out.push_str(word);
        width_chars += word_chars;
    }
    out.push('\n');
}

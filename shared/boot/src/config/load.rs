//! How settings are gathered from file, environment and flags, and what is wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::limit::Limit;
use super::value::Value;
use super::{Settings, check_together};

/// First part of every environment variable that is a setting.
pub(super) const ENV_PREFIX: &str = "SWITCHBOARD_";

/// Given values are shown in faults up to this length.
const MAX_SHOWN_CHARS: usize = 60;

/// Where settings come from. Weakest first: defaults, `file`, `env`, `overrides`, `flags`.
#[derive(Clone, Default)]
pub struct Sources {
    /// The TOML file, when one is named. It must exist.
    pub file: Option<PathBuf>,
    /// Environment variables; those that do not begin with `SWITCHBOARD_` are passed over.
    pub env: BTreeMap<String, String>,
    /// `KEY=VALUE` of each `--set`; the last one for a key counts.
    pub overrides: Vec<String>,
    /// Flags that have names of their own.
    pub flags: Vec<Flag>,
}

impl Sources {
    /// The variables of this process that are settings; text that is not UTF-8 reads with replacement characters.
    pub fn process_env() -> BTreeMap<String, String> {
        std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .filter(|(name, _)| name.starts_with(ENV_PREFIX))
            .collect()
    }
}

/// A command line flag that stands for one setting.
#[derive(Clone)]
pub struct Flag {
    /// As typed, `--nats`.
    pub name: &'static str,
    /// The setting's path, `nats.url`.
    pub setting: &'static str,
    /// As typed.
    pub value: String,
}

/// Valid settings, and where each came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings in force.
    pub settings: Settings,
    sources: BTreeMap<String, Source>,
}

impl Loaded {
    /// Where the setting at `path` (`mqtt.listen`) got its value.
    pub fn source(&self, path: &str) -> &Source {
        self.sources.get(path).unwrap_or(&Source::Default)
    }
}

/// Where one value was given; weaker sources order before stronger ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Nobody gave it.
    Default,
    /// The configuration file; line 0 is the file as a whole.
    File {
        /// As it was named.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// The environment variable of this name.
    Env(String),
    /// The command line flag of this name.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line: 0 } => write!(f, "{}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// One thing wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// Where it was given.
    pub source: Source,
    /// The setting's path, or what stood in its place; empty when the fault is of the whole source.
    pub setting: String,
    /// What was given, shortened; never a secret, nor the value of an unknown setting, which may be one.
    pub given: Option<String>,
    /// What is wrong, or expected instead.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.source)?;
        match (self.setting.as_str(), &self.given) {
            ("", _) => f.write_str(&self.problem),
            (setting, None) => write!(f, "{setting}: {}", self.problem),
            (setting, Some(given)) => write!(f, "{setting} = {given}: {}", self.problem),
        }
    }
}

/// Everything wrong with the configuration, in the order of its sources; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl std::error::Error for Faults {}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("the configuration has a fault:")?,
            faults => write!(f, "the configuration has {faults} faults:")?,
        }
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl Settings {
    /// The settings that all sources together give, strongest first.
    ///
    /// # Errors
    /// Every fault of every source, a value that a stronger source overrides included.
    pub fn load(sources: &Sources) -> Result<Loaded, Faults> {
        let mut reader = Reader::default();
        let text = sources.file.as_deref().and_then(|path| reader.open(path));
        // The file's own values are borrowed from its parsed form.
        let (table, errors) = DeTable::parse_recoverable(text.as_deref().unwrap_or_default());
        if let (Some(path), Some(text)) = (&sources.file, &text) {
            let file = File { path, text };
            for error in errors {
                let source = file.at(error.span().map_or(0, |span| span.start));
                reader.fault(source, "", None, format!("not TOML: {}", error.message()));
            }
            reader.gather_file(&file, table.get_ref());
        }
        reader.gather_env(&sources.env);
        reader.gather_flags(&sources.overrides, &sources.flags);

        let settings = Settings::read(&mut reader);
        let Reader { mut faults, sources, faulty, .. } = reader;
        check_together(&settings, &mut Checks::new(&sources, &faulty, &mut faults));
        if faults.is_empty() {
            return Ok(Loaded { settings, sources });
        }
        faults.sort();
        faults.dedup();
        Err(Faults(faults))
    }
}

/// The environment variable of a setting: `mqtt.listen` is `SWITCHBOARD_MQTT__LISTEN`.
pub fn env_name(path: &str) -> String {
    format!("{ENV_PREFIX}{}", path.replace('.', "__").to_uppercase())
}

/// What was given for each setting, while it is being read.
#[derive(Default)]
pub(super) struct Reader<'a> {
    /// By setting, weakest first.
    given: BTreeMap<&'static str, Vec<Given<'a>>>,
    sources: BTreeMap<String, Source>,
    faults: Vec<Fault>,
    faulty: BTreeSet<&'static str>,
}

struct Given<'a> {
    source: Source,
    shown: String,
    raw: Raw<'a>,
}

enum Raw<'a> {
    Toml(&'a DeValue<'a>),
    Text(&'a str),
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    fn at(&self, offset: usize) -> Source {
        let before = self.text.get(..offset).unwrap_or(self.text);
        Source::File { path: self.path.to_owned(), line: before.matches('\n').count() + 1 }
    }
}

impl<'a> Reader<'a> {
    /// The value of one setting: the strongest given that is valid, or its default.
    pub(super) fn take<T: Value>(&mut self, path: &'static str, default: T, limit: &impl Limit<T>) -> T {
        let mut value = default;
        for given in self.given.remove(path).unwrap_or_default() {
            let read = match given.raw {
                Raw::Toml(raw) => T::from_toml(raw),
                Raw::Text(raw) => T::from_text(raw),
            };
            match read.filter(|read| limit.admits(read)) {
                Some(read) => {
                    value = read;
                    self.sources.insert(path.to_owned(), given.source);
                }
                None => {
                    self.faulty.insert(path);
                    let shown = if T::SECRET { "(hidden)".to_owned() } else { given.shown };
                    self.fault(given.source, path, Some(shown), format!("expected {}", limit.expected()));
                }
            }
        }
        value
    }

    fn open(&mut self, path: &Path) -> Option<String> {
        std::fs::read_to_string(path)
            .map_err(|error| {
                let source = Source::File { path: path.to_owned(), line: 0 };
                self.fault(source, "", None, format!("cannot be read: {error}"));
            })
            .ok()
    }

    fn gather_file(&mut self, file: &File<'_>, table: &'a DeTable<'a>) {
        for (section, settings) in table {
            let name = section.get_ref().as_ref();
            let Some((known, _)) = Settings::SECTIONS.iter().find(|(known, _)| *known == name) else {
                self.unknown(file.at(section.span().start), name, "section");
                continue;
            };
            let Some(settings) = settings.get_ref().as_table() else {
                let source = file.at(section.span().start);
                self.fault(source, known, None, format!("expected a section, as [{known}]"));
                continue;
            };
            for (key, value) in settings {
                self.gather_setting(file, &format!("{name}.{}", key.get_ref()), key, value);
            }
        }
    }

    fn gather_setting(
        &mut self,
        file: &File<'_>,
        path: &str,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &'a Spanned<DeValue<'a>>,
    ) {
        let source = file.at(key.span().start);
        let Some(path) = known(path) else { return self.unknown(source, path, "setting") };
        let shown = shown(file.text.get(value.span()).unwrap_or_default());
        self.given.entry(path).or_default().push(Given { source, shown, raw: Raw::Toml(value.get_ref()) });
    }

    /// Variables without `__` are other people's: Kubernetes sets `SWITCHBOARD_SERVICE_HOST` and the like beside a
    /// service of that name. They are refused only when they come close to a setting.
    fn gather_env(&mut self, env: &'a BTreeMap<String, String>) {
        for (name, value) in env {
            let Some(rest) = name.strip_prefix(ENV_PREFIX) else { continue };
            let path = rest.to_lowercase().replacen("__", ".", 1);
            match known(&path).filter(|path| env_name(path) == *name) {
                Some(path) => self.give_text(path, Source::Env(name.clone()), value),
                None => {
                    let similar = Settings::PATHS
                        .iter()
                        .map(|path| env_name(path))
                        .filter(|candidate| {
                            candidate
                                .strip_prefix(ENV_PREFIX)
                                .is_some_and(|known| closeness(known, rest).is_some())
                        })
                        .min_by_key(|candidate| strsim::damerau_levenshtein(candidate, name));
                    if similar.is_some() || rest.contains("__") {
                        let hint = similar.map(|similar| format!("; did you mean {similar}?"));
                        let problem = format!("no such setting{}", hint.unwrap_or_default());
                        self.fault(Source::Env(name.clone()), "", None, problem);
                    }
                }
            }
        }
    }

    fn gather_flags(&mut self, overrides: &'a [String], flags: &'a [Flag]) {
        for given in overrides {
            let Some((key, value)) = given.split_once('=') else {
                let source = Source::Flag("--set".to_owned());
                self.fault(
                    source,
                    given,
                    None,
                    "expected KEY=VALUE, as mqtt.listen=127.0.0.1:1884".to_owned(),
                );
                continue;
            };
            let key = key.trim();
            let source = Source::Flag(format!("--set {key}"));
            match known(key) {
                Some(path) => self.give_text(path, source, value),
                None => self.unknown(Source::Flag("--set".to_owned()), key, "setting"),
            }
        }
        for flag in flags {
            self.give_text(flag.setting, Source::Flag(flag.name.to_owned()), &flag.value);
        }
    }

    fn give_text(&mut self, path: &'static str, source: Source, value: &'a str) {
        let shown = shown(&format!("{value:?}"));
        self.given.entry(path).or_default().push(Given { source, shown, raw: Raw::Text(value) });
    }

    fn unknown(&mut self, source: Source, name: &str, what: &str) {
        let similar = similar(name, what);
        let hint = if similar.is_empty() {
            String::new()
        } else {
            format!("; did you mean {}?", similar.join(" or "))
        };
        self.fault(source, name, None, format!("no such {what}{hint}"));
    }

    fn fault(&mut self, source: Source, setting: &str, given: Option<String>, problem: String) {
        self.faults.push(Fault { source, setting: setting.to_owned(), given, problem });
    }
}

/// Conditions on several settings; a setting that is faulty by itself is asked nothing more.
pub(super) struct Checks<'r> {
    sources: &'r BTreeMap<String, Source>,
    faulty: &'r BTreeSet<&'static str>,
    faults: &'r mut Vec<Fault>,
}

impl<'r> Checks<'r> {
    pub(super) fn new(
        sources: &'r BTreeMap<String, Source>,
        faulty: &'r BTreeSet<&'static str>,
        faults: &'r mut Vec<Fault>,
    ) -> Self {
        Checks { sources, faulty, faults }
    }

    pub(super) fn at_most<N: Into<u64>>(
        &mut self,
        (lower, value): (&'static str, N),
        (upper, bound): (&'static str, N),
    ) {
        let (value, bound) = (value.into(), bound.into());
        // Whoever was told last hears of it: often the bound was lowered below an untouched default.
        let (told, other) =
            if self.source(lower) >= self.source(upper) { (lower, upper) } else { (upper, lower) };
        let (given, relation, other_value) =
            if told == lower { (value, "at most", bound) } else { (bound, "at least", value) };
        let problem = format!("expected {relation} {other}, which is {other_value} ({})", self.source(other));
        self.check(&[told, other], value <= bound, Some(given.to_string()), problem);
    }

    /// Reports the first of `paths` unless `holds`; `problem` is what it lacks.
    pub(super) fn holds(&mut self, paths: &[&'static str], holds: bool, problem: &str) {
        self.check(paths, holds, None, problem.to_owned());
    }

    fn check(&mut self, paths: &[&'static str], holds: bool, given: Option<String>, problem: String) {
        let Some(told) = paths.first().filter(|_| !holds) else { return };
        if !paths.iter().any(|path| self.faulty.contains(path)) {
            let source = self.source(told).clone();
            self.faults.push(Fault { source, setting: (*told).to_owned(), given, problem });
        }
    }

    fn source(&self, path: &str) -> &Source {
        self.sources.get(path).unwrap_or(&Source::Default)
    }
}

fn known(path: &str) -> Option<&'static str> {
    Settings::PATHS.iter().copied().find(|known| *known == path)
}

/// A given value as a fault shows it: short, and without what stands before an `@`, which may be a password.
fn shown(given: &str) -> String {
    let safe = match given.rsplit_once('@') {
        Some((_, host)) => format!("(hidden)@{host}"),
        None => given.replace('\n', " "),
    };
    if safe.chars().count() <= MAX_SHOWN_CHARS {
        return safe;
    }
    safe.chars().take(MAX_SHOWN_CHARS).chain(['…']).collect()
}

/// Up to two names that a person who typed `name` may have meant, the likeliest first.
fn similar(name: &str, what: &str) -> Vec<String> {
    let mut ranked: Vec<(usize, &str)> = if what == "section" {
        let sections =
            Settings::SECTIONS.iter().filter_map(|(section, _)| Some((closeness(section, name)?, *section)));
        let moved = Settings::PATHS.iter().filter(|path| leaf(path) == name).map(|path| (1, *path));
        sections.chain(moved).collect()
    } else {
        Settings::PATHS.iter().filter_map(|path| Some((path_closeness(path, name)?, *path))).collect()
    };
    ranked.sort();
    ranked.into_iter().take(2).map(|(_, name)| name.to_owned()).collect()
}

/// 0: the closest. A forgotten unit (`drain` for `drain_ms`) and a wrong section are close too.
fn path_closeness(known: &str, given: &str) -> Option<usize> {
    let same_section = section(known) == section(given);
    if same_section && leaf(known).strip_prefix(leaf(given)).is_some_and(|rest| rest.starts_with('_')) {
        return Some(0);
    }
    if same_section {
        return closeness(leaf(known), leaf(given));
    }
    (leaf(known) == leaf(given)).then_some(1).or_else(|| closeness(known, given))
}

fn closeness(known: &str, given: &str) -> Option<usize> {
    let distance = strsim::damerau_levenshtein(known, given);
    (distance <= (known.len() / 4).clamp(1, 3)).then_some(distance)
}

fn section(path: &str) -> &str {
    path.split_once('.').map_or("", |(section, _)| section)
}

fn leaf(path: &str) -> &str {
    path.rsplit_once('.').map_or(path, |(_, leaf)| leaf)
}

//! Which policies does a tenant have? Read, validated against the schema, and evaluated; with the place of each.

use std::fmt;

use cedar_policy::{
    Authorizer, Decision, Effect, Policy, PolicyId, PolicySet as CedarSet, ValidationError, ValidationMode,
    Validator,
};
use miette::Diagnostic;

use super::facts::{Action, Caller, Context, Facts, words};
use super::footprint::Footprint;
use super::sieve::Sieve;

/// The most bytes of all texts of a tenant.
pub const MAX_SET_BYTES: usize = 256 * 1024;
/// The most policies of a tenant.
pub const MAX_POLICIES: usize = 1_000;
/// The longest policy, in bytes: it bounds what its evaluation costs, and how deep its expressions can be.
pub const MAX_POLICY_BYTES: usize = 4 * 1024;
/// The deepest nesting of brackets in a policy.
pub const MAX_NESTING: usize = 32;
/// The longest name of a text.
pub const MAX_FILE_NAME_CHARS: usize = 63;
/// Faults that are told of one set.
const MAX_FAULTS: usize = 20;
/// Reading is recursive: what the limits above let through fits into this, in bytes.
const READING_STACK_BYTES: usize = 64 * 1024 * 1024;

/// What holds for a tenant without policies, as a policy: where a tenant's own begin.
pub const BUILT_IN: &str = "\
// Devices of one customer may call and list each other.
@id(\"same-customer\")
permit (principal is Device, action, resource)
when {
  principal has customer && resource has customer &&
  principal.customer == resource.customer
};
";

/// Something in a text that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Which text.
    pub file: String,
    /// From 1; 0 when it is about the whole text.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub problem: String,
    /// What to write instead, where that can be said.
    pub instead: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}", self.problem)?;
        match &self.instead {
            Some(instead) => write!(f, "\n  {instead}"),
            None => Ok(()),
        }
    }
}

/// Where a policy stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// Which text.
    pub file: String,
    /// Its first line, from 1.
    pub line: usize,
    /// Its annotation `@id`.
    pub name: Option<String>,
    /// `permit`, else `forbid`.
    pub is_permit: bool,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let effect = if self.is_permit { "permit" } else { "forbid" };
        write!(f, "{effect} {}:{}", self.file, self.line)?;
        match &self.name {
            Some(name) => write!(f, " {name:?}"),
            None => Ok(()),
        }
    }
}

/// What came of one evaluation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is allowed.
    pub is_allowed: bool,
    /// The policies that decided; none when no policy permits.
    pub determining: Vec<PolicyId>,
    /// Policies that could not be evaluated: each of them denies.
    pub failed: Vec<PolicyId>,
}

/// A tenant's policies, ready to be asked.
pub struct PolicySet {
    /// In the order of the texts.
    policies: Vec<Ready>,
    footprint: Footprint,
    authorizer: Authorizer,
}

/// One policy, ready to be asked.
struct Ready {
    id: PolicyId,
    source: Source,
    policy: Policy,
    /// Which of [`Action::ALL`] it speaks of.
    speaks_of: [bool; Action::ALL.len()],
    sieve: Sieve,
    /// It alone: Cedar evaluates every policy of a set, and most say nothing to a question.
    alone: CedarSet,
}

impl fmt::Debug for PolicySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicySet").field("policies", &self.policies.len()).finish_non_exhaustive()
    }
}

impl PolicySet {
    /// Reads and validates texts, each with its name. May take a second for the largest: not for a loop that serves.
    ///
    /// # Errors
    /// All that is wrong with them, by place.
    pub fn read(texts: &[(String, String)]) -> Result<PolicySet, Vec<Fault>> {
        std::thread::scope(|scope| {
            let reader = std::thread::Builder::new().stack_size(READING_STACK_BYTES);
            let read = reader.spawn_scoped(scope, || read(texts)).map(|reading| reading.join());
            match read {
                Ok(Ok(read)) => read,
                _ => Err(vec![about("set", "it cannot be read: no thread, or its reader failed")]),
            }
        })
    }

    /// Asks the policies themselves. An application, in whose scope the target is, may what none of them forbids.
    pub fn evaluate<'a>(
        &self,
        caller: impl Into<Caller<'a>>,
        action: Action,
        target: &Facts,
        context: &Context,
    ) -> Verdict {
        let caller = caller.into();
        let relevant = self.speaking_of(action).filter(|it| it.sieve.passes(caller, target, context));
        self.judge(relevant, caller, action, target, context)
    }

    /// The same without the sieve, for a test that it leaves out nothing.
    pub fn evaluate_all<'a>(
        &self,
        caller: impl Into<Caller<'a>>,
        action: Action,
        target: &Facts,
        context: &Context,
    ) -> Verdict {
        self.judge(self.speaking_of(action), caller.into(), action, target, context)
    }

    fn judge<'a>(
        &self,
        policies: impl Iterator<Item = &'a Ready>,
        caller: Caller<'_>,
        action: Action,
        target: &Facts,
        context: &Context,
    ) -> Verdict {
        let (mut permits, mut forbids, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        let denied = || Verdict { is_allowed: false, determining: Vec::new(), failed: Vec::new() };
        let mut policies = policies.peekable();
        let is_permitted = caller.app().is_some();
        if policies.peek().is_none() {
            return Verdict { is_allowed: is_permitted, ..denied() };
        }
        let question = words().and_then(|words| words.question(caller, action, target, context));
        let Some((request, entities)) = question else { return denied() };
        for Ready { id, source, alone, .. } in policies {
            let response = self.authorizer.is_authorized(&request, alone, &entities);
            let diagnostics = response.diagnostics();
            let kind = match diagnostics.errors().next() {
                Some(_) => &mut failed,
                None if diagnostics.reason().next().is_none() => continue,
                None if source.is_permit => &mut permits,
                None => &mut forbids,
            };
            kind.push(id.clone());
        }
        Verdict {
            // Cedar would skip a policy that fails; it could be one that forbids.
            is_allowed: (is_permitted || !permits.is_empty()) && forbids.is_empty() && failed.is_empty(),
            determining: if forbids.is_empty() { permits } else { forbids },
            failed,
        }
    }

    fn speaking_of(&self, action: Action) -> impl Iterator<Item = &Ready> {
        let is_it = move |ready: &&Ready| {
            let mut all = Action::ALL.into_iter().zip(ready.speaks_of);
            all.any(|(other, speaks)| speaks && other == action)
        };
        self.policies.iter().filter(is_it)
    }

    /// Where a policy stands.
    pub fn source(&self, id: &PolicyId) -> Option<&Source> {
        self.policies.iter().find(|ready| ready.id == *id).map(|ready| &ready.source)
    }

    /// Every policy that speaks of an action, in the order of the texts.
    pub fn policies(&self, action: Action) -> impl Iterator<Item = (&Source, &Policy)> {
        self.speaking_of(action).map(|ready| (&ready.source, &ready.policy))
    }

    /// Where all policies stand.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.policies.iter().map(|ready| &ready.source)
    }

    /// How many policies there are.
    pub fn len(&self) -> usize {
        self.policies.len()
    }

    /// Whether there is none: then nothing is allowed.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// What they look at.
    pub fn footprint(&self) -> &Footprint {
        &self.footprint
    }
}

fn about(file: &str, problem: impl Into<String>) -> Fault {
    Fault { file: file.to_owned(), line: 0, column: 0, problem: problem.into(), instead: None }
}

/// Whether a text may have this name: it stands in places, as `rooms:12`.
///
/// # Errors
/// What it must be.
pub fn check_file_name(name: &str) -> Result<(), String> {
    let fits = (1..=MAX_FILE_NAME_CHARS).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    match fits {
        true => Ok(()),
        false => {
            Err(format!("the name of a policy must be 1 to {MAX_FILE_NAME_CHARS} of A-Z a-z 0-9 and -_."))
        }
    }
}

fn read(texts: &[(String, String)]) -> Result<PolicySet, Vec<Fault>> {
    let bytes: usize = texts.iter().map(|(_, text)| text.len()).sum();
    if bytes > MAX_SET_BYTES {
        let problem = format!("{bytes} bytes of policies: a tenant may have at most {MAX_SET_BYTES}");
        return Err(vec![about("set", problem)]);
    }
    let Some(words) = words() else { return Err(vec![about("set", "the schema cannot be read")]) };
    let validator = Validator::new(words.schema.clone());
    let mut faults = Vec::new();
    let mut ready = Vec::new();
    let mut footprint = Footprint::default();
    for (file, text) in texts {
        if let Err(expected) = check_file_name(file) {
            faults.push(about(file, expected));
            continue;
        }
        if let Err(fault) = check_shape(file, text) {
            faults.push(fault);
            continue;
        }
        let set: CedarSet = match text.parse() {
            Ok(set) => set,
            Err(errors) => {
                let errors: &cedar_policy::ParseErrors = &errors;
                faults.extend(errors.iter().map(|error| fault(file, text, error, None)));
                continue;
            }
        };
        if set.templates().next().is_some() {
            let problem = "it has a template (?principal or ?resource): each policy must be whole";
            faults.push(about(file, problem));
            continue;
        }
        let checked = validator.validate(&set, ValidationMode::Strict);
        faults.extend(checked.validation_errors().map(|error| fault(file, text, error, advice(error))));
        let mut passed = 0;
        let mut policies: Vec<_> = set.policies().collect();
        // `policy7`: numbered in the order of the text.
        policies
            .sort_by_key(|policy| policy.id().to_string().trim_start_matches("policy").parse::<usize>().ok());
        for policy in policies {
            let written = policy.to_cedar().unwrap_or_default();
            let rest = text.get(passed..).unwrap_or_default();
            let start = passed + rest.find(&written).unwrap_or_default();
            passed = start + written.len();
            let (line, column) = place(text, start);
            let source = Source {
                file: file.clone(),
                line,
                name: policy.annotation("id").map(str::to_owned),
                is_permit: policy.effect() == Effect::Permit,
            };
            if written.len() > MAX_POLICY_BYTES {
                let problem =
                    format!("a policy of {} bytes: at most {MAX_POLICY_BYTES} are taken", written.len());
                faults.push(Fault { file: file.clone(), line, column, problem, instead: None });
                continue;
            }
            let Ok(tree) = policy.to_pst() else {
                faults.push(Fault { line, column, ..about(file, "this policy cannot be taken apart") });
                continue;
            };
            footprint.add(tree.body());
            let id = PolicyId::new(format!("{file}#{}", ready.len()));
            let (policy, sieve) = (policy.new_id(id.clone()), Sieve::of(tree.body()));
            let mut alone = CedarSet::new();
            if let Err(error) = alone.add(policy.clone()) {
                faults.push(Fault { line, column, ..about(file, error.to_string()) });
            }
            let speaks_of = Action::ALL.map(|action| speaks_of(&policy, action));
            ready.push(Ready { id, source, policy, speaks_of, sieve, alone });
        }
    }
    if ready.len() > MAX_POLICIES {
        let problem = format!("{} policies: a tenant may have at most {MAX_POLICIES}", ready.len());
        faults.push(about("set", problem));
    }
    if !faults.is_empty() {
        faults.truncate(MAX_FAULTS);
        return Err(faults);
    }
    Ok(PolicySet { policies: ready, footprint, authorizer: Authorizer::new() })
}

fn speaks_of(policy: &Policy, action: Action) -> bool {
    use cedar_policy::ActionConstraint;
    let is_it = |uid: &cedar_policy::EntityUid| uid.id().unescaped() == action.as_str();
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::In(actions) => actions.iter().any(is_it),
        ActionConstraint::Eq(uid) => is_it(&uid),
    }
}

/// What must hold before a recursive reader may see a text: bounded nesting, and no statement without an end.
fn check_shape(file: &str, text: &str) -> Result<(), Fault> {
    let (mut depth, mut statement, mut in_string, mut in_comment, mut escaped) = (0, 0, false, false, false);
    let mut before = ' ';
    for (start, it) in text.char_indices() {
        let fault = |problem: String| {
            let (line, column) = place(text, start);
            Err(Fault { file: file.to_owned(), line, column, problem, instead: None })
        };
        match it {
            '\n' if in_comment => in_comment = false,
            _ if in_comment => {}
            '\\' if in_string && !escaped => escaped = true,
            '"' if !escaped => in_string = !in_string,
            _ if in_string => escaped = false,
            '/' if before == '/' => in_comment = true,
            '(' | '[' | '{' => {
                depth += 1;
                if depth > MAX_NESTING {
                    return fault(format!("brackets are nested deeper than {MAX_NESTING}"));
                }
            }
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            ';' => statement = 0,
            _ => {}
        }
        if it != '\\' {
            escaped = false;
        }
        before = it;
        // Comments do not count, nor the spaces in front of a policy.
        if !in_comment && !(statement == 0 && (it.is_whitespace() || it == ';')) {
            statement += it.len_utf8();
        }
        if statement > MAX_POLICY_BYTES {
            return fault(format!("a policy is longer than {MAX_POLICY_BYTES} bytes"));
        }
    }
    Ok(())
}

fn fault(file: &str, text: &str, error: &dyn Diagnostic, advice: Option<String>) -> Fault {
    let start = error.labels().and_then(|mut labels| labels.next()).map(|label| label.offset());
    let (line, column) = start.map_or((0, 0), |start| place(text, start));
    // Cedar puts `for policy `policy0`, ` in front; the place says it better.
    let problem = error.to_string();
    let problem = match problem.split_once("`, ") {
        Some((front, rest)) if front.starts_with("for policy `") => rest.to_owned(),
        _ => problem,
    };
    let expected = error.labels().and_then(|mut labels| labels.next()?.label().map(str::to_owned));
    let problem = match expected {
        Some(expected) if !problem.contains(&expected) => format!("{problem}: {expected}"),
        _ => problem,
    };
    let instead = advice.or_else(|| error.help().map(|help| help.to_string()));
    Fault { file: file.to_owned(), line, column, problem, instead }
}

/// What to write instead, where we know it better than Cedar.
fn advice(error: &ValidationError) -> Option<String> {
    Some(match error {
        ValidationError::UnsafeTagAccess(_) => {
            "a device may lack the label: write x.hasTag(\"label\") && x.getTag(\"label\") == …".to_owned()
        }
        ValidationError::UnsafeOptionalAttributeAccess(_) => {
            "a device may have no customer: write x has customer && x.customer == …".to_owned()
        }
        ValidationError::UnsafeAttributeAccess(_) => {
            "principal and resource have: name, type, customer, and labels by \
             hasTag and getTag; context has: method, protocol, oneway, timeout, size, hour, weekday. Of a \
             principal that may be an App too, say `principal is Device` first"
                .to_owned()
        }
        ValidationError::UnrecognizedActionId(_) => {
            "the actions are Action::\"call\" and Action::\"list\"".to_owned()
        }
        ValidationError::UnrecognizedEntityType(_) => {
            "the types are Device::\"<id>\", Customer::\"<id>\", Group::\"<label>=<value>\", App::\"<id>\""
                .to_owned()
        }
        ValidationError::NoTagsAllowed(_) => {
            "only devices have labels: write principal is Device in the scope of the policy".to_owned()
        }
        _ => return None,
    })
}

/// Line and column of a byte, both from 1.
fn place(text: &str, start: usize) -> (usize, usize) {
    let before = text.get(..start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

/// Whether one policy's text, a permit, permits; none when it cannot be evaluated.
pub(super) fn holds(
    text: &str,
    caller: Caller<'_>,
    action: Action,
    target: &Facts,
    context: &Context,
) -> Option<bool> {
    let (request, entities) = words()?.question(caller, action, target, context)?;
    let set: CedarSet = text.parse().ok()?;
    let response = Authorizer::new().is_authorized(&request, &set, &entities);
    let has_failed = response.diagnostics().errors().next().is_some();
    (!has_failed).then(|| response.decision() == Decision::Allow)
}

//! System call filters, see seccomp(2).
//!
//! A [`Policy`] is the list of rules as docker and the OCI runtime spec write it; [`Policy::compile`] turns it into
//! the program that the kernel runs before each system call. What a rule means:
//!
//! * A system call that no rule matches gets the default action.
//! * The conditions of one rule must all hold. Where several rules match, the most restrictive action wins, whatever
//!   their order (the kernel's own order between filters: kill, trap, errno, trace, log, allow); of equals the first.
//! * Arguments are compared in full, 64 bits. A rule that *refuses* compares the lower half alone when the value fits
//!   into it: most arguments are `int`s of which the kernel ignores the upper half, so a refusal that looked at it
//!   could be stepped around with one stray bit (CVE-2019-10063).
//! * A rule may depend on the capabilities that the container keeps, on the instruction set and on the kernel.
//!
//! On x86_64 the 32-bit calls (`int 0x80`) have a table of their own in the same program, on aarch64 those of 32-bit
//! ARM. The x32 interface is refused (with `ENOSYS`, or the default if that is stricter), and any other
//! instruction set ends the process.
//!
//! Calls that are newer than the whole policy get `ENOSYS` where the default is an error number: a C library takes that
//! as "not there, use the older call", but gives up at `EPERM`.

mod assemble;
mod docker;
mod document;
mod spec;
mod tables;

pub use tables::Arch;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use super::CapabilitySet;
use crate::probe::KernelVersion;
use crate::{Error, ErrorKind, Result};

/// What happens to a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Action {
    /// It is made.
    Allow,
    /// It is made, and written to the audit log.
    Log,
    /// A tracer decides, and gets this number; without a tracer the call fails with `ENOSYS`.
    Trace(u16),
    /// It fails with this error number, see errno(3).
    Errno(u16),
    /// The thread gets SIGSYS.
    Trap,
    /// The thread is killed.
    KillThread,
    /// The process is killed.
    KillProcess,
}

impl Action {
    /// The value that a filter program returns, see seccomp(2).
    pub const fn value(self) -> u32 {
        match self {
            Action::KillProcess => 0x8000_0000,
            Action::KillThread => 0,
            Action::Trap => 0x0003_0000,
            Action::Errno(errno) => 0x0005_0000 | errno as u32,
            Action::Trace(number) => 0x7ff0_0000 | number as u32,
            Action::Log => 0x7ffc_0000,
            Action::Allow => 0x7fff_0000,
        }
    }

    /// Smaller is more restrictive. The kernel compares the upper halves as signed numbers.
    const fn rank(self) -> i32 {
        (self.value() & 0xffff_0000) as i32
    }

    /// Whether the call may be made at all.
    const fn permits(self) -> bool {
        matches!(self, Action::Allow | Action::Log | Action::Trace(_))
    }
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Comparison {
    /// Is another value.
    NotEqual,
    /// Is less.
    Less,
    /// Is less or the same.
    LessOrEqual,
    /// Is the same value.
    Equal,
    /// Is the same or greater.
    GreaterOrEqual,
    /// Is greater.
    Greater,
    /// Its bits in this mask are the value.
    MaskedEqual(u64),
}

/// One condition on one argument; numbers are unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Condition {
    /// Which argument, 0 to 5.
    pub argument: u8,
    /// How it is compared.
    pub comparison: Comparison,
    /// With what.
    pub value: u64,
}

/// When a rule takes part at all. An empty list is no requirement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    /// Capabilities that the container keeps.
    pub capabilities: CapabilitySet,
    /// The machine's instruction set, by Go's names (`amd64`, `arm64`).
    pub architectures: Vec<Cow<'static, str>>,
    /// The kernel is at least this one.
    pub kernel: Option<KernelVersion>,
}

/// What happens to some system calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Their names. A name that no table has is passed over in a rule that allows, and an error in one that is stricter
    /// than the default.
    pub names: Vec<Cow<'static, str>>,
    /// What happens.
    pub action: Action,
    /// All must hold; none means always.
    pub conditions: Vec<Condition>,
    /// The rule takes part only where *all* of these hold.
    pub includes: Selector,
    /// The rule takes no part where *any* of these holds.
    pub excludes: Selector,
}

impl Rule {
    /// The action for these calls, whatever their arguments.
    pub fn always(action: Action, names: impl IntoIterator<Item = &'static str>) -> Rule {
        Rule {
            names: names.into_iter().map(Cow::Borrowed).collect(),
            action,
            conditions: Vec::new(),
            includes: Selector::default(),
            excludes: Selector::default(),
        }
    }

    fn takes_part(&self, target: &Target) -> bool {
        let is_here = |list: &[Cow<'static, str>]| list.iter().any(|name| name == target.arch.go_name());
        let new_enough = |kernel: Option<KernelVersion>| kernel.is_some_and(|kernel| target.kernel >= kernel);
        let (includes, excludes) = (&self.includes, &self.excludes);
        let included = target.capabilities.contains_all(includes.capabilities)
            && (includes.architectures.is_empty() || is_here(&includes.architectures))
            && (includes.kernel.is_none() || new_enough(includes.kernel));
        let excluded = !target.capabilities.intersection(excludes.capabilities).is_empty()
            || is_here(&excludes.architectures)
            || new_enough(excludes.kernel);
        included && !excluded
    }
}

/// For whom a policy is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target {
    /// The machine's instruction set.
    pub arch: Arch,
    /// The release of its kernel.
    pub kernel: KernelVersion,
    /// What the container keeps (its bounding set).
    pub capabilities: CapabilitySet,
}

/// Rules for system calls.
///
/// ```
/// use coracle::probe::KernelVersion;
/// use coracle::security::seccomp::{Arch, Policy, Target};
/// use coracle::security::CapabilitySet;
///
/// let target = Target {
///     arch: Arch::X86_64,
///     kernel: KernelVersion::new(6, 1),
///     capabilities: CapabilitySet::DOCKER_2026_11,
/// };
/// let program = Policy::docker_2026_11().compile(&target)?;
/// assert_eq!(program.len() % 8, 0);
///
/// // A profile in docker's own format; what cannot be understood is an error, never left out.
/// assert!(Policy::from_json(br#"{"defaultAction": "SCMP_ACT_MAYBE"}"#).is_err());
/// # Ok::<(), coracle::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// What happens to calls that no rule matches.
    pub default: Action,
    /// The rules; their order does not matter.
    pub rules: Vec<Rule>,
    /// Whether the 32-bit interface of the same machine is filtered by the same rules; otherwise a 32-bit call ends the
    /// process.
    pub with_32_bit: bool,
}

/// What happens to one system call: the rules that may match, most restrictive first, each with its conditions. One
/// without conditions ends the list; if there is none, the default does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Verdict<'a> {
    cases: Vec<(&'a [Condition], Action)>,
}

impl Verdict<'_> {
    /// The action, if arguments play no part.
    fn constant(&self, default: Action) -> Option<Action> {
        match self.cases.first() {
            None => Some(default),
            Some(([], action)) => Some(*action),
            Some(_) => None,
        }
    }
}

impl Policy {
    /// Compiles the policy to the kernel's `struct sock_filter` entries: 8 bytes each, in this machine's byte order.
    ///
    /// # Errors
    /// `Invalid` for a rule that is stricter than the default and names a system call that does not exist, and for
    /// conditions on an argument beyond the sixth; `Limit` for a program of more than 4096 instructions.
    pub fn compile(&self, target: &Target) -> Result<Vec<u8>> {
        let mut rules = Vec::new();
        for rule in self.rules.iter().filter(|rule| rule.takes_part(target)) {
            if let Some(wrong) = rule.conditions.iter().find(|condition| condition.argument > 5) {
                return Err(Error::new(ErrorKind::Invalid, "compile a seccomp policy").because(format!(
                    "a rule for {} looks at argument {}, and there are 0 to 5",
                    rule.names.join(", "),
                    wrong.argument
                )));
            }
            rules.push(rule);
        }
        let mut by_name: HashMap<&str, Vec<&Rule>> = HashMap::new();
        for rule in rules {
            for name in &rule.names {
                by_name.entry(name).or_default().push(rule);
            }
        }
        self.check_names(&by_name)?;
        let named: HashSet<&str> = self.rules.iter().flat_map(|rule| rule.names.iter().map(|name| &**name)).collect();
        let mut blocks = Vec::new();
        for arch in target.arch.with_32_bit(self.with_32_bit) {
            // By number: a call may have two names.
            let mut calls: BTreeMap<u32, Vec<&Rule>> = BTreeMap::new();
            let mut newest = None;
            arch.each(&mut |name, number| {
                if named.contains(name) {
                    newest = newest.max(Some(number));
                }
                if let Some(rules) = by_name.get(name) {
                    calls.entry(number).or_default().extend(rules);
                }
            });
            let verdicts = calls.into_iter().map(|(number, rules)| (number, self.verdict(&rules))).collect();
            blocks.push(assemble::Block { arch, verdicts, newest });
        }
        assemble::assemble(self.default, &blocks)
    }

    /// A call that a caller wants refused, and that we cannot name, would be allowed without a word.
    fn check_names(&self, by_name: &HashMap<&str, Vec<&Rule>>) -> Result<()> {
        for (name, rules) in by_name {
            if rules.iter().any(|rule| rule.action.rank() < self.default.rank()) && !tables::is_known(name) {
                return Err(Error::new(ErrorKind::Invalid, "compile a seccomp policy")
                    .because(format!("there is no system call {name:?} to refuse"))
                    .remedy("correct the name, or remove it from the profile"));
            }
        }
        Ok(())
    }

    fn verdict<'a>(&self, rules: &[&'a Rule]) -> Verdict<'a> {
        let mut cases: Vec<(&[Condition], Action)> = Vec::new();
        // Also those of the default action: one that refuses outweighs one that allows the same call.
        for rule in rules {
            let twice = |condition: &Condition| {
                rule.conditions.iter().filter(|other| other.argument == condition.argument).count() > 1
            };
            if rule.conditions.iter().any(twice) {
                // As every runtime reads such a rule: several values of one argument are alternatives.
                cases.extend(rule.conditions.iter().map(|one| (std::slice::from_ref(one), rule.action)));
            } else {
                cases.push((&rule.conditions, rule.action));
            }
        }
        // Stable: of equals the first stays first.
        cases.sort_by_key(|(_, action)| action.rank());
        // Nothing after an unconditional case can be reached.
        if let Some(end) = cases.iter().position(|(conditions, _)| conditions.is_empty()) {
            cases.truncate(end + 1);
        }
        // Behind all the others they say what happens anyway.
        while cases.last().is_some_and(|(_, action)| *action == self.default) {
            cases.pop();
        }
        Verdict { cases }
    }
}

#[cfg(test)]
mod tests;

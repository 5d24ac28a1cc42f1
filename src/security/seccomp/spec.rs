//! Policies as the OCI runtime spec has them (config-linux.md, "Seccomp").

use std::borrow::Cow;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as SpecAction, LinuxSeccompFilterFlag as Flag, LinuxSeccompOperator as Operator,
};

use super::{Action, Arch, Comparison, Condition, Policy, Rule, Selector};
use crate::{Error, ErrorKind, Result};

/// Flags of seccomp(2).
const LOG: u32 = 1 << 1;
const SPEC_ALLOW: u32 = 1 << 2;

fn refuse(field: &str, kind: ErrorKind, why: impl Into<Cow<'static, str>>) -> Error {
    Error::new(kind, format!("honour linux.seccomp.{field} of the container's spec")).because(why)
}

impl Policy {
    /// The policy, and the flags that its program is installed with.
    ///
    /// A list of architectures decides whether the 32-bit interface of this machine is filtered by the same rules; other
    /// interfaces are closed, named or not, which is never weaker. `SECCOMP_FILTER_FLAG_TSYNC` asks for what is so: the
    /// process has one thread when the filter is installed.
    pub(crate) fn from_spec(spec: &LinuxSeccomp) -> Result<(Policy, u32)> {
        if spec.listener_path().is_some() || spec.listener_metadata().is_some() {
            return Err(refuse("listenerPath", ErrorKind::Unsupported, "calls are not handed to another program here"));
        }
        let mut flags = 0;
        for flag in spec.flags().iter().flatten() {
            flags |= match flag {
                Flag::SeccompFilterFlagLog => LOG,
                Flag::SeccompFilterFlagSpecAllow => SPEC_ALLOW,
                Flag::SeccompFilterFlagTsync => 0,
                Flag::SeccompFilterFlagWaitKillableRecv => {
                    let why = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV is about calls that another program answers";
                    return Err(refuse("flags", ErrorKind::Unsupported, why));
                }
            };
        }
        let default = action("defaultAction", "defaultErrnoRet", spec.default_action(), spec.default_errno_ret())?;
        let compat = Arch::native().and_then(Arch::compat).map(Arch::audit);
        let with_32_bit =
            spec.architectures().iter().flatten().any(|named| compat.is_some_and(|compat| *named as u32 == compat));
        let mut rules = vec![];
        for (index, entry) in spec.syscalls().iter().flatten().enumerate() {
            let at = format!("syscalls[{index}]");
            if entry.names().is_empty() {
                return Err(refuse(&format!("{at}.names"), ErrorKind::Invalid, "a rule names no system call"));
            }
            let mut conditions = vec![];
            for (number, argument) in entry.args().iter().flatten().enumerate() {
                let index = u8::try_from(argument.index()).ok().filter(|index| *index < 6).ok_or_else(|| {
                    refuse(&format!("{at}.args[{number}].index"), ErrorKind::Invalid, "arguments are 0 to 5")
                })?;
                let (comparison, value) = match argument.op() {
                    Operator::ScmpCmpNe => (Comparison::NotEqual, argument.value()),
                    Operator::ScmpCmpLt => (Comparison::Less, argument.value()),
                    Operator::ScmpCmpLe => (Comparison::LessOrEqual, argument.value()),
                    Operator::ScmpCmpEq => (Comparison::Equal, argument.value()),
                    Operator::ScmpCmpGe => (Comparison::GreaterOrEqual, argument.value()),
                    Operator::ScmpCmpGt => (Comparison::Greater, argument.value()),
                    // Here the first value is the mask.
                    Operator::ScmpCmpMaskedEq => {
                        (Comparison::MaskedEqual(argument.value()), argument.value_two().unwrap_or(0))
                    }
                };
                conditions.push(Condition { argument: index, comparison, value });
            }
            let (field, errno) = (format!("{at}.action"), format!("{at}.errnoRet"));
            rules.push(Rule {
                names: entry.names().iter().cloned().map(Cow::Owned).collect(),
                action: action(&field, &errno, entry.action(), entry.errno_ret())?,
                conditions,
                includes: Selector::default(),
                excludes: Selector::default(),
            });
        }
        Ok((Policy { default, rules, with_32_bit }, flags))
    }
}

fn action(field: &str, errno_field: &str, action: SpecAction, number: Option<u32>) -> Result<Action> {
    let or_eperm = |most: u16| match number {
        None => Ok(libc::EPERM as u16),
        Some(number) => u16::try_from(number).ok().filter(|number| *number <= most).ok_or_else(|| {
            refuse(
                errno_field,
                ErrorKind::Invalid,
                format!("{number} is more than the {most} that the kernel hands on"),
            )
        }),
    };
    let plain = |action| match number {
        None => Ok(action),
        Some(_) => Err(refuse(errno_field, ErrorKind::Invalid, "the action returns no error number")),
    };
    match action {
        SpecAction::ScmpActKill | SpecAction::ScmpActKillThread => plain(Action::KillThread),
        SpecAction::ScmpActKillProcess => plain(Action::KillProcess),
        SpecAction::ScmpActTrap => plain(Action::Trap),
        SpecAction::ScmpActErrno => or_eperm(4095).map(Action::Errno),
        SpecAction::ScmpActTrace => or_eperm(u16::MAX).map(Action::Trace),
        SpecAction::ScmpActLog => plain(Action::Log),
        SpecAction::ScmpActAllow => plain(Action::Allow),
        SpecAction::ScmpActNotify => Err(refuse(
            field,
            ErrorKind::Unsupported,
            "SCMP_ACT_NOTIFY hands calls to another program, which is not done here",
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(json: &str) -> Result<(Policy, u32)> {
        Policy::from_spec(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn every_action_and_comparison_is_read() {
        let (policy, flags) = read(
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": ["SCMP_ARCH_X86_64"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"],
                "syscalls": [{"names": ["read"], "action": "SCMP_ACT_TRACE", "errnoRet": 65535, "args": [
                    {"index": 5, "value": 18446744073709551615, "valueTwo": 7, "op": "SCMP_CMP_MASKED_EQ"},
                    {"index": 0, "value": 4294967296, "op": "SCMP_CMP_GE"}]},
                    {"names": ["write"], "action": "SCMP_ACT_KILL"}]}"#,
        )
        .unwrap();
        assert_eq!((policy.default, policy.with_32_bit, flags), (Action::Errno(38), false, LOG | SPEC_ALLOW));
        assert_eq!(policy.rules[0].action, Action::Trace(65535));
        assert_eq!(policy.rules[1].action, Action::KillThread);
        let masked = Condition { argument: 5, comparison: Comparison::MaskedEqual(u64::MAX), value: 7 };
        let wide = Condition { argument: 0, comparison: Comparison::GreaterOrEqual, value: 1 << 32 };
        assert_eq!(policy.rules[0].conditions, [masked, wide]);
    }

    #[test]
    fn what_is_not_done_is_named() {
        let rule = |rule: &str| format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}]}}"#);
        for (json, field) in [
            (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#.to_owned(), "seccomp.defaultAction"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}"#.to_owned(), "seccomp.defaultErrnoRet"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}"#.to_owned(), "seccomp.listenerPath"),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}"#
                    .to_owned(),
                "seccomp.flags",
            ),
            (rule(r#"{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}"#), "seccomp.syscalls[0].action"),
            (rule(r#"{"names": [], "action": "SCMP_ACT_ALLOW"}"#), "seccomp.syscalls[0].names"),
            (rule(r#"{"names": ["read"], "action": "SCMP_ACT_KILL", "errnoRet": 1}"#), "seccomp.syscalls[0].errnoRet"),
            (rule(r#"{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096}"#), "syscalls[0].errnoRet"),
            (
                rule(
                    r#"{"names": ["read"], "action": "SCMP_ACT_ERRNO",
                        "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}"#,
                ),
                "syscalls[0].args[0].index",
            ),
        ] {
            let error = read(&json).unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
    }
}

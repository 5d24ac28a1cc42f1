//! Policies in docker's JSON format, which is that of the OCI runtime spec (config-linux.md, "Seccomp") with `archMap`,
//! `includes` and `excludes` added.

use std::borrow::Cow;

use serde::Deserialize;

use super::{Action, Arch, Comparison, Condition, Policy, Rule, Selector};
use crate::probe::KernelVersion;
use crate::security::CapabilitySet;
use crate::{Error, ErrorKind, Result};

/// A profile of a hundred times the size of docker's is not a profile.
const MAX_BYTES: usize = 4 << 20;

/// What a refusal returns where the document does not say; `defaultErrnoRet` is for the default action alone.
const EPERM: u16 = libc::EPERM as u16;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    default_action: String,
    default_errno_ret: Option<u16>,
    /// The same by name, which podman writes.
    default_errno: Option<String>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<ArchEntry>>,
    flags: Option<Vec<String>>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
    syscalls: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ArchEntry {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u16>,
    /// The same by name, which podman writes.
    errno: Option<String>,
    args: Option<Vec<Argument>>,
    includes: Option<Filter>,
    excludes: Option<Filter>,
    #[allow(dead_code, reason = "for people; listed so that other unknown fields are refused")]
    comment: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Argument {
    index: u8,
    value: u64,
    value_two: Option<u64>,
    op: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Filter {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

impl Policy {
    /// Reads a policy in docker's JSON format.
    ///
    /// # Errors
    /// `Invalid` for what is not that format, for actions, comparisons and fields that it does not have, and for
    /// names of capabilities that do not exist. `Unsupported` for `SCMP_ACT_NOTIFY`, which needs a program that
    /// answers. `Limit` beyond 4 MiB.
    pub fn from_json(json: &[u8]) -> Result<Policy> {
        if json.len() > MAX_BYTES {
            return Err(Error::new(ErrorKind::Limit, "read a seccomp profile").because("it is larger than 4 MiB"));
        }
        let document: Document = serde_json::from_slice(json).map_err(|error| {
            Error::new(ErrorKind::Invalid, "read a seccomp profile")
                .because(error.to_string())
                .remedy("a profile in the format of docker's default.json")
        })?;
        if document.listener_path.is_some() || document.listener_metadata.is_some() {
            return Err(unsupported("listenerPath"));
        }
        const FLAGS: [&str; 4] = [
            "SECCOMP_FILTER_FLAG_LOG",
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
            "SECCOMP_FILTER_FLAG_TSYNC",
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
        ];
        // Without these flags a filter is only stricter or quieter, so they are passed over; an unknown one may not be.
        let flags = document.flags.unwrap_or_default();
        if let Some(unknown) = flags.iter().find(|flag| !FLAGS.contains(&flag.as_str())) {
            return Err(invalid(format!("{unknown:?} is no flag of seccomp(2)")));
        }
        let default = action(&document.default_action, errno(document.default_errno_ret, document.default_errno)?)?;
        let with_32_bit = with_32_bit(document.architectures, document.arch_map)?;
        let entries = document.syscalls.unwrap_or_default();
        let rules = entries.into_iter().map(rule).collect::<Result<_>>()?;
        Ok(Policy { default, rules, with_32_bit })
    }
}

/// Whether the document wants the 32-bit interface of this machine filtered rather than closed.
fn with_32_bit(architectures: Option<Vec<String>>, arch_map: Option<Vec<ArchEntry>>) -> Result<bool> {
    let architectures = architectures.unwrap_or_default();
    let arch_map = arch_map.unwrap_or_default();
    if !architectures.is_empty() && !arch_map.is_empty() {
        return Err(invalid("both `architectures` and `archMap` are given"));
    }
    let Some(native) = Arch::native() else { return Ok(false) };
    let Some(compat) = native.compat() else { return Ok(false) };
    let mapped = arch_map.into_iter().find(|entry| entry.architecture == native.scmp_name());
    let mapped = mapped.and_then(|entry| entry.sub_architectures).unwrap_or_default();
    Ok(architectures.iter().chain(&mapped).any(|name| name == compat.scmp_name()))
}

fn rule(entry: Entry) -> Result<Rule> {
    let names = match (entry.name, entry.names.unwrap_or_default()) {
        (Some(_), names) if !names.is_empty() => return Err(invalid("a rule has both `name` and `names`")),
        (Some(name), _) => vec![name],
        (None, names) => names,
    };
    if names.is_empty() {
        return Err(invalid("a rule names no system call"));
    }
    let conditions = entry.args.unwrap_or_default().into_iter().map(condition).collect::<Result<_>>()?;
    Ok(Rule {
        names: names.into_iter().map(Cow::Owned).collect(),
        action: action(&entry.action, errno(entry.errno_ret, entry.errno)?)?,
        conditions,
        includes: selector(entry.includes)?,
        excludes: selector(entry.excludes)?,
    })
}

/// The error number, which may be given by number, by name, by both or not at all.
fn errno(number: Option<u16>, name: Option<String>) -> Result<u16> {
    match (number, name) {
        (Some(number), _) => Ok(number),
        (None, None) => Ok(EPERM),
        (None, Some(name)) => {
            let named = |number: &u16| format!("{:?}", nix::errno::Errno::from_raw(i32::from(*number))) == name;
            (1..=133).find(named).ok_or_else(|| invalid(format!("{name:?} is no error number")))
        }
    }
}

fn action(name: &str, errno: u16) -> Result<Action> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_TRACE" => Action::Trace(errno),
        // The kernel caps what it is given at MAX_ERRNO.
        "SCMP_ACT_ERRNO" => Action::Errno(errno.min(4095)),
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_NOTIFY" => return Err(unsupported("SCMP_ACT_NOTIFY")),
        _ => return Err(invalid(format!("{name:?} is no action"))),
    })
}

fn condition(argument: Argument) -> Result<Condition> {
    let Argument { index, value, value_two, op } = argument;
    if index > 5 {
        return Err(invalid(format!("there is no argument {index}: they are 0 to 5")));
    }
    let (comparison, value) = match op.as_str() {
        "SCMP_CMP_NE" => (Comparison::NotEqual, value),
        "SCMP_CMP_LT" => (Comparison::Less, value),
        "SCMP_CMP_LE" => (Comparison::LessOrEqual, value),
        "SCMP_CMP_EQ" => (Comparison::Equal, value),
        "SCMP_CMP_GE" => (Comparison::GreaterOrEqual, value),
        "SCMP_CMP_GT" => (Comparison::Greater, value),
        // Here the first value is the mask.
        "SCMP_CMP_MASKED_EQ" => (Comparison::MaskedEqual(value), value_two.unwrap_or(0)),
        _ => return Err(invalid(format!("{op:?} is no comparison"))),
    };
    Ok(Condition { argument: index, comparison, value })
}

fn selector(filter: Option<Filter>) -> Result<Selector> {
    let filter = filter.unwrap_or_default();
    let names = filter.caps.unwrap_or_default();
    let capabilities = names.iter().map(|name| name.parse()).collect::<Result<CapabilitySet>>()?;
    let kernel = filter.min_kernel.as_deref().map(|text| {
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        match (major.parse(), minor.parse()) {
            (Ok(major), Ok(minor)) => Ok(KernelVersion::new(major, minor)),
            _ => Err(invalid(format!("{text:?} is no kernel version"))),
        }
    });
    Ok(Selector {
        capabilities,
        architectures: filter.arches.unwrap_or_default().into_iter().map(Cow::Owned).collect(),
        kernel: kernel.transpose()?,
    })
}

fn invalid(cause: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Invalid, "read a seccomp profile").because(cause)
}

fn unsupported(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, "read a seccomp profile")
        .because(format!("{what} hands calls to another program, which is not done here"))
        .remedy("SCMP_ACT_ERRNO instead of SCMP_ACT_NOTIFY")
}

//! How a process is scheduled, judged and labelled, as steps.

use std::path::Path;

use oci_spec::runtime::{
    IOPriorityClass, LinuxPersonalityDomain, LinuxSchedulerFlag as Flag, LinuxSchedulerPolicy as Policy, Process, Spec,
};

use crate::isolation::validate::refused;
use crate::launch::{Op, Plan, Scheduling};
use crate::{ErrorKind, Result};

/// While the process is still whom it was started by: a file of procfs says who may write to it.
pub(super) fn score(plan: &mut Plan, process: &Process) {
    if let Some(score) = process.oom_score_adj() {
        plan.put(Op::OomScore, &score.to_string());
    }
}

/// Before capabilities are dropped.
pub(super) fn standing(plan: &mut Plan, process: &Process) {
    if let Some(scheduler) = process.scheduler() {
        let scheduling = Scheduling {
            policy: match scheduler.policy() {
                Policy::SchedOther => 0,
                Policy::SchedFifo => 1,
                Policy::SchedRr => 2,
                Policy::SchedBatch => 3,
                Policy::SchedIso => 4,
                Policy::SchedIdle => 5,
                Policy::SchedDeadline => 6,
            },
            flags: scheduler.flags().iter().flatten().fold(0, |flags, flag| {
                flags
                    | match flag {
                        Flag::SchedResetOnFork => 0x01,
                        Flag::SchedFlagReclaim => 0x02,
                        Flag::SchedFlagDLOverrun => 0x04,
                        Flag::SchedFlagKeepPolicy => 0x08,
                        Flag::SchedFlagKeepParams => 0x10,
                        Flag::SchedFlagUtilClampMin => 0x20,
                        Flag::SchedFlagUtilClampMax => 0x40,
                    }
            }),
            nice: scheduler.nice().unwrap_or(0),
            priority: scheduler.priority().unwrap_or(0).unsigned_abs(),
            runtime: scheduler.runtime().unwrap_or(0),
            deadline: scheduler.deadline().unwrap_or(0),
            period: scheduler.period().unwrap_or(0),
        };
        plan.scheduler(scheduler.policy().to_string(), scheduling);
    }
    if let Some(priority) = process.io_priority() {
        let class = match priority.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        plan.word(Op::IoPriority, class << 13 | priority.priority() as u32);
    }
}

/// `linux.personality`, as personality(2) takes it.
pub(crate) fn persona(spec: &Spec) -> Option<u32> {
    let personality = spec.linux().as_ref().and_then(|linux| linux.personality().as_ref())?;
    Some(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    })
}

/// A list of processors (`0-3,7`) for a further process of a container, as `execCPUAffinity` has it.
pub(super) fn affinity(plan: &mut Plan, field: &str, list: Option<&str>) -> Result<()> {
    const MOST: usize = 8192;
    let Some(list) = list else { return Ok(()) };
    let invalid = || {
        let field = format!("process.execCPUAffinity.{field}");
        refused(field, ErrorKind::Invalid, format!("{list:?} is no list of processors, e.g. 0-3,7"))
    };
    // The kernel reads whole words.
    let mut mask = vec![0u8; 8];
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) else { return Err(invalid()) };
        if first > last || last >= MOST {
            return Err(invalid());
        }
        mask.resize(mask.len().max((last / 64 + 1) * 8), 0);
        for processor in first..=last {
            mask[processor / 8] |= 1 << (processor % 8);
        }
    }
    plan.affinity(list, &mask);
    Ok(())
}

/// What the security modules are told to do at exec; where the module is not there, that is an error.
pub(super) fn labels(plan: &mut Plan, process: &Process) -> Result<()> {
    let missing = |field: &str, module: &str| {
        refused(format!("process.{field}"), ErrorKind::Unsupported, format!("{module} is not in force on this machine"))
            .remedy("take the label away, or boot with the module")
    };
    let set = |label: &Option<String>| label.clone().filter(|label| !label.is_empty());
    if let Some(profile) = set(process.apparmor_profile()) {
        if !has_apparmor() {
            return Err(missing("apparmorProfile", "AppArmor"));
        }
        let own = Path::new("/proc/thread-self/attr/apparmor/exec").exists();
        let path = if own { "thread-self/attr/apparmor/exec" } else { "thread-self/attr/exec" };
        plan.label(path, &format!("exec {profile}"));
    }
    if let Some(label) = set(process.selinux_label()) {
        if !has_selinux() {
            return Err(missing("selinuxLabel", "SELinux"));
        }
        plan.label("thread-self/attr/exec", &label);
    }
    Ok(())
}

fn has_apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

/// The kernel has its file system only where it was not switched off.
pub(super) fn has_selinux() -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.ends_with("\tselinuxfs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_that_are_none_are_refused() {
        for list in ["", "1-", "3-1", "a", "0-99999", "0,,1", "-1"] {
            let error = affinity(&mut Plan::new(0), "initial", Some(list)).err().map(|error| error.to_string());
            assert!(error.is_some_and(|error| error.contains("process.execCPUAffinity.initial")), "{list}");
        }
        assert!(affinity(&mut Plan::new(0), "final", Some("0-3,64")).is_ok());
    }
}

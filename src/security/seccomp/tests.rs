#![allow(clippy::unwrap_used, clippy::panic)]

use proptest::prelude::*;

use super::assemble::*;
use super::*;
use crate::security::Capability;

// ---- a machine for filter programs ---------------------------------------------------------------------------------

/// `struct seccomp_data` without the instruction pointer.
#[derive(Debug, Clone, Copy)]
struct Call {
    arch: u32,
    number: u32,
    arguments: [u64; 6],
}

fn call(arch: Arch, number: u32, arguments: &[u64]) -> Call {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    Call { arch: arch.audit(), number, arguments: all }
}

fn decode(program: &[u8]) -> Vec<Instruction> {
    let decode = |bytes: &[u8]| Instruction {
        code: u16::from_ne_bytes([bytes[0], bytes[1]]),
        jt: bytes[2],
        jf: bytes[3],
        k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    };
    program.chunks_exact(8).map(decode).collect()
}

/// Runs the program as the kernel does; what the kernel's checker refuses panics here.
fn run(program: &[Instruction], call: Call) -> u32 {
    let mut data = Vec::new();
    data.extend(call.number.to_ne_bytes());
    data.extend(call.arch.to_ne_bytes());
    data.extend([0; 8]);
    for argument in call.arguments {
        data.extend(argument.to_ne_bytes());
    }
    let mut accumulator = 0u32;
    let mut at = 0;
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let mut branch = |holds: bool| at += usize::from(if holds { jt } else { jf });
        match code {
            LOAD => {
                let offset = k as usize;
                assert_eq!(offset % 4, 0);
                accumulator = u32::from_ne_bytes(data[offset..offset + 4].try_into().unwrap());
            }
            JUMP => at += k as usize,
            IF_EQUAL => branch(accumulator == k),
            IF_GREATER => branch(accumulator > k),
            IF_GREATER_OR_EQUAL => branch(accumulator >= k),
            AND => accumulator &= k,
            RETURN => return k,
            other => panic!("unknown instruction {other:#x}"),
        }
    }
}

// ---- what the rules say, without any program -----------------------------------------------------------------------

fn holds(condition: &Condition, refuses: bool, arguments: &[u64; 6]) -> bool {
    let argument = arguments[usize::from(condition.argument)];
    let value = condition.value;
    let lower_half = refuses && value <= u64::from(u32::MAX);
    let narrow = if lower_half { argument & 0xffff_ffff } else { argument };
    match condition.comparison {
        Comparison::NotEqual => argument != value,
        Comparison::Less => narrow < value,
        Comparison::LessOrEqual => narrow <= value,
        Comparison::Equal => narrow == value,
        Comparison::GreaterOrEqual => argument >= value,
        Comparison::Greater => argument > value,
        Comparison::MaskedEqual(mask) => argument & mask == value,
    }
}

/// The documented meaning: of all rules that match, the most restrictive action.
fn expected(policy: &Policy, target: &Target, name: &str, arguments: &[u64; 6]) -> Action {
    let matching = policy.rules.iter().filter(|rule| {
        let holds = |condition: &Condition| holds(condition, !rule.action.permits(), arguments);
        let distinct: HashSet<u8> = rule.conditions.iter().map(|condition| condition.argument).collect();
        rule.takes_part(target)
            && rule.names.iter().any(|one| one == name)
            && match distinct.len() == rule.conditions.len() {
                true => rule.conditions.iter().all(holds),
                false => rule.conditions.iter().any(holds),
            }
    });
    matching.map(|rule| rule.action).min_by_key(|action| action.rank()).unwrap_or(policy.default)
}

fn target(arch: Arch, capabilities: CapabilitySet) -> Target {
    Target { arch, kernel: KernelVersion::new(6, 1), capabilities }
}

fn number(arch: Arch, name: &str) -> u32 {
    let mut found = None;
    arch.each(&mut |known, number| {
        if known == name {
            found = Some(number);
        }
    });
    found.unwrap_or_else(|| panic!("{name} on {arch:?}"))
}

fn compiled(policy: &Policy, target: &Target) -> Vec<Instruction> {
    let program = decode(&policy.compile(target).unwrap());
    assert!(program.len() <= 4096);
    // Every jump lands inside, and the last instruction returns: what the kernel checks.
    for (at, instruction) in program.iter().enumerate() {
        let furthest = match instruction.code {
            JUMP => instruction.k as usize,
            IF_EQUAL | IF_GREATER | IF_GREATER_OR_EQUAL => usize::from(instruction.jt.max(instruction.jf)),
            _ => 0,
        };
        assert!(at + 1 + furthest < program.len() || instruction.code == RETURN, "{at}: {instruction:?}");
    }
    assert_eq!(program.last().unwrap().code, RETURN);
    program
}

const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;

/// The policy as docker applies it to an ordinary container.
fn docker(arch: Arch) -> impl Fn(&str, &[u64]) -> u32 {
    let program = compiled(&Policy::docker_2026_11(), &target(arch, CapabilitySet::DOCKER_2026_11));
    move |name, arguments| run(&program, call(arch, number(arch, name), arguments))
}

// ---- tests ---------------------------------------------------------------------------------------------------------

#[test]
fn ordinary_calls_pass_and_dangerous_ones_do_not() {
    for arch in [Arch::X86_64, Arch::Aarch64] {
        let result = docker(arch);
        for name in ["read", "execve", "openat2", "clone", "futex_waitv", "ptrace", "chroot", "mseal", "seccomp"] {
            assert_eq!(result(name, &[]), ALLOW, "{name} on {arch:?}");
        }
        for name in [
            "mount",
            "umount2",
            "pivot_root",
            "unshare",
            "setns",
            "bpf",
            "keyctl",
            "add_key",
            "userfaultfd",
            "kexec_load",
            "io_uring_setup",
            "open_by_handle_at",
            "perf_event_open",
            "init_module",
            "reboot",
            "swapon",
            "fsopen",
            "move_mount",
            "open_tree",
            "settimeofday",
            "syslog",
            "acct",
            "kcmp",
            "pidfd_getfd",
        ] {
            assert_eq!(result(name, &[]), EPERM, "{name} on {arch:?}");
        }
    }
}

#[test]
fn clone_makes_no_namespace_and_clone3_is_not_there() {
    let result = docker(Arch::X86_64);
    assert_eq!(result("clone", &[libc::CLONE_VM as u64 | libc::CLONE_THREAD as u64]), ALLOW);
    for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWPID, libc::CLONE_NEWNET, libc::CLONE_NEWCGROUP]
    {
        assert_eq!(result("clone", &[flag as u64 | 17]), EPERM, "{flag:#x}");
        // A bit that the kernel ignores does not help.
        assert_eq!(result("clone", &[1 << 40 | flag as u64]), EPERM, "{flag:#x}");
    }
    assert_eq!(result("clone3", &[]), ENOSYS);
    let admin = CapabilitySet::DOCKER_2026_11.with(Capability::SysAdmin);
    let program = compiled(&Policy::docker_2026_11(), &target(Arch::X86_64, admin));
    for name in ["clone", "clone3", "mount", "unshare", "bpf", "setns"] {
        let call = call(Arch::X86_64, number(Arch::X86_64, name), &[libc::CLONE_NEWUSER as u64]);
        assert_eq!(run(&program, call), ALLOW, "{name}");
    }
}

#[test]
fn socket_families_are_the_ones_listed() {
    let result = docker(Arch::X86_64);
    let refused: Vec<u64> = (0..64).filter(|family| result("socket", &[*family]) != ALLOW).collect();
    let gaps = [12, 19, 20, 23, 25, 34, 37, 38, 40];
    let expected: Vec<u64> = gaps.into_iter().chain(46..64).collect();
    assert_eq!(refused, expected);
    // AF_VSOCK with a stray bit is not AF_VSOCK to the comparison, but it is not on the list either.
    assert_eq!(result("socket", &[1 << 32 | 40]), EPERM);
    assert_eq!(result("socket", &[1 << 32 | 2]), EPERM);
}

/// `int 0x80` with AF_VSOCK or AF_ALG: the family is in memory.
#[test]
fn socketcall_is_closed_by_the_strict_policy_alone() {
    let target = target(Arch::X86_64, CapabilitySet::DOCKER_2026_11);
    let result = |policy: &Policy, arch, name| run(&compiled(policy, &target), call(arch, number(arch, name), &[1]));
    let (docker, strict) = (Policy::docker_2026_11(), Policy::strict_2026_11());
    assert_eq!(result(&docker, Arch::X86, "socketcall"), ALLOW);
    assert_eq!(result(&strict, Arch::X86, "socketcall"), ENOSYS);
    for (arch, name) in [(Arch::X86, "socket"), (Arch::X86_64, "socket"), (Arch::X86, "connect")] {
        assert_eq!(result(&strict, arch, name), ALLOW, "{name}");
    }
}

#[test]
fn personality_takes_five_values() {
    let result = docker(Arch::X86_64);
    for value in [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        assert_eq!(result("personality", &[value]), ALLOW, "{value:#x}");
    }
    // ADDR_NO_RANDOMIZE, and -1 in 64 bits.
    for value in [0x4_0000, 1, u64::MAX] {
        assert_eq!(result("personality", &[value]), EPERM, "{value:#x}");
    }
}

#[test]
fn other_interfaces_of_the_machine_are_no_way_around() {
    let program = compiled(&Policy::docker_2026_11(), &target(Arch::X86_64, CapabilitySet::DOCKER_2026_11));
    let on = |arch: u32, number: u32| run(&program, Call { arch, number, arguments: [0; 6] });
    // x32: every number, also those of allowed calls.
    for number in [0x4000_0000, 0x4000_0001, 0x4000_0208, u32::MAX] {
        assert_eq!(on(Arch::X86_64.audit(), number), ENOSYS, "{number:#x}");
    }
    // 32-bit calls have numbers of their own: 21 is mount there and access here.
    assert_eq!(on(Arch::X86.audit(), 21), EPERM);
    assert_eq!(on(Arch::X86_64.audit(), 21), ALLOW);
    assert_eq!(on(Arch::X86.audit(), 3), ALLOW);
    for arch in [Arch::Aarch64.audit(), Arch::Arm.audit(), 0, 8, 0xc000_0015] {
        assert_eq!(on(arch, 0), KILL, "{arch:#x}");
    }
    let closed = Policy { with_32_bit: false, ..Policy::docker_2026_11() };
    let program = compiled(&closed, &target(Arch::X86_64, CapabilitySet::EMPTY));
    assert_eq!(run(&program, call(Arch::X86, 3, &[])), KILL);
}

#[test]
fn calls_newer_than_the_policy_are_not_there() {
    let result = docker(Arch::X86_64);
    assert_eq!(result("removexattrat", &[]), ALLOW);
    assert_eq!(result("open_tree_attr", &[]), ENOSYS);
    assert_eq!(result("file_setattr", &[]), ENOSYS);
    let program = compiled(&Policy::docker_2026_11(), &target(Arch::X86_64, CapabilitySet::EMPTY));
    assert_eq!(run(&program, call(Arch::X86_64, 100_000, &[])), ENOSYS);
    // 32-bit ARM has calls far beyond its table; they are no reason to call everything below them old.
    let program = compiled(&Policy::docker_2026_11(), &target(Arch::Aarch64, CapabilitySet::EMPTY));
    assert_eq!(run(&program, call(Arch::Arm, 0x0f_0005, &[])), ALLOW);
    assert_eq!(run(&program, call(Arch::Arm, 0x0f_0003, &[])), EPERM);
    // Who wants processes killed gets them killed, by new calls and by the x32 interface too.
    let kill = Policy { default: Action::KillProcess, ..Policy::docker_2026_11() };
    let program = compiled(&kill, &target(Arch::X86_64, CapabilitySet::EMPTY));
    assert_eq!(run(&program, call(Arch::X86_64, 100_000, &[])), KILL);
    assert_eq!(run(&program, call(Arch::X86_64, 0x4000_0000, &[])), KILL);
}

#[test]
fn every_call_does_what_the_rules_say() {
    let interesting =
        [0, 1, 2, 8, 12, 16, 17, 38, 40, 0x2_0000, 0x1000_0000, 0xffff_ffff, 1 << 32, 1 << 32 | 8, u64::MAX];
    let mut policies = vec![Policy::docker_2026_11()];
    if let Ok(json) = std::fs::read("/usr/share/containers/seccomp.json") {
        policies.push(Policy::from_json(&json).unwrap());
    }
    for policy in &policies {
        for arch in [Arch::X86_64, Arch::Aarch64] {
            for capabilities in [CapabilitySet::EMPTY, CapabilitySet::DOCKER_2026_11, CapabilitySet::ALL] {
                let target = target(arch, capabilities);
                let program = compiled(policy, &target);
                let named: HashSet<&str> =
                    policy.rules.iter().flat_map(|rule| rule.names.iter().map(|name| &**name)).collect();
                for arch in arch.with_32_bit(policy.with_32_bit) {
                    let mut names: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
                    arch.each(&mut |name, number| names.entry(number).or_default().push(name));
                    let newest = names.iter().rfind(|(_, names)| names.iter().any(|name| named.contains(name)));
                    let newest = *newest.unwrap().0;
                    for (number, names) in names.iter().filter(|(number, _)| **number <= newest) {
                        for value in interesting {
                            let arguments = [value, value, 0, 0, 0, 0];
                            let expected = names.iter().map(|name| expected(policy, &target, name, &arguments));
                            // One of two names may be unknown to the policy.
                            let expected = expected.max_by_key(|action| action.rank()).unwrap();
                            let got = run(&program, call(arch, *number, &arguments));
                            assert_eq!(got, expected.value(), "{names:?}({value:#x}) on {arch:?}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_refusal_looks_at_the_bits_that_the_kernel_looks_at() {
    // CVE-2019-10063: TIOCSTI with a bit in the half that ioctl(2) ignores.
    let tiocsti = Condition { argument: 1, comparison: Comparison::Equal, value: 0x5412 };
    let refusal = Rule { conditions: vec![tiocsti], ..Rule::always(Action::Errno(1), ["ioctl"]) };
    let policy = Policy { default: Action::Allow, rules: vec![refusal], with_32_bit: true };
    let program = compiled(&policy, &target(Arch::X86_64, CapabilitySet::EMPTY));
    let ioctl = |request: u64| run(&program, call(Arch::X86_64, number(Arch::X86_64, "ioctl"), &[0, request]));
    assert_eq!([0x5412, 1 << 32 | 0x5412, 0x5413].map(ioctl), [EPERM, EPERM, ALLOW]);
}

#[test]
fn the_most_restrictive_rule_wins_in_any_order() {
    let kill = Rule::always(Action::KillProcess, ["kill"]);
    let allow = Rule::always(Action::Allow, ["kill"]);
    for rules in [vec![kill.clone(), allow.clone()], vec![allow, kill]] {
        let policy = Policy { default: Action::Errno(1), rules, with_32_bit: false };
        let program = compiled(&policy, &target(Arch::X86_64, CapabilitySet::EMPTY));
        assert_eq!(run(&program, call(Arch::X86_64, number(Arch::X86_64, "kill"), &[])), KILL);
    }
}

#[test]
fn a_refusal_that_is_the_default_outweighs_what_allows() {
    for default in [Action::Errno(1), Action::Errno(38), Action::KillProcess, Action::Log] {
        let rules = vec![Rule::always(Action::Allow, ["getpriority", "kill"]), Rule::always(default, ["getpriority"])];
        let policy = Policy { default, rules, with_32_bit: false };
        let program = compiled(&policy, &target(Arch::X86_64, CapabilitySet::EMPTY));
        let result = |name| run(&program, call(Arch::X86_64, number(Arch::X86_64, name), &[]));
        assert_eq!([result("getpriority"), result("kill")], [default.value(), ALLOW]);
    }
}

#[test]
fn a_refusal_that_cannot_be_named_is_an_error() {
    let with = |default, action| {
        let rules = vec![Rule::always(action, ["no_such_call"])];
        Policy { default, rules, with_32_bit: true }.compile(&target(Arch::X86_64, CapabilitySet::EMPTY))
    };
    let error = with(Action::Allow, Action::Errno(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("no_such_call"));
    assert!(with(Action::Errno(1), Action::Allow).is_ok());
}

#[test]
fn a_policy_without_rules_is_its_default_everywhere() {
    for default in [Action::Allow, Action::Errno(1), Action::KillProcess] {
        let policy = Policy { default, rules: Vec::new(), with_32_bit: true };
        let program = compiled(&policy, &target(Arch::Aarch64, CapabilitySet::EMPTY));
        for arch in [Arch::Aarch64, Arch::Arm] {
            assert_eq!(run(&program, call(arch, 5, &[])), default.value(), "{default:?} on {arch:?}");
        }
        assert_eq!(run(&program, call(Arch::X86_64, 5, &[])), KILL);
    }
}

#[test]
fn documents_are_read_strictly() {
    let read = |text: &str| Policy::from_json(text.as_bytes());
    let policy = read(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
                        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}],
            "syscalls": [
              {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "comment": "needed"},
              {"name": "clone", "action": "SCMP_ACT_ERRNO",
               "args": [{"index": 0, "value": 2114060288, "valueTwo": 5, "op": "SCMP_CMP_MASKED_EQ"}],
               "includes": {"minKernel": "4.8", "arches": ["amd64"]}, "excludes": {"caps": ["CAP_SYS_ADMIN"]}}]}"#,
    )
    .unwrap();
    assert_eq!(policy.default, Action::Errno(38));
    assert_eq!(policy.with_32_bit, Arch::native().is_some());
    let rule = &policy.rules[1];
    assert_eq!((rule.action, rule.names.as_slice()), (Action::Errno(1), &[Cow::from("clone")][..]));
    assert_eq!(rule.conditions[0].comparison, Comparison::MaskedEqual(2_114_060_288));
    assert_eq!(rule.conditions[0].value, 5);
    assert_eq!(rule.includes.kernel, Some(KernelVersion::new(4, 8)));
    assert!(rule.excludes.capabilities.contains(Capability::SysAdmin));

    for (text, why) in [
        ("", "EOF"),
        ("{}", "defaultAction"),
        (r#"{"defaultAction": "ALLOW"}"#, "is no action"),
        (r#"{"defaultAction": "SCMP_ACT_ALLOW", "sycalls": []}"#, "sycalls"),
        (r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}"#, "is no flag"),
        (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "another program"),
        (r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ALLOW"}]}"#, "names no system call"),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}"#,
            "no argument 6",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO",
                "includes": {"caps": ["CAP_SYS_ADMIM"]}}]}"#,
            "CAP_SYS_ADMIM",
        ),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::Allow),
        Just(Action::Log),
        Just(Action::Trap),
        Just(Action::KillThread),
        Just(Action::KillProcess),
        (0..200u16).prop_map(Action::Errno),
        (0..200u16).prop_map(Action::Trace),
    ]
}

fn any_value() -> impl Strategy<Value = u64> {
    prop_oneof![0..4u64, Just(1 << 32), (1u64 << 32)..(1 << 32) + 4, Just(u64::MAX), any::<u64>()]
}

fn any_condition() -> impl Strategy<Value = Condition> {
    let comparison = prop_oneof![
        Just(Comparison::NotEqual),
        Just(Comparison::Less),
        Just(Comparison::LessOrEqual),
        Just(Comparison::Equal),
        Just(Comparison::GreaterOrEqual),
        Just(Comparison::Greater),
        any_value().prop_map(Comparison::MaskedEqual),
    ];
    (0..3u8, comparison, any_value()).prop_map(|(argument, comparison, value)| Condition {
        argument,
        comparison,
        value,
    })
}

const NAMES: [&str; 8] = ["read", "write", "ioctl", "clone", "socket", "openat", "kill", "mseal"];

fn any_rule() -> impl Strategy<Value = Rule> {
    let names = proptest::collection::vec(proptest::sample::select(&NAMES[..]), 1..5);
    (names, any_action(), proptest::collection::vec(any_condition(), 0..4))
        .prop_map(|(names, action, conditions)| Rule { conditions, ..Rule::always(action, names) })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_policy_does_what_its_rules_say(
        default in any_action(),
        rules in proptest::collection::vec(any_rule(), 0..30),
        arguments in proptest::collection::vec([any_value(), any_value(), any_value()], 1..20),
    ) {
        let policy = Policy { default, rules, with_32_bit: false };
        let target = target(Arch::X86_64, CapabilitySet::EMPTY);
        let program = compiled(&policy, &target);
        for name in NAMES {
            if !policy.rules.iter().any(|rule| rule.names.iter().any(|one| one == name)) {
                continue;
            }
            for arguments in &arguments {
                let [a, b, c] = *arguments;
                let expected = expected(&policy, &target, name, &[a, b, c, 0, 0, 0]);
                let got = run(&program, call(Arch::X86_64, number(Arch::X86_64, name), arguments));
                prop_assert_eq!(got, expected.value(), "{}({:x?})", name, arguments);
            }
        }
    }
}

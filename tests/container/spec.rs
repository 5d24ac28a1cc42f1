//! Fields of the OCI runtime spec: each is honoured, or refused by its name.

use coracle::container::Mount;
use coracle::container::runtime_spec::{self as oci, LinuxNamespaceType as Namespace, Spec};
use coracle::{ContainerBuilder, ErrorKind};

use super::shared::skip::other_user;
use super::support::{Lab, image, is_root, run, with_programs};

fn base(lab: &Lab) -> ContainerBuilder {
    with_programs(image(&lab.engine).container())
}

fn linux(change: impl Fn(&mut oci::Linux) + Send + Sync + 'static) -> impl Fn(&mut Spec) + Send + Sync + 'static {
    move |spec| {
        change(spec.linux_mut().as_mut().unwrap());
    }
}

/// Any field, by its place in the document.
fn json(pointer: &'static str, value: serde_json::Value) -> impl Fn(&mut Spec) + Send + Sync + 'static {
    move |spec| {
        let mut document = serde_json::to_value(&*spec).unwrap();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        document.pointer_mut(parent).unwrap()[name] = value.clone();
        *spec = serde_json::from_value(document).unwrap();
    }
}

fn drop_namespace(kind: Namespace) -> impl Fn(&mut Spec) + Send + Sync + 'static {
    linux(move |linux| linux.namespaces_mut().as_mut().unwrap().retain(|namespace| namespace.typ() != kind))
}

/// Starting it is an error that has all of the words in it.
fn refuses(builder: &ContainerBuilder, words: &[&str]) -> ErrorKind {
    let error = builder.clone().command(["/bin/true"]).output().unwrap_err();
    for word in words {
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
    error.kind()
}

#[test]
fn fields_that_are_not_honoured_are_refused_by_name() {
    let Some(lab) = Lab::new() else { return };
    let base = base(&lab);
    let value = |text: &str| -> serde_json::Value { serde_json::from_str(text).unwrap() };
    for (pointer, given, name) in [
        ("/linux/intelRdt", r#"{"closID": "x"}"#, "linux.intelRdt"),
        ("/linux/memoryPolicy", r#"{"mode": "MPOL_LOCAL"}"#, "linux.memoryPolicy"),
        ("/linux/netDevices", r#"{"eth0": {}}"#, "linux.netDevices"),
        ("/linux/cgroupsPath", r#""/x""#, "linux.cgroupsPath"),
        ("/linux/resources", r#"{"memory": {"swappiness": 7}}"#, "linux.resources.memory.swappiness"),
        ("/linux/resources", r#"{"unified": {"x": "y"}}"#, "linux.resources.unified"),
        ("/linux/personality", r#"{"domain": "LINUX", "flags": ["x"]}"#, "linux.personality.flags"),
        ("/linux/rootfsPropagation", r#""sideways""#, "linux.rootfsPropagation"),
        ("/linux/maskedPaths", r#"["proc/kcore"]"#, "linux.maskedPaths[0]"),
        ("/linux/readonlyPaths", r#"["/a/../b"]"#, "linux.readonlyPaths[0]"),
        ("/linux/seccomp", r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "linux.seccomp.defaultAction"),
        ("/process/commandLine", r#""x""#, "process.commandLine"),
        ("/process/rlimits", r#"[{"type": "RLIMIT_CPU", "hard": 1, "soft": 2}]"#, "process.rlimits[0].soft"),
        ("/process/oomScoreAdj", "1001", "process.oomScoreAdj"),
        ("/process/ioPriority", r#"{"class": "IOPRIO_CLASS_BE", "priority": 8}"#, "process.ioPriority.priority"),
        ("/process/scheduler", r#"{"policy": "SCHED_ISO"}"#, "process.scheduler.policy"),
        ("/process/user/umask", "512", "process.user.umask"),
        ("/process/user/username", r#""bob""#, "process.user.username"),
        ("/process/cwd", r#""relative""#, "process.cwd"),
        ("/process/capabilities/ambient", r#"["CAP_KILL"]"#, "process.capabilities.ambient"),
        ("/hooks", r#"{"poststop": [{"path": "bin/true"}]}"#, "hooks.poststop[0].path"),
        ("/hooks", r#"{"createRuntime": [{"path": "/bin/true", "timeout": 0}]}"#, "hooks.createRuntime[0].timeout"),
        ("/vm", r#"{"kernel": {"path": "/x"}}"#, "vm"),
        ("/solaris", r#"{"milestone": "x"}"#, "solaris"),
        ("/root/path", r#""/elsewhere""#, "root.path"),
    ] {
        let kind = refuses(&base.clone().spec(json(pointer, value(given))), &[name]);
        assert!(matches!(kind, ErrorKind::Unsupported | ErrorKind::Invalid), "{name}: {kind:?}");
    }
    lab.assert_clean();
}

/// Hooks that the image brings, and the rights to look at the process that waits for them.
#[test]
fn hooks_of_the_image_that_could_trace_are_refused() {
    let Some(lab) = Lab::new() else { return };
    let hook: serde_json::Value = serde_json::from_str(r#"{"startContainer": [{"path": "/bin/true"}]}"#).unwrap();
    let builder = base(&lab).spec(json("/hooks", hook)).cap_add("SYS_PTRACE");
    assert_eq!(refuses(&builder, &["hooks.startContainer", "CAP_SYS_PTRACE"]), ErrorKind::Unsupported);
    lab.assert_clean();
}

/// A terminal is the builder's to ask for.
#[test]
fn a_terminal_of_the_spec_alone_is_refused() {
    let Some(lab) = Lab::new() else { return };
    let terminal = serde_json::Value::Bool(true);
    assert_eq!(
        refuses(&base(&lab).spec(json("/process/terminal", terminal)), &["ContainerBuilder::tty"]),
        ErrorKind::Unsupported
    );
    lab.assert_clean();
}

#[test]
fn labels_of_absent_security_modules_are_refused_by_name() {
    let Some(lab) = Lab::new() else { return };
    let base = base(&lab);
    let has = |file: &str, word: &str| std::fs::read_to_string(file).is_ok_and(|text| text.contains(word));
    let mut wanted = vec![];
    if !has("/sys/module/apparmor/parameters/enabled", "Y") {
        wanted.push(("/process/apparmorProfile", "process.apparmorProfile", "AppArmor"));
    }
    if !has("/proc/filesystems", "selinuxfs") {
        wanted.push(("/process/selinuxLabel", "process.selinuxLabel", "SELinux"));
        wanted.push(("/linux/mountLabel", "linux.mountLabel", "SELinux"));
    }
    for (pointer, name, module) in wanted {
        assert_eq!(refuses(&base.clone().spec(json(pointer, "x".into())), &[name, module]), ErrorKind::Unsupported);
        // What is empty says nothing.
        assert_eq!(run(&base.clone().spec(json(pointer, "".into())), "echo ran"), "ran\n");
    }
}

#[test]
fn settings_of_its_namespaces_are_set() {
    let Some(lab) = Lab::new() else { return };
    let settings =
        [("net.ipv4.ip_unprivileged_port_start", "77"), ("kernel.shm_rmid_forced", "1"), ("fs.mqueue.msg_max", "7")];
    let set = |names: &'static [&'static str]| {
        let chosen = settings.iter().filter(|(name, _)| names.contains(name));
        let map: std::collections::HashMap<String, String> =
            chosen.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        linux(move |linux| {
            linux.set_sysctl(Some(map.clone()));
        })
    };
    let host = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    let builder = base(&lab).spec(set(&["net.ipv4.ip_unprivileged_port_start"]));
    assert_eq!(run(&builder, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "77\n");
    if is_root() {
        let builder = base(&lab).spec(set(&["kernel.shm_rmid_forced", "fs.mqueue.msg_max"]));
        let script = "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/fs/mqueue/msg_max";
        assert_eq!(run(&builder, script), "1\n7\n");
    }
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap(), host);
    // And they are not the workload's to change.
    let script = "(echo 78 > /proc/sys/net/ipv4/ip_unprivileged_port_start) 2>/dev/null || echo refused";
    assert_eq!(run(&base(&lab), script), "refused\n");
}

/// CVE-2022-0811: whatever is not a namespace's stays as it is, and what is the host's stays the host's.
#[test]
fn settings_of_the_machine_are_refused() {
    let Some(lab) = Lab::new() else { return };
    let one = |name: &'static str, value: &'static str| {
        linux(move |linux| {
            linux.set_sysctl(Some([(name.to_owned(), value.to_owned())].into()));
        })
    };
    for name in [
        "kernel.core_pattern",
        "kernel/core_pattern",
        "net/../kernel/core_pattern",
        "net.ipv4/../../kernel.core_pattern",
        "kernel.shm_rmid_forced+kernel.core_pattern",
        "vm.swappiness",
        "kernel.hostname",
        "fs.file-max",
    ] {
        refuses(&base(&lab).spec(one(name, "|/bin/sh")), &["linux.sysctl"]);
    }
    let on_host = base(&lab).network(coracle::container::Network::Host);
    refuses(&on_host.spec(one("net.ipv4.ip_forward", "1")), &["linux.sysctl", "no namespace of its own"]);
    refuses(&base(&lab).spec(one("net.ipv4.no_such_thing", "1")), &["net/ipv4/no_such_thing", "no such setting"]);
}

#[test]
fn scores_above_that_of_the_program_are_set_and_below_need_a_capability() {
    let Some(lab) = Lab::new() else { return };
    let score = |score: i32| json("/process/oomScoreAdj", score.into());
    assert_eq!(run(&base(&lab).spec(score(321)), "cat /proc/self/oom_score_adj"), "321\n");
    let lowered = base(&lab).spec(score(-999)).command(["/bin/cat", "/proc/self/oom_score_adj"]).output();
    match lowered {
        Ok(out) => assert_eq!(out.stdout, b"-999\n"),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Denied);
            assert!(error.to_string().contains("CAP_SYS_RESOURCE"), "{error}");
        }
    }
}

#[test]
fn a_further_command_has_what_the_first_has() {
    let Some(lab) = Lab::new() else { return };
    let container = base(&lab)
        .spec(json("/process/oomScoreAdj", 123.into()))
        .spec(json("/process/user/umask", 0o027.into()))
        .spec(json("/linux/personality", serde_json::json!({"domain": "LINUX32"})))
        .spec(json("/process/ioPriority", serde_json::json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0})))
        .spec(json("/process/execCPUAffinity", serde_json::json!({"initial": "0", "final": "0"})))
        .command(["/bin/sleep", "1000"])
        .spawn()
        .unwrap();
    let script = "cat /proc/self/oom_score_adj; umask; uname -m; grep ^Cpus_allowed_list: /proc/self/status";
    let out = container.exec().command(["/bin/sh", "-ec", script]).output().unwrap();
    let machine = if cfg!(target_arch = "x86_64") { "i686" } else { "armv8l" };
    let expected = format!("123\n0027\n{machine}\nCpus_allowed_list:\t0\n");
    assert_eq!(String::from_utf8_lossy(&out.stdout), expected, "{out:?}");
    container.kill().unwrap();
}

#[test]
fn the_mask_is_the_specs() {
    let Some(lab) = Lab::new() else { return };
    let builder = base(&lab).spec(json("/process/user/umask", 0o077.into()));
    assert_eq!(run(&builder, "umask; touch /tmp/x; stat -c %a /tmp/x"), "0077\n600\n");
}

#[test]
fn the_execution_domain_is_the_specs() {
    let Some(lab) = Lab::new() else { return };
    let of = |domain: &'static str| json("/linux/personality", serde_json::json!({"domain": domain}));
    let machine = run(&base(&lab).spec(of("LINUX")), "uname -m");
    assert_eq!(machine, run(&base(&lab), "uname -m"));
    if cfg!(target_arch = "x86_64") {
        assert_eq!(run(&base(&lab).spec(of("LINUX32")), "uname -m"), "i686\n");
    }
}

#[test]
fn scheduling_is_the_specs() {
    let Some(lab) = Lab::new() else { return };
    let of = |value: serde_json::Value| json("/process/scheduler", value);
    let batch = base(&lab).spec(of(serde_json::json!({"policy": "SCHED_BATCH", "nice": 7})));
    assert_eq!(run(&batch, "chrt -p $$ | head -1 | sed 's/.*: //'; nice"), "SCHED_BATCH\n7\n");
    let idle = base(&lab).spec(of(serde_json::json!({"policy": "SCHED_IDLE"})));
    assert_eq!(run(&idle, "chrt -p $$ | head -1 | sed 's/.*: //'"), "SCHED_IDLE\n");
    let priority = serde_json::json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    assert_eq!(run(&base(&lab).spec(json("/process/ioPriority", priority)), "ionice"), "best-effort: prio 6\n");
    let real_time = base(&lab).spec(of(serde_json::json!({"policy": "SCHED_FIFO", "priority": 5})));
    if is_root() {
        assert_eq!(run(&real_time, "chrt -p $$ | sed 's/.*: //'"), "SCHED_FIFO\n5\n");
    } else {
        assert_eq!(refuses(&real_time, &["CAP_SYS_NICE"]), ErrorKind::Denied);
    }
    let wrong = base(&lab).spec(of(serde_json::json!({"policy": "SCHED_FIFO", "priority": 500})));
    refuses(&wrong, &["SCHED_FIFO"]);
}

#[test]
fn limits_are_the_specs_and_beyond_the_hard_one_need_a_capability() {
    let Some(lab) = Lab::new() else { return };
    let limits = |list: serde_json::Value| json("/process/rlimits", list);
    let builder = base(&lab).spec(limits(serde_json::json!([
        {"type": "RLIMIT_NOFILE", "soft": 20, "hard": 30},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_CPU", "soft": 77, "hard": 78},
    ])));
    assert_eq!(run(&builder, "ulimit -Sn; ulimit -Hn; ulimit -c; ulimit -St; ulimit -Ht"), "20\n30\n0\n77\n78\n");
    let high = base(&lab).spec(limits(serde_json::json!([
        {"type": "RLIMIT_NOFILE", "soft": 900000, "hard": 900000}])));
    if let Err(error) = high.command(["/bin/true"]).output() {
        assert!(error.to_string().contains("RLIMIT_NOFILE"), "{error}");
        assert!(error.to_string().contains("CAP_SYS_RESOURCE"), "{error}");
    }
}

#[test]
fn all_five_sets_of_capabilities_are_the_specs() {
    let Some(lab) = Lab::new() else { return };
    let sets = serde_json::json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "effective": ["CAP_CHOWN"],
        "inheritable": ["CAP_KILL", "CAP_CHOWN"],
        "ambient": ["CAP_KILL"],
    });
    let builder = base(&lab).user("bob").spec(json("/process/capabilities", sets));
    // What exec makes of them for a user who is not root: the ambient ones.
    let out = run(&builder, "grep '^Cap' /proc/self/status");
    let (kill, chown, raw) = (1u64 << 5, 1u64, 1u64 << 13);
    let expected = [("Inh", kill | chown), ("Prm", kill), ("Eff", kill), ("Bnd", kill | chown | raw), ("Amb", kill)];
    let expected: String = expected.iter().map(|(name, set)| format!("Cap{name}:\t{set:016x}\n")).collect();
    assert_eq!(out, expected);
}

#[test]
fn capabilities_that_this_program_lacks_are_named() {
    let Some(lab) = Lab::new() else { return };
    if !is_root() {
        return other_user("root");
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap().trim();
    if u64::from_str_radix(line, 16).unwrap() & 1 << 24 != 0 {
        return;
    }
    let add = |spec: &mut Spec| {
        let process = spec.process_mut().as_mut().unwrap();
        let mut sets = process.capabilities().clone().unwrap();
        let mut bounding = sets.bounding().clone().unwrap();
        bounding.insert(oci::Capability::SysResource);
        sets.set_bounding(Some(bounding));
        process.set_capabilities(Some(sets));
    };
    assert_eq!(refuses(&base(&lab).spec(add), &["process.capabilities", "CAP_SYS_RESOURCE"]), ErrorKind::Denied);
}

#[test]
fn names_of_the_host_and_the_domain_are_the_specs() {
    let Some(lab) = Lab::new() else { return };
    let builder = base(&lab).spec(|spec| {
        spec.set_hostname(Some("one".into()));
        spec.set_domainname(Some("example".into()));
    });
    let script = "cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname /etc/hostname; grep -c one /etc/hosts";
    assert_eq!(run(&builder, script), "one\nexample\none\n1\n");
    refuses(&base(&lab).spec(drop_namespace(Namespace::Uts)), &["honour hostname"]);
}

#[test]
fn devices_of_the_spec_are_there() {
    let Some(lab) = Lab::new() else { return };
    let device = |value: serde_json::Value| json("/linux/devices", value);
    let random = serde_json::json!([{"path": "/dev/deep/dice", "type": "c", "major": 1, "minor": 9}]);
    if !is_root() {
        // There the host's own is shown, and it has none of that name.
        refuses(&base(&lab).spec(device(random)), &["/dev/deep/dice"]);
        let full = serde_json::json!([{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 9}]);
        assert_eq!(refuses(&base(&lab).spec(device(full)), &["1:9"]), ErrorKind::Hostile);
        let zero = serde_json::json!([{"path": "/dev/zero", "type": "c", "major": 1, "minor": 5}]);
        assert_eq!(run(&base(&lab).spec(device(zero)), "head -c 2 /dev/zero | wc -c"), "2\n");
        return;
    }
    assert_eq!(run(&base(&lab).spec(device(random)), "head -c 3 /dev/deep/dice | wc -c"), "3\n");
    let pipe = serde_json::json!([
        {"path": "/srv/pipe", "type": "p", "fileMode": 0o620, "uid": 7, "gid": 8},
        {"path": "/srv/disk", "type": "b", "major": 7, "minor": 300, "fileMode": 0o600}]);
    let script = "stat -c '%F %a %u:%g' /srv/pipe; stat -c '%F %t:%T %a' /srv/disk; test -e /dev/null";
    assert_eq!(run(&base(&lab).spec(device(pipe)), script), "fifo 620 7:8\nblock special file 7:12c 600\n");
    for wrong in ["/proc/x", "relative", "/dev/../x"] {
        let node = serde_json::json!([{"path": wrong, "type": "c", "major": 1, "minor": 9}]);
        refuses(&base(&lab).spec(device(node)), &["linux.devices[0].path"]);
    }
}

#[test]
fn recursive_attributes_hold_on_the_mounts_inside() {
    let Some(lab) = Lab::new() else { return };
    for option in ["remount", "tmpcopyup", "shared"] {
        refuses(&base(&lab).mount(Mount::tmpfs("/data").option(option)), &[option]);
    }
    let builder = base(&lab).mount(Mount::bind("/dev", "/data").option("rnoexec").option("rnosymfollow"));
    let script = "grep ' /data' /proc/self/mountinfo | grep -vc noexec || true; \
                  grep -c ' /data.*nosymfollow' /proc/self/mountinfo";
    let out = run(&builder, script);
    let (without, with) = out.trim().split_once('\n').unwrap();
    assert!(without == "0" && with.parse::<u32>().unwrap() > 1, "{out}");
}

#[test]
fn the_roots_propagation_is_the_specs() {
    let Some(lab) = Lab::new() else { return };
    let of = |kind: &'static str| json("/linux/rootfsPropagation", kind.into());
    let script = "grep -c ' / / .* shared:' /proc/self/mountinfo || true";
    assert_eq!(run(&base(&lab).spec(of("private")), script), "0\n");
    assert_eq!(run(&base(&lab).spec(of("rslave")), script), "0\n");
    assert_eq!(run(&base(&lab).spec(of("shared")), script), "1\n");
}

#[test]
fn masked_and_read_only_paths_are_the_specs() {
    let Some(lab) = Lab::new() else { return };
    let builder = base(&lab).spec(linux(|linux| {
        let add = |paths: &Option<Vec<String>>, more: &str| {
            Some(paths.iter().flatten().cloned().chain([more.to_owned()]).collect::<Vec<_>>())
        };
        let (masked, readonly) = (add(linux.masked_paths(), "/etc/os-release"), add(linux.readonly_paths(), "/made"));
        linux.set_masked_paths(masked).set_readonly_paths(readonly);
    }));
    assert_eq!(run(&builder, "wc -c < /etc/os-release; (: > /made/x) 2>/dev/null || echo refused"), "0\nrefused\n");
}

#[test]
fn a_filter_of_the_spec_takes_the_place_of_the_profiles() {
    let Some(lab) = Lab::new() else { return };
    let native = if cfg!(target_arch = "x86_64") { "SCMP_ARCH_X86_64" } else { "SCMP_ARCH_AARCH64" };
    let filter = |default: &str, rules: serde_json::Value| {
        json(
            "/linux/seccomp",
            serde_json::json!({"defaultAction": default, "architectures": [native], "syscalls": rules}),
        )
    };
    let rule = |action: &str| serde_json::json!([{"names": ["mkdirat", "mkdir"], "action": action}]);
    let script = "mkdir /tmp/x 2>&1 | sed 's/.*: //'; test -d /tmp/x || echo none";
    let errno = serde_json::json!([{"names": ["mkdirat", "mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]);
    let full = run(&base(&lab).spec(filter("SCMP_ACT_ALLOW", errno)), script);
    assert_eq!(full, "No space left on device\nnone\n");
    let traced = run(&base(&lab).spec(filter("SCMP_ACT_ALLOW", rule("SCMP_ACT_TRACE"))), script);
    assert_eq!(traced, "Function not implemented\nnone\n");
    for (action, allowed) in [("SCMP_ACT_LOG", true), ("SCMP_ACT_ALLOW", true)] {
        let script = "mkdir /tmp/x; test -d /tmp/x && echo made";
        assert_eq!(run(&base(&lab).spec(filter("SCMP_ACT_ALLOW", rule(action))), script) == "made\n", allowed);
    }
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let script = "mkdir /tmp/x 2>/dev/null || echo $?";
        // 128 + SIGSYS.
        assert_eq!(run(&base(&lab).spec(filter("SCMP_ACT_ALLOW", rule(action))), script), "159\n", "{action}");
    }
    // With the flags that the kernel takes.
    let flags = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": [native],
        "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"]});
    assert_eq!(
        run(&base(&lab).spec(json("/linux/seccomp", flags)), "grep ^Seccomp: /proc/self/status"),
        "Seccomp:\t2\n"
    );
}

/// Arguments are compared at their full width, and by every operator.
#[test]
fn a_filter_of_the_spec_compares_arguments() {
    let Some(lab) = Lab::new() else { return };
    // personality(0xffffffff) asks; the argument decides.
    for (op, value, two, refused) in [
        ("SCMP_CMP_EQ", 5u64, None, true),
        ("SCMP_CMP_EQ", 6, None, false),
        ("SCMP_CMP_NE", 5, None, false),
        ("SCMP_CMP_LT", 6, None, true),
        ("SCMP_CMP_LE", 4, None, false),
        ("SCMP_CMP_GT", 4, None, true),
        ("SCMP_CMP_GE", 6, None, false),
        ("SCMP_CMP_MASKED_EQ", 4, Some(4u64), true),
        ("SCMP_CMP_MASKED_EQ", 2, Some(2), false),
    ] {
        let mut argument = serde_json::json!({"index": 1, "value": value, "op": op});
        if let Some(two) = two {
            argument["valueTwo"] = two.into();
        }
        let seccomp = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["truncate"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28, "args": [argument]}]});
        let script = "perl -e 'open F, \">/tmp/f\"; close F; print truncate(\"/tmp/f\", 5) ? \"made\" : 0 + $!'";
        if !std::path::Path::new("/usr/bin/perl").exists() {
            return super::shared::skip::missing("perl");
        }
        let out = run(&base(&lab).spec(json("/linux/seccomp", seccomp)), script);
        assert_eq!(out == "28", refused, "{op} {value}: {out}");
    }
}

/// What a change of the spec gives away needs no second permission, unless it was asked for in so many words.
#[test]
fn what_a_change_gives_away_is_told() {
    use coracle::isolation::{Aspect, Level, Requirement};
    let Some(lab) = Lab::new() else { return };
    let builder = base(&lab).spec(drop_namespace(Namespace::Network));
    let builder = builder.command(["/bin/true"]);
    assert_eq!(builder.enforcement().unwrap().level(Aspect::Network), Level::None);
    assert_eq!(run(&builder, "echo ran"), "ran\n");
    let strict = builder.require(Requirement::default().at_least(Aspect::Network, Level::Full));
    assert_eq!(refuses(&strict, &["network"]), ErrorKind::Weaker);
}

#[test]
fn limits_of_the_control_group_are_the_specs() {
    let Some(lab) = Lab::new() else { return };
    let resources = |value: serde_json::Value| json("/linux/resources", value);
    let few = serde_json::json!({"pids": {"limit": 4}, "memory": {"limit": 1 << 26}, "cpu": {"shares": 512}});
    let builder = base(&lab).spec(resources(few));
    if !is_root() {
        assert_eq!(refuses(&builder, &["linux.resources", "control group"]), ErrorKind::Unsupported);
        return;
    }
    // The shell, and three more.
    let script = "for i in 1 2 3 4 5 6; do (sleep 5 &) 2>/dev/null || break; echo $i; done 2>/dev/null";
    let out = builder.clone().command(["/bin/sh", "-c", script]).output().unwrap();
    let lines = String::from_utf8_lossy(&out.stdout).lines().count();
    assert!(lines < 6, "{out:?}");
    let script = "perl -e '$x = \"x\" x (1 << 28); print length $x'";
    let out = builder.clone().command(["/bin/sh", "-c", script]).output().unwrap();
    assert!(!out.status.success(), "{out:?}");
    // A device that is not listed stays shut, whoever makes a node of it.
    let listed = serde_json::json!({"devices": [
        {"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 183, "access": "rwm"}]});
    let builder = base(&lab).spec(resources(listed)).mount(Mount::tmpfs("/t").option("dev"));
    let script = "mknod /t/kmsg c 1 11; (exec 3</t/kmsg) 2>&1 | grep -c 'not permitted'; echo x > /dev/null";
    assert_eq!(run(&builder, script), "1\n");
}

//! The report: for each feature whether it is there, and if not, why and what would change that.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;

use super::{CgroupMode, Host, KernelVersion};
use crate::sys::trial::Trial;
use crate::{Error, ErrorKind};

/// Something that a backend may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Feature {
    /// The kernel's own file system on `/proc`, which most of this report is read from.
    Proc,
    /// A kernel of 5.12 or later, the oldest that the launch path is written for.
    Kernel,
    /// This process has root's capabilities.
    Root,
    /// A user namespace can be created.
    UserNamespaces,
    /// A range of ids beyond one's own can be mapped.
    SubordinateIds,
    /// The overlay file system.
    Overlay,
    /// The overlay file system without root.
    OverlayUnprivileged,
    /// Mounts by descriptor (`open_tree`, `move_mount`, `fsopen`).
    MountInterface,
    /// `openat2`, with which paths are resolved beneath a directory.
    Openat2,
    /// `clone3`.
    Clone3,
    /// Control groups.
    Cgroups,
    /// System call filters.
    Seccomp,
    /// Landlock.
    Landlock,
    /// Programs can be executed from memory.
    ExecutableMemfd,
    /// The first rung: containers in namespaces.
    NamespaceIsolation,
    /// The second: commands of the host, restricted by landlock.
    LandlockIsolation,
    /// The third: images with nothing but a root of their own.
    ChrootIsolation,
}

impl Feature {
    /// All of them, in the order of the report.
    pub const ALL: [Feature; 17] = [
        Feature::Proc,
        Feature::Kernel,
        Feature::Root,
        Feature::UserNamespaces,
        Feature::SubordinateIds,
        Feature::Overlay,
        Feature::OverlayUnprivileged,
        Feature::MountInterface,
        Feature::Openat2,
        Feature::Clone3,
        Feature::Cgroups,
        Feature::Seccomp,
        Feature::Landlock,
        Feature::ExecutableMemfd,
        Feature::NamespaceIsolation,
        Feature::LandlockIsolation,
        Feature::ChrootIsolation,
    ];

    /// A short name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Feature::Proc => "proc",
            Feature::Kernel => "kernel",
            Feature::Root => "root",
            Feature::UserNamespaces => "user namespaces",
            Feature::SubordinateIds => "subordinate ids",
            Feature::Overlay => "overlay",
            Feature::OverlayUnprivileged => "overlay without root",
            Feature::MountInterface => "mounts by descriptor",
            Feature::Openat2 => "openat2",
            Feature::Clone3 => "clone3",
            Feature::Cgroups => "cgroups",
            Feature::Seccomp => "seccomp",
            Feature::Landlock => "landlock",
            Feature::ExecutableMemfd => "executable memfd",
            Feature::NamespaceIsolation => "rung: namespaces",
            Feature::LandlockIsolation => "rung: landlock",
            Feature::ChrootIsolation => "rung: chroot",
        }
    }
}

/// How far a feature is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is.
    Yes,
    /// It is not; `cause` and `remedy` say more.
    No,
    /// With limits that `cause` names.
    Partial,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The feature.
    pub what: Feature,
    /// Whether it is there.
    pub state: State,
    /// What was found, in words.
    pub detail: Cow<'static, str>,
    /// Why it is not, or not wholly, there. Always given unless `state` is [`State::Yes`].
    pub cause: Option<Cow<'static, str>>,
    /// What would change that; nothing when nothing does.
    pub remedy: Option<Cow<'static, str>>,
}

impl Finding {
    pub(super) fn yes(what: Feature, detail: impl Into<Cow<'static, str>>) -> Finding {
        Finding { what, state: State::Yes, detail: detail.into(), cause: None, remedy: None }
    }

    pub(super) fn no(what: Feature, cause: impl Into<Cow<'static, str>>, remedy: &'static str) -> Finding {
        Finding {
            what,
            state: State::No,
            detail: Cow::Borrowed("not available"),
            cause: Some(cause.into()),
            remedy: Some(Cow::Borrowed(remedy)),
        }
    }

    pub(super) fn partial(
        what: Feature,
        detail: impl Into<Cow<'static, str>>,
        cause: impl Into<Cow<'static, str>>,
        remedy: &'static str,
    ) -> Finding {
        Finding { state: State::Partial, detail: detail.into(), ..Finding::no(what, cause, remedy) }
    }

    /// The error of a step that needs this feature.
    pub(crate) fn error(&self, step: impl Into<Cow<'static, str>>) -> Error {
        let mut error = Error::new(ErrorKind::Unsupported, step);
        if let Some(cause) = &self.cause {
            error = error.because(cause.clone());
        }
        if let Some(remedy) = &self.remedy {
            error = error.remedy(remedy.clone());
        }
        error
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Yes => "yes",
            State::No => "no",
            State::Partial => "partial",
        };
        write!(f, "{}: {state}, {}", self.what.name(), self.detail)?;
        if let Some(cause) = &self.cause {
            write!(f, "; {cause}")?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "; try: {remedy}")?;
        }
        Ok(())
    }
}

const NEWER_KERNEL: &str = "a newer kernel";
pub(super) const OUTER_FILTER: &str = "if this is a container, start it with `--security-opt seccomp=unconfined` or a profile \
                            that allows the call";

impl Host {
    /// Every feature in turn. Without `/proc` that one alone, since what would be said of the others is read from there.
    pub fn report(&self) -> Vec<Finding> {
        let told = if self.proc { Feature::ALL.len() } else { 1 };
        Feature::ALL.into_iter().take(told).map(|feature| self.finding(feature)).collect()
    }

    /// Whether a feature is there, wholly or with limits.
    pub fn has(&self, feature: Feature) -> bool {
        self.finding(feature).state != State::No
    }

    /// What was found about one feature.
    pub fn finding(&self, feature: Feature) -> Finding {
        match feature {
            Feature::Proc if self.proc => Finding::yes(feature, "mounted"),
            Feature::Proc => Finding::no(
                feature,
                "the kernel's proc file system is not on /proc, or cannot be read there",
                "mount -t proc proc /proc",
            ),
            Feature::Kernel => self.kernel_finding(),
            Feature::Root => self.root_finding(),
            Feature::UserNamespaces => self.user_namespaces_finding(),
            Feature::SubordinateIds => self.subordinate_finding(),
            Feature::Overlay => self.overlay_finding(),
            Feature::OverlayUnprivileged => self.overlay_unprivileged_finding(),
            Feature::MountInterface => call(feature, self.open_tree, "open_tree", "5.2"),
            Feature::Openat2 => match call(feature, self.openat2, "openat2", "5.6") {
                // The store walks paths by O_PATH instead.
                missing if missing.state == State::No => Finding {
                    state: State::Partial,
                    detail: Cow::Borrowed("paths are walked one component at a time instead, more slowly"),
                    ..missing
                },
                there => there,
            },
            Feature::Clone3 => call(feature, self.clone3, "clone3", "5.3"),
            Feature::Cgroups => self.cgroup_finding(),
            Feature::Seccomp => match self.seccomp_filter {
                true => Finding::yes(feature, "filters can be installed"),
                false => Finding::no(
                    feature,
                    "the kernel was built without CONFIG_SECCOMP_FILTER, or /proc/sys is hidden",
                    "a kernel with CONFIG_SECCOMP_FILTER",
                ),
            },
            Feature::NamespaceIsolation => self.namespace_rung(),
            Feature::LandlockIsolation => self.landlock_rung(),
            Feature::ChrootIsolation => self.chroot_rung(),
            Feature::Landlock => match self.landlock_abi {
                Some(version) => Finding::yes(feature, format!("interface version {version}")),
                None if self.kernel < KernelVersion::new(5, 13) => {
                    Finding::no(feature, format!("landlock came with 5.13, this is {}", self.kernel), NEWER_KERNEL)
                }
                None if self.landlock == Trial::Refused => {
                    Finding::no(feature, "a system call filter refuses landlock_create_ruleset", OUTER_FILTER)
                }
                None if self.landlock == Trial::Missing => Finding::no(
                    feature,
                    "landlock_create_ruleset is unknown: a kernel without CONFIG_SECURITY_LANDLOCK, or a filter that says so",
                    OUTER_FILTER,
                ),
                None => Finding::no(
                    feature,
                    "this kernel was started without landlock",
                    "add `landlock` to the `lsm=` list of the kernel command line",
                ),
            },
            Feature::ExecutableMemfd => match self.memfd_noexec {
                0 | 1 => Finding::yes(feature, format!("vm.memfd_noexec={}", self.memfd_noexec)),
                _ => Finding::partial(
                    feature,
                    "the launcher is executed from a file in the engine's root instead",
                    "vm.memfd_noexec=2 refuses executable memory files",
                    "sysctl vm.memfd_noexec=1",
                ),
            },
        }
    }

    fn kernel_finding(&self) -> Finding {
        match self.kernel >= KernelVersion::new(5, 12) {
            true => Finding::yes(Feature::Kernel, format!("Linux {}", self.kernel)),
            false => Finding::partial(
                Feature::Kernel,
                format!("Linux {}", self.kernel),
                "kernels before 5.12 lack calls that the launcher uses (mount_setattr)",
                NEWER_KERNEL,
            ),
        }
    }

    fn root_finding(&self) -> Finding {
        if self.is_root() {
            return Finding::yes(Feature::Root, format!("uid {} with root's capabilities", self.uid));
        }
        let cause = match (self.nested, self.uid) {
            (true, uid) => format!("this process is uid {uid} inside a user namespace"),
            (false, 0) => format!("this process is uid 0 without {}", self.missing_capabilities().join(", ")),
            (false, uid) => format!("this process is uid {uid}"),
        };
        Finding::no(Feature::Root, cause, "nothing needs it, but as root no user namespace is needed either")
    }

    fn user_namespaces_finding(&self) -> Finding {
        let what = Feature::UserNamespaces;
        if self.unmapped {
            return Finding::no(
                what,
                "this process has a user id that its own user namespace does not map, and may make no other",
                "map it: unshare --map-root-user, or write /proc/PID/uid_map",
            );
        }
        if self.unshare != Trial::Reached {
            return Finding::no(what, "a system call filter refuses unshare(CLONE_NEWUSER)", OUTER_FILTER);
        }
        match self.max_user_namespaces {
            None => {
                return Finding::no(
                    what,
                    "the kernel was built without CONFIG_USER_NS, or /proc/sys is hidden",
                    "a kernel with CONFIG_USER_NS",
                );
            }
            Some(0) => {
                return Finding::no(what, "user.max_user_namespaces is 0", "sysctl user.max_user_namespaces=15000");
            }
            Some(_) => {}
        }
        // The two knobs below bind only those without CAP_SYS_ADMIN.
        if !self.is_admin() {
            if self.userns_knob_off {
                return Finding::no(
                    what,
                    "kernel.unprivileged_userns_clone is 0",
                    "sysctl kernel.unprivileged_userns_clone=1",
                );
            }
            if self.apparmor_restricts_userns {
                return Finding::partial(
                    what,
                    "a namespace can be created, but gives no capabilities",
                    "kernel.apparmor_restrict_unprivileged_userns is 1 and no AppArmor profile may exempt this program",
                    "an AppArmor profile with `userns,` for this program, or \
                     sysctl kernel.apparmor_restrict_unprivileged_userns=0",
                );
            }
        }
        Finding::yes(what, format!("up to {}", self.max_user_namespaces.unwrap_or(0)))
    }

    fn subordinate_finding(&self) -> Finding {
        let what = Feature::SubordinateIds;
        let granting = |finding: Finding| {
            let (first, name) = (self.unclaimed_ids, self.user.as_deref().unwrap_or("USER"));
            let remedy = match first.checked_add(65_535) {
                Some(last) => format!("usermod --add-subuids {first}-{last} --add-subgids {first}-{last} {name}"),
                None => format!("grant {name} 65536 ids in /etc/subuid and /etc/subgid that nobody else has"),
            };
            Finding { remedy: Some(remedy.into()), ..finding }
        };
        if self.is_root() {
            return Finding::yes(what, "root maps any id");
        }
        let total = |ranges: &[super::IdRange]| ranges.iter().map(|range| u64::from(range.count)).sum::<u64>();
        let (uids, gids) = (total(&self.subordinate_uids), total(&self.subordinate_gids));
        if uids == 0 || gids == 0 {
            let file = if uids == 0 { "/etc/subuid" } else { "/etc/subgid" };
            return granting(Finding::no(what, format!("{file} grants uid {} nothing", self.uid), ""));
        }
        for (name, helper) in [("newuidmap", &self.newuidmap), ("newgidmap", &self.newgidmap)] {
            match helper {
                None => {
                    return Finding::no(
                        what,
                        format!("{name} is not installed"),
                        "install the package that has it: uidmap on Debian, shadow-utils on Fedora",
                    );
                }
                Some(helper) if !helper.privileged => {
                    return Finding::no(
                        what,
                        format!("{} is neither set-uid root nor has file capabilities", helper.path.display()),
                        "reinstall the package that has it, or chmod u+s",
                    );
                }
                Some(_) => {}
            }
        }
        if self.no_new_privs {
            return Finding::no(
                what,
                "this process has no_new_privs set, so newuidmap gains nothing",
                "start the program without no_new_privs",
            );
        }
        if uids < 65536 || gids < 65536 {
            let detail = format!("{uids} user and {gids} group ids");
            return granting(Finding::partial(what, detail, "images use ids up to 65535", ""));
        }
        Finding::yes(what, format!("{uids} user and {gids} group ids"))
    }

    fn overlay_finding(&self) -> Finding {
        match (self.overlay_registered, self.overlay_module) {
            (true, _) => Finding::yes(Feature::Overlay, "registered in /proc/filesystems"),
            (false, true) => Finding::yes(Feature::Overlay, "a module that the first mount loads"),
            (false, false) => Finding::no(
                Feature::Overlay,
                "the kernel has no overlay file system and no module of it",
                "modprobe overlay, or a kernel with CONFIG_OVERLAY_FS",
            ),
        }
    }

    fn overlay_unprivileged_finding(&self) -> Finding {
        let what = Feature::OverlayUnprivileged;
        let overlay = self.overlay_finding();
        if overlay.state == State::No {
            return Finding { what, ..overlay };
        }
        match self.kernel >= KernelVersion::new(5, 11) {
            true => Finding::yes(what, "with userxattr"),
            false => Finding::no(what, format!("it came with 5.11, this is {}", self.kernel), NEWER_KERNEL),
        }
    }

    fn cgroup_finding(&self) -> Finding {
        let what = Feature::Cgroups;
        match self.cgroup_mode {
            CgroupMode::Unified => Finding::yes(what, "version 2"),
            CgroupMode::Hybrid => Finding::yes(what, "version 1 with a version 2 hierarchy beside it"),
            CgroupMode::Legacy => Finding::yes(what, "version 1"),
            CgroupMode::None => Finding::no(
                what,
                "no cgroup file system is mounted here",
                "mount -t cgroup2 none /sys/fs/cgroup, or start the outer container with its cgroups visible",
            ),
        }
    }
}

/// The finding about a system call that came with release `since`.
fn call(what: Feature, trial: Trial, name: &str, since: &str) -> Finding {
    match trial {
        Trial::Reached => Finding::yes(what, "the call is there"),
        Trial::Refused => Finding::no(what, format!("a system call filter refuses {name}"), OUTER_FILTER),
        Trial::Missing => Finding::no(
            what,
            format!("{name} is unknown: a kernel before {since}, or a filter that says so"),
            OUTER_FILTER,
        ),
    }
}

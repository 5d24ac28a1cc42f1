//! The instruction sets, and the numbers that system calls have on them.

use std::str::FromStr;

/// An instruction set that filters are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86.
    X86,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM.
    Arm,
}

/// Calls that only 32-bit ARM has, beyond its ordinary table.
const ARM_PRIVATE: [(&str, u32); 4] =
    [("breakpoint", 0x0f_0001), ("cacheflush", 0x0f_0002), ("set_tls", 0x0f_0005), ("get_tls", 0x0f_0006)];

/// Second names of calls: the kernel's tables and libseccomp do not agree on these.
const ARM_ALIASES: [(&str, &str); 2] =
    [("fadvise64_64", "arm_fadvise64_64"), ("sync_file_range2", "arm_sync_file_range")];

impl Arch {
    /// The instruction set that this program was built for; `None` for one without tables here.
    pub const fn native() -> Option<Arch> {
        if cfg!(target_arch = "x86_64") {
            Some(Arch::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Arch::Aarch64)
        } else {
            None
        }
    }

    /// The `AUDIT_ARCH` number that the kernel gives a filter.
    pub(crate) const fn audit(self) -> u32 {
        match self {
            Arch::X86_64 => 0xc000_003e,
            Arch::X86 => 0x4000_0003,
            Arch::Aarch64 => 0xc000_00b7,
            Arch::Arm => 0x4000_0028,
        }
    }

    /// Go's name, as docker's profiles have it.
    pub const fn go_name(self) -> &'static str {
        match self {
            Arch::X86_64 => "amd64",
            Arch::X86 => "x86",
            Arch::Aarch64 => "arm64",
            Arch::Arm => "arm",
        }
    }

    /// The name in libseccomp's documents.
    pub(crate) const fn scmp_name(self) -> &'static str {
        match self {
            Arch::X86_64 => "SCMP_ARCH_X86_64",
            Arch::X86 => "SCMP_ARCH_X86",
            Arch::Aarch64 => "SCMP_ARCH_AARCH64",
            Arch::Arm => "SCMP_ARCH_ARM",
        }
    }

    /// The 32-bit interface of the same processor.
    pub(crate) const fn compat(self) -> Option<Arch> {
        match self {
            Arch::X86_64 => Some(Arch::X86),
            Arch::Aarch64 => Some(Arch::Arm),
            Arch::X86 | Arch::Arm => None,
        }
    }

    /// This one, and its 32-bit interface if wanted.
    pub(super) fn with_32_bit(self, wanted: bool) -> impl Iterator<Item = Arch> {
        std::iter::once(self).chain(self.compat().filter(|_| wanted))
    }

    /// Every system call with its number; one with two names comes twice.
    pub(super) fn each(self, found: &mut dyn FnMut(&'static str, u32)) {
        // The crate's iterator stops before its last entry.
        macro_rules! table {
            ($arch:ident) => {
                syscalls::$arch::Sysno::iter().chain([syscalls::$arch::Sysno::last()])
            };
        }
        match self {
            Arch::X86_64 => table!(x86_64).for_each(|call| found(call.name(), call.id() as u32)),
            Arch::X86 => table!(x86).for_each(|call| found(call.name(), call.id() as u32)),
            Arch::Aarch64 => table!(aarch64).for_each(|call| found(call.name(), call.id() as u32)),
            Arch::Arm => {
                table!(arm).for_each(|call| {
                    found(call.name(), call.id() as u32);
                    for (alias, _) in ARM_ALIASES.iter().filter(|(_, name)| *name == call.name()) {
                        found(alias, call.id() as u32);
                    }
                });
                ARM_PRIVATE.iter().for_each(|(name, number)| found(name, *number));
            }
        }
    }
}

/// Calls of instruction sets that no filter is made for; a profile may name them, and they cannot be made here.
const FOREIGN: [&str; 20] = [
    "cachectl",
    "multiplexer",
    "or1k_atomic",
    "pciconfig_iobase",
    "pciconfig_read",
    "pciconfig_write",
    "riscv_flush_icache",
    "riscv_hwprobe",
    "rtas",
    "s390_guarded_storage",
    "s390_pci_mmio_read",
    "s390_pci_mmio_write",
    "s390_runtime_instr",
    "s390_sthyi",
    "spu_create",
    "spu_run",
    "subpage_prot",
    "swapcontext",
    "switch_endian",
    "sysmips",
];

/// Whether any instruction set has a call of this name.
pub(super) fn is_known(name: &str) -> bool {
    syscalls::x86_64::Sysno::from_str(name).is_ok()
        || syscalls::x86::Sysno::from_str(name).is_ok()
        || syscalls::aarch64::Sysno::from_str(name).is_ok()
        || syscalls::arm::Sysno::from_str(name).is_ok()
        || FOREIGN.contains(&name)
        || ARM_PRIVATE.iter().any(|(known, _)| *known == name)
        || ARM_ALIASES.iter().any(|(alias, _)| *alias == name)
}

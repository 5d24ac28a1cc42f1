//! System call profiles in docker's format: parsed and compiled, or refused.
#![no_main]

use coracle::probe::KernelVersion;
use coracle::security::CapabilitySet;
use coracle::security::seccomp::{Arch, Policy, Target};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(policy) = Policy::from_json(bytes) else { return };
    for arch in [Arch::X86_64, Arch::Aarch64] {
        let target = Target { arch, kernel: KernelVersion::new(6, 1), capabilities: CapabilitySet::default() };
        if let Ok(program) = policy.compile(&target) {
            // Instructions of 8 bytes, as many as the kernel takes.
            assert_eq!(program.len() % 8, 0);
            assert!((1..=4096).contains(&(program.len() / 8)));
        }
    }
});

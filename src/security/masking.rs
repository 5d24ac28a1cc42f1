//! Paths of procfs and sysfs that a container does not get to see, or not to write.

/// Which paths of the container's own procfs and sysfs are hidden and which are read-only.
///
/// A masked directory is covered with an empty read-only tmpfs, a masked file with a null device that is *ours*
/// (not the image's `/dev/null`); a read-only path is bound onto itself read-only. Paths that do not exist on this
/// kernel are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Masking {
    /// Hidden, whether file or directory. Absolute paths inside the container.
    pub masked: &'static [&'static str],
    /// Hidden for each possible CPU: the number goes between the two halves.
    pub masked_per_cpu: &'static [(&'static str, &'static str)],
    /// Visible, but never writable.
    pub readonly: &'static [&'static str],
}

impl Masking {
    /// What docker hides, as of November 2026. `/proc/interrupts`, powercap and the thermal throttle counters leak
    /// what other tenants of the machine do (GHSA-6fw5-f8r9-fgfm, GHSA-jq35-85cj-fj4p).
    pub const DOCKER_2026_11: Masking = Masking {
        masked: &[
            "/proc/acpi",
            "/proc/asound",
            "/proc/interrupts",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/sched_debug",
            "/proc/scsi",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/sys/devices/virtual/powercap",
            "/sys/firmware",
        ],
        masked_per_cpu: &[("/sys/devices/system/cpu/cpu", "/thermal_throttle")],
        readonly: &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    };

    /// Nothing hidden, nothing read-only.
    pub const NONE: Masking = Masking { masked: &[], masked_per_cpu: &[], readonly: &[] };

    /// All masked paths on a machine with CPUs `0..cpus` (the possible ones, present or not).
    pub fn masked_paths(&self, cpus: u32) -> impl Iterator<Item = String> {
        let fixed = self.masked.iter().map(|path| (*path).to_owned());
        let halves = self.masked_per_cpu.iter();
        fixed.chain(halves.flat_map(move |(before, after)| (0..cpus).map(move |cpu| format!("{before}{cpu}{after}"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_absolute_and_in_proc_or_sys() {
        let all = Masking::DOCKER_2026_11;
        let paths: Vec<String> =
            all.masked_paths(2).chain(all.readonly.iter().map(|path| (*path).to_owned())).collect();
        assert_eq!(paths.len(), 12 + 2 + 5);
        assert!(paths.contains(&"/sys/devices/system/cpu/cpu1/thermal_throttle".to_owned()));
        for path in paths {
            assert!(path.starts_with("/proc/") || path.starts_with("/sys/"), "{path}");
            assert!(!path.ends_with('/') && !path.contains(".."), "{path}");
        }
    }
}

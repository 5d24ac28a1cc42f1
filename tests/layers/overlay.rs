//! What overlay made of many changes, committed: the container of the new image sees what the old container saw.

use std::fmt::Write as _;

use coracle::image::CommitOptions;

use super::support::{Lab, image, run, with_programs};

/// Everything that can be seen of the places that the scripts work in.
const LIST: &str = "find /made /home /tmp -printf '%y %m %U:%G %s %T@ %n [%l] %p\\n' | sed -E 's/^d (\\S+ \\S+) \\S+/d \\1 -/; \
                    s/^(d \\S+ \\S+ - \\S+) \\S+/\\1 -/' | sort -k 7; find /made /home /tmp -type f | sort | xargs md5sum";

/// Forty commands that a seed chooses; what fails is passed over.
fn script(mut seed: u64) -> String {
    let mut next = |most: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % most
    };
    const NAMES: [&str; 9] = [
        "/made/a",
        "/made/b",
        "/made/a/c",
        "/made/b/d",
        "/home/bob",
        "/home/bob/e",
        "/made/old",
        "/made/old/x",
        "/tmp/f",
    ];
    let mut script = String::new();
    for _ in 0..40 {
        let (one, other) = (NAMES[next(9) as usize], NAMES[next(9) as usize]);
        let number = next(100_000);
        let line = match next(12) {
            0 | 1 => format!("mkdir {one}"),
            2 | 3 => format!("echo {number} >> {one}"),
            4 => format!("rm -rf {one}"),
            5 => format!("ln {one} {other}"),
            6 => format!("ln -sn {other} {one}"),
            7 => format!("mv -T {one} {other}"),
            8 => format!("chmod {:o} {one}", 0o700 | number & 0o7777),
            9 => format!("touch -h -d @{number}.5 {one}"),
            10 => format!("rm -rf {one} && mkdir {one} && echo {number} > {one}/new"),
            _ => format!("rm -rf {one} && echo {number} > {one}"),
        };
        writeln!(script, "{{ {line}; }} 2>/dev/null || true").unwrap();
    }
    script
}

#[test]
fn the_new_image_shows_what_the_container_saw() {
    let Some(lab) = Lab::new() else { return };
    let mut image = image(&lab.engine);
    for seed in 0..10 {
        let name = format!("seed-{seed}");
        let script = format!("umask 022; mkdir -p /made/old; echo x > /made/old/x\n{}\n{LIST}", script(seed));
        let before = run(&with_programs(image.container()).keep(true).name(&name), &script);
        let container = lab.engine.find_container(&name).unwrap();
        let committed = container.commit(&CommitOptions::default()).unwrap();
        let after = run(&with_programs(committed.container()), LIST);
        assert_eq!(after, before, "{script}");
        // Every other one stands on the one before it.
        if seed % 2 == 1 {
            image = committed;
        }
    }
}

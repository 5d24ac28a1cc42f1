//! Measures alternately, so that whatever else the machine does hits every candidate alike, and prints ratios. What was
//! measured goes into a report with plots too, `report/index.html` in cargo's target directory.
#![allow(dead_code, clippy::unwrap_used)]

pub mod layers;
mod report;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// One candidate: its name, and one turn of it.
pub struct Candidate<'a> {
    pub name: &'a str,
    pub turn: Box<dyn FnMut() + 'a>,
}

/// Times of one candidate, sorted.
pub struct Times(Vec<Duration>);

impl Times {
    pub fn median(&self) -> Duration {
        self.0[self.0.len() / 2]
    }

    pub fn percentile(&self, percent: usize) -> Duration {
        self.0[(self.0.len() * percent / 100).min(self.0.len() - 1)]
    }
}

/// Is this a trial run (`cargo bench -- --test`), which only has to work?
pub fn is_trial() -> bool {
    std::env::args().any(|argument| argument == "--test")
}

/// Whether this part of a bench was asked for: `cargo bench --bench unpack -- tiny` runs those with `tiny` in their names.
pub fn wants(part: &str) -> bool {
    let mut words = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).peekable();
    words.peek().is_none() || words.any(|word| part.contains(&word))
}

/// Runs all candidates `turns` times, alternately, after one unmeasured turn of each, with a pause before each turn.
/// The first candidate is the floor that the others are divided by.
pub fn compare(title: &str, turns: usize, pause: Duration, candidates: Vec<Candidate<'_>>) -> Vec<Times> {
    compare_tidying(title, turns, pause, candidates, || ())
}

/// The same, with `tidy` called after each turn, unmeasured.
pub fn compare_tidying(
    title: &str,
    turns: usize,
    pause: Duration,
    mut candidates: Vec<Candidate<'_>>,
    mut tidy: impl FnMut(),
) -> Vec<Times> {
    let turns = if is_trial() { 2 } else { turns };
    let mut times: Vec<Vec<Duration>> = candidates.iter().map(|_| Vec::with_capacity(turns)).collect();
    for turn in 0..=turns {
        for (candidate, times) in candidates.iter_mut().zip(&mut times) {
            std::thread::sleep(pause);
            let start = Instant::now();
            (candidate.turn)();
            let took = start.elapsed();
            tidy();
            if turn > 0 {
                times.push(took);
            }
        }
    }
    let names: Vec<&str> = candidates.iter().map(|candidate| candidate.name).collect();
    report::add_comparison(title, &names, &times);
    let times: Vec<Times> = times
        .into_iter()
        .map(|mut list| {
            list.sort();
            Times(list)
        })
        .collect();
    println!("\n{title}, {turns} turns each, alternating");
    println!("{:<44} {:>11} {:>11} {:>11} {:>8}", "", "best", "median", "p99", "x floor");
    let floor = times[0].median().as_secs_f64();
    for (name, times) in names.iter().zip(&times) {
        println!(
            "{:<44} {:>11} {:>11} {:>11} {:>8.2}",
            name,
            millis(times.percentile(0)),
            millis(times.median()),
            millis(times.percentile(99)),
            times.median().as_secs_f64() / floor
        );
    }
    times
}

/// Says something that is not a time, here and in the report.
pub fn fact(text: &str) {
    println!("{text}");
    report::add_fact(text);
}

fn millis(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1e3)
}

/// A directory in memory where there is such a place, or the one that `CORACLE_BENCH_DIR` names.
pub fn scratch() -> tempfile::TempDir {
    let at = std::env::var_os("CORACLE_BENCH_DIR").map(PathBuf::from);
    let memory = Path::new("/dev/shm");
    match at {
        Some(at) => tempfile::tempdir_in(at).unwrap(),
        None if memory.is_dir() => tempfile::tempdir_in(memory).unwrap(),
        None => tempfile::tempdir().unwrap(),
    }
}

/// How much more memory this process had at some instant of `work` than before it, in bytes.
pub fn peak_of(work: impl FnOnce()) -> u64 {
    let status = |name: &str| {
        let text = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_matches([':', '\t', ' ']).trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    };
    // Sets the peak back to what is in use now.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS");
    work();
    status("VmHWM").saturating_sub(before)
}

/// The smallest program that ends with status 0: an ELF header, a program header, three instructions; and six more where
/// it is to wait for its standard input first.
pub fn tiny_program(waits: bool) -> Vec<u8> {
    // read(0, below the stack, 1)
    #[cfg(target_arch = "x86_64")]
    let read = vec![0x31, 0xc0, 0x31, 0xff, 0x48, 0x8d, 0x74, 0x24, 0xf0, 0xba, 1, 0, 0, 0, 0x0f, 0x05];
    #[cfg(target_arch = "x86_64")]
    let (machine, end) = (62u16, vec![0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05]);
    // mov x8, #63; mov x0, #0; sub x1, sp, #16; mov x2, #1; svc #0
    #[cfg(target_arch = "aarch64")]
    let read = vec![0xe8, 7, 0x80, 0xd2, 0, 0, 0x80, 0xd2, 0xe1, 0x43, 0, 0xd1, 0x22, 0, 0x80, 0xd2, 1, 0, 0, 0xd4];
    // mov x8, #93; mov x0, #0; svc #0
    #[cfg(target_arch = "aarch64")]
    let (machine, end) = (183u16, vec![0xa8, 0x0b, 0x80, 0xd2, 0, 0, 0x80, 0xd2, 1, 0, 0, 0xd4]);
    let code = if waits { [read, end].concat() } else { end };
    const BASE: u64 = 0x40_0000;
    let entry = BASE + 120;
    let size = 120 + code.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    elf.extend(2u16.to_le_bytes());
    elf.extend(machine.to_le_bytes());
    elf.extend(1u32.to_le_bytes());
    for word in [entry, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes());
    elf.extend(5u32.to_le_bytes());
    for word in [0, BASE, BASE, size, size, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

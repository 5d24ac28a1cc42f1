//! Looking while others remove: how long `images` and `ps` take while a hundred removals run, beside the same lists
//! while nobody works; opening a root, check, df and a dry run of prune.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use coracle::Engine;
use coracle::system::{Depth, PruneOptions};
use support::{Candidate, compare};

/// Images that stay, images that go at once, and containers.
const STAY: usize = 20;
const GO: usize = 100;
const CONTAINERS: usize = 50;

fn main() {
    let dir = support::scratch();
    let engine = Engine::open(dir.path().join("root")).unwrap();
    for number in 0..STAY {
        load(&engine, dir.path(), &format!("stays{number}:1"), number);
    }
    for number in 0..CONTAINERS {
        let id = format!("{number:064x}");
        let record = serde_json::json!({
            "id": id, "base": "/", "command": ["sleep"], "created": "2020-01-02T03:04:05Z", "state": "exited",
            "keep": true, "stop_signal": 15, "owner": "0123456789abcdef",
        });
        let place = engine.root().join("containers").join(&id);
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("state.json"), record.to_string()).unwrap();
    }
    removals(&engine, dir.path());
    questions(&engine);
}

/// Lists while removals run.
fn removals(engine: &Engine, dir: &Path) {
    let rounds = if support::is_trial() { 1 } else { 5 };
    let (mut quiet, mut busy): ([Vec<Duration>; 2], [Vec<Duration>; 2]) = Default::default();
    for round in 0..rounds {
        for number in 0..GO {
            load(engine, dir, &format!("goes{number}:1"), 1000 + round * GO + number);
        }
        for _ in 0..100 {
            look(engine, &mut quiet);
        }
        let left = AtomicUsize::new(GO);
        std::thread::scope(|scope| {
            for number in 0..GO {
                let left = &left;
                scope.spawn(move || {
                    engine.remove_image(&format!("goes{number}:1"), false).unwrap();
                    left.fetch_sub(1, Ordering::Relaxed);
                });
            }
            while left.load(Ordering::Relaxed) > 0 {
                look(engine, &mut busy);
            }
        });
    }
    println!("\nlists of {STAY} to {} images and of {CONTAINERS} containers, {rounds} rounds", STAY + GO);
    println!("{:<44} {:>8} {:>11} {:>11} {:>11}", "", "lists", "median", "p99", "worst");
    for (name, times) in [("while nobody works", &mut quiet), ("while 100 removals run", &mut busy)] {
        for (what, times) in ["images", "ps"].into_iter().zip(times) {
            times.sort();
            let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
            println!(
                "{:<44} {:>8} {:>8.3} ms {:>8.3} ms {:>8.3} ms",
                format!("{what} {name}"),
                times.len(),
                at(50),
                at(99),
                at(100)
            );
        }
    }
}

fn look(engine: &Engine, [images, containers]: &mut [Vec<Duration>; 2]) {
    let begin = Instant::now();
    assert!(engine.list_images().unwrap().len() >= STAY);
    images.push(begin.elapsed());
    let begin = Instant::now();
    assert_eq!(engine.containers().unwrap().len(), CONTAINERS);
    containers.push(begin.elapsed());
}

/// What is asked about a root as a whole.
fn questions(engine: &Engine) {
    let dry_run = PruneOptions { dry_run: true, ..PruneOptions::default() };
    compare(
        "questions about a root of 20 images",
        30,
        Duration::ZERO,
        vec![
            Candidate { name: "floor: list the images", turn: Box::new(|| drop(engine.list_images().unwrap())) },
            Candidate { name: "open the root", turn: Box::new(|| drop(Engine::open(engine.root()).unwrap())) },
            Candidate { name: "check, quick", turn: Box::new(|| drop(engine.check(Depth::Quick).unwrap())) },
            Candidate { name: "check, full", turn: Box::new(|| drop(engine.check(Depth::Full).unwrap())) },
            Candidate { name: "df", turn: Box::new(|| drop(engine.disk_usage().unwrap())) },
            Candidate { name: "prune, dry run", turn: Box::new(|| drop(engine.prune(&dry_run).unwrap())) },
        ],
    );
}

/// Loads an image of one layer of its own with some hundred files.
fn load(engine: &Engine, dir: &Path, name: &str, seed: usize) {
    let mut tar = tar::Builder::new(Vec::new());
    for file in 0..200 {
        append(&mut tar, &format!("file{file}"), format!("{seed} {file}").as_bytes());
    }
    let tar = tar.into_inner().unwrap();
    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, "layer.tar", &tar);
    let config = serde_json::json!({
        "architecture": coracle::Platform::host().architecture, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [coracle::Digest::of(&tar)]},
    });
    append(&mut archive, "config.json", config.to_string().as_bytes());
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    append(&mut archive, "manifest.json", manifest.to_string().as_bytes());
    let file = dir.join("image.tar");
    std::fs::File::create(&file).unwrap().write_all(&archive.into_inner().unwrap()).unwrap();
    engine.load(file).unwrap();
}

fn append(archive: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, bytes).unwrap();
}

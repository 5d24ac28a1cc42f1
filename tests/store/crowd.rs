//! Many at once: what fifty do is done once, and nobody who only looks waits.

use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coracle::Engine;
use coracle::system::{Depth, PruneOptions};

use super::lab::{Lab, image, scratch, with_programs};
use super::support::{archive, assert_whole, role};

/// Ends the work of other threads, also when this one fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One of a crowd: loads, and says how many blobs it has read and layers it has unpacked itself.
pub fn loader(root: &Path) {
    let engine = Engine::open(root).unwrap();
    let layers = std::sync::Arc::new(std::sync::Mutex::new(std::collections::HashSet::new()));
    let seen = layers.clone();
    let observer: coracle::image::Observer = std::sync::Arc::new(move |progress| {
        if let coracle::image::Progress::Layer(layer) = progress {
            seen.lock().unwrap().insert(layer.diff_id);
        }
    });
    let options = coracle::image::LoadOptions { progress: Some(observer), ..Default::default() };
    let file = root.parent().unwrap().join("image.tar");
    let images = engine.images().load(file.as_path(), &options).unwrap();
    assert_eq!(images[0].layers().len(), 4);
    println!("unpacked {}", layers.lock().unwrap().len());
}

#[test]
fn of_fifty_that_load_an_image_one_unpacks_each_layer() {
    let dir = scratch();
    let root = dir.path().join("root");
    std::fs::write(dir.path().join("image.tar"), archive("crowd:1", 1, 4, 50, 20_000)).unwrap();
    let children: Vec<_> = (0..50)
        .map(|_| role("loader", &root, 0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    let mut unpacked = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
        let (_, number) = text.split_once("unpacked ").unwrap();
        unpacked += number.lines().next().unwrap().parse::<usize>().unwrap();
    }
    assert_eq!(unpacked, 4);
    let engine = Engine::open(&root).unwrap();
    assert_eq!(assert_whole(&engine).garbage, []);
    assert_eq!(engine.list_images().unwrap().len(), 1);
    engine.remove_image("crowd:1", false).unwrap();
}

#[test]
fn listing_waits_for_no_removal() {
    let Some(lab) = Lab::new() else { return };
    let engine = &lab.engine;
    let image = image(engine);
    let container = with_programs(image.container()).command(["true"]).keep(true).spawn().unwrap();
    container.wait().unwrap();
    // Every lock that there is, held as a removal would hold it; this engine is another one to flock(2).
    let root = lab.root();
    let locks = ["images.lock", "images.gate", "gc.lock", "gc.gate", "index.lock", "names.lock"];
    let held: Vec<_> = locks
        .map(|name| std::fs::File::options().create(true).truncate(false).write(true).open(root.join(name)).unwrap())
        .into_iter()
        .inspect(|file| file.lock().unwrap())
        .collect();
    assert_eq!(engine.list_images().unwrap().len(), 1);
    assert_eq!(engine.containers().unwrap().len(), 1);
    assert_eq!(engine.image("lab").unwrap(), image);
    assert_eq!(engine.find_container(&container.id().to_string()).unwrap().id(), container.id());
    // Nor does opening, which a `ps` of another program does first.
    let other = Engine::open(&root).unwrap();
    assert_eq!((other.list_images().unwrap().len(), other.containers().unwrap().len()), (1, 1));
    drop(held);
    container.remove().unwrap();
}

#[test]
fn lists_are_right_while_images_go() {
    let dir = scratch();
    let engine = Engine::open(dir.path().join("root")).unwrap();
    let stays = dir.path().join("stays.tar");
    std::fs::write(&stays, archive("stays:1", 77, 1, 1, 10)).unwrap();
    engine.load(stays.as_path()).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for worker in 0..2u32 {
            let (engine, done, dir) = (&engine, &done, dir.path());
            scope.spawn(move || {
                for turn in 0..50 {
                    let name = format!("goes{worker}:1");
                    let file = dir.join(format!("goes{worker}.tar"));
                    std::fs::write(&file, archive(&name, worker * 1000 + turn + 1, 1, 1, 10)).unwrap();
                    engine.load(file.as_path()).unwrap();
                    engine.remove_image(&name, false).unwrap();
                }
                done.store(true, Ordering::Relaxed);
            });
        }
        while !done.load(Ordering::Relaxed) {
            let names: Vec<String> =
                engine.list_images().unwrap().iter().flat_map(|it| &it.tags).map(ToString::to_string).collect();
            assert!(names.iter().any(|name| name.ends_with("stays:1")), "{names:?}");
        }
    });
    assert_whole(&engine);
    engine.remove_image("stays:1", false).unwrap();
}

#[test]
fn a_check_sees_no_damage_while_others_work() {
    let Some(lab) = Lab::new() else { return };
    let engine = &lab.engine;
    let busy = image(engine);
    let dir = scratch();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (done, dir, busy) = (&done, dir.path(), &busy);
        for worker in 0..2u32 {
            scope.spawn(move || {
                let name = format!("comes-and-goes{worker}:1");
                let file = dir.join(format!("{worker}.tar"));
                for turn in 0.. {
                    std::fs::write(&file, archive(&name, worker * 1000 + turn % 3 + 1, 2, 5, 1000)).unwrap();
                    let image = engine.load(file.as_path()).unwrap();
                    let kept = with_programs(image.container()).command(["true"]).keep(true).spawn().unwrap();
                    kept.wait().unwrap();
                    kept.remove().unwrap();
                    engine.remove_image(&name, false).unwrap();
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                assert!(with_programs(busy.container()).command(["true"]).status().unwrap().success());
                let pruned = engine.prune(&PruneOptions::default()).unwrap();
                assert!(pruned.failures.is_empty(), "{:?}", pruned.failures);
            }
        });
        let _ends = Ends(done);
        for _ in 0..50 {
            let report = engine.check(Depth::Full).unwrap();
            assert!(report.is_whole(), "{:#?}", report.findings);
            let usage = engine.disk_usage().unwrap();
            assert!(usage.images.count >= 1 && usage.layers.count >= 1);
        }
    });
    assert_whole(engine);
}

#[test]
fn a_stream_of_starts_does_not_keep_a_removal_waiting() {
    let Some(lab) = Lab::new() else { return };
    let engine = &lab.engine;
    let busy = image(engine);
    let dir = scratch();
    let file = dir.path().join("idle.tar");
    std::fs::write(&file, archive("idle:1", 3, 1, 1, 10)).unwrap();
    engine.load(file.as_path()).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    assert!(with_programs(busy.container()).command(["true"]).status().unwrap().success());
                }
            });
        }
        let _ends = Ends(&done);
        let begin = Instant::now();
        engine.remove_image("idle:1", false).unwrap();
        // Far more than it takes, and far less than for ever.
        assert!(begin.elapsed() < Duration::from_secs(60));
    });
}

#[test]
fn ten_thousand_containers_are_listed() {
    let dir = scratch();
    let root = dir.path().join("root");
    let engine = Engine::open(&root).unwrap();
    for number in 0..10_000u32 {
        let id = format!("{number:064x}");
        let record = serde_json::json!({
            "id": id, "name": format!("c{number}"), "base": "/", "command": ["sleep"], "created": "2020-01-02T03:04:05Z",
            "state": "exited", "keep": true, "stop_signal": 15, "owner": "0123456789abcdef",
        });
        let place = root.join("containers").join(&id);
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("state.json"), record.to_string()).unwrap();
    }
    let begin = Instant::now();
    assert_eq!(engine.containers().unwrap().len(), 10_000);
    eprintln!("10,000 containers listed in {:?}", begin.elapsed());
    let pruned = engine.prune(&PruneOptions { containers: true, ..Default::default() }).unwrap();
    assert_eq!((pruned.containers.len(), pruned.failures.len()), (10_000, 0));
    assert_whole(&engine);
}

//! Records that cannot be read, and containers on their way out.

use std::path::{Path, PathBuf};
use std::process::Stdio as Process;

use coracle::system::{Depth, PruneOptions};
use coracle::{Container, Engine, ErrorKind};
use nix::sys::resource::{Resource, setrlimit};

use super::support::{Lab, image, with_programs};

fn home(lab: &Lab, container: &Container) -> PathBuf {
    lab.root().join("containers").join(container.id().to_string())
}

/// What a container wrote may be all that its owner has; a record that cannot be read says nothing of it.
#[test]
fn a_container_whose_record_cannot_be_read_stays_and_is_told() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let container = with_programs(image.container()).command(["/bin/sleep", "1000"]).keep(true).spawn().unwrap();
    let home = home(&lab, &container);
    let record = home.join("state.json");
    let good = std::fs::read(&record).unwrap();
    let later = String::from_utf8(good.clone()).unwrap().replace("\"running\"", "\"paused\"");
    let look = || {
        let again = Engine::open(lab.root()).unwrap();
        assert!(home.join("upper").exists() || home.join("rootfs").exists());
        assert!(container.try_wait().unwrap().is_none());
        let [told] = again.leftovers() else { panic!("{:?}", again.leftovers()) };
        assert!(told.contains("state.json"), "{told}");
        let report = again.check(Depth::Quick).unwrap();
        let found = report.findings.iter().find(|finding| finding.path == record).unwrap();
        assert!(found.remedy.contains("put a copy of it back"), "{found}");
        // Nobody knows which image it uses.
        again.remove_image("lab", true).unwrap_err();
        again.prune_images().unwrap_err();
        again.prune(&PruneOptions { containers: true, all_images: true, ..Default::default() }).unwrap_err();
        assert!(again.image("lab").is_ok());
        again.find_container(container.id().as_str()).unwrap_err()
    };
    for damage in [&b""[..], &good[..20], later.as_bytes(), &[0; 64]] {
        std::fs::write(&record, damage).unwrap();
        assert_eq!(look().kind(), ErrorKind::Corrupt);
        // The others are listed all the same.
        assert_eq!(lab.engine.containers().unwrap(), []);
        std::fs::write(&record, &good).unwrap();
    }
    std::fs::remove_file(&record).unwrap();
    std::fs::create_dir(&record).unwrap();
    assert_eq!(look().raw_os_error(), Some(libc::EISDIR));
    assert_eq!(lab.engine.containers().unwrap_err().raw_os_error(), Some(libc::EISDIR));
    std::fs::remove_dir(&record).unwrap();
    std::fs::write(&record, &good).unwrap();
    assert_eq!(Engine::open(lab.root()).unwrap().leftovers(), &[] as &[String]);
    container.kill().unwrap();
    container.wait().unwrap();
    container.remove().unwrap();
    lab.assert_clean();
}

#[test]
fn who_has_no_descriptor_left_removes_nothing() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let builder = with_programs(image.container()).command(["/bin/sleep", "1000"]);
    let running = [builder.clone().keep(true).spawn().unwrap(), builder.spawn().unwrap()];
    let output = super::host::role("starved", &lab.root()).stdin(Process::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(lab.engine.image("lab").is_ok());
    for container in running {
        assert!(container.try_wait().unwrap().is_none());
        assert!(home(&lab, &container).join("state.json").exists());
        container.kill().unwrap();
        container.wait().unwrap();
        container.remove().unwrap();
    }
    assert_eq!(lab.engine.remove_image("lab", false).unwrap().deleted.len(), 1);
    lab.assert_clean();
}

/// Tries to do harm, each time with one descriptor more.
pub fn starved(root: &str) {
    let ids: Vec<String> =
        Engine::open(root).unwrap().containers().unwrap().iter().map(|info| info.id.to_string()).collect();
    assert_eq!(ids.len(), 2);
    setrlimit(Resource::RLIMIT_NOFILE, 64, 64).unwrap();
    let opened = Engine::open(root).unwrap();
    for left in 0..24 {
        let mut filling = vec![];
        while let Ok(file) = std::fs::File::open("/dev/null") {
            filling.push(file);
        }
        filling.truncate(filling.len().saturating_sub(left));
        let fresh = Engine::open(root).ok();
        for engine in fresh.iter().chain([&opened]) {
            assert!(engine.remove_image("lab", false).is_err());
            assert!(engine.containers().is_err() || engine.containers().is_ok_and(|all| all.len() == 2));
            let options = PruneOptions { containers: true, all_images: true, ..Default::default() };
            let _ = engine.prune(&options);
            for id in &ids {
                assert!(engine.find_container(id).and_then(|container| container.remove()).is_err());
            }
        }
        for id in &ids {
            assert!(Path::new(root).join("containers").join(id).join("state.json").exists(), "{left}");
        }
    }
}

/// Renamed first: a kill on the way leaves no container that is listed and has lost files.
#[test]
fn a_container_is_there_as_a_whole_or_not_at_all() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let script = "mkdir /many; cd /many; i=0; while [ $i -lt 2000 ]; do : > f$i; i=$((i+1)); done";
    let builder = with_programs(image.container()).command(["/bin/sh", "-ec", script]).keep(true).name("whole");
    for how in ["remove", "prune", "open"] {
        let container = builder.spawn().unwrap();
        assert!(container.wait().unwrap().success());
        let home = home(&lab, &container);
        let (record, names) = (home.join("state.json"), lab.root().join("names/whole"));
        let many = if home.join("upper").exists() { home.join("upper/many") } else { home.join("rootfs/many") };
        let id = container.id().to_string();
        if how == "open" {
            // As one that is not kept, and whose program is gone.
            let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
            (json["keep"], json["owner"]) = (false.into(), "0123456789abcdef".into());
            std::fs::write(&record, json.to_string()).unwrap();
        }
        drop(container);
        let watch = || {
            let mut looks = 0;
            while record.exists() {
                // In this order: a file or the name that has gone before the record has.
                let lost = names.symlink_metadata().is_err()
                    || [0, 999, 1999].iter().any(|number| !many.join(format!("f{number}")).exists());
                assert!(!(lost && record.exists()), "after {looks} looks");
                looks += 1;
            }
        };
        std::thread::scope(|scope| {
            let watching = scope.spawn(watch);
            match how {
                "remove" => lab.engine.find_container(&id).unwrap().remove().unwrap(),
                "prune" => {
                    let options = PruneOptions { containers: true, ..Default::default() };
                    let pruned = lab.engine.prune(&options).unwrap();
                    assert_eq!((pruned.containers.len(), pruned.failures.len()), (1, 0));
                    assert!(pruned.freed.inodes > 2000, "{:?}", pruned.freed);
                }
                _ => assert_eq!(Engine::open(lab.root()).unwrap().leftovers(), &[] as &[String]),
            }
            watching.join().unwrap();
        });
        lab.assert_clean();
    }
}

#[test]
fn no_container_is_made_of_an_image_that_was_removed() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let builder = with_programs(image.container()).command(["true"]);
    assert!(builder.status().unwrap().success());
    let other = Engine::open(lab.root()).unwrap();
    other.images().repository("other").unwrap().tag(&image, "1").unwrap();
    lab.engine.remove_image("lab", false).unwrap();
    // It has a name still.
    assert!(builder.status().unwrap().success());
    other.remove_image("other:1", false).unwrap();
    for _ in 0..2 {
        let error = builder.status().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert!(error.to_string().contains("it was removed"), "{error}");
    }
    assert_eq!(std::fs::read_dir(lab.root().join("layers")).unwrap().count(), 0);
    lab.assert_clean();
}

//! User namespaces of root's: ids are shown, never changed.

use std::os::unix::fs::{MetadataExt, chown};

use coracle::container::{IdMap, Mount, runtime_spec as oci};
use coracle::image::CommitOptions;
use coracle::{ContainerBuilder, Engine, EngineOptions, ErrorKind, Image, SnapshotterChoice};

use super::shared::skip::other_user;
use super::support::{Lab, is_root, run, scratch, tree, with_programs};

const MAP: IdMap = IdMap::new(300_000, 400_000, 65_536);

/// An image with a file of bob's.
fn owned(engine: &Engine) -> Image {
    let tree = tree();
    std::fs::write(tree.path().join("home/bob/file"), "bob's").unwrap();
    for name in ["home/bob", "home/bob/file"] {
        chown(tree.path().join(name), Some(1000), Some(1000)).unwrap();
    }
    engine.import(tree.path(), Some("lab".parse().unwrap())).unwrap()
}

fn base(image: &Image) -> ContainerBuilder {
    with_programs(image.container()).user_namespace(MAP)
}

/// Owner of each file below the directory.
fn owners(dir: &std::path::Path) -> Vec<(std::path::PathBuf, u32, u32)> {
    let mut found = vec![];
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let status = std::fs::symlink_metadata(entry.path()).unwrap();
        found.push((entry.path(), status.uid(), status.gid()));
        if status.is_dir() {
            found.extend(owners(&entry.path()));
        }
    }
    found.sort();
    found
}

fn check(engine: &Engine) {
    let image = owned(engine);
    let before = owners(&engine.root().join("layers"));
    assert!(before.iter().any(|(_, uid, _)| *uid == 1000));
    let script = "cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; id -u; \
                  stat -c %u:%g / /etc /home/bob/file; touch /made/new; stat -c %u /made/new /proc/self/; \
                  chown 7:8 /made/new; echo x > /dev/null; \
                  ls -A /sys/class/net; cat /sys/class/net/lo/flags";
    let out = run(&base(&image), script);
    assert_eq!(out, " 0 300000 65536\n 0 400000 65536\n0\n0:0\n0:0\n1000:1000\n0\n0\nlo\n0x9\n");
    // As another user, who owns the streams that were made for it.
    let out = base(&image).user("bob").command(["/bin/sh", "-ec", "cat ~/file > /dev/stdout; id -u; echo x >> ~/file"]);
    assert_eq!(out.output().unwrap().stdout, b"bob's1000\n");
    // Outside it is somebody else, and so is a further command.
    let container = base(&image).command(["/bin/sleep", "1000"]).keep(true).spawn().unwrap();
    let process = format!("/proc/{}", container.pid().unwrap());
    let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
    assert!(status.contains("Uid:\t300000\t300000") && status.contains("Gid:\t400000\t400000"), "{status}");
    let script = "id -u; echo written > /home/bob/file; mkdir -p /made/by; chown bob:bob /made/by; \
                  readlink /proc/self/ns/user; echo out > /dev/stdout; grep CapEff /proc/self/status";
    let out = container.exec().command(["/bin/sh", "-ec", script]).output().unwrap();
    let namespace = std::fs::read_link(format!("{process}/ns/user")).unwrap();
    let expected = format!("0\n{}\nout\nCapEff:\t00000000a80425fb\n", namespace.display());
    assert_eq!(String::from_utf8_lossy(&out.stdout), expected, "{out:?}");
    assert_ne!(namespace, std::fs::read_link("/proc/self/ns/user").unwrap());
    container.kill().unwrap();
    container.wait().unwrap();
    // What lies on disk, and so what an image of it has, is what was seen inside.
    let script = "stat -c %u:%g /home/bob/file /made/by; cat /home/bob/file";
    let committed = container.commit(&CommitOptions::default()).unwrap();
    let saved = container.snapshot().unwrap();
    for builder in [with_programs(committed.container()), base(&committed), with_programs(saved.container())] {
        assert_eq!(run(&builder, script), "1000:1000\n1000:1000\nwritten\n");
    }
    assert_eq!(run(&with_programs(saved.container()).user_namespace(MAP), script), "1000:1000\n1000:1000\nwritten\n");
    container.remove().unwrap();
    saved.remove().unwrap();
    let layers = owners(&engine.root().join("layers"));
    assert!(before.iter().all(|file| layers.contains(file)));
}

#[test]
fn files_are_shown_with_mapped_ids() {
    let Some(lab) = Lab::new() else { return };
    if !is_root() {
        return other_user("root");
    }
    check(&lab.engine);
    // On the disk, too, and with whole trees in place of overlays.
    let disk = tempfile::tempdir_in("/var/tmp").unwrap();
    check(&Engine::open(disk.path().join("root")).unwrap());
    check(&EngineOptions::new(disk.path().join("copies")).snapshotter(SnapshotterChoice::Copy).open().unwrap());
}

/// Of networks that are the host's, or another container's, it is not the root.
#[test]
fn a_mapped_root_uses_networks_that_are_not_its_own() {
    let Some(lab) = Lab::new() else { return };
    if !is_root() {
        return other_user("root");
    }
    let image = owned(&lab.engine);
    let script = "readlink /proc/self/ns/net; ls /sys/class/net | wc -l; (: >> /sys/kernel/mm/ksm/run) 2>/dev/null || echo refused";
    let out = run(&base(&image).network(coracle::container::Network::Host), script);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], std::fs::read_link("/proc/self/ns/net").unwrap().to_str().unwrap());
    assert_eq!(lines[2], "refused");
    let other = with_programs(image.container()).command(["/bin/sleep", "1000"]).spawn().unwrap();
    let path = format!("/proc/{}/ns/net", other.pid().unwrap());
    let expected = std::fs::read_link(&path).unwrap();
    let joined = base(&image).spec(move |spec| {
        let all = spec.linux_mut().as_mut().unwrap().namespaces_mut().as_mut().unwrap();
        all.retain(|namespace| namespace.typ() != oci::LinuxNamespaceType::Network);
        let net = oci::LinuxNamespaceBuilder::default().typ(oci::LinuxNamespaceType::Network);
        all.push(net.path(std::path::PathBuf::from(&path)).build().unwrap());
    });
    let out = run(&joined, "readlink /proc/self/ns/net; id -u");
    assert_eq!(out, format!("{}\n0\n", expected.display()));
    other.kill().unwrap();
}

#[test]
fn nothing_of_the_host_belongs_to_a_mapped_root() {
    let Some(lab) = Lab::new() else { return };
    if !is_root() {
        return other_user("root");
    }
    let image = owned(&lab.engine);
    let host = scratch();
    std::fs::write(host.path().join("secret"), "s").unwrap();
    std::fs::set_permissions(host.path().join("secret"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::set_permissions(host.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let bind = |option: &str| base(&image).mount(Mount::bind(host.path(), "/data").option(option));
    let script = "stat -c %u /data/secret; (cat /data/secret) 2>/dev/null || echo refused";
    assert_eq!(run(&bind("rw").cap_add("DAC_READ_SEARCH"), script), "65534\nrefused\n");
    // Unless the mount is shown as the layers are.
    assert_eq!(run(&bind("idmap"), script), "0\ns");
    let processes = run(&base(&image), "cat /proc/sys/kernel/overflowuid; (echo 1 > /proc/sysrq-trigger) 2>&1 | wc -l");
    assert_eq!(processes, "65534\n1\n");
}

/// Mappings of a mount's own, in the spec.
#[test]
fn a_mount_shows_ids_as_its_own_maps_say() {
    let Some(lab) = Lab::new() else { return };
    let host = scratch();
    let file = host.path().join("file");
    std::fs::write(&file, "").unwrap();
    let source = host.path().to_str().unwrap().to_owned();
    let mount = move |options: &'static [&'static str], maps: bool| {
        let source = source.clone();
        move |spec: &mut oci::Spec| {
            let one = |inside: u32, outside: u32| {
                vec![
                    oci::LinuxIdMappingBuilder::default()
                        .container_id(inside)
                        .host_id(outside)
                        .size(5u32)
                        .build()
                        .unwrap(),
                ]
            };
            let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
            let mut mount = oci::MountBuilder::default()
                .destination("/data")
                .source(source.clone())
                .typ("bind")
                .options(options)
                .build()
                .unwrap();
            if maps {
                mount.set_uid_mappings(Some(one(1234, 70))).set_gid_mappings(Some(one(1234, 80)));
            }
            spec.mounts_mut().as_mut().unwrap().push(mount);
        }
    };
    let image = super::support::image(&lab.engine);
    let builder = || with_programs(image.container());
    let refuses = |builder: ContainerBuilder, words: &str| {
        let error = builder.command(["/bin/true"]).output().unwrap_err();
        assert!(error.to_string().contains(words), "{words}: {error}");
    };
    if !is_root() {
        return refuses(builder().spec(mount(&["rbind", "idmap"], true)), "idmap");
    }
    chown(&file, Some(1236), Some(1234)).unwrap();
    for options in [&["rbind", "idmap"], &["bind", "ridmap"]] {
        assert_eq!(run(&builder().spec(mount(options, true)), "stat -c %u:%g /data/file"), "72:80\n");
    }
    refuses(builder().spec(mount(&["rbind"], true)), "uidMappings");
    refuses(builder().spec(mount(&["rbind", "idmap"], false)), "uidMappings");
}

#[test]
fn a_user_namespace_of_another_container_is_joined() {
    let Some(lab) = Lab::new() else { return };
    if !is_root() {
        return other_user("root");
    }
    let image = owned(&lab.engine);
    let other = base(&image).command(["/bin/sleep", "1000"]).spawn().unwrap();
    let path = format!("/proc/{}/ns/user", other.pid().unwrap());
    let namespace = std::fs::read_link(&path).unwrap();
    let builder = with_programs(image.container()).spec(move |spec| {
        let joined = oci::LinuxNamespaceBuilder::default()
            .typ(oci::LinuxNamespaceType::User)
            .path(std::path::PathBuf::from(&path))
            .build()
            .unwrap();
        spec.linux_mut().as_mut().unwrap().namespaces_mut().as_mut().unwrap().push(joined);
    });
    let script = "readlink /proc/self/ns/user; stat -c %u /home/bob/file /etc; id -u";
    assert_eq!(run(&builder, script), format!("{}\n1000\n0\n0\n", namespace.display()));
    // Its streams can be opened again, also by a further command.
    let beside = builder.command(["/bin/sleep", "1000"]).spawn().unwrap();
    let out = beside.exec().user("bob").command(["/bin/sh", "-ec", "id -u > /dev/stdout"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "1000\n", "{out:?}");
    beside.kill().unwrap();
    other.kill().unwrap();
}

#[test]
fn what_cannot_be_mapped_is_refused_by_name() {
    let Some(lab) = Lab::new() else { return };
    let image = super::support::image(&lab.engine);
    let refuses = |builder: ContainerBuilder, words: &str| {
        let error = builder.command(["/bin/true"]).output().unwrap_err();
        assert!(error.to_string().contains(words), "{words}: {error}");
        error.kind()
    };
    if !is_root() {
        assert_eq!(refuses(base(&image), "/etc/subuid"), ErrorKind::Unsupported);
        return;
    }
    let map = |map: IdMap| with_programs(image.container()).user_namespace(map);
    assert_eq!(refuses(map(IdMap::new(300_000, 300_000, 10)).user("1000:0"), "process.user.uid"), ErrorKind::Invalid);
    refuses(map(IdMap::new(300_000, 300_000, 10)).user("0:1000"), "process.user.gid");
    refuses(map(IdMap::new(u32::MAX - 3, 300_000, 10)), "linux.uidMappings[0].size");
    refuses(map(IdMap::new(300_000, 300_000, 0)), "linux.uidMappings[0].size");
    let over = lab.engine.sandbox().user_namespace(MAP);
    assert_eq!(refuses(over, "a tree of the host"), ErrorKind::Unsupported);
    lab.assert_clean();
}

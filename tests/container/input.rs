//! Bad input: a clear error, and a store that works afterwards.

use coracle::{Engine, ErrorKind};

use super::support::{Lab, image, scratch};

#[test]
fn names_that_are_none() {
    let Some(lab) = Lab::new() else { return };
    for name in ["../x", "", "UPPER", "a b", "x:y:z", "/etc/passwd"] {
        let error = lab.engine.image(name).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Invalid | ErrorKind::NotFound), "{name}: {error}");
    }
    for name in ["a", "-x", "a/b", "..", "a\nb"] {
        let error = lab.engine.sandbox().command(["/bin/true"]).name(name).output().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{name}: {error}");
    }
    for name in ["../x", "..", "", "containers/x"] {
        assert!(lab.engine.find_container(name).is_err(), "{name}");
    }
    lab.assert_clean();
}

#[test]
fn a_truncated_archive_leaves_nothing() {
    let Some(lab) = Lab::new() else { return };
    let dir = scratch();
    let tar = dir.path().join("x.tar");
    std::fs::write(&tar, [b'x'; 700]).unwrap();
    let error = lab.engine.load(tar.as_path()).unwrap_err();
    assert!(error.to_string().starts_with("cannot "), "{error}");
    assert!(lab.engine.list_images().unwrap().is_empty());
    image(&lab.engine);
    assert_eq!(Engine::open(lab.root()).unwrap().list_images().unwrap().len(), 1);
}

#[test]
fn a_root_of_somebody_else_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = scratch();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = Engine::open(&root).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("chmod"), "{error}");
}

#[test]
fn options_that_cannot_mean_anything() {
    use coracle::container::Mount;
    let Some(lab) = Lab::new() else { return };
    let sandbox = || lab.engine.sandbox().command(["/bin/true"]);
    let refused = [
        sandbox().hostname("-x").output(),
        sandbox().env("", "x").output(),
        sandbox().env("A=B", "x").output(),
        sandbox().cap_add("NO_SUCH").output(),
        sandbox().mount(Mount::bind("/tmp", "relative")).output(),
        sandbox().mount(Mount::bind("/tmp", "/")).output(),
        sandbox().mount(Mount::bind("/tmp", "/a/../../b")).output(),
        sandbox().mount(Mount::bind("/tmp", "/x").option("no-such-option")).output(),
        sandbox().command(["/bin/true", "a\0b"]).output(),
        lab.engine.sandbox_over("/etc/passwd").command(["/bin/true"]).output(),
    ];
    for result in refused {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    lab.assert_clean();
}

#[test]
fn mounts_that_do_not_fit_say_why() {
    use coracle::container::Mount;
    let Some(lab) = Lab::new() else { return };
    let dir = scratch();
    let (file, missing) = (dir.path().join("file"), dir.path().join("missing"));
    std::fs::write(&file, "x").unwrap();
    let image = image(&lab.engine);
    let refused = |mount| image.container().command(["/bin/true"]).mount(mount).output().unwrap_err();
    // Kinds that do not match, both ways.
    for mount in [Mount::bind(dir.path(), "/etc/passwd"), Mount::bind(&file, "/etc")] {
        let error = refused(mount);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains("a directory can only be mounted over a directory"), "{error}");
    }
    // The option that is to blame, and not a word of other file systems.
    for option in ["size=many", "no-such=1"] {
        let error = refused(Mount::tmpfs("/x").option(option));
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(text.contains(option) && text.contains("tmpfs") && !text.contains("overlay"), "{error}");
    }
    let error = refused(Mount::bind(&missing, "/x"));
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("mkdir"), "{error}");
    lab.assert_clean();
}

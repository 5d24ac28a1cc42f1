//! load, import, images, tag, rmi, history, inspect; and run over an image.

use std::fs;

use serde_json::json;

use crate::support::{Root, busybox, complaint, docker_archive, feed, needs_containers, tar_of};

#[test]
fn an_archive_from_a_file_an_option_and_standard_input() {
    let archive = docker_archive("app:1", &tar_of(&[("file", b"content")]));
    let file = |root: &Root| {
        fs::write(root.file("app.tar"), &archive).unwrap();
        root.file("app.tar").to_str().unwrap().to_owned()
    };
    let root = Root::new();
    assert_eq!(root.ok(&["load", &file(&root)]), "Loaded image: app:1\n");
    assert_eq!(root.ok(&["load", "-i", &file(&root)]), "Loaded image: app:1\n");
    let root = Root::new();
    let output = feed(root.command(&["--json", "load"]), &archive);
    let loaded: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(loaded[0]["names"], json!(["app:1"]));
    assert!(output.stderr.is_empty(), "{output:?}");
    assert_eq!(root.json(&["images"])[0]["id"], loaded[0]["id"]);
    let root = Root::new();
    assert!(feed(root.command(&["load", "-"]), &archive).status.success());

    let list = root.ok(&["images"]);
    let mut lines = list.lines();
    assert!(lines.next().unwrap().starts_with("REPOSITORY   TAG   IMAGE ID       CREATED"), "{list}");
    let line = lines.next().unwrap();
    assert!(line.starts_with("app          1     ") && line.contains(" years ago "), "{list}");
    assert_eq!(root.ok(&["images", "-q", "--no-trunc"]).trim_end(), loaded[0]["id"].as_str().unwrap());

    let history = root.ok(&["history", "app:1"]);
    let steps: Vec<&str> = history.lines().collect();
    assert!(steps[1].contains("CMD cat") && steps[1].contains("0B") && steps[2].contains("ADD file"), "{history}");
    assert_eq!(root.json(&["history", "app:1"]).as_array().unwrap().len(), 2);
}

#[test]
fn what_is_no_image_is_refused_whole() {
    let root = Root::new();
    let archive = docker_archive("app:1", &tar_of(&[("file", &[b'x'; 4096])]));
    for bytes in [&b""[..], b"garbage", &tar_of(&[("a", b"b")]), &archive[..archive.len() / 2]] {
        let output = feed(root.command(&["load"]), bytes);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        complaint(&output);
    }
    let output = feed(root.command(&["load", "--platform", "linux/s390x"]), &archive);
    assert!(complaint(&output).contains("s390x"), "{output:?}");
    assert_eq!(root.json(&["images", "-a"]), json!([]));
    assert_eq!(fs::read_dir(root.path().join("blobs/sha256")).unwrap().count(), 0);
}

#[test]
fn names_come_and_go() {
    let root = Root::new();
    let tar = tar_of(&[("file", b"content")]);
    let output = feed(root.command(&["import", "-", "a:1"]), &tar);
    let id = String::from_utf8(output.stdout).unwrap().trim_end().to_owned();
    assert!(id.starts_with("sha256:") && id.len() == 71, "{id}");
    root.ok(&["tag", "a:1", "localhost:5000/b/c"]);
    root.ok(&["tag", &id[7..15], "a:2"]);
    assert_eq!(root.json(&["images"])[0]["names"], json!(["a:1", "a:2", "localhost:5000/b/c:latest"]));
    assert_eq!(root.ok(&["images"]).lines().count(), 4);
    let list = root.ok(&["images"]);
    assert!(list.contains("localhost:5000/b/c   latest"), "{list}");

    let said = root.fails(1, &["rmi", &id]);
    assert!(said.contains("a:1, a:2"), "{said}");
    let output = root.run(&["rmi", "a:1", "absent", "a:2"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"Untagged: a:1\nUntagged: a:2\n");
    let removed = root.json(&["rmi", "localhost:5000/b/c"]);
    assert_eq!(removed[0]["deleted"], json!([id]));
    assert_eq!(root.json(&["images", "-a"]), json!([]));
}

#[test]
fn nameless_images_are_listed() {
    let root = Root::new();
    let output = feed(root.command(&["--json", "import", "-"]), &tar_of(&[("file", b"content")]));
    let image: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(image["names"], json!([]));
    assert!(root.ok(&["images"]).contains("<none>"));
    root.ok(&["rmi", image["id"].as_str().unwrap()]);
}

#[test]
fn changes_and_inspection() {
    let root = Root::new();
    let tree = root.file("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "content").unwrap();
    let tree = tree.to_str().unwrap();
    let changes = ["-c", "CMD [\"a\", \"b\"]", "-c", "ENV X=1 Y='2 3'", "-c", "WORKDIR /srv", "-c", "USER 1:2"];
    let platform = ["--platform", "linux/arm64", "--owner", "0:0", "-m", "a remark"];
    root.ok(&[&["import"], &changes[..], &platform, &[tree, "changed"]].concat());
    let image = &root.json(&["inspect", "changed"])[0];
    assert_eq!((&image["type"], &image["platform"]), (&json!("image"), &json!("linux/arm64")));
    assert_eq!(
        image["config"],
        json!({ "Cmd": ["a", "b"], "Env": ["X=1", "Y=2 3"], "WorkingDir": "/srv", "User": "1:2" })
    );
    assert_eq!(image["layers"].as_array().unwrap().len(), 1);
    assert_eq!(root.json(&["history", "changed"])[0]["comment"], "a remark");
    assert!(root.fails(1, &["import", "-c", "RUN x", tree]).contains("RUN"));
    assert!(root.fails(1, &["import", "--owner", "me", tree]).contains("UID:GID"));
    assert!(root.fails(1, &["import", tree, "Bad Name"]).contains("Bad Name"));
    let output = root.run(&["inspect", "-t", "container", "changed"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn an_image_runs() {
    needs_containers!();
    let root = Root::new();
    let Some(tree) = busybox(&root) else { return };
    let changes = ["-c", "CMD [\"echo\", \"from the image\"]", "-c", "ENV FROM=image", "-c", "WORKDIR /etc"];
    root.ok(&[&["import", "--owner", "0:0"], &changes[..], &[tree.to_str().unwrap(), "bb"]].concat());
    let says = |arguments: &[&str]| root.ok(&[&["run", "--rm"], arguments].concat());
    assert_eq!(says(&["bb"]), "from the image\n");
    assert_eq!(says(&["bb", "cat", "motd"]), "hello from the image\n");
    assert_eq!(says(&["bb", "echo", "--rm", "-e", "X=1"]), "--rm -e X=1\n");
    assert_eq!(says(&["--entrypoint", "cat", "bb", "/etc/motd"]), "hello from the image\n");
    assert_eq!(says(&["-w", "/bin", "bb", "pwd"]), "/bin\n");
    let env = says(&["-e", "MORE=1", "bb", "env"]);
    assert!(env.contains("FROM=image\n") && env.contains("MORE=1\n") && env.contains("PATH="), "{env}");
    assert_eq!(says(&["bb", "sh", "-c", "touch /new && ls /new"]), "/new\n");
    assert_eq!(root.run(&["run", "--rm", "bb", "ls", "/new"]).status.code(), Some(1));
    assert_ne!(root.run(&["run", "--rm", "--read-only", "bb", "touch", "/new"]).status.code(), Some(0));
    assert_eq!(root.run(&["run", "--rm", "bb", "nothing"]).status.code(), Some(127));
}

#[test]
fn containers_keep_their_image() {
    needs_containers!();
    let root = Root::new();
    let Some(tree) = busybox(&root) else { return };
    root.ok(&["import", "--owner", "0:0", tree.to_str().unwrap(), "bb:1"]);
    root.ok(&["run", "--name", "user", "bb:1", "true"]);
    assert!(root.ok(&["ps", "-a"]).contains("   bb:1   "));
    assert!(root.fails(1, &["rmi", "bb:1"]).contains("container"));
    root.ok(&["rm", "user"]);
    assert!(root.ok(&["rmi", "bb:1"]).contains("Deleted: sha256:"));
}

#[test]
fn load_reports_the_names_that_it_gave() {
    let root = Root::new();
    let layer = tar_of(&[("file", b"x")]);
    let file = root.file("image.tar");
    let load = |name: &str| {
        std::fs::write(&file, docker_archive(name, &layer)).unwrap();
        root.ok(&["load", file.to_str().unwrap()])
    };
    assert_eq!(load("first:1"), "Loaded image: first:1\n");
    assert_eq!(load("second:1"), "Loaded image: second:1\n");
    let id = root.json(&["inspect", "first:1"])[0]["id"].as_str().unwrap().to_owned();
    let nameless = String::from_utf8(docker_archive("\u{1}", &layer)).unwrap();
    std::fs::write(&file, nameless.replace("[\"\\u0001\"]", "[]        ")).unwrap();
    let said = root.ok(&["load", file.to_str().unwrap()]);
    assert_eq!(said, format!("Loaded image ID: {id}\n"));
}

#[test]
fn a_damaged_image_hides_no_other_and_is_not_denied() {
    let root = Root::new();
    for name in ["whole:1", "broken:1", "gone:1"] {
        let archive = docker_archive(name, &tar_of(&[("file", name.as_bytes())]));
        assert!(feed(root.command(&["load"]), &archive).status.success());
    }
    let blob = |name: &str, field: &str| {
        let inspected = root.json(&["inspect", name]);
        root.path().join("blobs").join(inspected[0][field].as_str().unwrap().replace(':', "/"))
    };
    let (broken, gone) = (blob("broken:1", "id"), blob("gone:1", "digest"));
    let text = fs::read_to_string(&broken).unwrap().replace("2020-01-02", "2020-01-03");
    fs::write(&broken, text).unwrap();
    fs::remove_file(&gone).unwrap();

    for (options, rows) in [(&["images"][..], 2), (&["images", "-q"], 1)] {
        let output = root.run(options);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), rows);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.lines().count() == 2 && said.contains("\"broken:1\"") && said.contains("\"gone:1\""), "{said}");
    }
    let output = root.run(&["--json", "images"]);
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["names"]), (1, &json!(["whole:1"])));
    for line in String::from_utf8(output.stderr).unwrap().lines() {
        let error: serde_json::Value = serde_json::from_str(line).unwrap();
        let error = &error["error"];
        assert!(error["path"].is_string() && error["remedy"].is_string(), "{error}");
        assert!(!error["cause"].as_str().unwrap().contains("try: "), "{error}");
    }
    for (name, path) in [("broken:1", broken), ("gone:1", gone)] {
        let said = root.fails(1, &["inspect", name]);
        assert!(said.contains("cannot open the image") && said.contains(path.to_str().unwrap()), "{said}");
    }
    assert!(root.fails(1, &["inspect", "other:1"]).contains("no container and no image"));
    // What can still be found out about containers is.
    assert!(root.ok(&["ps", "-a"]).starts_with("CONTAINER ID"));
    root.ok(&["rmi", "broken:1", "gone:1"]);
    root.ok(&["images"]);
}

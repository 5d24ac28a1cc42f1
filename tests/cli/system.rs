//! system: check, df, prune.

use serde_json::Value;

use super::support::{Root, docker_archive, needs_containers, tar_of};

/// A root with one image, and a blob of it.
fn loaded() -> (Root, String) {
    let root = Root::new();
    let archive = root.file("image.tar");
    std::fs::write(&archive, docker_archive("tool:1", &tar_of(&[("file", b"text\n")]))).unwrap();
    root.ok(&["load", "-i", archive.to_str().unwrap()]);
    let inspected = root.json(&["inspect", "tool:1"]);
    let digest = inspected[0]["layers"][0]["digest"].as_str().unwrap().to_owned();
    (root, digest)
}

#[test]
fn check_exits_with_what_it_found() {
    let (root, digest) = loaded();
    let text = root.ok(&["system", "check"]);
    assert!(text.starts_with("Checked 1 index entry, 3 blobs (") && text.ends_with(": nothing is damaged\n"), "{text}");
    let report = root.json(&["system", "check", "--quick"]);
    assert_eq!((&report["whole"], &report["layers"]), (&Value::Bool(true), &Value::from(1)));

    let path = root.path().join("blobs").join(digest.replace(':', "/"));
    let length = std::fs::metadata(&path).unwrap().len() as usize;
    std::fs::write(&path, vec![0; length]).unwrap();
    assert!(root.ok(&["system", "check", "--quick"]).contains("nothing is damaged"));
    for options in [&["system", "check"][..], &["system", "check", "--full"]] {
        let output = root.run(options);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("Damaged: ") && text.contains(path.to_str().unwrap()), "{text}");
        assert!(text.contains("try: ") && text.ends_with("1 thing is damaged\n"), "{text}");
    }
    let output = root.run(&["--json", "system", "check"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["findings"][0]["path"].as_str(), path.to_str());
    assert!(report["findings"][0]["cause"].as_str().unwrap().contains("sha256:"), "{report}");
    assert!(root.fails(2, &["system", "check", "--quick", "--full"]).contains("--quick"));
}

#[test]
fn df_adds_up_and_prune_tells_what_it_does() {
    let (root, _) = loaded();
    let text = root.ok(&["system", "df", "-v"]);
    assert!(text.contains("Images") && text.contains("RECLAIMABLE") && text.contains("/layers/"), "{text}");
    let usage = root.json(&["system", "df"]);
    let parts = ["images", "layers", "containers", "snapshots", "temporary", "other"];
    let sum: u64 = parts.iter().map(|part| usage[part]["bytes"].as_u64().unwrap()).sum();
    assert_eq!(usage["bytes"].as_u64(), Some(sum), "{usage}");
    let du = std::process::Command::new("du").args(["-s", "--block-size=1"]).arg(root.path()).output().unwrap();
    assert!(String::from_utf8(du.stdout).unwrap().starts_with(&format!("{sum}\t")), "{usage}");

    // A name keeps it, --all does not.
    assert_eq!(root.ok(&["system", "prune"]), "Freed: 0B\n");
    let would = root.ok(&["system", "prune", "-a", "--dry-run"]);
    assert!(would.contains("Name: tool:1") && would.contains("Layer: ") && would.contains("Would free: "), "{would}");
    assert_eq!(root.ok(&["images", "-q"]).lines().count(), 1);
    let did = root.ok(&["system", "prune", "--all", "-f"]);
    assert_eq!(did.replace("Freed", "Would free"), would);
    assert_eq!(root.ok(&["images", "-q"]), "");
    let pruned = root.json(&["system", "prune", "-a"]);
    assert_eq!((&pruned["images"], &pruned["freed"]["bytes"]), (&Value::Array(vec![]), &Value::from(0)));
}

#[test]
fn a_changed_layer_is_damage_until_it_is_removed_and_loaded_again() {
    let (root, _) = loaded();
    let layers = std::fs::read_dir(root.path().join("layers")).unwrap();
    let file = layers.into_iter().next().unwrap().unwrap().path().join("tree/file");
    std::fs::write(&file, "evil\n").unwrap();
    assert!(root.ok(&["system", "check", "--quick"]).contains("nothing is damaged"));
    let output = root.run(&["system", "check"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(file.to_str().unwrap()) && text.contains("try: remove the images"), "{text}");
    let name = root.ok(&["images", "-q"]);
    root.ok(&["rmi", "-f", name.trim()]);
    root.ok(&["load", "-i", root.file("image.tar").to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "text\n");
    root.ok(&["system", "check"]);
}

#[test]
fn a_mistyped_root_is_not_made() {
    let root = Root::new();
    for command in ["check", "df"] {
        let said = root.fails(1, &["system", command]);
        assert!(said.contains("there is no root at"), "{said}");
    }
    assert!(!root.path().exists());
}

#[test]
fn what_a_stopped_container_stands_on_is_not_reclaimable() {
    needs_containers!();
    let (root, _) = loaded();
    // Nothing in it can be started; the container stays all the same, or there is none.
    let output = root.run(&["run", "--name", "over", "tool:1", "/file"]);
    assert_ne!(output.status.code(), Some(0));
    if root.json(&["ps", "-a"]).as_array().unwrap().is_empty() {
        return;
    }
    let usage = root.json(&["system", "df"]);
    assert_eq!((&usage["images"]["active"], &usage["layers"]["active"]), (&1.into(), &1.into()), "{usage}");
    assert_eq!((&usage["images"]["reclaimable"], &usage["layers"]["reclaimable"]), (&0.into(), &0.into()), "{usage}");
    assert!(usage["containers"]["reclaimable"].as_u64().unwrap() > 0, "{usage}");
    assert!(root.ok(&["system", "prune", "-a", "-n"]).ends_with("Would free: 0B\n"));
}

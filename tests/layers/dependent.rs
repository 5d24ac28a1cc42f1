//! Layers that need files of the layers below, which may be closed to whoever unpacks them: files of another id of the
//! range, and such as shut out their owner.

use std::io::Cursor;

use coracle::{Digest, EngineOptions};

use super::support::{Lab, is_root, run, scratch};

/// One entry of a tar: type, name, link, mode, owner.
type Line<'a> = (tar::EntryType, &'a str, &'a str, u32, u64);

use tar::EntryType::{Directory, Link, Regular};

fn layer(lines: &[Line<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (kind, name, link, mode, owner) in lines {
        let mut header = tar::Header::new_ustar();
        let data = if *kind == Regular { name.as_bytes() } else { b"" };
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_uid(*owner);
        header.set_gid(*owner);
        header.set_size(data.len() as u64);
        header.set_mtime(0);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        builder.append_data(&mut header, name, data).unwrap();
    }
    builder.into_inner().unwrap()
}

/// An archive as `docker save` writes it.
fn archive(layers: &[Vec<u8>]) -> Cursor<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes).unwrap();
    };
    let (mut names, mut ids) = (Vec::new(), Vec::new());
    for (number, layer) in layers.iter().enumerate() {
        let name = format!("{number}.tar");
        add(&name, layer);
        names.push(name);
        ids.push(Digest::of(layer).to_string());
    }
    let architecture = coracle::name::Platform::host().architecture;
    let config =
        format!(r#"{{"architecture":"{architecture}","os":"linux","rootfs":{{"type":"layers","diff_ids":{ids:?}}}}}"#);
    add("config.json", config.as_bytes());
    let manifest = format!(r#"[{{"Config":"config.json","RepoTags":["lab:1"],"Layers":{names:?}}}]"#);
    add("manifest.json", manifest.as_bytes());
    Cursor::new(builder.into_inner().unwrap())
}

#[test]
fn what_is_closed_below_is_reached_all_the_same() {
    let below = layer(&[
        (Directory, "data", "", 0o700, 999),
        (Directory, "data/in", "", 0o700, 999),
        (Directory, "etc", "", 0o755, 0),
        (Regular, "etc/others", "", 0o600, 999),
        (Regular, "etc/closed", "", 0o000, 0),
        (Directory, "spool", "", 0o300, 0),
        (Directory, "spool/in", "", 0o755, 0),
        (Directory, "shut", "", 0o000, 0),
        (Directory, "listed", "", 0o600, 0),
        (Regular, "listed/file", "", 0o600, 0),
    ]);
    let above = layer(&[
        (Regular, "data/in/x", "", 0o644, 0),
        (Link, "others", "etc/others", 0, 0),
        (Link, "closed", "etc/closed", 0, 0),
        (Regular, "spool/in/x", "", 0o644, 0),
        (Regular, "shut/x", "", 0o644, 0),
        (Link, "file", "listed/file", 0, 0),
    ]);
    let whole_root = layer(&[(Directory, "./", "", 0o000, 999), (Regular, "top", "", 0o644, 0)]);
    let on_it = layer(&[(Link, "other", "top", 0, 0)]);
    for single in [false, true] {
        if single && is_root() {
            continue;
        }
        let dir = scratch();
        let engine = EngineOptions::new(dir.path().join("root")).single_id(single).open().unwrap();
        for layers in [[below.clone(), above.clone()], [whole_root.clone(), on_it.clone()]] {
            let stream: Box<dyn std::io::Read + Send> = Box::new(archive(&layers));
            let image = engine.load(coracle::image::LoadSource::Stream(stream)).unwrap();
            engine.remove_image(&image.id().to_string(), true).unwrap();
        }
    }
    // And it is what it was.
    let Some(lab) = Lab::new() else { return };
    let programs = layer(&[(Directory, "usr", "", 0o755, 0), (Directory, "tmp", "", 0o755, 0)]);
    let stream: Box<dyn std::io::Read + Send> = Box::new(archive(&[programs, below, above]));
    let image = lab.engine.load(coracle::image::LoadSource::Stream(stream)).unwrap();
    let names = "data data/in etc/closed closed others file shut spool/in/x";
    let mut container = image.container();
    for name in ["/usr", "/bin", "/lib", "/lib64"] {
        if std::path::Path::new(name).exists() {
            container = container.mount(coracle::container::Mount::bind(name, name).read_only());
        }
    }
    let found = run(&container, &format!("stat -c '%a %u %h %n' {names}; cat closed file; ls spool"));
    let uid = if lab.engine.identity() == "rootless with one id" { 0 } else { 999 };
    assert_eq!(
        found,
        format!(
            "700 {uid} 1 data\n700 {uid} 1 data/in\n0 0 2 etc/closed\n0 0 2 closed\n600 {uid} 2 others\n\
             600 0 2 file\n0 0 1 shut\n644 0 1 spool/in/x\netc/closedlisted/filein\n"
        )
    );
}

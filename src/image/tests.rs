//! Small images, made here in every form that a source can have, and what loading makes of them.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::*;
use crate::ErrorKind;
use crate::content::{Durability, Store};
use crate::layer::{LayerOptions, Limits, Ownership};
use crate::name::MediaType;

/// An engine root of its own.
pub(crate) struct Root {
    pub images: Images,
    _directory: tempfile::TempDir,
}

pub(crate) fn root() -> Root {
    root_with(Limits::default())
}

fn root_with(limits: Limits) -> Root {
    let directory = tempfile::tempdir().unwrap();
    let content = Store::open_with(&directory.path().join("root"), Durability::Relaxed).unwrap();
    let mut options = LayerOptions { limits, ..LayerOptions::default() };
    if !nix::unistd::geteuid().is_root() {
        options.ownership = Ownership::Single;
    }
    let layers = LayerStore::open(&content, options).unwrap();
    Root {
        images: Images::new(content, layers, "linux/amd64".parse().unwrap(), std::sync::Arc::new(())),
        _directory: directory,
    }
}

impl Root {
    /// What every failure must leave: nothing.
    #[track_caller]
    pub fn assert_empty(&self, context: &str) {
        let blobs = self.images.content().blobs().unwrap();
        assert!(blobs.is_empty(), "{context}: blobs stay: {blobs:?}");
        assert!(self.images.list().unwrap().is_empty(), "{context}: images stay");
        let left = |name: &str| std::fs::read_dir(self.images.content().path(name)).unwrap().count();
        assert_eq!((left("tmp"), left("leases")), (0, 0), "{context}");
    }

    pub fn load(&self, bytes: impl Into<Vec<u8>>) -> Result<Vec<Image>> {
        self.load_with(bytes, &LoadOptions::default())
    }

    pub fn load_with(&self, bytes: impl Into<Vec<u8>>, options: &LoadOptions) -> Result<Vec<Image>> {
        self.images.load(LoadSource::Stream(Box::new(std::io::Cursor::new(bytes.into()))), options)
    }
}

/// Before it is taken in, and not when it is unpacked.
#[test]
fn the_limits_of_layers_bound_what_is_loaded_and_imported() {
    let root = root_with(Limits { bytes: 1 << 20, zstd_window: 1 << 20, ..Limits::default() });
    let import = |bytes: Vec<u8>| {
        let source = ImportSource::Stream(Box::new(std::io::Cursor::new(bytes)));
        root.images.import(source, &ImportOptions::default()).map(drop)
    };
    let refused = |result: Result<()>, limit: &str| {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
        assert!(error.to_string().contains(&format!("`{limit}`")), "{error}");
        root.assert_empty(limit);
    };
    let large = tar_of(&[("f", vec![0; 2 << 20])]);
    refused(import(large.clone()), "bytes");
    refused(import(gzip(&large)), "bytes");
    // Empty members, which inflate to nothing.
    refused(import(gzip(b"").repeat(100_000)), "bytes");
    let load = |bytes: Vec<u8>| root.load(bytes).map(drop);
    refused(load(tar_of(&[("layer.tar", &large)])), "bytes");
    refused(load(gzip(&tar_of(&[("layer.tar", &large)]))), "bytes");
    #[cfg(feature = "zstd")]
    {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(22).unwrap();
        encoder.write_all(&tar_of(&[("f", "x")])).unwrap();
        encoder.flush().unwrap();
        let bytes = encoder.finish().unwrap();
        refused(import(bytes.clone()), "zstd_window");
        refused(load(bytes), "zstd_window");
    }
    assert!(import(tar_of(&[("f", "x")])).is_ok());
}

/// A tar with regular files.
pub(crate) fn tar_of<N: AsRef<str>, B: AsRef<[u8]>>(files: &[(N, B)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, body) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(body.as_ref().len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name.as_ref(), body.as_ref()).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[cfg(feature = "zstd")]
fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

#[cfg(not(feature = "zstd"))]
fn zstd(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

/// An image as its parts, to be changed before it is written.
#[derive(Clone)]
pub(crate) struct Sample {
    /// Plain tars, lowest first.
    pub layers: Vec<Vec<u8>>,
    pub config: Value,
}

/// An image of two layers that differs with its label.
pub(crate) fn sample(label: &str) -> Sample {
    let layers = vec![tar_of(&[("base", "the same in all")]), tar_of(&[("etc/label", label)])];
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z",
        "config": {"Cmd": ["/bin/sh"], "Labels": {"label": label}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": "base"}, {"created_by": "CMD", "empty_layer": true}, {"created_by": "label"}],
    });
    Sample { layers, config }
}

impl Sample {
    pub fn config_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.config).unwrap()
    }

    pub fn id(&self) -> ImageId {
        Digest::of(&self.config_bytes()).into()
    }

    pub fn add_layer(&mut self, layer: Vec<u8>) {
        self.config["rootfs"]["diff_ids"].as_array_mut().unwrap().push(json!(Digest::of(&layer)));
        self.layers.push(layer);
    }

    pub fn on(mut self, architecture: &str) -> Sample {
        self.config["architecture"] = json!(architecture);
        self
    }

    /// The members of a Docker archive as skopeo and older Docker write it.
    pub fn saved(&self, tags: &[&str]) -> Vec<(String, Vec<u8>)> {
        let config = format!("{}.json", self.id().digest().hex());
        let layers: Vec<String> = (0..self.layers.len()).map(|position| format!("{position}/layer.tar")).collect();
        let manifest = json!([{"Config": config, "RepoTags": tags, "Layers": layers}]);
        let mut members: Vec<_> = layers.into_iter().zip(self.layers.clone()).collect();
        members.push((config, self.config_bytes()));
        members.push(("manifest.json".into(), serde_json::to_vec(&manifest).unwrap()));
        members
    }

    /// The blobs of an OCI layout; the last one is the manifest.
    pub fn blobs(&self, compress: fn(&[u8]) -> Vec<u8>) -> Vec<Vec<u8>> {
        let mut blobs: Vec<Vec<u8>> = self.layers.iter().map(|layer| compress(layer)).collect();
        let describe = |bytes: &[u8], media_type: MediaType| json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()});
        let layers: Vec<Value> = blobs.iter().map(|blob| describe(blob, load::layer_type(blob))).collect();
        let config = self.config_bytes();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MediaType::OciManifest,
            "config": describe(&config, MediaType::OciConfig), "layers": layers,
        });
        blobs.push(config);
        blobs.push(serde_json::to_vec(&manifest).unwrap());
        blobs
    }
}

pub(crate) fn blob_path(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(bytes).hex())
}

/// Describes a manifest or an index for `index.json`.
pub(crate) fn listed(document: &[u8], name: Option<&str>) -> Value {
    let value: Value = serde_json::from_slice(document).unwrap();
    let mut entry = json!({"mediaType": value["mediaType"], "digest": Digest::of(document), "size": document.len()});
    if let Some(name) = name {
        entry["annotations"] = json!({ crate::content::REF_NAME: name });
    }
    entry
}

/// The members of an OCI layout.
pub(crate) fn layout(blobs: &[Vec<u8>], entries: &[Value]) -> Vec<(String, Vec<u8>)> {
    let index = json!({"schemaVersion": 2, "mediaType": MediaType::OciIndex, "manifests": entries});
    let mut members = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), serde_json::to_vec(&index).unwrap()),
    ];
    members.extend(blobs.iter().map(|blob| (blob_path(blob), blob.clone())));
    members
}

fn simple_layout(sample: &Sample, name: &str) -> Vec<(String, Vec<u8>)> {
    let blobs = sample.blobs(gzip);
    layout(&blobs, &[listed(blobs.last().unwrap(), Some(name))])
}

fn write_members(directory: &Path, members: &[(String, Vec<u8>)]) {
    for (name, body) in members {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, body).unwrap();
    }
}

fn names(image: &Image) -> Vec<String> {
    image.tags().unwrap().iter().map(Reference::familiar).collect()
}

#[test]
fn every_form_gives_the_same_image() {
    let sample = sample("forms");
    let saved = sample.saved(&["app:1", "ghcr.io/a/b:2"]);
    for members in [saved.clone(), simple_layout(&sample, "docker.io/library/app:1")] {
        let tar = tar_of(&members);
        for bytes in [tar.clone(), gzip(&tar), zstd(&tar)] {
            let root = root();
            let loaded = root.load(bytes).unwrap();
            assert_eq!(loaded.len(), 1);
            assert_eq!(*loaded[0].id(), sample.id());
            assert_eq!(names(&loaded[0])[0], "app:1");
            assert_eq!(loaded[0].config().config.cmd, ["/bin/sh"]);
            assert_eq!(root.images.list().unwrap().len(), 1);
            // Unpacked and verified already.
            let diff_ids: Vec<_> = loaded[0].layers().map(|(diff_id, _)| diff_id.clone()).collect();
            let layers = root.images.layers().find(&diff_ids).unwrap().unwrap();
            assert_eq!(std::fs::read(layers[1].tree().join("etc/label")).unwrap(), b"forms");
            assert_eq!(loaded[0].unpacked_size().unwrap(), Some(20));
        }
        let (root, directory) = (root(), tempfile::tempdir().unwrap());
        write_members(directory.path(), &members);
        assert_eq!(*root.images.load(directory.path(), &LoadOptions::default()).unwrap()[0].id(), sample.id());
        let file = directory.path().join("file.tar");
        std::fs::write(&file, tar_of(&members)).unwrap();
        assert_eq!(root.images.load(file, &LoadOptions::default()).unwrap()[0].id(), &sample.id());
    }
    let root = root();
    let image = root.load(tar_of(&saved)).unwrap().remove(0);
    assert_eq!(names(&image), ["app:1", "ghcr.io/a/b:2"]);
    let steps = image.history();
    assert_eq!(steps.iter().map(|step| step.layer.is_some()).collect::<Vec<_>>(), [true, false, true]);
}

#[test]
fn a_new_docker_archive_is_a_layout_with_names_beside_it() {
    let sample = sample("both");
    let blobs = sample.blobs(<[u8]>::to_vec);
    let mut members = layout(&blobs, &[listed(blobs.last().unwrap(), None)]);
    let paths: Vec<String> = sample.layers.iter().map(|layer| blob_path(layer)).collect();
    let manifest = json!([{"Config": blob_path(&sample.config_bytes()), "RepoTags": ["both:1"], "Layers": paths}]);
    members.push(("manifest.json".into(), serde_json::to_vec(&manifest).unwrap()));
    let root = root();
    let image = root.load(tar_of(&members)).unwrap().remove(0);
    assert_eq!((image.id(), image.digest()), (&sample.id(), &Digest::of(blobs.last().unwrap())));
    assert_eq!(names(&image), ["both:1"]);
    // Without index.json the same files are an ordinary Docker archive.
    members.retain(|(name, _)| name != "index.json");
    assert_eq!(root.load(tar_of(&members)).unwrap()[0].id(), &sample.id());
}

#[test]
fn links_inside_a_docker_archive_are_followed() {
    let sample = sample("links");
    let mut builder = tar::Builder::new(Vec::new());
    let add = |builder: &mut tar::Builder<Vec<u8>>, name: &str, body: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        builder.append_data(&mut header, name, body).unwrap();
    };
    let link = |builder: &mut tar::Builder<Vec<u8>>, kind, name: &str, target: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        builder.append_link(&mut header, name, target).unwrap();
    };
    for (name, body) in sample.saved(&["links:1"]) {
        match name.as_str() {
            "0/layer.tar" => {
                link(&mut builder, tar::EntryType::Symlink, &name, "../x/hard");
                link(&mut builder, tar::EntryType::Link, "x/hard", "real.tar");
                add(&mut builder, "real.tar", &body);
            }
            _ => add(&mut builder, &name, &body),
        }
    }
    let root = root();
    assert_eq!(root.load(builder.into_inner().unwrap()).unwrap()[0].id(), &sample.id());

    let mut builder = tar::Builder::new(Vec::new());
    for (name, body) in sample.saved(&["links:1"]) {
        match name.as_str() {
            "0/layer.tar" => link(&mut builder, tar::EntryType::Symlink, &name, "layer.tar"),
            _ => add(&mut builder, &name, &body),
        }
    }
    let clean = self::root();
    let error = clean.load(builder.into_inner().unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Hostile, "{error}");
    clean.assert_empty("circle");
}

#[test]
fn platforms_are_chosen_and_the_rest_is_collected() {
    let (amd, arm) = (sample("amd"), sample("arm").on("arm64"));
    let mut blobs = amd.blobs(gzip);
    let amd_entry = listed(blobs.last().unwrap(), None);
    let wanted = blobs.clone();
    let arm_blobs = arm.blobs(gzip);
    let mut arm_entry = listed(arm_blobs.last().unwrap(), None);
    arm_entry["platform"] = json!({"os": "linux", "architecture": "arm64"});
    blobs.extend(arm_blobs);
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": MediaType::OciIndex, "manifests": [arm_entry, amd_entry],
    }));
    let index = index.unwrap();
    blobs.push(index.clone());
    let archive = tar_of(&layout(&blobs, &[listed(&index, Some("multi:1"))]));

    let root = root();
    assert_eq!(root.load(archive.clone()).unwrap()[0].id(), &amd.id());
    let mut left = root.images.content().blobs().unwrap();
    let mut expected: Vec<Digest> = wanted.iter().map(|blob| Digest::of(blob)).collect();
    left.sort();
    expected.sort();
    assert_eq!(left, expected);
    let options = LoadOptions { platform: Some("linux/arm64".parse().unwrap()), ..Default::default() };
    assert_eq!(root.load_with(archive.clone(), &options).unwrap()[0].id(), &arm.id());
    // The name moved; the first image stays without one.
    let list = root.images.list().unwrap();
    assert_eq!(list.iter().map(|it| it.tags.len()).collect::<Vec<_>>(), [1, 0]);
    let options = LoadOptions { platform: Some("linux/s390x".parse().unwrap()), ..Default::default() };
    let clean = self::root();
    let error = clean.load_with(archive, &options).unwrap_err();
    assert!(error.to_string().contains("linux/arm64, linux/amd64"), "{error}");
    clean.assert_empty("platform");
}

#[test]
fn a_reference_names_one_image() {
    let (one, two) = (sample("one"), sample("two"));
    let (first, second) = (one.blobs(gzip), two.blobs(gzip));
    let entries = [listed(first.last().unwrap(), Some("v1")), listed(second.last().unwrap(), Some("v2"))];
    let archive = tar_of(&layout(&[first, second].concat(), &entries));
    let named = |name: &str| LoadOptions { reference: Some(name.parse().unwrap()), ..Default::default() };

    let root = root();
    assert_eq!(root.load(archive.clone()).unwrap().len(), 2);
    assert!(root.images.list().unwrap().iter().all(|it| it.tags.is_empty()));
    let image = root.load_with(archive.clone(), &named("app:v2")).unwrap().remove(0);
    assert_eq!((image.id(), names(&image)), (&two.id(), vec!["app:v2".to_owned()]));
    let error = root.load_with(archive, &named("app:v3")).unwrap_err();
    assert!(error.to_string().contains(r#"["v1", "v2"]"#), "{error}");
    let image = root.load_with(tar_of(&one.saved(&["old:1"])), &named("new:1")).unwrap().remove(0);
    assert_eq!(names(&image), ["new:1"]);
}

#[test]
fn known_blobs_are_not_read_again() {
    let (root, sample) = (root(), sample("known"));
    let seen: Arc<Mutex<Vec<Progress>>> = Arc::default();
    let observer = seen.clone();
    let options =
        LoadOptions { progress: Some(Arc::new(move |it| observer.lock().unwrap().push(it))), ..Default::default() };
    root.load_with(tar_of(&simple_layout(&sample, "a/b:1")), &options).unwrap();
    let blobs = |events: &[Progress]| events.iter().filter(|it| matches!(it, Progress::Blob { .. })).count();
    assert_eq!(blobs(&seen.lock().unwrap()), 4);
    seen.lock().unwrap().clear();
    root.load_with(tar_of(&simple_layout(&sample, "a/b:2")), &options).unwrap();
    assert_eq!(blobs(&seen.lock().unwrap()), 0);
    // An archive may leave out what the store has.
    let mut thin = simple_layout(&sample, "a/b:3");
    thin.retain(|(name, _)| *name != blob_path(&gzip(&sample.layers[0])));
    root.load(tar_of(&thin)).unwrap();
}

#[test]
fn layers_of_a_docker_archive_that_are_there_are_not_read_again() {
    let (root, mut sample) = (root(), sample("again"));
    sample.add_layer(tar_of(&[("large", vec![7; 3 << 20])]));
    let members = sample.saved(&["app:1"]);
    let place = tempfile::tempdir().unwrap();
    let (file, directory) = (place.path().join("saved.tar"), place.path().join("saved"));
    let layer = format!("{}/layer.tar", sample.layers.len() - 1);
    let bytes = tar_of(&members);
    std::fs::write(&file, &bytes).unwrap();
    write_members(&directory, &members);
    let images = |source: &Path| root.images.load(LoadSource::Path(source.to_owned()), &LoadOptions::default());
    let first = images(&file).unwrap().remove(0);
    // Whoever reads these bytes finds that they are others.
    let at = bytes.windows(1000).position(|window| window == [7; 1000]).unwrap();
    let mut other = bytes.clone();
    other[at] = 8;
    std::fs::write(&file, &other).unwrap();
    let body = std::fs::read(directory.join(&layer)).unwrap();
    let mut changed = body.clone();
    let at = body.windows(1000).position(|window| window == [7; 1000]).unwrap();
    changed[at] = 8;
    std::fs::write(directory.join(&layer), changed).unwrap();
    for source in [&file, &directory] {
        assert_eq!(images(source).unwrap().remove(0), first, "{}", source.display());
    }
    // Cut short in what is passed over.
    std::fs::write(&file, &bytes[..at + (1 << 20)]).unwrap();
    assert_eq!(images(&file).unwrap_err().kind(), ErrorKind::Corrupt);
    std::fs::write(&file, &other).unwrap();
    root.images.remove("app:1", true, &|| Ok(Default::default())).unwrap();
    for source in [&file, &directory] {
        assert_eq!(images(source).unwrap_err().kind(), ErrorKind::Corrupt, "{}", source.display());
    }
    root.assert_empty("other bytes");
}

/// The paths and bodies of an archive.
type Members = [(String, Vec<u8>)];

/// One change to a member.
type Change<'a> = (&'a str, &'a dyn Fn(Vec<u8>) -> Vec<u8>);

/// What is changed, and the error's kind and a part of its message.
type Case<'a> = (&'a Members, Change<'a>, ErrorKind, &'a str);

#[test]
fn bad_input_is_named_and_leaves_nothing() {
    let sample = sample("bad");
    let good = simple_layout(&sample, "bad:1");
    let saved = sample.saved(&["bad:1"]);
    let replace = |from: &str, to: &str| {
        let (from, to) = (from.to_owned(), to.to_owned());
        move |body: Vec<u8>| String::from_utf8(body).unwrap().replace(&from, &to).into_bytes()
    };
    let layer_path = blob_path(&gzip(&sample.layers[1]));
    let manifest_path = blob_path(sample.blobs(gzip).last().unwrap());
    let config_path = format!("{}.json", sample.id().digest().hex());
    let flip = |mut body: Vec<u8>| {
        *body.last_mut().unwrap() ^= 1;
        body
    };
    let huge = |_: Vec<u8>| vec![b' '; 5 << 20];
    let bomb = |_: Vec<u8>| {
        let text =
            format!(r#"{{"schemaVersion":2,"manifests":[],"x":{}{}}}"#, "[".repeat(200_000), "]".repeat(200_000));
        text.into_bytes()
    };
    let gone = |_: Vec<u8>| Vec::new();
    let digest = Digest::of(b"elsewhere");
    let swapped = |_: Vec<u8>| tar_of(&[("other", "layer")]);
    let (bad_name, bad_tag) = (replace("bad:1", "../x"), replace("bad:1", "UPPER:1"));
    let unknown = replace("layer.v1.tar+gzip", "layer.v1.squashfs");
    let (outside, absent) = (replace("0/layer.tar", "../../etc/shadow"), replace("0/layer.tar", "9/layer.tar"));
    let short = replace(r#""1/layer.tar""#, "");
    let short = |body: Vec<u8>| String::from_utf8(short(body)).unwrap().replace(",]", "]").into_bytes();
    let schema_1 = |_: Vec<u8>| br#"{"schemaVersion":1,"fsLayers":[]}"#.to_vec();
    let cases: Vec<Case<'_>> = vec![
        (&good, (&layer_path, &flip), ErrorKind::Corrupt, &layer_path[13..]),
        (&good, (&layer_path, &gone), ErrorKind::NotFound, "layer 2 of 2"),
        (&good, (&manifest_path, &gone), ErrorKind::NotFound, &manifest_path[13..]),
        (&good, ("index.json", &huge), ErrorKind::Limit, "index.json"),
        (&good, ("index.json", &bomb), ErrorKind::Hostile, "index.json"),
        (&good, ("index.json", &bad_name), ErrorKind::Invalid, "../x"),
        (&good, ("index.json", &schema_1), ErrorKind::Unsupported, "schema 1"),
        (&saved, ("manifest.json", &bad_name), ErrorKind::Invalid, "../x"),
        (&saved, ("manifest.json", &bad_tag), ErrorKind::Invalid, "UPPER"),
        (&saved, ("manifest.json", &outside), ErrorKind::Hostile, "etc/shadow"),
        (&saved, ("manifest.json", &absent), ErrorKind::NotFound, "9/layer.tar"),
        (&saved, ("manifest.json", &short), ErrorKind::Corrupt, "lists 2 layers, but the manifest lists 1"),
        (&saved, ("manifest.json", &gone), ErrorKind::Invalid, "no image archive"),
        (&saved, (&config_path, &flip), ErrorKind::Corrupt, "the config is called"),
        (&saved, ("1/layer.tar", &swapped), ErrorKind::Corrupt, "1/layer.tar"),
        (&saved, (&config_path, &gone), ErrorKind::NotFound, &config_path),
    ];
    for (position, (members, (name, change), kind, part)) in cases.into_iter().enumerate() {
        let mut members = members.to_vec();
        let member = members.iter_mut().find(|(path, _)| path == name).unwrap();
        member.1 = change(std::mem::take(&mut member.1));
        members.retain(|(_, body)| !body.is_empty());
        let root = root();
        let error = root.load(tar_of(&members)).unwrap_err();
        let context = format!("case {position}: {error}");
        assert_eq!(error.kind(), kind, "{context}");
        assert!(error.to_string().contains(part), "{context} lacks {part:?}");
        root.assert_empty(&context);
        // The same through a directory.
        let directory = tempfile::tempdir().unwrap();
        write_members(directory.path(), &members);
        let error = root.images.load(directory.path(), &LoadOptions::default()).unwrap_err();
        assert_eq!(error.kind(), kind, "directory: {error}");
        root.assert_empty(&context);
    }
    // Media types and DiffIDs sit below digests, so the documents are made anew.
    let rebuilt = |change: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let mut blobs = sample.blobs(gzip);
        let manifest = blobs.pop().unwrap();
        blobs.push(change(manifest));
        tar_of(&layout(&blobs, &[listed(blobs.last().unwrap(), None)]))
    };
    let root = root();
    let error = root.load(rebuilt(&unknown)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("squashfs"), "{error}");
    root.assert_empty("media type");
    let wrong = sample.layers[1].clone();
    let mut lying = sample.clone();
    lying.config["rootfs"]["diff_ids"][1] = json!(digest);
    assert_eq!(lying.layers[1], wrong);
    let error = root.load(tar_of(&simple_layout(&lying, "lie:1"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    root.assert_empty("diff_id");
}

#[test]
fn archives_that_are_cut_anywhere_leave_nothing() {
    let members = simple_layout(&sample("cut"), "cut:1");
    let tar = tar_of(&members);
    let zipped = gzip(&tar);
    // Without its two zero blocks a tar is whole for most readers, and for this one.
    let end = tar.len() - 1024;
    let cuts =
        (0..end).step_by(509).map(|cut| &tar[..cut]).chain((0..zipped.len()).step_by(37).map(|cut| &zipped[..cut]));
    let root = root();
    for cut in cuts {
        let error = root.load(cut).unwrap_err();
        root.assert_empty(&format!("{} bytes: {error}", cut.len()));
    }
    let error = root.load(&zipped[..zipped.len() - 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[test]
fn nested_indexes_end() {
    let mut blobs = sample("nest").blobs(gzip);
    for _ in 0..9 {
        let inner = listed(blobs.last().unwrap(), None);
        let index = json!({"schemaVersion": 2, "mediaType": MediaType::OciIndex, "manifests": [inner]});
        blobs.push(serde_json::to_vec(&index).unwrap());
    }
    let root = root();
    let error = root.load(tar_of(&layout(&blobs, &[listed(blobs.last().unwrap(), None)]))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    root.assert_empty("nest");
}

#[test]
fn an_index_that_another_program_wrote_is_an_image_too() {
    let (root, sample) = (root(), sample("foreign"));
    let image = root.load(tar_of(&simple_layout(&sample, "a:1"))).unwrap().remove(0);
    let index = json!({
        "schemaVersion": 2, "mediaType": MediaType::OciIndex,
        "manifests": [listed(sample.blobs(gzip).last().unwrap(), None)],
    });
    let bytes = serde_json::to_vec(&index).unwrap();
    let mut ingest = root.images.content().ingest(None, None).unwrap();
    ingest.write_all(&bytes).unwrap();
    let mut entry = IndexEntry::new(MediaType::OciIndex, ingest.commit().unwrap(), bytes.len() as u64);
    entry.set_ref_name(Some("docker.io/library/foreign:1"));
    let replaced = root.images.content().update_index(|entries| Ok(std::mem::replace(entries, vec![entry])));
    assert_eq!(replaced.unwrap().len(), 1);
    assert_eq!(root.images.resolve("foreign:1").unwrap(), image);
    assert_eq!(names(&image), ["foreign:1"]);
    root.images.tag(&image, &"more:1".parse().unwrap()).unwrap();
    assert_eq!(names(&image), ["foreign:1", "more:1"]);
    root.images.remove(image.id().short(), true, &|| Ok(Default::default())).unwrap();
    root.assert_empty("foreign");
}

#[test]
fn other_archives_are_told_what_they_are() {
    let root = root();
    let cases = [
        (tar_of(&[("usr/bin/sh", "x")]), "import"),
        (tar_of(&[("repositories", "{}")]), "Docker 1.9"),
        (tar_of(&[("readme", "x")]), "import"),
        (tar_of(&[("manifest.json", r#"{"schemaVersion": 2}"#)]), "skopeo copy dir:"),
        (b"BZh91AY&SY".to_vec(), "bzip2"),
        (vec![7; 4096], ""),
        (Vec::new(), ""),
    ];
    for (bytes, part) in cases {
        let error = root.load(bytes).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        root.assert_empty(&error.to_string());
    }
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(root.images.load(directory.path(), &LoadOptions::default()).unwrap_err().kind(), ErrorKind::Invalid);
    let missing = directory.path().join("missing");
    assert!(root.images.load(missing, &LoadOptions::default()).unwrap_err().to_string().contains("missing"));
}

#[test]
fn root_file_systems_are_imported() {
    let root = root();
    let tar = tar_of(&[("etc/hostname", "box"), ("hello", "world")]);
    let options = ImportOptions {
        reference: Some("box:1".parse().unwrap()),
        created: Some("2026-01-01T00:00:00Z".into()),
        config: ContainerConfig { cmd: vec!["/hello".into()], ..Default::default() },
        ..Default::default()
    };
    let import = |bytes: Vec<u8>| {
        root.images.import(ImportSource::Stream(Box::new(std::io::Cursor::new(bytes))), &options).unwrap()
    };
    let plain = import(tar.clone());
    assert_eq!(plain, import(tar.clone()));
    let mut compressed = vec![(gzip(&tar), MediaType::OciLayerGzip)];
    if cfg!(feature = "zstd") {
        compressed.push((zstd(&tar), MediaType::OciLayerZstd));
    }
    for (bytes, media_type) in compressed {
        let image = import(bytes);
        // The ID does not depend on compression, the manifest does.
        assert_eq!(image.id(), plain.id());
        assert_ne!(image.digest(), plain.digest());
        assert_eq!(image.manifest().layers[0].media_type, media_type);
    }
    assert_eq!(root.images.list().unwrap().len(), 1);
    assert_eq!((names(&plain), &plain.config().config.cmd[..]), (vec!["box:1".to_owned()], &["/hello".to_owned()][..]));

    let tree = tempfile::tempdir().unwrap();
    write_members(tree.path(), &[("a/b".into(), b"c".to_vec())]);
    let image = root.images.import(tree.path(), &ImportOptions::default()).unwrap();
    let layers = image.ensure_layers(None).unwrap();
    assert_eq!(std::fs::read(layers[0].tree().join("a/b")).unwrap(), b"c");
}

#[test]
fn bad_root_file_systems_leave_nothing() {
    let root = root();
    let whole = gzip(&tar_of(&[("hello", "world")]));
    let cut = whole[..whole.len() - 4].to_vec();
    for (bytes, kind) in [
        (Vec::new(), ErrorKind::Invalid),
        (vec![7; 4096], ErrorKind::Corrupt),
        (cut, ErrorKind::Corrupt),
        (b"BZh91AY&SY".to_vec(), ErrorKind::Unsupported),
    ] {
        let source = ImportSource::Stream(Box::new(std::io::Cursor::new(bytes)));
        let error = root.images.import(source, &ImportOptions::default()).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        root.assert_empty(&error.to_string());
    }
    let options = ImportOptions { created: Some("yesterday".into()), ..Default::default() };
    assert_eq!(root.images.import("/nonexistent", &options).unwrap_err().kind(), ErrorKind::Invalid);
}

//! Dependencies between the crate's modules point one way.

use super::assert_none;
use super::scan::is_word;
use super::source::{Source, package, place, sources, words};
use std::collections::BTreeMap;
use std::path::Path;

/// A module may use those before it, and itself.
const ORDER: &[&str] = &[
    "error",
    "sys",
    "probe",
    "name",
    "content",
    "layer",
    "snapshot",
    "image",
    "repository",
    "cgroup",
    "security",
    "network",
    "volume",
    "launch",
    "isolation",
    "container",
    "system",
    "build",
    "engine",
    // These only translate or check; nothing of the engine may need them.
    "contract",
    "compose",
    "registry_server",
    "docker_api",
    "oci_runtime",
    "cri",
    "fuzzing",
];

/// Programs of their own: not part of the library's module tree.
const STUB: &str = "src/launch/stub";
const PROGRAMS: &str = "src/bin";

#[test]
fn a_module_uses_only_earlier_modules() {
    let sources = sources();
    let names = reexports(&sources);
    let mut violations = Vec::new();
    for source in &sources {
        if source.path.starts_with(STUB) || source.path.starts_with(PROGRAMS) {
            continue;
        }
        let own = top_module(&source.path);
        if own == "lib" {
            continue;
        }
        let Some(own_rank) = rank(&own) else {
            violations.push(format!("{}: module `{own}` has no place in the order", source.path.display()));
            continue;
        };
        for (at, used) in crate_uses(source) {
            let module = names.get(&used).unwrap_or(&used);
            match rank(module) {
                Some(rank) if rank <= own_rank => {}
                Some(_) => violations.push(format!("{}: `{own}` uses the later `{module}`", place(source, at))),
                None => violations.push(format!("{}: `crate::{used}` is in no known module", place(source, at))),
            }
        }
    }
    assert_none(&format!("dependencies must point to earlier modules of {ORDER:?}"), &violations);
}

#[test]
fn the_stub_uses_nothing_of_the_crate_but_the_protocol() {
    let mut violations = Vec::new();
    let mut seen = 0;
    for source in sources().iter().filter(|source| source.path.starts_with(STUB)) {
        seen += 1;
        for word in ["std", "alloc", "coracle", "libc", "nix"] {
            for at in words(&source.code, word) {
                if source.code[at + word.len()..].trim_start().starts_with("::") {
                    violations.push(format!("{}: `{word}`", place(source, at)));
                }
            }
        }
        let text = std::fs::read_to_string(package().join(&source.path)).unwrap();
        for (number, line) in text.lines().enumerate() {
            let outside =
                line.contains("include!") || (line.contains("#[path") && !line.contains("\"../protocol.rs\""));
            if outside {
                violations.push(format!("{}:{}: {}", source.path.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(seen > 5, "the stub's files were not found");
    assert_none("the stub is a program of its own", &violations);
    // The shared file must not reach back into the crate either, or the stub would not be one program.
    let protocol = sources().into_iter().find(|source| source.path == Path::new("src/launch/protocol.rs")).unwrap();
    assert_none("the protocol stands alone", &crate_uses(&protocol).iter().map(|(_, used)| used).collect::<Vec<_>>());
}

/// The command line is a user of the library like any other: what it needs is public.
#[test]
fn programs_use_the_public_face_only() {
    let mut violations = Vec::new();
    for source in sources().iter().filter(|source| source.path.starts_with(PROGRAMS)) {
        let text = std::fs::read_to_string(package().join(&source.path)).unwrap();
        if text.contains("#[path") || text.contains("include!(") {
            violations.push(format!("{}: takes a file of the library in", source.path.display()));
        }
    }
    assert_none("programs use `coracle::` alone", &violations);
}

fn rank(module: &str) -> Option<usize> {
    ORDER.iter().position(|name| *name == module)
}

/// `src/layer/view.rs` and `src/layer.rs` belong to `layer`.
fn top_module(path: &Path) -> String {
    let first = path.iter().nth(1).unwrap().to_str().unwrap();
    first.strip_suffix(".rs").unwrap_or(first).to_string()
}

/// Names that `lib.rs` lifts to the crate's root, with the module they come from.
fn reexports(sources: &[Source]) -> BTreeMap<String, String> {
    let library = sources.iter().find(|source| source.path == Path::new("src/lib.rs")).unwrap();
    let mut names = BTreeMap::new();
    for at in words(&library.code, "use") {
        let statement = library.code[at + 3..].split(';').next().unwrap();
        let statement = statement.trim().trim_start_matches("crate::").trim_start_matches("self::");
        let Some((module, rest)) = statement.split_once("::") else { continue };
        for item in rest.split(['{', '}', ',']) {
            let last = item.trim().rsplit([' ', ':']).next().unwrap();
            if !last.is_empty() {
                names.insert(last.to_string(), module.to_string());
            }
        }
    }
    names
}

/// The first names behind `crate::`, and behind as many `super::` as lead to the crate's root.
fn crate_uses(source: &Source) -> Vec<(usize, String)> {
    let code = &source.code;
    let mut uses = Vec::new();
    for at in words(code, "crate") {
        if let Some(rest) = code[at + 5..].strip_prefix("::") {
            uses.extend(first_names(rest).into_iter().map(|name| (at, name)));
        }
    }
    let to_root = "super::".repeat(depth(&source.path));
    for (at, _) in code.match_indices(&to_root) {
        let before = code[..at].bytes().next_back();
        if before.is_some_and(|byte| is_word(byte) || byte == b':') {
            continue;
        }
        let rest = &code[at + to_root.len()..];
        // Inside an inline module the same chain ends one level lower, in this module's own names.
        uses.extend(first_names(rest).into_iter().filter(|name| rank(name).is_some()).map(|name| (at, name)));
    }
    uses
}

/// How many modules a file's own module lies below the crate's root.
fn depth(path: &Path) -> usize {
    let below = path.iter().count() - 1;
    if path.file_name().unwrap() == "mod.rs" { below - 1 } else { below }
}

/// `a` of `a::b`, and each such first name of `{a::b, c::{d, e}}`.
fn first_names(rest: &str) -> Vec<String> {
    let Some(group) = rest.trim_start().strip_prefix('{') else { return vec![leading_word(rest)] };
    let mut names = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (at, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 0 => {
                names.push(leading_word(&group[start..at]));
                break;
            }
            b'}' => depth -= 1,
            b',' if depth == 0 => {
                names.push(leading_word(&group[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn leading_word(text: &str) -> String {
    text.trim_start().bytes().take_while(|byte| is_word(*byte)).map(char::from).collect()
}

#[test]
fn uses_are_found() {
    let source = |path: &str, code: &str| Source { path: path.into(), code: code.into(), comments: String::new() };
    let names = |path, code| crate_uses(&source(path, code)).into_iter().map(|(_, name)| name).collect::<Vec<_>>();
    assert_eq!(
        names("src/a/b.rs", "use crate::{error::{Error, Result}, sys, name::Digest,};"),
        ["error", "sys", "name"]
    );
    assert_eq!(
        names("src/a/b.rs", "fn f() -> crate::Result<()> { crate::sys::fs::f() } mycrate::x"),
        ["Result", "sys"]
    );
    assert_eq!(names("src/a/b.rs", "use super::super::engine::Engine; use super::c;"), ["engine"]);
    assert_eq!(names("src/a/mod.rs", "use super::{engine, layer::x}; use super::super::y;"), ["engine", "layer"]);
    assert_eq!(names("src/a.rs", "use super::engine; mod tests { use super::Thing; }"), ["engine"]);
    let library = [source("src/lib.rs", "pub use error::{Error, ErrorKind as Kind};\npub use image::Image;\nmod x;")];
    let names = reexports(&library);
    assert_eq!(names["Error"], "error");
    assert_eq!(names["Kind"], "error");
    assert_eq!(names["Image"], "image");
}

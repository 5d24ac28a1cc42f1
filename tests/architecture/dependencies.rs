//! What each feature pulls in, asked of cargo.

use super::assert_none;
use super::source::package;
use super::support::skip;
use std::collections::BTreeSet;
use std::process::Command;

/// Network stacks, TLS and asynchronous runtimes. None has a place below the servers and clients that ask for them.
const NETWORK: &[&str] = &[
    "async-std",
    "aws-lc-rs",
    "aws-lc-sys",
    "axum",
    "boring",
    "curl",
    "curl-sys",
    "h2",
    "hickory-resolver",
    "hyper",
    "hyper-util",
    "isahc",
    "mio",
    "native-tls",
    "openssl",
    "openssl-sys",
    "quinn",
    "reqwest",
    "ring",
    "rustls",
    "schannel",
    "smol",
    "tokio",
    "tonic",
    "ureq",
    "webpki-roots",
];

/// The bus of systemd, with its executor: for the feature `cgroups-rs` alone.
const BUS: &[&str] = &["zbus", "async-io", "async-executor", "dbus"];

/// Crates in the lean core, this one included. Raise it knowingly.
const CORE: usize = 68;

/// The reference implementation and its two layers of bindings.
const ZSTD: &[&str] = &["zstd", "zstd-safe", "zstd-sys"];

/// Crates that the command line and the systemd driver may add to the core.
const CLI: usize = 14;
const CGROUPS_RS: usize = 62;

#[test]
fn the_lean_core_has_no_network_no_bus_and_no_c() {
    let Some(core) = tree(&["--no-default-features", "-e", "normal"]) else { return };
    assert_none("the lean core pulls in", &among(&core, &[NETWORK, BUS, ZSTD].concat()));
    assert!(core.len() <= CORE, "the lean core has {} crates, more than {CORE}: {core:?}", core.len());
    assert!(core.len() > 20, "cargo tree said next to nothing: {core:?}");
    let Some(built) = tree(&["--no-default-features", "-e", "normal,build"]) else { return };
    let c: Vec<&String> =
        built.iter().filter(|name| ["cc", "cmake", "bindgen", "pkg-config"].contains(&name.as_str())).collect();
    assert_none("the lean core needs a C compiler or library", &c);
}

#[test]
fn zstd_adds_the_reference_library_alone() {
    let Some(added) = added_by("zstd") else { return };
    let strange: Vec<&String> = added.iter().filter(|name| !ZSTD.contains(&name.as_str())).collect();
    assert_none("feature `zstd` pulls in", &strange);
}

#[test]
fn the_command_line_brings_no_network() {
    let Some(added) = added_by("cli") else { return };
    assert_none("feature `cli` pulls in", &among(&added, &[NETWORK, BUS, ZSTD].concat()));
    assert!(added.len() <= CLI, "feature `cli` adds {} crates, more than {CLI}: {added:?}", added.len());
}

#[test]
fn the_systemd_driver_brings_the_bus_and_no_tls() {
    let Some(added) = added_by("cgroups-rs") else { return };
    assert_none("feature `cgroups-rs` pulls in", &among(&added, NETWORK));
    assert!(added.len() <= CGROUPS_RS, "feature `cgroups-rs` adds {} crates, more than {CGROUPS_RS}", added.len());
}

/// Licences that ask for no more than a notice. An expression is fine when one of its alternatives is made of these.
const PERMISSIVE: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

#[test]
fn all_licences_are_permissive() {
    // What is compiled into a program of this crate; tools of its tests travel nowhere.
    let arguments = ["tree", "--locked", "--all-features", "-e", "normal,build", "--prefix", "none", "-f", "{p}\t{l}"];
    let Some(output) = cargo(&arguments) else { return };
    let mut strange = BTreeSet::new();
    for line in output.lines().map(|line| line.trim_end_matches(" (*)")) {
        let Some((name, licence)) = line.split_once('\t') else { continue };
        if !is_permissive(licence) {
            strange.insert(format!("{name}: {licence:?}"));
        }
    }
    assert_none("licences to look at", &strange.into_iter().collect::<Vec<_>>());
}

/// SPDX: AND binds before OR; an older form has a slash for OR.
fn is_permissive(expression: &str) -> bool {
    let text = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<&str> = text.split_whitespace().collect();
    let mut at = 0;
    let answer = alternatives(&tokens, &mut at);
    answer && at == tokens.len()
}

fn alternatives(tokens: &[&str], at: &mut usize) -> bool {
    let mut answer = together(tokens, at);
    while tokens.get(*at) == Some(&"OR") {
        *at += 1;
        answer |= together(tokens, at);
    }
    answer
}

fn together(tokens: &[&str], at: &mut usize) -> bool {
    let mut answer = one(tokens, at);
    while tokens.get(*at) == Some(&"AND") {
        *at += 1;
        answer &= one(tokens, at);
    }
    answer
}

fn one(tokens: &[&str], at: &mut usize) -> bool {
    let first = tokens.get(*at).unwrap_or(&"");
    *at += 1; // Past the end too: then the whole does not end where it should.
    if *first == "(" {
        let answer = alternatives(tokens, at);
        let closed = tokens.get(*at) == Some(&")");
        *at += 1;
        return answer && closed;
    }
    if tokens.get(*at) == Some(&"WITH") {
        let exception = tokens.get(*at + 1).unwrap_or(&"");
        *at += 2;
        return PERMISSIVE.contains(&format!("{first} WITH {exception}").as_str());
    }
    PERMISSIVE.contains(first)
}

#[test]
fn licence_expressions_are_understood() {
    for fine in [
        "MIT",
        "MIT/Apache-2.0",
        "GPL-2.0 OR MIT",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(is_permissive(fine), "{fine}");
    }
    for not in [
        "",
        "MPL-2.0",
        "MIT AND GPL-3.0",
        "LGPL-2.1-only",
        "(MIT OR Apache-2.0) AND AGPL-3.0",
        "MIT OR",
        "MIT Apache-2.0",
    ] {
        assert!(!is_permissive(not), "{not}");
    }
}

/// Which of these names are there.
fn among(tree: &BTreeSet<String>, names: &[&str]) -> Vec<String> {
    names.iter().filter(|name| tree.contains(**name)).map(ToString::to_string).collect()
}

/// What a feature adds to the lean core.
fn added_by(feature: &str) -> Option<BTreeSet<String>> {
    let core = tree(&["--no-default-features", "-e", "normal"])?;
    let with = tree(&["--no-default-features", "--features", feature, "-e", "normal"])?;
    Some(with.difference(&core).cloned().collect())
}

/// The names of the crates in a dependency tree, for the platform the tests run on.
fn tree(arguments: &[&str]) -> Option<BTreeSet<String>> {
    let output = cargo(&[&["tree", "--locked", "--prefix", "none", "-f", "{p}"], arguments].concat())?;
    Some(output.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_string).collect())
}

/// What cargo says. First offline; a tree with a feature that was never built here may need the registry.
fn cargo(arguments: &[&str]) -> Option<String> {
    let Some(program) = std::env::var_os("CARGO") else {
        skip::missing("cargo (these tests were not started by it)");
        return None;
    };
    let mut said = String::new();
    for offline in [&["--offline"][..], &[]] {
        let mut command = Command::new(&program);
        command.current_dir(package()).args(arguments).args(offline).env("CARGO_TERM_COLOR", "never");
        let output = command.output().unwrap();
        if output.status.success() {
            return Some(String::from_utf8(output.stdout).unwrap());
        }
        said = String::from_utf8_lossy(&output.stderr).into_owned();
    }
    if said.contains("--locked") {
        panic!("Cargo.lock does not fit Cargo.toml: {said}");
    }
    skip::missing(&format!("the registry, for `cargo {}`: {said}", arguments.join(" ")));
    None
}

//! Builds the carried stub (`src/launch/stub`): a static program without libc, allocator or dependency, compiled by the
//! compiler and linked by the linker that the crate itself is built with. The crate embeds it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

fn main() {
    println!("cargo::rerun-if-changed=src/launch/stub");
    println!("cargo::rerun-if-changed=src/launch/protocol.rs");
    let Some(out) = env::var_os("OUT_DIR") else { fail("OUT_DIR is not set; this script is run by cargo") };
    let target = env::var("TARGET").unwrap_or_default();
    if !target.contains("linux") || !(target.starts_with("x86_64") || target.starts_with("aarch64")) {
        fail(&format!("coracle supports Linux on x86_64 and aarch64; the target is {target}"));
    }
    let stub = PathBuf::from(out).join("coracle-stub");
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command
        .args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "coracle_stub", "--target", &target])
        .args(["-C", "panic=abort", "-C", "opt-level=s", "-C", "lto=fat", "-C", "debuginfo=0"])
        // Symbols stay: a test looks for an allocator among them.
        .args(["-C", "strip=debuginfo", "-C", "relocation-model=static", "-C", "force-unwind-tables=no"])
        .args(["-C", "link-arg=-nostartfiles", "-C", "link-arg=-nostdlib", "-C", "link-arg=-static"])
        .args(["-C", "link-arg=-Wl,--gc-sections,--build-id=none,-z,norelro"])
        .arg("-o")
        .arg(&stub)
        .arg(Path::new("src/launch/stub/main.rs"));
    if target.contains("musl") {
        // There the compiler brings a C library's start of its own.
        command.args(["-C", "link-self-contained=no"]);
    }
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut argument = std::ffi::OsString::from("linker=");
        argument.push(linker);
        command.arg("-C").arg(argument);
    }
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("the stub did not compile ({status}); its messages are above")),
        Err(error) => fail(&format!("cannot run the compiler for the stub: {error}")),
    }
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}

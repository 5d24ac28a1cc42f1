//! Tests that cannot run here, loudly.
//!
//! Two reasons, and they differ in CI. Something is **missing** (a tool, a kernel feature, the network): with
//! `CORACLE_NO_SKIP=1`, as `.ci/run` sets it, that is a failure. Or the test is **for another user** (root, or anybody
//! else): CI runs everything as both, so that this is never a failure.
//!
//! The words go to the standard error descriptor itself: what `eprintln!` says in a test that passes is swallowed.

use std::io::Write as _;

/// The variable that turns a missing thing into a failure.
pub const NO_SKIP: &str = "CORACLE_NO_SKIP";

/// Says that the running test cannot do its work because `what` is not there. The caller returns afterwards.
pub fn missing(what: &str) {
    say(&format!("SKIP {}: missing {what}", test()));
    assert!(!is_strict(), "{NO_SKIP} is set, and this is missing: {what}");
}

/// Where a busybox is that needs no libraries; says that it is missing where there is none.
#[allow(dead_code, reason = "not every test program makes images of it")]
pub fn static_busybox() -> Option<&'static std::path::Path> {
    let path = std::path::Path::new("/bin/busybox");
    let program = std::fs::read(path).unwrap_or_default();
    // One that is linked to libraries names the program that loads them.
    let is_linked = program.windows(6).any(|window| window == b"/ld-li" || window == b"/ld-mu");
    if program.is_empty() || is_linked {
        missing("a static busybox in /bin, to make an image of (package busybox-static)");
        return None;
    }
    Some(path)
}

/// Says that the running test is for another user. The caller returns afterwards.
pub fn other_user(who: &str) {
    say(&format!("SKIP {}: for {who} only", test()));
}

/// Whether a missing thing is a failure.
pub fn is_strict() -> bool {
    std::env::var_os(NO_SKIP).is_some_and(|value| !value.is_empty() && value != "0")
}

/// Tests run in threads that bear their names.
fn test() -> String {
    std::thread::current().name().unwrap_or("a test").to_string()
}

fn say(line: &str) {
    // Nowhere to report a failure of this to.
    let _ = writeln!(std::io::stderr(), "{line}");
}

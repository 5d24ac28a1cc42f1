//! `unsafe` has two homes, and every use says why it is sound.

use super::assert_none;
use super::source::{Source, place, sources, words};
use std::path::Path;

/// The door to the kernel, and what runs between clone and exec.
const HOMES: &[&str] = &["src/sys", "src/launch"];

fn at_home(path: &Path) -> bool {
    HOMES.iter().any(|home| path.starts_with(home))
}

#[test]
fn unsafe_code_lives_in_two_folders() {
    let mut violations = Vec::new();
    for source in sources().iter().filter(|source| !at_home(&source.path)) {
        violations.extend(words(&source.code, "unsafe").map(|at| place(source, at)));
        violations.extend(words(&source.code, "unsafe_code").map(|at| format!("{} allows it", place(source, at))));
    }
    assert_none("`unsafe` outside of its homes", &violations);
}

#[test]
fn every_unsafe_says_why_it_is_sound() {
    let mut violations = Vec::new();
    let mut seen = 0;
    for source in sources().iter().filter(|source| at_home(&source.path)) {
        let argued_for_all = header(source).contains("SAFETY");
        for at in words(&source.code, "unsafe").filter(|at| needs_argument(&source.code[at + 6..])) {
            seen += 1;
            if !argued_for_all && !is_argued(source, at) {
                violations.push(place(source, at));
            }
        }
    }
    assert!(seen > 20, "found only {seen} uses of `unsafe`");
    assert_none(
        "`unsafe` without a `SAFETY` comment, a `# Safety` section or a SAFETY paragraph in the header",
        &violations,
    );
}

/// Not attributes such as `#[unsafe(naked)]`, and not the types of function pointers.
fn needs_argument(after: &str) -> bool {
    let after = after.trim_start();
    if after.starts_with('(') {
        return false;
    }
    let words: Vec<&str> = after.split_whitespace().take(3).collect();
    let pointer = words.iter().find(|word| word.contains("fn")).is_some_and(|word| word.starts_with("fn("));
    !pointer
}

/// The comments before the first code.
fn header(source: &Source) -> String {
    let code = source.code.lines().map(str::trim);
    let comments = source.comments.lines();
    code.zip(comments)
        .take_while(|(code, _)| code.is_empty())
        .map(|(_, comment)| comment)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Whether the comments right above the statement or item (or within its first lines) argue.
fn is_argued(source: &Source, at: usize) -> bool {
    let argues = |line: usize| {
        let comment = source.comments.lines().nth(line).unwrap_or("");
        comment.contains("SAFETY") || comment.contains("# Safety")
    };
    let code: Vec<&str> = source.code.lines().collect();
    let mut line = source.code[..at].matches('\n').count();
    if argues(line) {
        return true;
    }
    // Up: first over the lines of the same statement, then over comments, attributes and blank code.
    loop {
        let Some(above) = line.checked_sub(1) else { return false };
        let text = code[above].trim_end();
        let trimmed = text.trim_start();
        let ends_before =
            trimmed.ends_with([';', '{', '}']) || trimmed.ends_with(',') && !code[line].trim_start().starts_with('.');
        let is_attribute = trimmed.starts_with("#[");
        if argues(above) {
            return true;
        }
        if !trimmed.is_empty() && !is_attribute && ends_before {
            return false;
        }
        if trimmed.is_empty() && source.comments.lines().nth(above).is_none_or(|comment| comment.trim().is_empty()) {
            return false;
        }
        line = above;
    }
}

#[test]
fn arguments_are_found() {
    use super::scan::split;
    let argued = |text: &str| {
        let channels = split(text);
        let source = Source { path: "x.rs".into(), code: channels.code, comments: channels.comments };
        let at = words(&source.code, "unsafe").next().unwrap();
        is_argued(&source, at)
    };
    assert!(argued("f();\n// SAFETY: true.\nlet a =\n    unsafe { g() };"));
    assert!(argued("/// Does.\n///\n/// # Safety\n/// Be good.\n#[inline]\npub unsafe fn f() {}"));
    assert!(argued("let a = unsafe { g() }; // SAFETY: true."));
    assert!(!argued("// SAFETY: of another.\nf();\nunsafe { g() }"));
    assert!(!argued("// SAFETY: of another.\n\nunsafe { g() }"));
    assert!(!argued("fn f() {\n    unsafe { g() }\n}"));
    assert!(!needs_argument("(no_mangle)]"));
    assert!(!needs_argument(" extern \"C\" fn(*mut u8)"));
    assert!(needs_argument(" extern \"C\" fn memcpy(to: *mut u8)"));
    assert!(needs_argument(" { g() }"));
}

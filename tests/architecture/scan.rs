//! As much of Rust's lexical grammar as it takes to tell code from comments and literals.
//!
//! The result keeps every byte's place: what does not belong to a channel is a blank there, line ends are kept in both.
//! So a place in one text is the same place in the other, and line numbers are the file's.

/// One text in two channels.
pub struct Channels {
    /// Code, with comments and the insides of literals blanked.
    pub code: String,
    /// Comments (of all kinds, with their slashes), everything else blanked.
    pub comments: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Code,
    Comment,
    Literal,
}

/// Splits a source text.
pub fn split(text: &str) -> Channels {
    let bytes = text.as_bytes();
    let mut code = Vec::with_capacity(bytes.len());
    let mut comments = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let (kind, end) = token(bytes, at);
        for &byte in &bytes[at..end] {
            let blank = if byte == b'\n' { b'\n' } else { b' ' };
            code.push(if kind == Kind::Code { byte } else { blank });
            comments.push(if kind == Kind::Comment { byte } else { blank });
        }
        at = end;
    }
    Channels { code: String::from_utf8(code).unwrap(), comments: String::from_utf8(comments).unwrap() }
}

/// The kind of what starts at `at`, and where it ends.
fn token(bytes: &[u8], at: usize) -> (Kind, usize) {
    let rest = &bytes[at..];
    if rest.starts_with(b"//") {
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        return (Kind::Comment, at + end);
    }
    if rest.starts_with(b"/*") {
        return (Kind::Comment, at + block_comment(rest));
    }
    if is_word(rest[0]) {
        let word = rest.iter().position(|byte| !is_word(*byte)).unwrap_or(rest.len());
        if let Some(end) = prefixed_literal(rest, word) {
            return (Kind::Literal, at + end);
        }
        return (Kind::Code, at + word);
    }
    match rest[0] {
        b'"' => (Kind::Literal, at + quoted(rest, b'"')),
        b'\'' if is_char(rest) => (Kind::Literal, at + quoted(rest, b'\'')),
        _ => (Kind::Code, at + 1),
    }
}

/// Block comments nest.
fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// `b"…"`, `c"…"`, `r#"…"#` and the like, when the word before the quote is such a prefix.
fn prefixed_literal(rest: &[u8], word: usize) -> Option<usize> {
    let prefix = &rest[..word];
    let after = &rest[word..];
    match prefix {
        b"b" | b"c" if after.first() == Some(&b'"') => Some(word + quoted(after, b'"')),
        b"b" if after.first() == Some(&b'\'') => Some(word + quoted(after, b'\'')),
        b"r" | b"br" | b"cr" => {
            let hashes = after.iter().take_while(|byte| **byte == b'#').count();
            if after.get(hashes) != Some(&b'"') {
                return None; // A raw identifier.
            }
            let mut close = vec![b'"'];
            close.resize(hashes + 1, b'#');
            let body = word + hashes + 1;
            let length = rest[body..].windows(close.len()).position(|window| window == close);
            Some(length.map_or(rest.len(), |length| body + length + close.len()))
        }
        _ => None,
    }
}

/// Where a literal that starts with `quote` ends; a backslash takes the next byte with it.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// A character literal, where a lifetime could stand too.
fn is_char(rest: &[u8]) -> bool {
    match rest.get(1) {
        Some(b'\\') => true,
        Some(byte) if byte.is_ascii() => rest.get(2) == Some(&b'\''),
        Some(_) => true,
        None => false,
    }
}

/// Whether a byte can be part of a word.
pub fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

#[test]
fn code_and_comments_are_told_apart() {
    let text = "let a = \"// no\"; // yes 'x\nlet b = 'c'; /* one /* two */ still */ fn f<'a>() {}\n\
                let c = br#\"unsafe \"quoted\" \"#; let d = '\\''; r#unsafe\nlet e = b'\"'; // é\n";
    let channels = split(text);
    assert_eq!(channels.code.len(), text.len());
    assert_eq!(channels.comments.lines().count(), channels.code.lines().count());
    assert_eq!(channels.comments.lines().next().unwrap().trim(), "// yes 'x");
    let squeezed: Vec<&str> = channels.code.split_whitespace().collect();
    assert_eq!(squeezed.join(" "), "let a = ; let b = ; fn f<'a>() {} let c = ; let d = ; r#unsafe let e = ;");
    assert!(channels.comments.contains("// é"));
}

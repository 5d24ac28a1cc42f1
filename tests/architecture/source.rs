//! The crate's source files, as the other tests look at them.

use super::scan::{is_word, split};
use std::path::{Path, PathBuf};

/// One file below `src`.
pub struct Source {
    /// Relative to the package, `src/layer/view.rs`.
    pub path: PathBuf,
    /// Code alone, without what is compiled for tests only.
    pub code: String,
    /// Comments alone.
    pub comments: String,
}

/// A place in a file, for messages.
pub fn place(source: &Source, at: usize) -> String {
    let line = source.code[..at].matches('\n').count() + 1;
    format!("{}:{line}", source.path.display())
}

/// The package's directory.
pub fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below a directory of the package, sorted, with a relative path.
pub fn files_below(folder: &str) -> Vec<PathBuf> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else {
                found.push(path.strip_prefix(package()).unwrap().to_path_buf());
            }
        }
    }
    let mut found = Vec::new();
    walk(&package().join(folder), &mut found);
    found.sort();
    found
}

/// The sources that end up in the library and its programs: files that are modules for tests are left out.
pub fn sources() -> Vec<Source> {
    let mut tests = Vec::new();
    let mut found = Vec::new();
    for path in files_below("src") {
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = std::fs::read_to_string(package().join(&path)).unwrap();
        let channels = split(&text);
        let (code, modules) = without_tests(&channels.code, &text, &path);
        tests.extend(modules);
        found.push(Source { path, code, comments: channels.comments });
    }
    found.retain(|source| !tests.iter().any(|test| source.path == *test || source.path.starts_with(test)));
    found
}

/// The places of a word in code.
pub fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let before = at.checked_sub(1).map(|before| code.as_bytes()[before]);
        let after = code.as_bytes().get(at + word.len()).copied();
        !before.is_some_and(|byte| is_word(byte) || byte == b'#') && !after.is_some_and(is_word)
    })
}

/// Blanks every item under `#[cfg(test)]`; where such an item is a module in a file of its own, names the file and
/// the folder it may be.
fn without_tests(code: &str, text: &str, path: &Path) -> (String, Vec<PathBuf>) {
    const MARK: &str = "#[cfg(test)]";
    let mut kept = code.as_bytes().to_vec();
    let mut modules = Vec::new();
    let mut from = 0;
    while let Some(start) = code[from..].find(MARK).map(|at| from + at) {
        let end = item_end(code, start + MARK.len());
        let item = &code[start..end];
        if let (true, Some(at)) = (item.ends_with(';'), words(item, "mod").next()) {
            let name: String =
                item[at + 3..].trim_start().bytes().take_while(|b| is_word(*b)).map(char::from).collect();
            modules.extend(module_files(&text[start..end], &name, path));
        }
        for byte in kept[start..end].iter_mut().filter(|byte| **byte != b'\n') {
            *byte = b' ';
        }
        from = end;
    }
    (String::from_utf8(kept).unwrap(), modules)
}

/// The end of the item (or statement, or match arm's block) whose attributes start at `from`.
fn item_end(code: &str, from: usize) -> usize {
    let mut depth = 0i32;
    for (at, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' => depth -= 1,
            b'}' => {
                depth -= 1;
                if depth <= 0 {
                    return at + 1;
                }
            }
            b';' | b',' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// Where `mod name;` in the file `path` has its code.
fn module_files(item: &str, name: &str, path: &Path) -> Vec<PathBuf> {
    let folder = path.parent().unwrap();
    if let Some(named) = item.split_once("#[path = \"").and_then(|(_, rest)| rest.split_once('"')) {
        return vec![folder.join(named.0)];
    }
    let stem = path.file_stem().unwrap();
    let base =
        if ["mod", "lib", "main"].iter().any(|own| stem == *own) { folder.to_path_buf() } else { folder.join(stem) };
    vec![base.join(format!("{name}.rs")), base.join(name)]
}

#[test]
fn code_for_tests_is_left_out() {
    let text = "use a;\n#[cfg(test)]\n#[path = \"own.rs\"]\nmod tests;\nfn f() {\n    #[cfg(test)]\n    g([1; 2]);\n    h();\n}\n\
                #[cfg(test)]\nmod more {\n    fn i() {}\n}\nfn j() {}\n#[cfg(test)]\npub(crate) mod testing;\n";
    let channels = split(text);
    let (code, modules) = without_tests(&channels.code, text, Path::new("src/noun/mod.rs"));
    let left: Vec<&str> = code.split_whitespace().collect();
    assert_eq!(left.join(" "), "use a; fn f() { h(); } fn j() {}");
    let expected = ["src/noun/own.rs", "src/noun/testing.rs", "src/noun/testing"].map(PathBuf::from);
    assert_eq!(modules, expected);
    let (_, modules) = without_tests("#[cfg(test)] mod tests;", "#[cfg(test)] mod tests;", Path::new("src/probe.rs"));
    assert_eq!(modules[0], Path::new("src/probe/tests.rs"));
}

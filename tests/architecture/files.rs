//! Folders are nouns, files stay readable, and nothing in them is about the place they were written at.

use super::assert_none;
use super::source::{files_below, package, sources, words};
use std::path::{Path, PathBuf};

/// Code lines of one file, tests and comments not counted. At half of it, think.
const LONGEST: usize = 800;

/// Folders that are programs, or hold texts that rustdoc takes in.
const NO_MODULE: &[&str] = &["src/bin", "src/bin/coracle", "src/launch/stub", "src/_docs"];

#[test]
fn a_folder_is_a_module_or_a_known_program() {
    let mut folders: Vec<PathBuf> =
        files_below("src").iter().map(|path| path.parent().unwrap().to_path_buf()).collect();
    folders.dedup();
    let strange: Vec<String> = folders
        .iter()
        .filter(|folder| *folder != Path::new("src") && !NO_MODULE.iter().any(|known| *folder == Path::new(known)))
        // A folder of tests beside `noun.rs` belongs to that file; everything else has its words in `mod.rs`.
        .filter(|folder| !package().join(folder).join("mod.rs").exists() && !is_tests_only(folder))
        .map(|folder| folder.display().to_string())
        .collect();
    assert_none("folders without a mod.rs", &strange);
}

/// Whether a folder belongs to a file of the same name and holds nothing but files (such as `probe/report.rs` does).
fn is_tests_only(folder: &Path) -> bool {
    package().join(folder.with_extension("rs")).exists()
}

#[test]
fn no_file_is_too_long() {
    let mut long = Vec::new();
    for source in sources() {
        let lines = source.code.lines().filter(|line| !line.trim().is_empty()).count();
        if lines > LONGEST {
            long.push(format!("{}: {lines} lines", source.path.display()));
        }
    }
    assert_none(&format!("files of more than {LONGEST} code lines"), &long);
}

#[test]
fn the_crate_root_has_no_logic() {
    let sources = sources();
    let library = sources.iter().find(|source| source.path == Path::new("src/lib.rs")).unwrap();
    let logic: Vec<usize> = words(&library.code, "fn").chain(words(&library.code, "impl")).collect();
    assert_none("lib.rs is a table of contents", &logic);
}

/// Whoever reads the project has never seen the directories it was made in.
#[test]
fn files_do_not_name_places_of_their_making() {
    // Taken apart here, or this file would name them.
    let places =
        [concat!("/work", "/"), concat!("/tmp", "/wt-"), concat!("/tmp", "/target-"), concat!("/tmp", "/coracle-plan")];
    let mut named = Vec::new();
    for folder in ["src", "tests", "examples", "benches", "fuzz", ".ci"] {
        if !package().join(folder).is_dir() {
            continue;
        }
        for path in files_below(folder) {
            let built = ["fuzz/target", "fuzz/corpus", "fuzz/artifacts"].iter().any(|made| path.starts_with(made));
            let Ok(text) = std::fs::read_to_string(package().join(&path)) else { continue };
            for (number, line) in text.lines().enumerate().filter(|_| !built) {
                if places.iter().any(|place| line.contains(place)) {
                    named.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
                }
            }
        }
    }
    assert_none("names of places that exist on one machine only", &named);
}

//! Options of `run` that are small languages of their own: variables, security, requirements.

use std::path::Path;
use std::sync::Arc;

use coracle::ErrorKind;
use coracle::container::IdMap;
use coracle::isolation::{Aspect, Level, Requirement};
use coracle::security::seccomp::Policy;
use coracle::security::{LandlockLayer, Masking, Profile, Seccomp};

use crate::failure::Failure;

pub fn refuse(step: &str, text: &str, cause: &str) -> Failure {
    Failure::new(ErrorKind::Invalid, &format!("{step} {text:?}"), cause)
}

/// A variable and its value; `None` where it is to be absent, for `NAME` alone means this program's own value.
pub fn variable(text: &str) -> Result<(String, Option<String>), Failure> {
    let step = "set the variable";
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => match std::env::var_os(text).map(std::ffi::OsString::into_string) {
            None => (text, None),
            Some(Ok(value)) => (text, Some(value)),
            Some(Err(_)) => return Err(refuse(step, text, "its value in the environment is not UTF-8")),
        },
    };
    match key {
        "" => Err(refuse(step, text, "it has no name")),
        key => Ok((key.to_owned(), value)),
    }
}

/// The variables of a file: one a line, `#` begins a comment line, nothing is unquoted. `NAME` alone, where this program
/// has no such variable, leaves the image's as it is: only the command line takes one away.
pub fn variables(path: &Path) -> Result<Vec<(String, String)>, Failure> {
    let step = "read the variables";
    let text = std::fs::read_to_string(path).map_err(|error| Failure::io(step, Some(path), &error))?;
    let mut list = vec![];
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = line.split_once('=').map_or(line, |(key, _)| key);
        if key.contains(char::is_whitespace) {
            let place = format!("{}:{}", path.display(), number + 1);
            return Err(refuse(step, &place, "a variable's name contains no blanks"));
        }
        if let (key, Some(value)) = variable(line)? {
            list.push((key, value));
        }
    }
    Ok(list)
}

/// Changes the profile by one `--security-opt`.
pub fn security(profile: &mut Profile, text: &str) -> Result<(), Failure> {
    let step = "use the security option";
    // docker took a colon as well, once.
    let (key, value) = text.split_once(['=', ':']).unwrap_or((text, ""));
    match (key, value) {
        ("no-new-privileges", "" | "true") => profile.no_new_privs = true,
        ("no-new-privileges", "false") => profile.no_new_privs = false,
        ("seccomp", "unconfined") => profile.seccomp = Seccomp::Unconfined,
        ("seccomp", "builtin") => profile.seccomp = Seccomp::Docker2026_11,
        ("seccomp", "strict") => profile.seccomp = Seccomp::Strict2026_11,
        ("seccomp", path) if !path.is_empty() => {
            let json = std::fs::read(path)
                .map_err(|error| Failure::io("read the seccomp profile", Some(Path::new(path)), &error))?;
            let policy = Policy::from_json(&json).map_err(|error| {
                let cause = error.cause().map_or_else(|| error.to_string(), str::to_owned);
                let refusal = Failure::new(error.kind(), &format!("read the seccomp profile {path:?}"), cause);
                refusal.remedy("name a file in docker's format, or unconfined, builtin or strict")
            })?;
            profile.seccomp = Seccomp::Custom(Arc::new(policy));
        }
        ("landlock", "" | "true") => profile.landlock = LandlockLayer::Layer2026_11,
        ("landlock", "false") => profile.landlock = LandlockLayer::None,
        ("untrusted", "") => *profile = Profile::UNTRUSTED_2026_11,
        ("systempaths", "unconfined") => profile.masking = Masking::NONE,
        _ => {
            return Err(refuse(
                step,
                text,
                "known are no-new-privileges[=true|false], seccomp=unconfined|builtin|strict|FILE, \
                 systempaths=unconfined, landlock[=true|false] and untrusted",
            ));
        }
    }
    Ok(())
}

/// `FIRST:SIZE`, users and groups alike.
pub fn id_map(text: &str) -> Result<IdMap, Failure> {
    let parsed = text.split_once(':').and_then(|(first, size)| Some((first.parse().ok()?, size.parse().ok()?)));
    match parsed {
        Some((first, size)) => Ok(IdMap::new(first, first, size)),
        None => Err(refuse("give the container a user namespace", text, "expected FIRST:SIZE, e.g. 300000:65536")),
    }
}

/// What is said about options of docker's that are not there: why, and what to do in their place.
pub fn of_docker(name: &str) -> Option<(&'static str, Option<&'static str>)> {
    Some(match name {
        "-m" | "--memory" | "--memory-swap" | "--cpus" | "-c" | "--cpu-shares" | "--cpuset-cpus" | "--pids-limit" => {
            ("limits of memory, cpu and processes cannot be set by the command line yet", None)
        }
        "--ulimit" => {
            ("limits of resources cannot be set yet", Some("set them with `ulimit` before, which containers inherit"))
        }
        "-p" | "--publish" | "-P" | "--publish-all" => {
            ("containers have no network of their own to publish ports of", Some("--network host"))
        }
        "--device" => ("it is a bind mount here", Some("-v /dev/fuse:/dev/fuse:dev")),
        "--gpus" => {
            ("nothing finds devices by their vendors", Some("-v /dev/dri:/dev/dri:dev, as far as that will do"))
        }
        "--privileged" => (
            "nothing switches all protection off at once",
            Some("--cap-add ALL --security-opt seccomp=unconfined --security-opt systempaths=unconfined"),
        ),
        "--restart" => {
            ("a container lives as long as its `coracle run`", Some("let a shell or a service manager start it again"))
        }
        _ => return None,
    })
}

/// `filesystem-read` and the like.
pub fn aspect_name(aspect: Aspect) -> String {
    aspect.to_string().replace(' ', "-")
}

/// Changes the requirement by one `--require`.
pub fn require(requirement: Requirement, text: &str) -> Result<Requirement, Failure> {
    if text == "nothing" {
        return Ok(Requirement::nothing());
    }
    let (aspect, level) = text.split_once('=').unwrap_or((text, "full"));
    let level = [Level::None, Level::Partial, Level::Full].into_iter().find(|known| known.to_string() == level);
    let aspect = Aspect::ALL.into_iter().find(|known| aspect_name(*known) == aspect);
    match (aspect, level) {
        (Some(aspect), Some(level)) => Ok(requirement.at_least(aspect, level)),
        _ => {
            let aspects = Aspect::ALL.map(aspect_name).join(", ");
            let cause = format!("expected `nothing` or ASPECT=none|partial|full; aspects are {aspects}");
            Err(refuse("require", text, &cause))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn variables_come_from_the_option_or_the_environment() {
        assert_eq!(variable("A=b=c").unwrap(), ("A".into(), Some("b=c".into())));
        assert_eq!(variable("A=").unwrap(), ("A".into(), Some(String::new())));
        assert_eq!(variable("CORACLE_SURELY_UNSET").unwrap(), ("CORACLE_SURELY_UNSET".into(), None));
        assert_eq!(variable("PATH").unwrap().1, std::env::var("PATH").ok());
        assert!(variable("=x").is_err());
    }

    #[test]
    fn security_options_change_the_profile() {
        let mut profile = Profile::DEFAULT_2026_11;
        for text in ["no-new-privileges=false", "seccomp=unconfined", "systempaths=unconfined"] {
            security(&mut profile, text).unwrap();
        }
        let Profile { seccomp, masking, no_new_privs, .. } = profile.clone();
        assert_eq!((seccomp, masking, no_new_privs), (Seccomp::Unconfined, Masking::NONE, false));
        security(&mut profile, "no-new-privileges").unwrap();
        assert!(profile.no_new_privs);
        for text in ["", "seccomp", "seccomp=/does/not/exist", "apparmor=x", "no-new-privileges=2"] {
            assert!(security(&mut profile, text).is_err(), "{text}");
        }
    }

    #[test]
    fn maps_have_a_first_id_and_a_size() {
        assert_eq!(id_map("300000:65536").unwrap(), IdMap::new(300_000, 300_000, 65_536));
        for text in ["", "1", "1:", ":1", "-1:5", "a:b", "1:2:3", "99999999999:1"] {
            assert!(id_map(text).is_err(), "{text}");
        }
    }

    #[test]
    fn requirements_name_aspects() {
        let all = require(Requirement::default(), "limits").unwrap();
        assert_eq!(all.level(Aspect::Limits), Level::Full);
        let some = require(require(all, "nothing").unwrap(), "filesystem-write=partial").unwrap();
        assert_eq!((some.level(Aspect::Limits), some.level(Aspect::FilesystemWrite)), (Level::None, Level::Partial));
        for text in ["", "odd=full", "network=much"] {
            assert!(require(Requirement::default(), text).is_err(), "{text}");
        }
    }
}

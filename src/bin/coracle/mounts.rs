//! `-v`, `--mount` and `--tmpfs`, in docker's words.

use std::path::{Path, PathBuf};

use coracle::container::Mount;

use crate::failure::Failure;
use crate::options::refuse;

/// A path of the host in this program's own words, which may be relative.
fn host_path(step: &str, text: &str) -> Result<PathBuf, Failure> {
    std::path::absolute(text).map_err(|error| Failure::io(step, Some(Path::new(text)), &error))
}

/// What can be said of the mount itself besides `ro` and `rw`.
const FLAGS: [&str; 18] = [
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "symfollow",
    "nosymfollow",
    "diratime",
    "nodiratime",
    "relatime",
    "noatime",
    "strictatime",
    "rro",
    "bind",
    "rbind",
    "unbindable",
    "runbindable",
];

const PROPAGATIONS: [&str; 6] = ["private", "rprivate", "slave", "rslave", "shared", "rshared"];

/// How a volume is kept in step with the host, on machines where the two are not the same.
const CONSISTENCIES: [&str; 4] = ["default", "consistent", "cached", "delegated"];

/// `SOURCE:TARGET[:OPTIONS]`.
pub fn volume(text: &str) -> Result<Mount, Failure> {
    volume_on(text, Path::new("/sys/fs/selinux/enforce").exists())
}

fn volume_on(text: &str, selinux: bool) -> Result<Mount, Failure> {
    let step = "mount the volume";
    let mut parts = text.splitn(3, ':');
    let (source, target) = match (parts.next(), parts.next()) {
        (Some(source), Some(target)) if !source.is_empty() && !target.is_empty() => (source, target),
        _ => {
            let refusal = refuse(step, text, "volumes without a source are not there yet");
            return Err(refusal.remedy("SOURCE:TARGET, or --tmpfs TARGET"));
        }
    };
    if !source.starts_with(['/', '.']) {
        let refusal = refuse(step, text, "named volumes are not there yet");
        return Err(refusal.remedy("a path that begins with / or ."));
    }
    let mut mount = Mount::bind(host_path(step, source)?, target);
    let options: Vec<&str> = parts.next().unwrap_or_default().split(',').collect();
    if options.contains(&"ro") && options.contains(&"rw") {
        return Err(refuse(step, text, "it is either ro or rw"));
    }
    for option in options {
        mount = match option {
            "" | "rw" => mount,
            "ro" => mount.read_only(),
            "z" | "Z" if selinux => {
                let refusal = refuse(step, text, "SELinux is on here, and files are not relabelled for it");
                return Err(refusal.remedy("chcon -Rt container_file_t SOURCE, and leave z out"));
            }
            // Of a named volume, what is in the image is not copied: of a directory it never is.
            "z" | "Z" | "nocopy" => mount,
            word if CONSISTENCIES.contains(&word) => mount,
            word if FLAGS.contains(&word) || PROPAGATIONS.contains(&word) => mount.option(word),
            unknown => return Err(refuse(step, text, &format!("the option {unknown:?} is not known"))),
        };
    }
    Ok(mount)
}

/// `TARGET[:OPTIONS]`.
pub fn tmpfs(text: &str) -> Result<Mount, Failure> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    if target.is_empty() {
        return Err(refuse("mount the tmpfs", text, "it has no target"));
    }
    let options = options.split(',').filter(|option| !option.is_empty());
    Ok(options.fold(Mount::tmpfs(target), Mount::option))
}

/// The fields of one line of CSV, RFC 4180; `None` where quotes do not add up.
fn fields(text: &str) -> Option<Vec<String>> {
    let mut fields = vec![];
    let mut letters = text.chars().peekable();
    loop {
        let mut field = String::new();
        if letters.next_if_eq(&'"').is_some() {
            loop {
                match letters.next()? {
                    // Two are one that is meant.
                    '"' if letters.next_if_eq(&'"').is_none() => break,
                    letter => field.push(letter),
                }
            }
        } else {
            while let Some(letter) = letters.next_if(|letter| *letter != ',') {
                field.push(letter);
            }
            if field.contains('"') {
                return None;
            }
        }
        fields.push(field);
        match letters.next() {
            None => return Some(fields),
            Some(',') => {}
            Some(_) => return None,
        }
    }
}

/// `type=bind,source=/a,target=/b,readonly`.
pub fn mount(text: &str) -> Result<Mount, Failure> {
    let step = "mount";
    let no = |cause: &str| refuse(step, text, cause);
    let (mut kind, mut source, mut target, mut read_only) = (None, None, None, false);
    let (mut propagation, mut recursive, mut in_memory) = (None, None, vec![]);
    let fields =
        fields(text).ok_or_else(|| no("its quotes do not add up; a field in quotes begins and ends with one"))?;
    for field in fields {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (&*field, None),
        };
        let key = &*key.to_ascii_lowercase();
        let given = || value.map(str::to_owned).ok_or_else(|| no(&format!("{key} takes a value")));
        let flag = || match value {
            None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
            Some(_) => Err(no(&format!("{key} is true or false"))),
        };
        let one_of = |known: &[&str]| match given()? {
            value if known.contains(&&*value) => Ok(value),
            value => Err(no(&format!("{key} is not {value:?}, but one of {}", known.join(", ")))),
        };
        match key {
            "type" => kind = Some(given()?.to_ascii_lowercase()),
            "source" | "src" => source = Some(given()?),
            "target" | "destination" | "dst" => target = Some(given()?),
            "readonly" | "ro" => read_only = flag()?,
            "consistency" => drop(one_of(&CONSISTENCIES)?),
            "bind-propagation" => propagation = Some(one_of(&PROPAGATIONS)?),
            "bind-recursive" => recursive = Some(one_of(&["enabled", "disabled", "writable", "readonly"])?),
            "bind-nonrecursive" => recursive = flag()?.then(|| "disabled".to_owned()),
            "tmpfs-size" => in_memory.push(format!("size={}", given()?)),
            "tmpfs-mode" => in_memory.push(format!("mode={}", given()?)),
            _ => return Err(no(&format!("{key:?} is not known"))),
        }
    }
    let target = target.filter(|target| !target.is_empty()).ok_or_else(|| no("it has no target"))?;
    let binds = propagation.is_some() || recursive.is_some();
    match (kind.as_deref(), source) {
        (Some("bind"), Some(_)) if !in_memory.is_empty() => Err(no("tmpfs-size and tmpfs-mode are for type=tmpfs")),
        (Some("bind"), Some(source)) => {
            let mut mount = Mount::bind(host_path(step, &source)?, target);
            mount = match (recursive.as_deref(), read_only) {
                (None | Some("enabled"), false) => mount,
                (Some("disabled"), false) => mount.alone(),
                (Some("disabled"), true) => mount.alone().read_only(),
                // A limit of a mount holds on those inside it, too.
                (Some("writable"), true) => {
                    let refusal = no("a read-only mount whose mounts inside can be written is not there yet");
                    return Err(refusal.remedy("bind-recursive=disabled, and a mount of its own for each of those"));
                }
                (_, true) => mount.read_only(),
                (Some(value), false) => return Err(no(&format!("bind-recursive={value} is for readonly mounts"))),
            };
            Ok(propagation.into_iter().fold(mount, Mount::option))
        }
        (Some("bind"), None) => Err(no("it has no source")),
        (Some("tmpfs"), None) if binds => Err(no("bind-propagation and bind-recursive are for type=bind")),
        (Some("tmpfs"), None) => {
            let mount = in_memory.into_iter().fold(Mount::tmpfs(target), Mount::option);
            Ok(if read_only { mount.read_only() } else { mount })
        }
        (Some("tmpfs"), Some(_)) => Err(no("a tmpfs has no source")),
        (Some("volume") | None, _) => Err(no("volumes are not there yet").remedy("type=bind or type=tmpfs")),
        (Some(_), _) => Err(no("the type is not known").remedy("type=bind or type=tmpfs")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn volumes_and_mounts_mean_the_same() {
        let bind = Mount::bind("/a", "/b");
        assert_eq!(volume("/a:/b").unwrap(), bind);
        assert_eq!(volume("/a:/b:ro").unwrap(), bind.clone().read_only());
        assert_eq!(volume("/a:/b:ro,rslave").unwrap(), bind.clone().read_only().option("rslave"));
        assert_eq!(mount("type=bind,source=/a,target=/b").unwrap(), bind);
        assert_eq!(mount("type=bind,src=/a,dst=/b,readonly").unwrap(), bind.clone().read_only());
        assert_eq!(mount("type=bind,src=/a,dst=/b,ro=false").unwrap(), bind);
        assert_eq!(mount("type=tmpfs,target=/t,tmpfs-size=1m").unwrap(), Mount::tmpfs("/t").option("size=1m"));
        assert_eq!(tmpfs("/t:size=1m,exec").unwrap(), Mount::tmpfs("/t").option("size=1m").option("exec"));
        let here = std::env::current_dir().unwrap().join("x");
        assert_eq!(volume("./x:/b").unwrap(), Mount::bind(here, "/b"));
    }

    #[test]
    fn words_that_change_nothing_here_are_taken() {
        let bind = Mount::bind("/a", "/b");
        for options in ["cached", "delegated", "consistent", "nocopy", "z", "Z", "rw,z,cached"] {
            assert_eq!(volume_on(&format!("/a:/b:{options}"), false).unwrap(), bind, "{options}");
        }
        assert!(volume_on("/a:/b:ro,z", true).unwrap_err().message().contains("SELinux"));
        for consistency in CONSISTENCIES {
            assert_eq!(mount(&format!("type=bind,source=/a,target=/b,consistency={consistency}")).unwrap(), bind);
        }
    }

    #[test]
    fn mounts_inside_come_along_unless_told_otherwise() {
        let of = |rest: &str| mount(&format!("type=bind,source=/a,target=/b,{rest}"));
        let bind = Mount::bind("/a", "/b");
        assert_eq!(of("bind-recursive=enabled").unwrap(), bind);
        assert_eq!(of("bind-recursive=disabled").unwrap(), bind.clone().alone());
        assert_eq!(of("bind-nonrecursive").unwrap(), bind.clone().alone());
        assert_eq!(of("bind-nonrecursive=false").unwrap(), bind);
        assert!(of("ro,bind-recursive=writable").unwrap_err().message().contains("not there yet"));
        assert_eq!(of("ro,bind-recursive=readonly").unwrap(), bind.clone().read_only());
        assert_eq!(of("bind-propagation=rslave").unwrap(), bind.option("rslave"));
        for bad in [
            "bind-recursive=odd",
            "bind-recursive=writable",
            "bind-recursive=readonly",
            "bind-propagation=exec",
            "bind-propagation=dev",
            "bind-propagation=",
            "consistency=odd",
            "tmpfs-size=1m",
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
        assert!(mount("type=tmpfs,target=/t,bind-propagation=slave").is_err());
    }

    #[test]
    fn fields_are_quoted_as_csv_is() {
        assert_eq!(mount("TYPE=BIND,\"source=/a,b\",target=/c").unwrap(), Mount::bind("/a,b", "/c"));
        assert_eq!(mount("type=bind,\"source=/a\"\"b\",target=/c").unwrap(), Mount::bind("/a\"b", "/c"));
        for text in ["type=bind,source=\"/a\",target=/c", "type=bind,\"source=/a", "type=bind,\"source=/a\"b,target=/c"]
        {
            assert!(mount(text).unwrap_err().message().contains("quotes"), "{text}");
        }
    }

    #[test]
    fn mounts_without_meaning_are_refused() {
        for text in ["", "/a", ":/b", "/a:", "name:/b", "/a:/b:ro,rw", "/a:/b:odd", "/a:/b:size=1m"] {
            assert!(volume(text).is_err(), "{text}");
        }
        assert!(volume("/a:/b:ro,odd").unwrap_err().message().contains("\"odd\" is not known"));
        for text in [
            "",
            "type=bind,target=/b",
            "type=bind,source=/a",
            "type=tmpfs,source=/a,target=/b",
            "type=volume,source=a,target=/b",
            "source=/a,target=/b",
            "type=bind,source=/a,target=/b,odd=1",
            "type=bind,source,target=/b",
            "type=bind,source=/a,target=/b,readonly=maybe",
        ] {
            assert!(mount(text).is_err(), "{text}");
        }
        assert!(tmpfs(":size=1m").is_err());
    }
}

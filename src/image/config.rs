//! The image configuration: a superset of OCI's and Docker's.
//!
//! OCI's [image-spec config] lacks what Docker writes beside it and every engine honours (`Healthcheck`, `OnBuild`,
//! `Shell`, `ArgsEscaped`, …). Here both are typed, and whatever is typed nowhere is kept in `other`, so that a
//! config that is read, changed and written loses nothing.
//!
//! Reading is strict where a mistake would change what runs (DiffIDs, types of fields, NUL bytes, the same field
//! twice) and lenient where writers of the last ten years differ (`null` for "none", a string for a list of one).
//!
//! [image-spec config]: https://github.com/opencontainers/image-spec/blob/main/config.md

use std::collections::{BTreeMap, BTreeSet};

use serde::de::Deserializer;
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::manifest::parse_json;
use crate::error::{Error, ErrorKind, Result};
use crate::name::{DiffId, Platform};

/// Fields that this crate has no type for, by their name in the JSON document.
pub type OtherFields = BTreeMap<String, serde_json::Value>;

/// The document that says what an image is made of and how it wants to be run.
///
/// The image's ID is the digest of this document's bytes, so a [`Config`] is only ever read: a changed one belongs
/// to another image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// When the image was made, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// The processor architecture in Go's names (`amd64`, `arm64`).
    #[serde(default, deserialize_with = "nullable")]
    pub architecture: String,
    /// The architecture's variant (`v8`), or empty.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// The operating system (`linux`).
    #[serde(default, deserialize_with = "nullable")]
    pub os: String,
    /// The version of the operating system, used by Windows images, or empty.
    #[serde(default, rename = "os.version", deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// What a container of this image runs, unless it is told otherwise.
    #[serde(default, deserialize_with = "nullable")]
    pub config: ContainerConfig,
    /// The layers, by the digests of their uncompressed tars.
    pub rootfs: RootFs,
    /// How the layers came to be, lowest first; may be shorter or longer than the list of layers.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
    /// Every other field of the document.
    #[serde(flatten)]
    pub other: OtherFields,
}

/// The `rootfs` object of a [`Config`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The DiffIDs, lowest layer first.
    #[serde(default, deserialize_with = "nullable")]
    pub diff_ids: Vec<DiffId>,
}

impl Default for RootFs {
    fn default() -> Self {
        RootFs { kind: RootFs::LAYERS.into(), diff_ids: Vec::new() }
    }
}

impl RootFs {
    /// The only type of root file system that was ever defined.
    const LAYERS: &'static str = "layers";
}

/// What a container of the image runs by default: the `config` object of a [`Config`].
///
/// An empty list or string means that the image says nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerConfig {
    /// `user`, `uid`, `user:group`, `uid:gid`, `uid:group` or `user:gid`; resolved in the image's own
    /// `/etc/passwd` and `/etc/group`.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Ports that the program listens on, such as `80/tcp`. Documentation only: nothing is published by it.
    #[serde(
        default,
        deserialize_with = "set_of_keys",
        serialize_with = "keys_of_set",
        skip_serializing_if = "BTreeSet::is_empty"
    )]
    pub exposed_ports: BTreeSet<String>,
    /// Environment variables as `NAME=value`.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The first words of the command line.
    #[serde(default, deserialize_with = "words", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// The words after the entry point, replaced by the ones a caller gives.
    #[serde(default, deserialize_with = "words", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Directories whose content lives in a volume, such as `/var/lib/postgresql/data`.
    #[serde(
        default,
        deserialize_with = "set_of_keys",
        serialize_with = "keys_of_set",
        skip_serializing_if = "BTreeSet::is_empty"
    )]
    pub volumes: BTreeSet<String>,
    /// The directory that the process starts in.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Free-form metadata. Never an instruction to the engine.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The signal that asks the program to end, by name or number; `SIGTERM` when empty.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Seconds between the stop signal and SIGKILL. A Docker field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// How to tell whether the program is well. A Docker field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Dockerfile instructions to run when another image is built on this one. A Docker field.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
    /// The shell for the shell form of `RUN`, `CMD` and `ENTRYPOINT`. A Docker field.
    #[serde(default, deserialize_with = "words", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    /// Whether the command line is escaped already; for Windows only. A Docker field.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_false")]
    pub args_escaped: bool,
    /// Memory limit in bytes, a relic of old images; read, never enforced.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub memory: i64,
    /// Limit of memory and swap in bytes, a relic of old images; read, never enforced.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub memory_swap: i64,
    /// Relative CPU weight, a relic of old images; read, never enforced.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub cpu_shares: i64,
    /// Every other field of the object (`Hostname`, `Tty`, `Image`, …).
    #[serde(flatten)]
    pub other: OtherFields,
}

/// A health check as Docker defines it. Times are nanoseconds; 0 means the engine's default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", args…]` or `["CMD-SHELL", line]`; empty inherits from the image below.
    #[serde(default, deserialize_with = "words", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Nanoseconds between two checks.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// Nanoseconds after which one check counts as failed.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// Nanoseconds at the start in which failures do not count.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Nanoseconds between two checks during the start period.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Failures in a row that make the container unhealthy.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub retries: i64,
    /// Every other field.
    #[serde(flatten)]
    pub other: OtherFields,
}

/// One step of an image's making.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// When the step ran, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command or Dockerfile instruction.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// Who ran it.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// A free remark.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// The step changed the configuration only, so no layer belongs to it.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_false")]
    pub empty_layer: bool,
    /// Every other field.
    #[serde(flatten)]
    pub other: OtherFields,
}

impl Config {
    /// Reads a config document of at most 4 MiB.
    ///
    /// # Errors
    /// [`Limit`](ErrorKind::Limit) for a larger document, [`Invalid`](ErrorKind::Invalid) for one that is not the
    /// JSON of an image config, with line and column; [`Hostile`](ErrorKind::Hostile) for a NUL byte in a text that
    /// would reach a system call, where the kernel would see less than a reader of the config.
    pub fn parse(bytes: &[u8]) -> Result<Config> {
        let config: Config = parse_json(STEP, bytes)?;
        config.check()?;
        Ok(config)
    }

    /// The platform that the image was made for, normalised.
    pub fn platform(&self) -> Platform {
        let mut platform = Platform::new(&self.os, &self.architecture);
        if !self.variant.is_empty() {
            platform.variant = Some(self.variant.clone());
        }
        platform.os_version = (!self.os_version.is_empty()).then(|| self.os_version.clone());
        platform.normalized()
    }

    /// The document's bytes, as a new image would store them.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self)
            .map_err(|error| Error::new(ErrorKind::Invalid, "write the image config").source_is(error))
    }

    /// A manifest must bring exactly the layers that the config promises.
    pub(crate) fn check_layer_count(&self, layers: usize) -> Result<()> {
        let diff_ids = self.rootfs.diff_ids.len();
        if diff_ids > MAX_LAYERS {
            return Err(Error::new(ErrorKind::Limit, STEP)
                .because(format!("its rootfs.diff_ids lists {diff_ids} layers; the limit is {MAX_LAYERS}")));
        }
        if diff_ids == layers {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Corrupt, STEP)
            .because(format!("its rootfs.diff_ids lists {diff_ids} layers, but the manifest lists {layers}")))
    }

    fn check(&self) -> Result<()> {
        if self.rootfs.kind != RootFs::LAYERS {
            return Err(Error::new(ErrorKind::Unsupported, STEP)
                .because(format!("its rootfs.type is {:?}; only \"layers\" is defined", self.rootfs.kind)));
        }
        let inner = &self.config;
        let lists =
            [("Env", &inner.env), ("Entrypoint", &inner.entrypoint), ("Cmd", &inner.cmd), ("Shell", &inner.shell)];
        for (field, list) in lists {
            for value in list {
                no_nul(field, value)?;
            }
        }
        no_nul("User", &inner.user)?;
        no_nul("WorkingDir", &inner.working_dir)?;
        no_nul("StopSignal", &inner.stop_signal)?;
        inner.volumes.iter().try_for_each(|volume| no_nul("Volumes", volume))
    }
}

/// Layers of one image. Overlayfs mounts at most 500, and Docker makes at most 127.
const MAX_LAYERS: usize = 1000;

const STEP: &str = "read the image config";

fn no_nul(field: &str, value: &str) -> Result<()> {
    if !value.contains('\0') {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Hostile, STEP).because(format!("config.{field} contains a NUL byte: {value:?}")))
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// `null` is how Go writes an empty list or map.
pub(super) fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A command line: a list of words, or (as old Docker wrote it) one string.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Option::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Words::One(word)) => vec![word],
        Some(Words::Many(words)) => words,
    })
}

/// Go has no sets, so they are written as maps to empty objects.
fn set_of_keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
    let map: Option<BTreeMap<String, serde::de::IgnoredAny>> = Option::deserialize(deserializer)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

fn keys_of_set<S: Serializer>(set: &BTreeSet<String>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Empty {}
    serializer.collect_map(set.iter().map(|key| (key, Empty {})))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const DIFF: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text.replace("DIFF", DIFF).as_bytes())
    }

    #[test]
    fn docker_fields_and_unknown_ones_survive() {
        let text = r#"{"architecture":"arm64","variant":"v8","os":"linux","created":"2026-01-02T03:04:05.678Z",
            "docker_version":"27","container":"abc",
            "config":{"User":"1:2","Env":["A=b"],"Cmd":["sh"],"ExposedPorts":{"80/tcp":{}},"Volumes":{"/data":{}},
              "Healthcheck":{"Test":["CMD","true"],"Interval":30000000000,"Odd":1},"OnBuild":["RUN x"],
              "Shell":["/bin/bash","-c"],"ArgsEscaped":true,"StopTimeout":3,"MemorySwap":-1,"Hostname":"h"},
            "rootfs":{"type":"layers","diff_ids":["DIFF"]},
            "history":[{"created_by":"a","empty_layer":true,"x":[1]},{"created_by":"b"}]}"#;
        let config = parse(text).unwrap();
        assert_eq!(config.config.healthcheck.as_ref().unwrap().interval, 30_000_000_000);
        assert!(config.config.exposed_ports.contains("80/tcp"));
        assert_eq!(config.config.memory_swap, -1);
        let before: serde_json::Value = serde_json::from_str(&text.replace("DIFF", DIFF)).unwrap();
        let after: serde_json::Value = serde_json::from_slice(&config.to_bytes().unwrap()).unwrap();
        assert_eq!(before, after);
    }

    #[test]
    fn null_means_none_and_a_string_is_a_list_of_one() {
        let config = parse(
            r#"{"architecture":"amd64","os":"linux","author":null,"history":null,
            "config":{"Env":null,"Cmd":null,"Entrypoint":"/init","Volumes":null,"Labels":null,"Healthcheck":null,
              "User":null,"OnBuild":null,"StopTimeout":null,"ArgsEscaped":null},
            "rootfs":{"type":"layers","diff_ids":null}}"#,
        )
        .unwrap();
        assert_eq!(config.config.entrypoint, ["/init"]);
        assert!(config.config.cmd.is_empty());
        assert_eq!(parse(r#"{"config":null,"rootfs":{"type":"layers"}}"#).unwrap().config, ContainerConfig::default());
    }

    #[test]
    fn what_would_change_what_runs_is_refused() {
        let cases: [(&str, ErrorKind, &str); 9] = [
            (r#"{"rootfs":{"type":"layers","diff_ids":["sha256:XY"]}}"#, ErrorKind::Invalid, "line 1"),
            (r#"{"rootfs":{"type":"btrfs"}}"#, ErrorKind::Unsupported, "btrfs"),
            (r#"{"os":"linux"}"#, ErrorKind::Invalid, "rootfs"),
            (r#"{"config":{},"config":{},"rootfs":{"type":"layers"}}"#, ErrorKind::Invalid, "duplicate"),
            (r#"{"config":{"User":"a","User":"b"},"rootfs":{"type":"layers"}}"#, ErrorKind::Invalid, "duplicate"),
            (r#"{"config":{"Env":["A=\u0000"]},"rootfs":{"type":"layers"}}"#, ErrorKind::Hostile, "config.Env"),
            (r#"{"config":{"Cmd":[1]},"rootfs":{"type":"layers"}}"#, ErrorKind::Invalid, "line 1"),
            (r#"{"config":{"User":0},"rootfs":{"type":"layers"}}"#, ErrorKind::Invalid, "line 1"),
            ("[]", ErrorKind::Invalid, "line 1"),
        ];
        for (text, kind, part) in cases {
            let error = parse(text).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(part), "{error}");
            assert!(error.to_string().contains("image config"), "{error}");
        }
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let deep = format!(r#"{{"x":{}{},"rootfs":{{"type":"layers"}}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(Config::parse(deep.as_bytes()).unwrap_err().kind(), ErrorKind::Hostile);
        let large = format!(r#"{{"x":"{}","rootfs":{{"type":"layers"}}}}"#, "x".repeat(5 << 20));
        assert_eq!(Config::parse(large.as_bytes()).unwrap_err().kind(), ErrorKind::Limit);
    }

    #[test]
    fn layer_counts_must_agree() {
        let config = parse(r#"{"rootfs":{"type":"layers","diff_ids":["DIFF"]}}"#).unwrap();
        config.check_layer_count(1).unwrap();
        let error = config.check_layer_count(3).unwrap_err();
        assert!(error.to_string().contains("lists 1 layers, but the manifest lists 3"), "{error}");
    }
}

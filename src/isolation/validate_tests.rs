#![allow(clippy::unwrap_used)]
use super::*;
use oci_spec::runtime::{LinuxIdMappingBuilder, LinuxIntelRdt, RootBuilder, VM};

fn sound() -> Spec {
    let mut spec = Spec::default();
    spec.set_root(Some(RootBuilder::default().path("rootfs").build().unwrap()));
    let process = spec.process_mut().as_mut().unwrap();
    let mut sets = process.capabilities().clone().unwrap();
    sets.set_ambient(None);
    process.set_capabilities(Some(sets));
    let linux = spec.linux_mut().as_mut().unwrap();
    linux.set_resources(None);
    linux.set_cgroups_path(None);
    linux.set_uid_mappings(None).set_gid_mappings(None);
    spec
}

fn says(spec: &Spec, field: &str) {
    let error = validate(spec, &Identity::Host).unwrap_err().to_string();
    assert!(error.contains(field), "{field}: {error}");
}

#[test]
fn fields_of_other_systems_are_refused_by_name() {
    validate(&sound(), &Identity::Host).unwrap();
    let mut spec = sound();
    spec.set_vm(Some(VM::default()));
    says(&spec, "honour vm of");
    let mut spec = sound();
    spec.linux_mut().as_mut().unwrap().set_intel_rdt(Some(LinuxIntelRdt::default()));
    says(&spec, "linux.intelRdt");
}

#[test]
fn unknown_fields_of_a_document_are_named() {
    let json = |more: &str| {
        format!(
            r#"{{"ociVersion": "1.2.0", "root": {{"path": "rootfs"}},
                "process": {{"cwd": "/", "user": {{"uid": 0, "gid": 0}},
                    "capabilities": {{"bounding": ["CAP_KILL", "CAP_CHOWN"]}} {more}}},
                "linux": {{"namespaces": [{{"type": "mount"}}]}}, "annotations": {{}}}}"#
        )
    };
    let spec = from_json(json("").as_bytes()).unwrap();
    assert_eq!(spec.version(), "1.2.0");
    let error = from_json(json(r#", "loginUid": 7"#).as_bytes()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("process.loginUid"), "{error}");
    let nested = json(r#", "rlimits": [{"type": "RLIMIT_CPU", "hard": 1, "soft": 1, "x": 2}]"#);
    let error = from_json(nested.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("process.rlimits[0].x"), "{error}");
    assert_eq!(from_json(b"[]").unwrap_err().kind(), ErrorKind::Invalid);
    let error = from_json(br#"{"root": ["rootfs", true]}"#).unwrap_err().to_string();
    assert!(error.contains("honour root of"), "{error}");
}

#[test]
fn maps_that_the_kernel_would_refuse_are_named() {
    let map = |ranges: &[(u32, u32, u32)]| -> Vec<LinuxIdMapping> {
        let one = |(inside, outside, size): &(u32, u32, u32)| {
            LinuxIdMappingBuilder::default().container_id(*inside).host_id(*outside).size(*size).build().unwrap()
        };
        ranges.iter().map(one).collect()
    };
    id_map("m", &map(&[(0, 100_000, 1000), (1000, 200_000, 10)])).unwrap();
    for wrong in [&[][..], &[(0, 1, 0)], &[(0, 1, u32::MAX)], &[(0, 10, 10), (5, 100, 10)], &[(0, 10, 10), (10, 19, 1)]]
    {
        assert!(id_map("m", &map(wrong)).is_err(), "{wrong:?}");
    }
}

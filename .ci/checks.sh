# Format, lints, documentation. Sourced by `.ci/run`.

# Each feature set is what somebody may depend on; all of them have to build, be free of warnings, and pass.
feature_sets=("--no-default-features" "" "--no-default-features --features cli" "--no-default-features --features cgroups-rs" "--all-features")

stage_fmt() {
    cargo fmt --check
    if [[ -f fuzz/Cargo.toml ]]; then
        cargo fmt --check --manifest-path fuzz/Cargo.toml
    fi
}

stage_clippy() {
    # The set without arguments stands for `zstd` alone only as long as that is the default.
    local default
    default=$(cargo metadata --no-deps --format-version 1 --locked | jq -c '.packages[0].features.default')
    [[ $default == '["zstd"]' ]] || fail "the default features are now $default: adapt feature_sets"
    local set
    for set in "${feature_sets[@]}"; do
        say "clippy ${set:-(default features)}"
        # shellcheck disable=SC2086
        limit 900 cargo clippy --quiet --locked --all-targets $set -- -D warnings
    done
}

stage_doc() {
    local set
    for set in "" "--all-features"; do
        # shellcheck disable=SC2086
        RUSTDOCFLAGS="-D warnings" limit 600 cargo doc --quiet --locked --no-deps --lib $set
    done
}

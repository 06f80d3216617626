//! Who may import whom: the walls of ARCHITECTURE.md, kept by `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Every crate with the workspace crates its library or binary may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("tensor", &[]),
    ("eval", &[]),
    ("package", &[]),
    ("service", &[]),
    ("record", &[]),
    ("hosted", &["package", "data", "task"]),
    ("runtime", &["tensor"]),
    ("data", &["tensor"]),
    ("task", &["tensor", "runtime", "data", "package", "eval"]),
    ("worker", &[]),
    ("torch", &["task", "worker"]),
    ("assess", &["task", "eval", "package", "data", "hosted", "torch"]),
    ("track", &["eval", "package", "service"]),
    ("serve", &["task", "eval", "package", "service", "hosted", "torch", "worker"]),
    (
        "cli",
        &[
            "tensor", "runtime", "data", "task", "eval", "package", "assess", "service", "track", "serve", "record",
            "hosted", "torch",
        ],
    ),
    ("python", &["tensor", "runtime", "data", "task", "package", "eval", "record"]),
    ("testkit", &["tensor", "service"]),
];

/// External crates that only some crates may link: `track` never links the runtime, `serve` never links SQL, async stays
/// out of the numeric crates; `data` drives it only while it copies objects from S3.
const RESERVED: &[(&str, &[&str])] = &[
    ("sqlx", &["track"]),
    ("tokio", &["data", "package", "hosted", "assess", "service", "track", "serve", "cli", "testkit"]),
    ("axum", &["service", "track", "serve", "cli"]),
    ("anyhow", &["cli", "testkit"]),
    ("pyo3", &["python"]),
];

#[test]
fn every_crate_imports_only_what_the_architecture_allows() {
    let allowed: BTreeMap<_, BTreeSet<_>> =
        ALLOWED.iter().map(|(name, deps)| (*name, deps.iter().copied().collect())).collect();
    let mut broken = Vec::new();
    for (name, dependencies) in normal_dependencies() {
        let Some(may) = allowed.get(name.as_str()) else {
            broken.push(format!("crate `{name}` is not in the table"));
            continue;
        };
        for dependency in dependencies {
            match dependency.strip_prefix("highroad-") {
                Some(inner) if !may.contains(inner) => broken.push(format!("`{name}` must not import `{inner}`")),
                Some(_) => {}
                None => broken.extend(reserved_elsewhere(&name, &dependency)),
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_table_names_exactly_the_crates_that_exist() {
    let exist: BTreeSet<_> = normal_dependencies().into_keys().collect();
    let named: BTreeSet<_> = ALLOWED.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(exist, named);
}

fn reserved_elsewhere(name: &str, dependency: &str) -> Option<String> {
    let (_, users) = RESERVED.iter().find(|(reserved, _)| *reserved == dependency)?;
    (!users.contains(&name)).then(|| format!("`{name}` must not link `{dependency}`; only {users:?} may"))
}

fn normal_dependencies() -> BTreeMap<String, Vec<String>> {
    let metadata =
        MetadataCommand::new().no_deps().other_options(["--offline".to_owned()]).exec().expect("cargo metadata");
    metadata
        .workspace_packages()
        .into_iter()
        .map(|package| {
            let name = package.name.strip_prefix("highroad-").expect("crates are called highroad-*").to_owned();
            let dependencies = package
                .dependencies
                .iter()
                .filter(|dependency| dependency.kind == DependencyKind::Normal)
                .map(|dependency| dependency.name.clone())
                .collect();
            (name, dependencies)
        })
        .collect()
}

use std::path::{Path, PathBuf};

/// `$HIGHROAD_PYTHON`, else `.venv` of `root`, else the active environment, else `python3` on the path.
pub fn find_python(root: &Path) -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(python) = variable("HIGHROAD_PYTHON") {
        return Some(python);
    }
    let environments = [Some(root.join(".venv")), variable("VIRTUAL_ENV")];
    let in_environment = environments.into_iter().flatten().map(|environment| environment.join("bin/python"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<PathBuf> = std::env::split_paths(&path).map(|folder| folder.join("python3")).collect();
    in_environment.chain(on_path).find(|candidate| candidate.is_file())
}

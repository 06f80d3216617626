//! Python environments that are built from lock files and kept in the home.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use highroad_package::Digest;

use crate::repo::Python;
use crate::resolve::Home;

/// uv, where it is installed beside the interpreter or on the path.
pub fn uv(python: &Python) -> Option<OsString> {
    let beside = python.path().parent().map(|folder| folder.join("uv")).filter(|path| path.is_file());
    let candidates = beside.map(PathBuf::into_os_string).into_iter().chain([OsString::from("uv")]);
    let runs = |uv: &OsString| Command::new(uv).arg("--version").output().is_ok_and(|output| output.status.success());
    candidates.into_iter().find(runs)
}

/// A new environment with what the lock file pins, and with the `highroad` of `base`; one that was built for the same lock
/// file is used again. Its packages come through uv where there is one, else through pip.
pub fn build(base: &Python, lock: &Path, digest: &Digest) -> anyhow::Result<Python> {
    let environments = std::path::absolute(Home::find().path())?.join("environments");
    let environment = environments.join(digest.short());
    let python = Python::at(environment.join("bin/python"));
    if environment.join(".complete").is_file() {
        eprintln!("packages  {} was built from the lock file before", environment.display());
        return Ok(python);
    }
    eprintln!("packages  building {} from the lock file (torch makes it 5 GB)", environment.display());
    std::fs::create_dir_all(&environments)?;
    let (mut make, mut install) = match uv(base) {
        Some(uv) => {
            let (mut make, mut install) = (Command::new(&uv), Command::new(&uv));
            make.args(["venv", "--quiet", "--clear", "--python"]).arg(base.path()).arg(&environment);
            install.args(["pip", "install", "--python"]).arg(python.path());
            (make, install)
        }
        None => {
            let (mut make, mut install) = (base.command(), python.command());
            make.args(["-m", "venv", "--clear"]).arg(&environment);
            install.args(["-m", "pip", "install"]);
            (make, install)
        }
    };
    step(&mut make)?;
    step(install.args(["--quiet", "--no-deps", "--require-hashes", "-r"]).arg(lock))?;
    link_highroad(base, &python)?;
    std::fs::write(environment.join(".complete"), digest.to_string())?;
    Ok(python)
}

fn step(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdin(Stdio::null()).stdout(std::io::stderr()).status();
    let status = status.with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !status.success() {
        bail!("the environment was not built: {command:?} ended with {status}");
    }
    Ok(())
}

/// `highroad` is no package of the lock file; the new environment sees the one of the present interpreter.
fn link_highroad(base: &Python, python: &Python) -> anyhow::Result<()> {
    const FOLDER: &str = "from importlib.util import find_spec\nfrom pathlib import Path\n\
        spec = find_spec('highroad')\nprint(Path(spec.origin).parent.parent if spec else '')";
    const SITE: &str = "import sysconfig\nprint(sysconfig.get_path('purelib'))";
    let said = |python: &Python, code: &str| -> anyhow::Result<String> {
        let output = python.command().args(["-c", code]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let folder = said(base, FOLDER)?;
    if !folder.is_empty() {
        std::fs::write(Path::new(&said(python, SITE)?).join("highroad-linked.pth"), folder)?;
    }
    Ok(())
}

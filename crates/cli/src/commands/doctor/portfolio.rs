//! Members of `portfolio.toml` whose program PyTorch runs: whether it can, here.

use std::path::{Path, PathBuf};

use highroad_serve::config::{MemberConfig, PortfolioConfig};
use highroad_serve::{EngineConfig, TorchConfig};
use highroad_torch::Compile;

use super::{Finding, gpu};
use crate::repo::Python;
use crate::serving::PORTFOLIO;

pub fn examine(root: &Path) -> Vec<Finding> {
    let Ok(text) = std::fs::read_to_string(root.join(PORTFOLIO)) else { return Vec::new() };
    let config = match PortfolioConfig::parse(&text, root) {
        Ok(config) => config,
        Err(errors) => {
            let found = format!("{PORTFOLIO}: {}", errors.to_string().replace('\n', "; "));
            return vec![Finding::error("portfolio", found, "docs/reference/serving.md lists what it takes")];
        }
    };
    let torch = |(name, member): (&String, &MemberConfig)| {
        let engines = [Some(&member.engine), member.candidate.as_ref().map(|candidate| &candidate.engine)];
        let torch = engines.into_iter().flatten().find_map(|engine| match engine {
            EngineConfig::Torch(torch) => Some(torch.clone()),
            EngineConfig::Native => None,
        });
        torch.map(|torch| of_member(root, name, &torch))
    };
    config.members.iter().filter_map(torch).collect()
}

fn of_member(root: &Path, name: &str, torch: &TorchConfig) -> Finding {
    let python = match &torch.python {
        Some(python) => Ok(Python::at(python.clone())),
        None => Python::find(root),
    };
    let installed = python.and_then(|python| python.installed());
    let build = match installed {
        Ok(installed) => installed.torch,
        Err(error) => {
            let found = format!("`{name}` runs on PyTorch: {}", crate::describe(&error));
            return Finding::error("engine", found, "name an interpreter with PyTorch as `python`");
        }
    };
    let Some(build) = build else {
        let found = format!("`{name}` runs on PyTorch, and its Python has none");
        return Finding::error("engine", found, "install torch there, or name another interpreter as `python`");
    };
    let found = format!("`{name}` runs on torch {}, device {}", build.described(), torch.device);
    let wants_gpu = torch.device.as_str().starts_with("cuda");
    if wants_gpu && build.cuda.is_none() {
        return Finding::error("engine", found, "install a torch built for CUDA");
    }
    if wants_gpu && gpu::n_devices() == 0 {
        return Finding::error(
            "engine",
            format!("{found}, and there is no GPU"),
            "take `device = \"auto\"` or `\"cpu\"`",
        );
    }
    if torch.compile != Compile::Eager && !has_compiler() {
        let found = format!("{found}, compiled, and there is no C++ compiler");
        return Finding::warning("engine", found, "install g++ or clang++, or set CXX: inductor needs one for the CPU");
    }
    Finding::ok("engine", found)
}

fn has_compiler() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let is_there = |name: &str| folders.iter().any(|folder| folder.join(name).is_file());
    std::env::var_os("CXX").is_some() || is_there("g++") || is_there("clang++")
}

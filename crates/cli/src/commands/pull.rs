use std::process::ExitCode;

use highroad_package::remote::{Pulled, Remote};
use serde_json::json;

use super::push::print;
use crate::resolve::{Home, Target};

/// `highroad pull ADDRESS`
#[derive(clap::Args)]
pub struct Args {
    /// Where the package is: `oci://HOST/REPOSITORY:TAG`, `s3://BUCKET/PREFIX[@sha256:…]`, `file:///FOLDER[@sha256:…]`, or a
    /// reference of the registry such as `name:7`.
    #[arg(value_name = "ADDRESS")]
    from: String,
    /// Print what was received as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let home = Home::find();
        if !Remote::is_address(&self.from) {
            return self.pull_version(&home);
        }
        let (remote, store) = (Remote::source(&self.from)?, home.store()?);
        let (bar, progress) = crate::progress::transfer("fetching");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let pulled = runtime.block_on(remote.pull(&store, &progress));
        bar.finish_and_clear();
        let pulled = pulled?;
        if self.json {
            print(&serde_json::to_string(&pulled)?);
        } else {
            print(&pulled.package.to_string());
            let Pulled { name, package, received_bytes, reused_bytes } = pulled;
            eprintln!(
                "pulled {name} ({}): {} received, {} were here already",
                package.short(),
                indicatif::HumanBytes(received_bytes),
                indicatif::HumanBytes(reused_bytes)
            );
        }
        Ok(ExitCode::SUCCESS)
    }

    fn pull_version(&self, home: &Home) -> anyhow::Result<ExitCode> {
        let target: Target = self.from.parse().unwrap_or_else(|never| match never {});
        let package = target.resolve(home)?.package;
        let (digest, name) = (package.digest(), &package.manifest().name);
        if self.json {
            print(&json!({ "package": digest, "name": name }).to_string());
        } else {
            print(&digest.to_string());
            eprintln!("pulled {name} ({})", digest.short());
        }
        Ok(ExitCode::SUCCESS)
    }
}

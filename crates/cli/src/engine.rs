//! Training somewhere else: the job is written for an engine and handed over by that engine's own client.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::json;
use tokio::process::Command;

use crate::repo::Python;
use crate::resolve::Home;
use crate::training::{Launch, RENDEZVOUS_PORT, SPENT, Spent};

/// Where a training may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    /// A Ray cluster, through `ray job submit`
    Ray,
    /// An indexed Job, through `kubectl apply`
    Kubernetes,
    /// A batch script, through `sbatch`
    Slurm,
}

/// How an engine is spoken to.
#[derive(Clone, Debug, clap::Args)]
pub struct EngineArgs {
    /// Train on a cluster instead of here
    #[arg(long, value_enum)]
    pub on: Option<Engine>,
    /// Ray's job server
    #[arg(
        long,
        requires = "on",
        env = "RAY_API_SERVER_ADDRESS",
        default_value = "http://127.0.0.1:8265",
        value_name = "URL"
    )]
    address: String,
    /// Kubernetes: image with this repo as its working directory and the lock file installed
    #[arg(long, requires = "on")]
    image: Option<String>,
    /// Kubernetes: volume claim that is mounted at the output directory
    #[arg(long, requires = "on", value_name = "NAME")]
    volume_claim: Option<String>,
    /// Kubernetes and Slurm: GPUs of each machine
    #[arg(long, requires = "on", value_name = "N", default_value_t = 0)]
    gpus_per_node: u32,
    /// One more option for the engine's client, such as `--engine-option=--partition=gpu`; repeatable
    #[arg(long, requires = "on", value_name = "OPTION", allow_hyphen_values = true)]
    engine_option: Vec<String>,
    /// Hand the job over and do not wait for its end
    #[arg(long, requires = "on")]
    detach: bool,
    /// Print the job and its command; hand nothing over
    #[arg(long, requires = "on")]
    pub dry_run: bool,
}

/// A job as its engine takes it.
#[derive(Debug)]
pub struct Job {
    /// File that the client reads, and its text; Ray's client takes everything as options.
    pub file: Option<(&'static str, String)>,
    /// The client and its options; `{file}` stands for the file's path.
    pub client: Vec<OsString>,
    /// Whether the client ends when the training does.
    pub waits: bool,
}

/// What each machine of a job is told in its environment.
type Variables = Vec<(&'static str, String)>;

impl EngineArgs {
    /// The job that trains `launch` on `engine`, in the run that was opened at the tracking server at `tracking_uri`, and after what its
    /// earlier starts took.
    pub fn job(
        &self,
        engine: Engine,
        launch: &Launch,
        python: &Python,
        tracking_uri: &str,
        opened: Option<(&str, &Spent)>,
    ) -> anyhow::Result<Job> {
        if launch.output.is_relative() {
            bail!("a cluster needs an --output that begins with `/`: a directory that all its machines share");
        }
        let mut variables = launch.variables()?;
        variables.push(("MLFLOW_TRACKING_URI", tracking_uri.to_owned()));
        variables.extend(
            opened
                .into_iter()
                .flat_map(|(run_id, spent)| [("MLFLOW_RUN_ID", run_id.to_owned()), (SPENT, spent.told())]),
        );
        let name = format!("highroad-{}", opened.and_then(|(id, _)| id.get(..12)).unwrap_or("job"));
        match engine {
            Engine::Ray => self.ray(launch, python, &variables),
            Engine::Kubernetes => self.kubernetes(launch, &name, &variables),
            Engine::Slurm => self.slurm(launch, python, &name, &variables),
        }
    }

    fn ray(&self, launch: &Launch, python: &Python, variables: &Variables) -> anyhow::Result<Job> {
        let root = std::path::absolute(&launch.root)?;
        let variables: serde_json::Map<_, _> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let excluded = [".git", ".venv", ".highroad", "runs"];
        let environment = json!({ "env_vars": variables, "excludes": excluded });
        let mut client: Vec<OsString> = vec![python.path().into()];
        client.extend(["-m", "ray.scripts.scripts", "job", "submit", "--address", &self.address].map(OsString::from));
        client.extend(["--working-dir".into(), root.into_os_string()]);
        client.extend(["--runtime-env-json".into(), environment.to_string().into()]);
        client.extend(self.detach.then(|| "--no-wait".into()));
        client.extend(self.engine_option.iter().map(OsString::from));
        client.extend(["--", "python", "-m", "highroad._ray"].map(OsString::from));
        let processes = &launch.processes;
        let numbers = [
            ("--nnodes", processes.n_nodes.to_string()),
            ("--nproc", processes.per_node.to_string()),
            ("--threads", launch.n_threads().to_string()),
        ];
        client.extend(numbers.into_iter().flat_map(|(option, value)| [option.into(), value.into()]));
        client.extend(launch.script_line().into_iter().map(OsString::from));
        Ok(Job { file: None, client, waits: !self.detach })
    }

    fn kubernetes(&self, launch: &Launch, name: &str, variables: &Variables) -> anyhow::Result<Job> {
        let image =
            self.image.as_ref().context("Kubernetes needs an --image that holds this repo and its environment")?;
        let processes = &launch.processes;
        let torchrun = torchrun(launch, "$JOB_COMPLETION_INDEX", &format!("{name}-0.{name}"));
        let variables: Vec<_> = variables.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        let mut container = json!({
            "name": "train",
            "image": image,
            "command": ["sh", "-c", format!("exec python {torchrun}")],
            "env": variables,
        });
        if self.gpus_per_node > 0 {
            container["resources"] = json!({ "limits": { "nvidia.com/gpu": self.gpus_per_node } });
        }
        let mut pod = json!({ "subdomain": name, "restartPolicy": "Never" });
        if let Some(claim) = &self.volume_claim {
            container["volumeMounts"] = json!([{ "name": "output", "mountPath": launch.output }]);
            pod["volumes"] = json!([{ "name": "output", "persistentVolumeClaim": { "claimName": claim } }]);
        }
        pod["containers"] = json!([container]);
        // The service gives the machines names; Kubernetes labels the pods of a job with its name.
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
            "spec": { "clusterIP": "None", "selector": { "batch.kubernetes.io/job-name": name } },
        });
        let job = json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": name },
            "spec": {
                "completionMode": "Indexed", "completions": processes.n_nodes, "parallelism": processes.n_nodes,
                "backoffLimit": 0, "template": { "spec": pod },
            },
        });
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": [service, job] });
        let mut client: Vec<OsString> = ["kubectl", "apply"].map(OsString::from).into();
        client.extend(self.engine_option.iter().map(OsString::from));
        client.extend(["-f", "{file}"].map(OsString::from));
        Ok(Job { file: Some(("job.json", serde_json::to_string_pretty(&list)?)), client, waits: false })
    }

    fn slurm(&self, launch: &Launch, python: &Python, name: &str, variables: &Variables) -> anyhow::Result<Job> {
        let processes = &launch.processes;
        let threads = processes.per_node * u32::try_from(launch.n_threads()).unwrap_or(1);
        let python = shell_word(&std::path::absolute(python.path())?.display().to_string());
        let torchrun = torchrun(launch, "$SLURM_NODEID", "$first");
        let mut script = format!(
            "#!/bin/bash\n#SBATCH --job-name={name}\n#SBATCH --nodes={}\n#SBATCH --ntasks-per-node=1\n\
             #SBATCH --cpus-per-task={threads}\n",
            processes.n_nodes
        );
        if self.gpus_per_node > 0 {
            script.push_str(&format!("#SBATCH --gpus-per-node={}\n", self.gpus_per_node));
        }
        // Slurm tells the batch shell alone; torchrun hands it on, so that the script can save where it is.
        script.push_str("#SBATCH --signal=TERM@120\nset -eu\n");
        for (variable, value) in variables {
            script.push_str(&format!("export {variable}={}\n", shell_word(value)));
        }
        script.push_str("first=$(scontrol show hostnames \"$SLURM_JOB_NODELIST\" | head -n 1)\nexport first\n");
        script.push_str(&format!("srun bash -c {}\n", shell_word(&format!("exec {python} {torchrun}"))));
        let mut client: Vec<OsString> = ["sbatch", "--parsable"].map(OsString::from).into();
        client.extend((!self.detach).then(|| "--wait".into()));
        client.push(format!("--chdir={}", std::path::absolute(&launch.root)?.display()).into());
        client.extend(self.engine_option.iter().map(OsString::from));
        client.push("{file}".into());
        Ok(Job { file: Some(("job.sbatch", script)), client, waits: !self.detach })
    }
}

/// torchrun's part of a shell line; rank and first machine are the shell's to fill in.
fn torchrun(launch: &Launch, rank: &str, first: &str) -> String {
    let processes = &launch.processes;
    let script: Vec<String> = launch.script_line().iter().map(|word| shell_word(word)).collect();
    format!(
        "-m torch.distributed.run --nnodes {} --node-rank {rank} --rdzv-backend static \
         --rdzv-endpoint {first}:{RENDEZVOUS_PORT} --nproc-per-node {} {}",
        processes.n_nodes,
        processes.per_node,
        script.join(" ")
    )
}

/// `text` as one word of a POSIX shell.
fn shell_word(text: &str) -> String {
    // A NUL cannot be in an argument of this process, which is the one thing shlex refuses.
    shlex::try_quote(text).map_or_else(|_| "''".to_owned(), std::borrow::Cow::into_owned)
}

impl Job {
    /// What would be handed over.
    pub fn describe(&self) -> String {
        let file = self.file.as_ref().map_or_else(String::new, |(_, text)| format!("{}\n", text.trim_end()));
        file + &self.client_line()
    }

    /// The client and its options, as a shell takes them.
    pub fn client_line(&self) -> String {
        let words: Vec<String> = self.client.iter().map(|word| shell_word(&word.to_string_lossy())).collect();
        words.join(" ")
    }

    /// Writes the job's file under `.highroad/jobs/` and gives the client's command.
    pub fn command(&self, name: &str) -> anyhow::Result<Command> {
        let mut path = PathBuf::new();
        if let Some((file_name, text)) = &self.file {
            let folder = std::path::absolute(Home::find().path())?.join("jobs").join(name);
            std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            path = folder.join(file_name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let mut command = Command::new(&self.client[0]);
        for word in &self.client[1..] {
            command.arg(if word == "{file}" { path.as_os_str() } else { word });
        }
        Ok(command)
    }

    /// The client, for messages.
    pub fn client_name(&self) -> String {
        Path::new(&self.client[0]).display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::training::Processes;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        engine: EngineArgs,
    }

    fn job(arguments: &[&str]) -> anyhow::Result<Job> {
        let arguments = ["train"].iter().chain(arguments);
        let engine = Cli::try_parse_from(arguments).expect("valid options").engine;
        let launch = Launch {
            output: "/shared/run 1".into(),
            processes: Processes { per_node: 2, n_nodes: 3, ..Processes::default() },
            script_args: vec!["--note".into(), "it's $HOME".into()],
            n_threads: Some(4),
            ..Launch::new("train.py")
        };
        let on = engine.on.expect("an engine");
        let spent = Spent::default();
        let opened = Some(("0123456789abcdef", &spent));
        engine.job(on, &launch, &Python::at("/env/bin/python".into()), "http://track:5000", opened)
    }

    #[test]
    fn a_slurm_script_has_each_machine_join_the_first_and_quotes_what_it_is_given() {
        let job = job(&["--on", "slurm", "--gpus-per-node", "2", "--engine-option=--partition=gpu"]).expect("a job");
        let (_, script) = job.file.as_ref().expect("a script");
        for line in [
            "#SBATCH --nodes=3",
            "#SBATCH --cpus-per-task=8",
            "#SBATCH --gpus-per-node=2",
            "export MLFLOW_RUN_ID=0123456789abcdef",
        ] {
            assert!(script.lines().any(|found| found == line), "{line} in\n{script}");
        }
        let checked = std::process::Command::new("bash").args(["-n", "-c", script]).output().expect("bash");
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        // What the shell makes of the line is what the script must get, whatever it holds.
        let line = script.lines().find_map(|line| line.strip_prefix("srun bash -c ")).expect("srun");
        let inner = shlex::split(line).expect("quoted").remove(0);
        let words = shlex::split(&inner).expect("quoted");
        assert_eq!(words[words.len() - 4..], ["--output", "/shared/run 1", "--note", "it's $HOME"]);
        assert!(job.describe().ends_with("'--partition=gpu' '{file}'"), "{}", job.describe());
    }

    #[test]
    fn a_kubernetes_job_names_its_machines_and_mounts_the_output() {
        let job = job(&["--on", "kubernetes", "--image", "team/router:1", "--volume-claim", "runs"]).expect("a job");
        let list: serde_json::Value = serde_json::from_str(&job.file.expect("a manifest").1).expect("JSON");
        let (service, spec) = (&list["items"][0], &list["items"][1]["spec"]);
        assert_eq!(service["metadata"]["name"], spec["template"]["spec"]["subdomain"]);
        assert_eq!((&spec["completions"], &spec["completionMode"]), (&json!(3), &json!("Indexed")));
        let container = &spec["template"]["spec"]["containers"][0];
        let line = container["command"][2].as_str().expect("a line");
        assert!(line.contains("--node-rank $JOB_COMPLETION_INDEX"), "{line}");
        assert!(line.contains("--rdzv-endpoint highroad-0123456789ab-0.highroad-0123456789ab:29500"), "{line}");
        assert_eq!(container["volumeMounts"][0]["mountPath"], "/shared/run 1");
    }

    #[test]
    fn what_an_engine_lacks_is_said() {
        assert!(job(&["--on", "kubernetes"]).expect_err("no image").to_string().contains("--image"));
        assert!(Cli::try_parse_from(["train", "--image", "x"]).is_err());
    }
}

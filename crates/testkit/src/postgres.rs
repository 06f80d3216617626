//! A PostgreSQL server for one test, from the system's packages.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getuid, kill_process};

/// PostgreSQL refuses to run as root; there it runs as `nobody`.
const NOBODY: u32 = 65534;
const START_WITHIN: Duration = Duration::from_secs(60);

/// A running server with an empty database, stopped and removed when dropped.
#[derive(Debug)]
pub struct Postgres {
    server: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Postgres {
    /// Starts a server on a free port of the loopback address. Panics where PostgreSQL is not installed.
    pub fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("highroad-postgres-").tempdir().expect("a temporary folder");
        give_away(folder.path());
        let data = folder.path().join("data");
        run(tool("cp").arg("-a").arg(template()).arg(&data));
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let mut command = tool("postgres");
        command.arg("-D").arg(&data).args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        // Nobody pulls the plug on a test.
        command.args(["-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "max_connections=50"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(folder.path().join("log")).expect("a log file"));
        let server = command.spawn().expect("postgres starts");
        let postgres = Self { server, port, folder };
        postgres.wait();
        postgres
    }

    /// The database's URL.
    pub fn url(&self) -> String {
        format!("postgres://highroad@127.0.0.1:{}/postgres", self.port)
    }

    fn wait(&self) {
        let begun = Instant::now();
        let ready = || {
            let port = self.port.to_string();
            let mut probe = tool("pg_isready");
            probe.args(["-q", "-h", "127.0.0.1", "-p", &port]).status().is_ok_and(|status| status.success())
        };
        while !ready() {
            assert!(begun.elapsed() < START_WITHIN, "postgres did not start; see its log in {:?}", self.folder.path());
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // The quick way down: nothing of it is kept, but its processes and shared memory must go.
        let server = Pid::from_child(&self.server);
        kill_process(server, Signal::QUIT).expect("the server is still ours");
        drop(self.server.wait());
    }
}

/// An initialised cluster, made once per machine and copied for each test.
fn template() -> PathBuf {
    let home = std::env::temp_dir().join(format!("highroad-postgres-template-{}", getuid().as_raw()));
    let made = home.join("data");
    fs::create_dir_all(&home).expect("a folder for the template");
    let lock = File::create(home.join("lock")).expect("a lock file");
    lock.lock().expect("the lock of the template");
    if !made.exists() {
        let making = home.join("making");
        drop(fs::remove_dir_all(&making));
        fs::create_dir(&making).expect("a folder for the cluster");
        give_away(&home);
        give_away(&making);
        run(tool("initdb").arg("-D").arg(&making).args(["-U", "highroad", "-A", "trust", "--no-sync", "-E", "UTF8"]));
        fs::rename(making, &made).expect("the cluster moves into place");
    }
    made
}

/// Lets the server's user write here.
fn give_away(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).expect("permissions of an own folder");
    if getuid().is_root() {
        chown(folder, Some(NOBODY), Some(NOBODY)).expect("root gives folders away");
    }
}

/// A command of PostgreSQL, or of the system, as the server's user.
fn tool(name: &str) -> Command {
    let mut command = Command::new(find(name));
    command.env("LC_ALL", "C.UTF-8").current_dir("/");
    if getuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Debian keeps the server's commands out of `PATH`.
fn find(name: &str) -> PathBuf {
    let debian =
        fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|version| version.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = debian.chain(std::env::split_paths(&path));
    let found = folders.find_map(|folder| Some(folder.join(name)).filter(|path| path.is_file()));
    found.unwrap_or_else(|| panic!("`{name}` is missing: `scripts/debian-tools postgresql` installs it"))
}

fn run(command: &mut Command) {
    let output = command.output().expect("the command starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

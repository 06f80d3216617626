//! What the machine does while a run trains, under MLflow's names.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nvml_wrapper::Nvml;
use sysinfo::{Disks, Networks, System};

use crate::Metric;

const MEGABYTE: f64 = 1e6;
/// Where Linux tells the energy that a processor package has used, in microjoules.
const POWERCAP: &str = "/sys/class/powercap";

/// Samples in a thread of its own until it is dropped.
pub struct Sampler {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
    /// The process that the thread lives in; in a forked child there is nothing to wait for.
    process: u32,
}

impl Sampler {
    /// Gives a sample to `take` each `every`.
    pub fn start(every: Duration, take: impl Fn(Vec<Metric>) + Send + 'static) -> Self {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut usage = Usage::new();
            let (stop, changed) = &*told;
            for step in 0.. {
                let stop = stop.lock().unwrap_or_else(PoisonError::into_inner);
                let (stop, _) =
                    changed.wait_timeout_while(stop, every, |stop| !*stop).unwrap_or_else(PoisonError::into_inner);
                if *stop {
                    return;
                }
                drop(stop);
                let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
                let metric = |(key, value)| Metric { key: format!("system/{key}"), value, timestamp, step };
                take(usage.sample().into_iter().map(metric).collect());
            }
        });
        Self { stop, thread: Some(thread), process: std::process::id() }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            return;
        }
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // A sampler that panicked has nothing more to say.
            let _ = thread.join();
        }
    }
}

/// What this machine has used since a beginning.
pub struct Usage {
    /// `None` where the system does not tell.
    system: Option<System>,
    networks: Option<Networks>,
    nvml: Option<Nvml>,
    packages: Vec<Package>,
    gpu_start_j: Vec<Option<f64>>,
    /// Bytes since the beginning.
    received: f64,
    sent: f64,
}

/// A counter of energy that starts anew at its range.
struct Package {
    counter: PathBuf,
    range_j: f64,
    last_j: f64,
    used_j: f64,
}

impl Usage {
    /// Begins now.
    pub fn new() -> Self {
        let mut system = System::new().ok();
        if let Some(system) = &mut system {
            system.refresh_cpu_usage();
        }
        let networks = Networks::new_with_refreshed_list().ok();
        let nvml = Nvml::init().ok();
        let mut usage =
            Self { system, networks, nvml, packages: packages(), gpu_start_j: Vec::new(), received: 0.0, sent: 0.0 };
        usage.gpu_start_j = usage.gpu_energy_j();
        usage
    }

    /// Names, without MLflow's `system/`, and values.
    pub fn sample(&mut self) -> Vec<(String, f64)> {
        let mut sample = Vec::new();
        let mut add = |name: &str, value: f64| sample.push((name.to_owned(), value));
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            system.refresh_memory();
            add("cpu_utilization_percentage", f64::from(system.global_cpu_usage()));
            let (used, total) = (system.used_memory() as f64, system.total_memory() as f64);
            add("system_memory_usage_megabytes", used / MEGABYTE);
            add("system_memory_usage_percentage", used / total.max(1.0) * 100.0);
        }
        if let Some((used, total)) = disk() {
            add("disk_usage_megabytes", used / MEGABYTE);
            add("disk_available_megabytes", (total - used) / MEGABYTE);
            add("disk_usage_percentage", used / total.max(1.0) * 100.0);
        }
        if let Some(networks) = &mut self.networks {
            networks.refresh(true);
            let sum = |of: fn(&sysinfo::NetworkData) -> u64| networks.values().map(of).sum::<u64>() as f64;
            self.received += sum(sysinfo::NetworkData::received);
            self.sent += sum(sysinfo::NetworkData::transmitted);
            add("network_receive_megabytes", self.received / MEGABYTE);
            add("network_transmit_megabytes", self.sent / MEGABYTE);
        }
        sample.extend(self.gpus());
        if let Some(energy) = self.energy_j() {
            sample.push(("energy_joules".to_owned(), energy));
        }
        sample
    }

    /// Joules that processors and GPUs have used since the beginning; `None` where nothing tells.
    pub fn energy_j(&mut self) -> Option<f64> {
        self.packages.iter_mut().for_each(Package::advance);
        let gpus =
            std::iter::zip(self.gpu_energy_j(), &self.gpu_start_j).filter_map(|(now, start)| Some(now? - (*start)?));
        let parts: Vec<f64> = self.packages.iter().map(|package| package.used_j).chain(gpus).collect();
        (!parts.is_empty()).then(|| parts.iter().sum())
    }

    fn gpus(&self) -> Vec<(String, f64)> {
        let mut sample = Vec::new();
        for i in 0..self.n_gpus() {
            let Some(gpu) = self.nvml.as_ref().and_then(|nvml| nvml.device_by_index(i).ok()) else { continue };
            let mut add = |name: &str, value: f64| sample.push((format!("gpu_{i}_{name}"), value));
            if let Ok(memory) = gpu.memory_info() {
                add("memory_usage_megabytes", memory.used as f64 / MEGABYTE);
                add("memory_usage_percentage", memory.used as f64 / (memory.total as f64).max(1.0) * 100.0);
            }
            if let Ok(utilization) = gpu.utilization_rates() {
                add("utilization_percentage", f64::from(utilization.gpu));
            }
            if let Ok(power) = gpu.power_usage() {
                add("power_usage_watts", f64::from(power) / 1000.0);
                if let Ok(limit) = gpu.enforced_power_limit() {
                    add("power_usage_percentage", f64::from(power) / f64::from(limit.max(1)) * 100.0);
                }
            }
        }
        sample
    }

    fn n_gpus(&self) -> u32 {
        self.nvml.as_ref().and_then(|nvml| nvml.device_count().ok()).unwrap_or(0)
    }

    /// Energy of each GPU since its driver was loaded.
    fn gpu_energy_j(&self) -> Vec<Option<f64>> {
        let energy = |i| self.nvml.as_ref()?.device_by_index(i).ok()?.total_energy_consumption().ok();
        (0..self.n_gpus()).map(|i| energy(i).map(|millijoules| millijoules as f64 / 1000.0)).collect()
    }
}

impl Default for Usage {
    fn default() -> Self {
        Self::new()
    }
}

impl Package {
    fn advance(&mut self) {
        let Some(now_j) = joules(&self.counter) else { return };
        let moved = now_j - self.last_j;
        self.used_j += if moved < 0.0 { moved + self.range_j } else { moved };
        self.last_j = now_j;
    }
}

/// The processor packages whose energy may be read; most systems let only root do that.
fn packages() -> Vec<Package> {
    let Ok(folders) = std::fs::read_dir(POWERCAP) else { return Vec::new() };
    let package = |path: PathBuf| {
        // `intel-rapl:0` is a package, `intel-rapl:0:1` a part of it.
        let name = path.file_name()?.to_str()?.to_owned();
        let is_package = name.starts_with("intel-rapl:") && name.matches(':').count() == 1;
        let counter = path.join("energy_uj");
        let (last_j, range_j) = (joules(&counter)?, joules(&path.join("max_energy_range_uj"))?);
        is_package.then_some(Package { counter, range_j, last_j, used_j: 0.0 })
    };
    folders.filter_map(|folder| package(folder.ok()?.path())).collect()
}

fn joules(path: &std::path::Path) -> Option<f64> {
    let microjoules: f64 = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
    Some(microjoules / 1e6)
}

/// Bytes used and there on the disk that holds the root folder.
fn disk() -> Option<(f64, f64)> {
    let disks = Disks::new_with_refreshed_list().ok()?;
    let root = disks.iter().find(|disk| disk.mount_point() == std::path::Path::new("/")).or(disks.first())?;
    let total = root.total_space();
    Some((total.saturating_sub(root.available_space()) as f64, total as f64))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_the_names_of_mlflow() {
        let sample: std::collections::BTreeMap<_, _> = Usage::new().sample().into_iter().collect();
        for name in ["cpu_utilization_percentage", "system_memory_usage_megabytes", "network_receive_megabytes"] {
            assert!(sample[name].is_finite() && sample[name] >= 0.0, "{name}");
        }
    }

    #[test]
    fn a_counter_of_energy_may_start_anew() {
        let temp = tempfile::tempdir().unwrap();
        let counter = temp.path().join("energy_uj");
        std::fs::write(&counter, "1000000\n").unwrap();
        let mut package = Package { counter: counter.clone(), range_j: 10.0, last_j: 9.0, used_j: 0.0 };
        package.advance();
        assert!((package.used_j - 2.0).abs() < 1e-9);
    }
}

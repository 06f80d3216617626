//! NVIDIA GPUs, and whether the installed torch can use them.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use super::Finding;
use crate::repo::Installed;
use crate::standard::{Precision, Standard};

/// The first generation that computes in bfloat16 (Ampere).
const BF16_CAPABILITY: i32 = 8;

/// What the driver says.
struct Gpus {
    driver: String,
    /// Newest CUDA that the driver serves, major and minor.
    cuda: (i32, i32),
    devices: Vec<Gpu>,
}

struct Gpu {
    name: String,
    memory_bytes: u64,
    /// Major part of the compute capability.
    capability: i32,
}

pub fn examine(standard: &Standard, installed: &Installed) -> Finding {
    // Where the driver's library is not there, or finds no device, there is nothing to use.
    let torch_cuda = installed.torch.as_ref().and_then(|build| build.cuda.as_deref());
    judge(Gpus::find().ok().as_ref(), torch_cuda, standard.training.precision)
}

/// GPUs that the driver knows.
pub fn n_devices() -> usize {
    Gpus::find().map_or(0, |gpus| gpus.devices.len())
}

impl Gpus {
    fn find() -> Result<Self, NvmlError> {
        let nvml = Nvml::init()?;
        let cuda = nvml.sys_cuda_driver_version()?;
        let device = |idx| -> Result<Gpu, NvmlError> {
            let device = nvml.device_by_index(idx)?;
            let capability = device.cuda_compute_capability()?.major;
            Ok(Gpu { name: device.name()?, memory_bytes: device.memory_info()?.total, capability })
        };
        let devices = (0..nvml.device_count()?).map(device).collect::<Result<_, NvmlError>>()?;
        Ok(Self { driver: nvml.sys_driver_version()?, cuda: (cuda / 1000, cuda % 1000 / 10), devices })
    }
}

fn judge(gpus: Option<&Gpus>, torch_cuda: Option<&str>, precision: Option<Precision>) -> Finding {
    let Some(gpus) = gpus.filter(|gpus| !gpus.devices.is_empty()) else {
        return Finding::ok("gpu", "no NVIDIA GPU: training runs on the CPU");
    };
    let describe = |gpu: &Gpu| format!("{} with {} GiB", gpu.name, gpu.memory_bytes >> 30);
    let devices = gpus.devices.iter().map(describe).collect::<Vec<_>>().join(", ");
    let (major, minor) = gpus.cuda;
    let found = format!("{devices}; driver {} for CUDA {major}.{minor}", gpus.driver);
    let Some(torch_cuda) = torch_cuda else {
        return Finding::warning(
            "gpu",
            format!("{found}; torch is built for CPUs alone"),
            "lock a torch built for CUDA to use it",
        );
    };
    // Within a major version, newer builds run on older drivers.
    if torch_cuda.split('.').next().and_then(|text| text.parse().ok()).is_some_and(|wanted: i32| wanted > major) {
        let found = format!("{found}; torch is built for CUDA {torch_cuda}");
        return Finding::error("gpu", found, format!("update the driver, or lock a torch built for CUDA {major}"));
    }
    if precision == Some(Precision::Bf16) && gpus.devices.iter().any(|gpu| gpu.capability < BF16_CAPABILITY) {
        return Finding::warning(
            "gpu",
            format!("{found}; it has no bfloat16"),
            "train with `precision = \"fp16\"` here",
        );
    }
    Finding::ok("gpu", format!("{found}; torch is built for CUDA {torch_cuda}"))
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_build_of_torch_that_cannot_use_the_gpu_is_told() {
        let gpus = |capability| Gpus {
            driver: "570.1".into(),
            cuda: (12, 8),
            devices: vec![Gpu { name: "T4".into(), memory_bytes: 15 << 30, capability }],
        };
        let level = |gpus: Option<Gpus>, cuda, precision| judge(gpus.as_ref(), cuda, precision).level;
        assert_eq!(level(None, Some("13.2"), None), Level::Ok);
        assert_eq!(level(Some(gpus(7)), None, None), Level::Warning);
        assert_eq!(level(Some(gpus(7)), Some("13.2"), None), Level::Error);
        assert_eq!(level(Some(gpus(7)), Some("12.9"), Some(Precision::Bf16)), Level::Warning);
        assert_eq!(level(Some(gpus(9)), Some("12.9"), Some(Precision::Bf16)), Level::Ok);
    }
}

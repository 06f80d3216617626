use serde::Deserialize;

use crate::cache::CacheConfig;

/// `cache = { bytes = "64MiB", ttl_s = 60 }`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CacheTable {
    bytes: Size,
    ttl_s: Option<u64>,
    #[serde(default)]
    shared_by_tenants: bool,
}

/// A number of bytes, or a text with a unit.
#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Bytes(i64),
    Text(String),
}

const LEAST: u64 = 64 << 10;
const MOST: u64 = 1 << 40;
const UNITS: [(&str, u64); 7] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

impl CacheTable {
    pub(super) fn config(self) -> Result<CacheConfig, String> {
        let bytes = match &self.bytes {
            Size::Bytes(bytes) => u64::try_from(*bytes).ok(),
            Size::Text(text) => size(text),
        };
        let bytes = bytes
            .filter(|bytes| (LEAST..=MOST).contains(bytes))
            .ok_or("`cache`: `bytes` is a number, or a text such as \"64MiB\", from 64 KiB to 1 TiB".to_owned())?;
        if self.ttl_s == Some(0) {
            return Err(
                "`cache`: `ttl_s` is 1 or more; leave it out to keep answers as long as there is room".to_owned()
            );
        }
        Ok(CacheConfig { bytes, ttl_s: self.ttl_s, shared_by_tenants: self.shared_by_tenants })
    }
}

fn size(text: &str) -> Option<u64> {
    let (number, unit) = UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    number.trim_end().parse::<u64>().ok()?.checked_mul(*unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<CacheConfig, String> {
        toml::from_str::<CacheTable>(text).map_err(|error| error.message().to_owned())?.config()
    }

    #[test]
    fn sizes_are_numbers_or_have_a_unit() {
        for (text, bytes) in
            [("65536", 64 << 10), ("\"64MiB\"", 64 << 20), ("\"2 GB\"", 2_000_000_000), ("\"70000B\"", 70_000)]
        {
            assert_eq!(config(&format!("bytes = {text}")).map(|config| config.bytes), Ok(bytes), "{text}");
        }
        assert_eq!(config("bytes = 65536\nttl_s = 5").unwrap().ttl_s, Some(5));
        for text in [
            "bytes = 1",
            "bytes = -1",
            "bytes = \"64\"",
            "bytes = \"MiB\"",
            "bytes = \"99999999999999999999GB\"",
            "bytes = \"2TB\"",
            "bytes = 65536\nttl_s = 0",
            "bytes = 65536\nttl = 5",
            "ttl_s = 5",
        ] {
            assert!(config(text).is_err(), "{text}");
        }
    }
}

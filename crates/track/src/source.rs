//! Where the source of a model version leads, however it is spelt.

use highroad_package::Digest;
use percent_encoding::percent_decode_str;

/// The folder of the packages among the artifacts.
const PACKAGES: [&str; 2] = ["highroad", "packages"];
/// What a server's address of an artifact has before the artifact's path.
const ROUTE: [&str; 2] = ["mlflow-artifacts", "artifacts"];

/// A source as clients and the artifact store take it: without escapes, `.`, `..`, empty parts, query and fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// In lower case; empty if there is none.
    pub scheme: String,
    host: String,
    /// The parts of its path.
    pub parts: Vec<String>,
    /// Whether a `..` was among them.
    pub climbs: bool,
}

impl Source {
    /// Any text is a source.
    pub fn read(text: &str) -> Self {
        // Python's `urlsplit` takes line breaks and tabs out, and cuts at `?` and `#` before anything is decoded.
        let plain: String = text.chars().filter(|c| !c.is_control()).collect();
        let (scheme, rest) = plain.split_once(':').unwrap_or(("", &plain));
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let (host, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            None => ("", rest),
        };
        let mut source = Self {
            scheme: scheme.trim().to_ascii_lowercase(),
            host: host.to_owned(),
            parts: Vec::new(),
            climbs: false,
        };
        let path: String = unescaped(path).chars().filter(|c| !c.is_control()).collect();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    source.climbs = true;
                    source.parts.pop();
                }
                part => source.parts.push(part.to_owned()),
            }
        }
        source
    }

    /// The package that lies there or around there; `None` if nothing there is one.
    ///
    /// Errors if packages lie below it, or if the folder it names among them is no digest.
    pub fn package(&self) -> Result<Option<Digest>, String> {
        let parts: Vec<&str> = [&self.host].into_iter().chain(&self.parts).map(String::as_str).collect();
        // Team servers that take no artifacts of their own as a source have `highroad:/packages/<hex>`.
        let own =
            (self.scheme == PACKAGES[0] && self.parts.first().is_some_and(|part| part == PACKAGES[1])).then_some(2);
        if let Some(at) = own.or_else(|| after(&parts, PACKAGES)) {
            let Some(hex) = parts.get(at) else { return Err("packages lie in it, and a version holds one".to_owned()) };
            return format!("sha256:{hex}").parse().map(Some).map_err(|error| format!("its package: {error}"));
        }
        let route = after(&parts, ROUTE);
        let below = &parts[route.unwrap_or(1)..];
        if (route.is_some() || self.scheme == "mlflow-artifacts") && PACKAGES.starts_with(below) {
            return Err("packages lie below it, and a version holds one".to_owned());
        }
        Ok(None)
    }
}

/// Where what follows `two` begins.
fn after(parts: &[&str], two: [&str; 2]) -> Option<usize> {
    let same = |pair: &[&str]| pair.iter().zip(two).all(|(part, wanted)| part.eq_ignore_ascii_case(wanted));
    parts.windows(2).position(same).map(|at| at + 2)
}

/// Layers of escapes that are looked under: more than any client or store takes off. Without an end a long text of nothing but layers
/// would keep the server busy.
const MOST_LAYERS: usize = 8;

/// The text under its layers of escapes.
pub fn unescaped(text: &str) -> String {
    let mut text = text.to_owned();
    for _ in 0..MOST_LAYERS {
        let plain = percent_decode_str(&text).decode_utf8_lossy().into_owned();
        if plain == text {
            break;
        }
        text = plain;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_one_however_its_place_is_spelt() {
        let digest = Digest::of(b"a package");
        let hex = digest.hex();
        for spelt in [
            "mlflow-artifacts:/highroad/packages/HEX",
            "mlflow-artifacts:/highroad/packages/HEX/",
            "mlflow-artifacts:/highroad/packages/HEX/program.pt2",
            "mlflow-artifacts:/highroad//packages/HEX",
            "mlflow-artifacts:////highroad/packages/HEX",
            "mlflow-artifacts:/./highroad/./packages/HEX",
            "mlflow-artifacts:/x/../highroad/x/../packages/HEX",
            "mlflow-artifacts:/highroad/%70ackages/HEX",
            "mlflow-artifacts:/highroad%2Fpackages%2fHEX",
            "mlflow-artifacts:/highroad/%2570ackages/HEX",
            "mlflow-artifacts:/x%3F/../highroad/packages/HEX",
            "mlflow-artifacts:/high\troad/pack\nages/HEX",
            "mlflow-artifacts:/highroad/packages/HEX?x=/1",
            "mlflow-artifacts:/highroad/packages/HEX#y",
            "mlflow-artifacts://127.0.0.1:5000/highroad/packages/HEX",
            "MLFLOW-Artifacts:/highroad/packages/HEX",
            "mlflow-artifacts:/api/2.0/mlflow-artifacts/artifacts/highroad/packages/HEX",
            "http://127.0.0.1:5000/api/2.0/mlflow-artifacts/artifacts/highroad/packages/HEX",
            "HTTPS://host/prefix/ajax-api/2.0/mlflow-artifacts/artifacts//highroad/packages/HEX",
            "s3://bucket/prefix/highroad/packages/HEX",
            "/srv/artifacts/highroad/packages/HEX",
            "highroad:/packages/HEX",
        ] {
            assert_eq!(Source::read(&spelt.replace("HEX", &hex)).package(), Ok(Some(digest)), "{spelt}");
        }
    }

    #[test]
    fn folders_of_packages_and_what_only_looks_like_one_are_refused() {
        for folder in [
            "mlflow-artifacts:/",
            "mlflow-artifacts:/highroad",
            "mlflow-artifacts://host:5000/highroad/",
            "mlflow-artifacts:/highroad/packages",
            "mlflow-artifacts:/highroad/packages/../..",
            "http://host/api/2.0/mlflow-artifacts/artifacts",
            "s3://bucket/highroad/packages/",
            "mlflow-artifacts:/highroad/packages/abc",
            "mlflow-artifacts:/highroad/packages/abc;x",
        ] {
            assert!(Source::read(folder).package().is_err(), "{folder}");
        }
    }

    #[test]
    fn other_sources_hold_no_package() {
        for free in [
            "mlflow-artifacts:/0/8c1f/artifacts/model",
            "mlflow-artifacts:/packages/highroad/x",
            "s3://bucket/model",
            "s3://highroad/model",
            "https://huggingface.co/",
            "/x",
            "dummy-source",
            "",
        ] {
            assert_eq!(Source::read(free).package(), Ok(None), "{free}");
        }
    }
}

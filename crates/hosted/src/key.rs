use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use crate::{DescriptionError, Hosted};

const MAX_KEY_BYTES: u64 = 16 << 10;

/// A key that cannot be printed by accident.
pub(crate) struct ApiKey(String);

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

impl ApiKey {
    /// The key of a description: `None` where it names none.
    pub(crate) fn find(hosted: &Hosted) -> Result<Option<Self>, DescriptionError> {
        let text = match (&hosted.api_key_env, &hosted.api_key_file) {
            (Some(name), _) => {
                std::env::var(name).map_err(|_| DescriptionError::NoKey(format!("${name} is not set")))?
            }
            (None, Some(path)) => read(path)
                .map_err(|error| DescriptionError::NoKey(format!("`{}` cannot be read: {error}", path.display())))?,
            (None, None) => return Ok(None),
        };
        let key = text.trim();
        let fits = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
        if fits {
            Ok(Some(Self(key.to_owned())))
        } else {
            Err(DescriptionError::NoKey("it is no key: expected one line of printable ASCII".to_owned()))
        }
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// `text` without the key, as some servers quote it in their errors.
    pub(crate) fn redact(&self, text: &str) -> String {
        text.replace(&self.0, "[the key]")
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_KEY_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

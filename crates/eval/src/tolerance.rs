use std::fmt;

use serde::{Deserialize, Serialize};

/// How far a number may be from the right one: `|given - right| <= atol + rtol * |right|`, as `numpy.allclose` and
/// `torch.testing.assert_close` have it. What is left out is 0; both are finite and at least 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Tolerance {
    atol: f64,
    rtol: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "expected {\"atol\": …, \"rtol\": …}")]
struct Written {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    atol: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rtol: Option<f64>,
}

impl Tolerance {
    /// `None` unless both are finite and at least 0.
    pub fn new(atol: f64, rtol: f64) -> Option<Self> {
        let fits = |value: f64| value.is_finite() && value >= 0.0;
        (fits(atol) && fits(rtol)).then_some(Self { atol, rtol })
    }

    /// How far a number may be from `right`.
    pub fn allowed(self, right: f64) -> f64 {
        self.atol + self.rtol * right.abs()
    }

    /// Whether `given` is close enough to `right`.
    pub fn admits(self, right: f64, given: f64) -> bool {
        (given - right).abs() <= self.allowed(right)
    }
}

impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self { atol, rtol: 0.0 } => write!(f, "atol {atol}"),
            Self { atol: 0.0, rtol } => write!(f, "rtol {rtol}"),
            Self { atol, rtol } => write!(f, "atol {atol}, rtol {rtol}"),
        }
    }
}

impl TryFrom<Written> for Tolerance {
    type Error = String;

    fn try_from(Written { atol, rtol }: Written) -> Result<Self, String> {
        if atol.is_none() && rtol.is_none() {
            return Err("it has neither `atol` nor `rtol`".to_owned());
        }
        let [atol, rtol] = [atol, rtol].map(Option::unwrap_or_default);
        Self::new(atol, rtol).ok_or_else(|| format!("`atol` {atol} and `rtol` {rtol} must be 0 or more"))
    }
}

impl From<Tolerance> for Written {
    fn from(Tolerance { atol, rtol }: Tolerance) -> Self {
        let given = |value: f64| (value != 0.0).then_some(value);
        Self { atol: given(atol).or((rtol == 0.0).then_some(0.0)), rtol: given(rtol) }
    }
}

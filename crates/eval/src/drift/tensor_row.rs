/// One row of a tensor that goes into a program or comes out of it.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorRow {
    /// Which tensor: `input.features`, `output.scores`.
    pub name: String,
    /// What is counted of its values.
    pub values: RowValues,
    /// Share of its elements that are not a number; of dtypes that have none such nothing.
    pub missing: Option<f64>,
    /// Elements; only where not all rows have as many.
    pub size: Option<f64>,
}

/// What is counted of a row's values.
#[derive(Clone, Debug, PartialEq)]
pub enum RowValues {
    /// The value of each feature, which is a place in the last dimension.
    Features(Vec<f64>),
    /// One value; the tensor has no dimension but that of the rows.
    Scalar(f64),
    /// Of all its elements, where there are more features than are looked at one by one.
    Summary {
        /// Mean.
        mean: f64,
        /// Standard deviation, of the elements themselves.
        deviation: f64,
        /// Smallest.
        minimum: f64,
        /// Largest.
        maximum: f64,
    },
}

impl TensorRow {
    /// Each number with the name of its signal: `input.x[3]`, `input.x[bmi]` where `names` has one for each feature, or `input.x` where there
    /// is only one. No name's signal is another's.
    pub(super) fn signals(&self, names: Option<&[String]>) -> Vec<(String, f64)> {
        let Self { name, values, missing, size } = self;
        let mut signals = match values {
            RowValues::Features(values) => {
                let names = names.filter(|names| names.len() == values.len());
                let signal = |(at, &value): (usize, &f64)| match names {
                    Some(names) => (format!("{name}[{}]", names[at]), value),
                    None if values.len() == 1 => (name.clone(), value),
                    None => (format!("{name}[{at}]"), value),
                };
                values.iter().enumerate().map(signal).collect()
            }
            RowValues::Scalar(value) => vec![(name.clone(), *value)],
            RowValues::Summary { mean, deviation, minimum, maximum } => {
                let named = [("mean", mean), ("deviation", deviation), ("minimum", minimum), ("maximum", maximum)];
                named.map(|(what, value)| (format!("{name}.{what}"), *value)).into()
            }
        };
        signals.extend(missing.map(|share| (format!("{name}.missing"), share)));
        signals.extend(size.map(|size| (format!("{name}.size"), size)));
        signals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_the_name_of_its_feature_where_there_is_one_for_each() {
        let values = RowValues::Features(vec![1.0, 2.0]);
        let row = TensorRow { name: "input.x".to_owned(), values, missing: Some(0.0), size: None };
        let names = |of: Option<&[String]>| row.signals(of).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(None), ["input.x[0]", "input.x[1]", "input.x.missing"]);
        let columns = ["age".to_owned(), "bmi".to_owned()];
        assert_eq!(names(Some(&columns)), ["input.x[age]", "input.x[bmi]", "input.x.missing"]);
        assert_eq!(names(Some(&columns[..1])), names(None));
        let only = TensorRow { values: RowValues::Features(vec![1.0]), ..row.clone() };
        let [first, _] = &only.signals(None)[..] else { panic!("{only:?}") };
        assert_eq!(first.0, "input.x");
    }
}

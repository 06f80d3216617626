//! `[budgets]` of `portfolio.toml`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Meter, Scope};

/// The limits of members, pipelines, tenants and keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BudgetsConfig {
    /// What limits of cost are in; there where any is.
    pub currency: Option<String>,
    /// The pool that these budgets are shared in, by all servers that name it.
    pub shared: Option<String>,
    members: BTreeMap<String, Limits>,
    pipelines: BTreeMap<String, Limits>,
    tenants: BTreeMap<String, Limits>,
    keys: BTreeMap<String, Limits>,
}

/// The limits of one account: billionths of the currency, or tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits(BTreeMap<Meter, u64>);

/// Stands for every tenant or key that has no limits of its own.
const ANY: &str = "*";
const MOST_COST: f64 = 1e9;

impl Limits {
    /// The limit, where there is one.
    pub fn get(&self, meter: Meter) -> Option<u64> {
        self.0.get(&meter).copied()
    }

    /// Those there are.
    pub fn set(&self) -> impl Iterator<Item = (Meter, u64)> {
        self.0.iter().map(|(meter, limit)| (*meter, *limit))
    }
}

impl BudgetsConfig {
    /// Reads `[budgets]` of a portfolio; what is wrong is added to `problems`.
    pub fn parse(portfolio: &toml::Table, problems: &mut Vec<String>) -> Self {
        let mut config = Self::default();
        let table = match portfolio.get("budgets") {
            None => return config,
            Some(toml::Value::Table(table)) => table,
            Some(_) => {
                problems.push("`budgets` must be a table: [budgets.members.NAME] and the like".to_owned());
                return config;
            }
        };
        for (key, value) in table {
            match (key.as_str(), value) {
                ("currency", toml::Value::String(text)) if is_currency(text) => config.currency = Some(text.clone()),
                ("currency", _) => problems.push("[budgets] `currency` must be letters such as \"USD\"".to_owned()),
                ("shared", toml::Value::String(pool)) if crate::config::is_member_name(pool) => {
                    config.shared = Some(pool.clone());
                }
                ("shared", _) => problems
                    .push("[budgets] `shared` is the name of a pool: letters, digits, `.`, `_` and `-`".to_owned()),
                ("members", toml::Value::Table(table)) => config.members = accounts(table, "members", problems),
                ("pipelines", toml::Value::Table(table)) => config.pipelines = accounts(table, "pipelines", problems),
                ("tenants", toml::Value::Table(table)) => config.tenants = accounts(table, "tenants", problems),
                ("keys", toml::Value::Table(table)) => config.keys = accounts(table, "keys", problems),
                _ => problems.push(format!(
                    "[budgets] has no `{key}`: known are `currency`, `shared`, `members`, `pipelines`, `tenants`, `keys`"
                )),
            }
        }
        if config.limits_cost() && config.currency.is_none() {
            problems.push("[budgets] a limit of cost needs a `currency`".to_owned());
        }
        config
    }

    /// Whether there is nothing to count.
    pub fn is_empty(&self) -> bool {
        self.all().all(|limits| limits.0.is_empty())
    }

    /// Whether tenants or keys have limits, which only keys make known.
    pub fn needs_keys(&self) -> bool {
        !self.tenants.is_empty() || !self.keys.is_empty()
    }

    /// Whether any account has a limit of cost.
    pub fn limits_cost(&self) -> bool {
        self.all().any(|limits| limits.0.keys().any(|meter| meter.is_cost()))
    }

    /// The limits of an account, where it has any.
    pub fn limits(&self, scope: Scope, name: &str) -> Option<&Limits> {
        match scope {
            Scope::Member => self.members.get(name),
            Scope::Pipeline => self.pipelines.get(name),
            Scope::Tenant => self.tenants.get(name).or_else(|| self.tenants.get(ANY)),
            Scope::Key => self.keys.get(name).or_else(|| self.keys.get(ANY)),
        }
    }

    /// The accounts that are named.
    pub fn accounts(&self) -> impl Iterator<Item = (Scope, String)> {
        let named = [
            (Scope::Member, &self.members),
            (Scope::Pipeline, &self.pipelines),
            (Scope::Tenant, &self.tenants),
            (Scope::Key, &self.keys),
        ];
        named.into_iter().flat_map(|(scope, limits)| {
            limits.keys().filter(|name| *name != ANY).map(move |name| (scope, name.clone()))
        })
    }

    /// All of it, as data.
    pub fn told(&self) -> Value {
        let limits = |limits: &Limits| -> Value {
            let told = limits.set().map(|(meter, limit)| {
                let limit = if meter.is_cost() { json!(limit as f64 / 1e9) } else { json!(limit) };
                (meter.name().to_owned(), limit)
            });
            Value::Object(told.collect())
        };
        let accounts = |accounts: &BTreeMap<String, Limits>| -> Value {
            Value::Object(accounts.iter().map(|(name, of)| (name.clone(), limits(of))).collect())
        };
        json!({
            "currency": self.currency,
            "shared": self.shared,
            "members": accounts(&self.members), "pipelines": accounts(&self.pipelines),
            "tenants": accounts(&self.tenants), "keys": accounts(&self.keys),
        })
    }

    /// The members that have limits.
    pub fn members(&self) -> impl Iterator<Item = (&String, &Limits)> {
        self.members.iter()
    }

    /// The pipelines that have limits.
    pub fn pipelines(&self) -> impl Iterator<Item = &String> {
        self.pipelines.keys()
    }

    fn all(&self) -> impl Iterator<Item = &Limits> {
        self.members.values().chain(self.pipelines.values()).chain(self.tenants.values()).chain(self.keys.values())
    }
}

fn accounts(table: &toml::Table, kind: &str, problems: &mut Vec<String>) -> BTreeMap<String, Limits> {
    let mut accounts = BTreeMap::new();
    for (name, value) in table {
        let Some(table) = value.as_table() else {
            problems.push(format!("[budgets.{kind}] `{name}` must be a table of limits"));
            continue;
        };
        accounts.insert(name.clone(), limits(table, &format!("budgets.{kind}.{name}"), problems));
    }
    accounts
}

fn limits(table: &toml::Table, place: &str, problems: &mut Vec<String>) -> Limits {
    let mut limits = Limits::default();
    for (key, value) in table {
        let Some(meter) = Meter::ALL.into_iter().find(|meter| meter.name() == key) else {
            let known = Meter::ALL.map(|meter| format!("`{meter}`")).join(", ");
            problems.push(format!("[{place}] unknown key `{key}`: known are {known}"));
            continue;
        };
        match amount(meter, value) {
            Some(amount) => drop(limits.0.insert(meter, amount)),
            None if meter.is_cost() => {
                problems.push(format!("[{place}] `{key}` must be a number from 0 to 1e9, not {value}"))
            }
            None => problems.push(format!("[{place}] `{key}` must be a whole number, not {value}")),
        }
    }
    limits
}

fn amount(meter: Meter, value: &toml::Value) -> Option<u64> {
    match value {
        toml::Value::Integer(n) if meter.is_cost() => nanos(*n as f64),
        toml::Value::Float(n) if meter.is_cost() => nanos(*n),
        toml::Value::Integer(n) => u64::try_from(*n).ok(),
        _ => None,
    }
}

fn nanos(cost: f64) -> Option<u64> {
    (0.0..=MOST_COST).contains(&cost).then(|| (cost * 1e9).round() as u64)
}

fn is_currency(text: &str) -> bool {
    (1..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<BudgetsConfig, Vec<String>> {
        let mut problems = Vec::new();
        let config = BudgetsConfig::parse(&text.parse().unwrap(), &mut problems);
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }

    #[test]
    fn limits_are_exact_and_others_have_those_of_the_star() {
        let config = parse(
            "[budgets]\ncurrency = 'EUR'\n[budgets.tenants.'*']\ncost_per_day = 0.1\n[budgets.tenants.acme]\ntokens_per_minute = 5\n",
        )
        .unwrap();
        let of = |name: &str, meter| config.limits(Scope::Tenant, name).unwrap().get(meter);
        assert_eq!(of("other", Meter::CostPerDay), Some(100_000_000));
        assert_eq!((of("acme", Meter::CostPerDay), of("acme", Meter::TokensPerMinute)), (None, Some(5)));
        assert!(config.limits(Scope::Member, "other").is_none());
        assert!(parse("").unwrap().is_empty() && !config.is_empty());
    }

    #[test]
    fn what_means_nothing_is_told() {
        for (text, reason) in [
            ("budgets = 1", "`budgets` must be a table"),
            ("[budgets]\ncolour = 1", "has no `colour`"),
            ("[budgets]\ncurrency = '€'", "must be letters"),
            ("[budgets.members.a]\ncost_per_day = 1", "needs a `currency`"),
            ("[budgets.members.a]\ncost_per_week = 1", "unknown key `cost_per_week`: known are `cost_per_day`"),
            ("[budgets.members.a]\ntokens_per_day = -1", "must be a whole number, not -1"),
            ("[budgets.members.a]\ntokens_per_day = 0.5", "must be a whole number, not 0.5"),
            ("[budgets]\ncurrency = 'EUR'\n[budgets.keys.a]\ncost_per_day = nan", "must be a number from 0 to 1e9"),
            ("[budgets.members]\na = 1", "`a` must be a table of limits"),
        ] {
            let problems = parse(text).unwrap_err().join("\n");
            assert!(problems.contains(reason), "{text}: {problems}");
        }
    }
}

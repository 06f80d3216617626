//! Budgets: what members, pipelines, tenants and keys may spend in money and tokens, counted before a request is sent and after it was answered.
//!
//! The [`Ledger`] is pure: time is an argument, nothing is read or written. A request *reserves* what it may take at most, in all accounts
//! it is charged to or in none, and *settles* what it took. What is used and what is reserved never pass a limit together, so a limit is
//! kept however many requests are under way; only a host that takes more than it was asked for can pass it, and that is counted too.
//! [`keeper`] keeps a ledger over restarts and asks it the time.

pub mod config;
pub mod keeper;
pub mod shared;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use config::{BudgetsConfig, Limits};
use shared::{Granted, Held, SLICE, Spent, Wanted, account as account_name};

/// Money and tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Billionths of the budgets' currency: integers, so that sums are exact.
    pub nanos: u64,
    /// Tokens, in and out.
    pub tokens: u64,
}

/// What a request may take at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most {
    /// Billionths of the currency; `None` where nobody knows the price.
    pub nanos: Option<u64>,
    /// Tokens, in and out.
    pub tokens: u64,
}

impl Most {
    /// With nothing for a price that nobody knows: such a request is refused where cost is limited.
    fn at_most(self) -> Amount {
        Amount { nanos: self.nanos.unwrap_or(0), tokens: self.tokens }
    }
}

/// A clock that was ahead by more than this had the wrong date; less is a step of its keeper.
const WRONG_DATE_S: i64 = Span::DAY;

/// Days of which is kept what was spent, today among them.
pub const HISTORY_DAYS: usize = 30;

/// What kind of account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
#[schemars(rename = "AccountKind")]
pub enum Scope {
    Member,
    Pipeline,
    Tenant,
    Key,
}

/// One of the limits that an account can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
#[schemars(rename = "BudgetLimit")]
pub enum Meter {
    CostPerDay,
    CostPerMonth,
    TokensPerMinute,
    TokensPerDay,
}

/// A stretch of time in which a limit holds, by the clock and calendar of UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Span {
    Minute,
    Day,
    Month,
}

/// Who a request is charged to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Payer {
    /// The member that answers.
    pub member: String,
    /// The pipeline that asks it, where one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<String>,
    /// The tenant of the key, where keys are asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The key, where keys are asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// Why nothing was reserved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Refused {
    #[error("the budget of {scope} `{name}` is used up: {meter} is {}, {} is used or under way and this request may take {}",
        meter.show(*most, currency), meter.show(*used, currency), meter.show(*asked, currency))]
    Over {
        scope: Scope,
        name: String,
        meter: Meter,
        most: u64,
        used: u64,
        asked: u64,
        currency: String,
        wait: Duration,
    },
    #[error("this request may take {}, more than the whole {meter} of {scope} `{name}`, {}; ask for fewer tokens",
        meter.show(*asked, currency), meter.show(*most, currency))]
    Never { scope: Scope, name: String, meter: Meter, most: u64, asked: u64, currency: String },
    #[error("the price of `{member}` is not known, and {scope} `{name}` has a budget of {meter}")]
    UnknownPrice { member: String, scope: Scope, name: String, meter: Meter },
}

/// Something that happened to a ledger; all of them in order make it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Entry {
    Reserve { id: u64, at: i64, payer: Payer, most: Amount },
    Settle { id: u64, at: i64, actual: Amount },
}

/// What was spent and what may be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    config: BudgetsConfig,
    books: Books,
    /// What is held of shared limits; `None` where they are this server's alone.
    held: Option<Held>,
}

/// What has to survive.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Books {
    accounts: BTreeMap<Scope, BTreeMap<String, Account>>,
    open: BTreeMap<u64, Open>,
    next_id: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Open {
    payer: Payer,
    most: Amount,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Account {
    reserved: Amount,
    minute: Window,
    day: Window,
    month: Window,
    /// Days before `day` on which something was spent, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    past: Vec<Window>,
}

/// What was used since a time, seconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Window {
    since: i64,
    used: Amount,
}

/// Where one limit stands.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Standing {
    pub scope: Scope,
    pub name: String,
    pub meter: Meter,
    /// `None` where the account has no such limit.
    pub most: Option<u64>,
    pub used: u64,
    pub reserved: u64,
    /// When what is used counts from nothing again, seconds since 1970.
    pub resets_at: i64,
}

/// What one account spent on each of the last [`HISTORY_DAYS`] days, the oldest first.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Course {
    pub scope: Scope,
    pub name: String,
    pub days: Vec<Amount>,
}

impl Meter {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::CostPerDay, Self::CostPerMonth, Self::TokensPerMinute, Self::TokensPerDay];

    /// Its name in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::CostPerDay => "cost_per_day",
            Self::CostPerMonth => "cost_per_month",
            Self::TokensPerMinute => "tokens_per_minute",
            Self::TokensPerDay => "tokens_per_day",
        }
    }

    /// Whether it counts money.
    pub fn is_cost(self) -> bool {
        matches!(self, Self::CostPerDay | Self::CostPerMonth)
    }

    fn of(self, amount: Amount) -> u64 {
        if self.is_cost() { amount.nanos } else { amount.tokens }
    }

    fn span(self) -> Span {
        match self {
            Self::TokensPerMinute => Span::Minute,
            Self::CostPerDay | Self::TokensPerDay => Span::Day,
            Self::CostPerMonth => Span::Month,
        }
    }

    fn show(self, value: u64, currency: &str) -> String {
        if self.is_cost() { format!("{} {currency}", money(value)) } else { format!("{value} tokens") }
    }
}

/// Billionths as a decimal number.
fn money(nanos: u64) -> String {
    let text = format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

impl fmt::Display for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Scope {
    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Pipeline => "pipeline",
            Self::Tenant => "tenant",
            Self::Key => "key",
        }
    }
}

impl Span {
    const MINUTE: i64 = 60;
    const DAY: i64 = 24 * 3600;

    fn start(self, now: i64) -> i64 {
        match self {
            Self::Minute => now - now.rem_euclid(Self::MINUTE),
            Self::Day => now - now.rem_euclid(Self::DAY),
            Self::Month => month(now, 0),
        }
    }

    fn end(self, now: i64) -> i64 {
        match self {
            Self::Minute => self.start(now) + Self::MINUTE,
            Self::Day => self.start(now) + Self::DAY,
            Self::Month => month(now, 1),
        }
    }
}

/// The first second of the month of `now`, or of one that many months later.
fn month(now: i64, later: i64) -> i64 {
    use jiff::{Timestamp, ToSpan as _, tz::TimeZone};
    let time = Timestamp::from_second(now).unwrap_or_default();
    let first = time.to_zoned(TimeZone::UTC).date().first_of_month().saturating_add(later.months());
    first.to_zoned(TimeZone::UTC).map_or(now, |first| first.timestamp().as_second())
}

/// The beginning of the oldest day of which is kept what was spent.
fn first_day(now: i64) -> i64 {
    Span::Day.start(now) - (HISTORY_DAYS as i64 - 1) * Span::DAY
}

/// The courses of the days up to that of `now` as servers tell each other of them: days on which nothing was spent are left out.
fn spent(courses: &[Course], now: i64) -> Vec<Spent> {
    let of_course = |course: &Course| {
        let account = account_name(course.scope, &course.name);
        let days = course.days.iter().enumerate().filter(|(_, day)| **day != Amount::default());
        let one = |(day, amount): (usize, &Amount)| {
            let (account, since) = (account.clone(), first_day(now) + day as i64 * Span::DAY);
            Spent { account, since, nanos: amount.nanos, tokens: amount.tokens }
        };
        days.map(one).collect::<Vec<_>>()
    };
    courses.iter().flat_map(of_course).collect()
}

/// The other way round. Accounts of no known scope are left out, and so are other days.
fn courses_of(spent: Vec<Spent>, now: i64) -> Vec<Course> {
    let mut all: BTreeMap<(Scope, String), Vec<Amount>> = BTreeMap::new();
    for Spent { account, since, nanos, tokens } in spent {
        let Some((scope, name)) = account.split_once(':') else { continue };
        let Some(scope) =
            [Scope::Member, Scope::Pipeline, Scope::Tenant, Scope::Key].into_iter().find(|known| known.name() == scope)
        else {
            continue;
        };
        let Ok(day) = usize::try_from((since - first_day(now)).div_euclid(Span::DAY)) else { continue };
        let days = all.entry((scope, name.to_owned())).or_insert_with(|| vec![Amount::default(); HISTORY_DAYS]);
        let Some(amount) = days.get_mut(day) else { continue };
        amount.nanos = amount.nanos.saturating_add(nanos);
        amount.tokens = amount.tokens.saturating_add(tokens);
    }
    all.into_iter().map(|((scope, name), days)| Course { scope, name, days }).collect()
}

impl Window {
    /// Begins anew where the span of `now` is a later one. A clock that was put back changes nothing; where it was ahead by days, what was
    /// spent then counts in the span of `now`, or no span would end before that day.
    fn roll(&mut self, span: Span, now: i64) {
        let since = span.start(now);
        if since > self.since {
            *self = Self { since, used: Amount::default() };
        } else if self.is_ahead(now) {
            self.since = since;
        }
    }

    fn is_ahead(&self, now: i64) -> bool {
        self.since.saturating_sub(now) > WRONG_DATE_S
    }
}

impl Amount {
    fn plus(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_add(other.nanos), tokens: self.tokens.saturating_add(other.tokens) }
    }

    fn minus(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_sub(other.nanos), tokens: self.tokens.saturating_sub(other.tokens) }
    }
}

impl Account {
    fn window(&self, span: Span) -> &Window {
        match span {
            Span::Minute => &self.minute,
            Span::Day => &self.day,
            Span::Month => &self.month,
        }
    }

    fn roll(&mut self, now: i64) {
        let day = self.day;
        self.minute.roll(Span::Minute, now);
        self.day.roll(Span::Day, now);
        self.month.roll(Span::Month, now);
        if self.day.since != day.since {
            // A day that had the wrong date is today: what was spent on it counts as today's.
            if day.since < self.day.since && day.used != Amount::default() {
                self.past.push(day);
            }
            self.past.retain(|day| day.since >= first_day(now) && day.since <= self.day.since);
        }
    }

    /// What was spent on the day that begins at `since`.
    fn spent_on(&self, since: i64) -> Amount {
        let days = self.past.iter().chain([&self.day]).filter(|day| day.since == since);
        days.fold(Amount::default(), |sum, day| sum.plus(day.used))
    }

    fn spend(&mut self, actual: Amount) {
        for window in [&mut self.minute, &mut self.day, &mut self.month] {
            window.used = window.used.plus(actual);
        }
    }

    fn counted(&self, meter: Meter) -> u64 {
        meter.of(self.window(meter.span()).used).saturating_add(meter.of(self.reserved))
    }
}

impl Payer {
    fn accounts(&self) -> impl Iterator<Item = (Scope, &str)> {
        let member = [(Scope::Member, Some(self.member.as_str())), (Scope::Pipeline, self.pipeline.as_deref())];
        let others = [(Scope::Tenant, self.tenant.as_deref()), (Scope::Key, self.key.as_deref())];
        member.into_iter().chain(others).filter_map(|(scope, name)| Some((scope, name?)))
    }
}

impl Ledger {
    /// What `books` say, under the limits of `config`.
    pub fn new(config: BudgetsConfig, books: Books) -> Self {
        Self { config, books, held: None }
    }

    /// The same, of which no more may be spent than `held`.
    pub(crate) fn sharing(self, held: Held) -> Self {
        Self { held: Some(held), ..self }
    }

    /// What is held of shared limits.
    pub(crate) fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    /// Takes in what is held from now on.
    pub(crate) fn hold_parts(&mut self, granted: Vec<Granted>) {
        if let Some(held) = &mut self.held {
            granted.into_iter().for_each(|granted| held.put(granted));
        }
    }

    /// How large the parts of all limits should be that are in use or that `asked` takes: what is used and set aside, what the request may
    /// take, and a slice. Left out are those that are large enough, unless they are far too large.
    pub(crate) fn wanted(&self, now: i64, asked: Option<(&Payer, Most)>) -> Vec<Wanted> {
        let Some(held) = &self.held else { return Vec::new() };
        let known = self.books.accounts.iter().flat_map(|(scope, all)| all.keys().map(|name| (*scope, name.clone())));
        let payer = asked.iter().flat_map(|(payer, _)| payer.accounts()).map(|(scope, name)| (scope, name.to_owned()));
        let accounts: BTreeSet<(Scope, String)> = known.chain(payer).collect();
        let mut wanted = Vec::new();
        for (scope, name) in accounts {
            let Some(limits) = self.config.limits(scope, &name) else { continue };
            let account = self.books.at(now, scope, &name);
            let is_asked = asked.filter(|(payer, _)| payer.accounts().any(|asked| asked == (scope, name.as_str())));
            for (meter, most) in limits.set() {
                let since = meter.span().start(now);
                let (used, slice) = (account.counted(meter), (most / SLICE).max(1));
                let more = is_asked.map_or(0, |(_, most)| meter.of(most.at_most()));
                let has = held.of(scope, &name, meter, since);
                let needs = used.saturating_add(more);
                let is_idle = more == 0 && used == 0;
                let is_right = has >= needs.saturating_add(if more > 0 { 0 } else { slice / 2 });
                let is_too_large = has > needs.saturating_add(2 * slice);
                if (is_idle && has == 0) || (is_right && !is_too_large) {
                    continue;
                }
                let wants = if is_idle { 0 } else { needs.saturating_add(slice).min(most) };
                // On the way they are numbers that databases hold.
                let [most, used, wants] = [most, used, wants].map(|amount| amount.min(i64::MAX as u64));
                wanted.push(Wanted { account: account_name(scope, &name), meter, since, most, used, wants });
            }
        }
        wanted
    }

    /// Whether a request fits into what is left here.
    pub(crate) fn fits(&self, now: i64, payer: &Payer, most: Most) -> bool {
        payer.accounts().all(|account| self.check(now, payer, account, most).is_ok())
    }

    /// What may be spent of a limit here.
    fn own_part(&self, now: i64, (scope, name): (Scope, &str), meter: Meter, limit: u64) -> u64 {
        match &self.held {
            Some(held) => limit.min(held.of(scope, name, meter, meter.span().start(now))),
            None => limit,
        }
    }

    /// Counts under other limits from here on; what was spent stays spent.
    pub fn set_config(&mut self, config: BudgetsConfig) {
        self.config = config;
    }

    /// The limits.
    pub fn config(&self) -> &BudgetsConfig {
        &self.config
    }

    /// What has to survive.
    pub fn books(&self) -> &Books {
        &self.books
    }

    /// Forgets accounts in which nothing happened in this month and in the days of which is kept what was spent.
    pub fn tidy(&mut self, now: i64) {
        self.books.tidy(now);
    }

    /// Sets `most` aside in every account of `payer`, or in none where one of them has too little left.
    pub fn reserve(&mut self, now: i64, payer: &Payer, most: Most) -> Result<Entry, Refused> {
        for (scope, name) in payer.accounts() {
            // Kept although it may be refused: else every look would find the wrong date again, and what was spent under it today too.
            if self.books.is_ahead(now, scope, name) {
                self.books.account(scope, name).roll(now);
            }
            self.check(now, payer, (scope, name), most)?;
        }
        let most = Amount { nanos: most.nanos.unwrap_or(0), tokens: most.tokens };
        let entry = Entry::Reserve { id: self.books.next_id, at: now, payer: payer.clone(), most };
        self.books.apply(&entry);
        Ok(entry)
    }

    /// Counts what a reservation took. `None` where there is no such reservation.
    pub fn settle(&mut self, now: i64, id: u64, actual: Amount) -> Option<Entry> {
        self.books.open.contains_key(&id).then(|| {
            let entry = Entry::Settle { id, at: now, actual };
            self.books.apply(&entry);
            entry
        })
    }

    fn check(&self, now: i64, payer: &Payer, (scope, name): (Scope, &str), most: Most) -> Result<(), Refused> {
        let limits = self.config.limits(scope, name).cloned().unwrap_or_default();
        let currency = self.config.currency.clone().unwrap_or_default();
        let account = self.books.at(now, scope, name);
        for (meter, limit) in limits.set() {
            let asked = match (meter.is_cost(), most.nanos) {
                (false, _) => most.tokens,
                (true, Some(nanos)) => nanos,
                (true, None) => {
                    let (member, name) = (payer.member.clone(), name.to_owned());
                    return Err(Refused::UnknownPrice { member, scope, name, meter });
                }
            };
            let (name, used) = (name.to_owned(), account.counted(meter));
            if asked > limit {
                return Err(Refused::Never { scope, name, meter, most: limit, asked, currency });
            }
            let part = self.own_part(now, (scope, name.as_str()), meter, limit);
            if asked > part.saturating_sub(used) {
                // Of a shared limit the rest is with the other servers.
                let used = used.saturating_add(limit - part);
                let end = meter.span().end(account.window(meter.span()).since.max(now));
                let wait = Duration::from_secs(u64::try_from(end - now).unwrap_or(0).max(1));
                return Err(Refused::Over { scope, name, meter, most: limit, used, asked, currency, wait });
            }
        }
        Ok(())
    }

    /// Every limit, and what was spent by accounts that have none, sorted by scope and name.
    pub fn standings(&self, now: i64) -> Vec<Standing> {
        let configured = self.config.accounts();
        let known =
            self.books.accounts.iter().flat_map(|(scope, accounts)| accounts.keys().map(|name| (*scope, name.clone())));
        let names: BTreeSet<(Scope, String)> = configured.chain(known).collect();
        names.into_iter().flat_map(|(scope, name)| self.standing(now, scope, &name)).collect()
    }

    /// What every account spent that spent anything on the last [`HISTORY_DAYS`] days, sorted by scope and name.
    pub fn courses(&self, now: i64) -> Vec<Course> {
        let starts: Vec<i64> = (0..HISTORY_DAYS as i64).map(|day| first_day(now) + day * Span::DAY).collect();
        let all = self.books.accounts.iter().flat_map(|(scope, all)| all.iter().map(move |named| (*scope, named)));
        let course = |(scope, (name, account)): (Scope, (&String, &Account))| {
            let days = starts.iter().map(|since| account.spent_on(*since)).collect();
            Course { scope, name: name.clone(), days }
        };
        let spent = |course: &Course| course.days.iter().any(|day| *day != Amount::default());
        all.map(course).filter(spent).collect()
    }

    fn standing(&self, now: i64, scope: Scope, name: &str) -> Vec<Standing> {
        let account = self.books.at(now, scope, name);
        let limits = self.config.limits(scope, name).cloned().unwrap_or_default();
        let one = |meter: Meter| {
            let window = account.window(meter.span());
            Standing {
                scope,
                name: name.to_owned(),
                meter,
                most: limits.get(meter),
                used: meter.of(window.used),
                reserved: meter.of(account.reserved),
                resets_at: meter.span().end(window.since.max(now)),
            }
        };
        Meter::ALL.map(one).into()
    }
}

impl Books {
    /// Does again what happened.
    pub fn apply(&mut self, entry: &Entry) {
        match entry {
            Entry::Reserve { id, at, payer, most } => {
                for (scope, name) in payer.accounts() {
                    let account = self.account(scope, name);
                    account.roll(*at);
                    account.reserved = account.reserved.plus(*most);
                }
                self.open.insert(*id, Open { payer: payer.clone(), most: *most });
                self.next_id = self.next_id.max(id.saturating_add(1));
            }
            Entry::Settle { id, at, actual } => {
                let Some(Open { payer, most }) = self.open.remove(id) else { return };
                for (scope, name) in payer.accounts() {
                    let account = self.account(scope, name);
                    account.roll(*at);
                    account.reserved = account.reserved.minus(most);
                    account.spend(*actual);
                }
            }
        }
    }

    /// Counts every open reservation at its most: nobody knows what requests cost that a crash cut off.
    pub fn close_all(&mut self, now: i64) -> usize {
        let open: Vec<(u64, Amount)> = self.open.iter().map(|(id, open)| (*id, open.most)).collect();
        for (id, actual) in &open {
            self.apply(&Entry::Settle { id: *id, at: now, actual: *actual });
        }
        open.len()
    }

    fn tidy(&mut self, now: i64) {
        let oldest = Span::Month.start(now).min(first_day(now));
        for accounts in self.accounts.values_mut() {
            accounts.retain(|_, account| account.day.since >= oldest || account.reserved != Amount::default());
        }
    }

    /// An account as it stands at `now`; an unknown one is empty.
    fn at(&self, now: i64, scope: Scope, name: &str) -> Account {
        let mut account = self.accounts.get(&scope).and_then(|a| a.get(name)).cloned().unwrap_or_default();
        account.roll(now);
        account
    }

    /// Whether what an account has spent was counted under a wrong date.
    fn is_ahead(&self, now: i64, scope: Scope, name: &str) -> bool {
        let account = self.accounts.get(&scope).and_then(|accounts| accounts.get(name));
        account.is_some_and(|account| account.minute.is_ahead(now))
    }

    fn account(&mut self, scope: Scope, name: &str) -> &mut Account {
        let accounts = self.accounts.entry(scope).or_default();
        if !accounts.contains_key(name) {
            accounts.insert(name.to_owned(), Account::default());
        }
        accounts.get_mut(name).expect("it was just put there")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2026-11-29 07:00:30 UTC
    const NOW: i64 = 1_795_935_630;

    fn ledger(text: &str) -> Ledger {
        let table: toml::Table = text.parse().unwrap();
        let mut problems = Vec::new();
        let config = BudgetsConfig::parse(&table, &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        Ledger::new(config, Books::default())
    }

    fn payer(member: &str, tenant: Option<&str>) -> Payer {
        Payer {
            member: member.to_owned(),
            pipeline: None,
            tenant: tenant.map(str::to_owned),
            key: tenant.map(|t| format!("{t}-1")),
        }
    }

    fn tokens(tokens: u64) -> Most {
        Most { nanos: Some(0), tokens }
    }

    fn id(entry: &Entry) -> u64 {
        match entry {
            Entry::Reserve { id, .. } | Entry::Settle { id, .. } => *id,
        }
    }

    #[test]
    fn a_pipeline_pays_for_what_its_steps_take() {
        let mut ledger = ledger("[budgets.pipelines.help]\ntokens_per_day = 100\n");
        let step = |member: &str| Payer { pipeline: Some("help".to_owned()), ..payer(member, None) };
        ledger.reserve(NOW, &step("embedder"), tokens(60)).unwrap();
        let refused = ledger.reserve(NOW, &step("chat"), tokens(60)).unwrap_err();
        assert!(refused.to_string().starts_with("the budget of pipeline `help` is used up"), "{refused}");
        // Who asks the member itself is charged to no pipeline.
        ledger.reserve(NOW, &payer("chat", None), tokens(60)).unwrap();
    }

    #[test]
    fn a_clock_that_had_the_wrong_date_locks_nobody_out_for_long_and_gives_nothing_away() {
        let mut ledger = ledger("[budgets.members.chat]\ntokens_per_day = 100\n");
        let chat = payer("chat", None);
        let ahead = NOW + 400 * Span::DAY;
        let held = ledger.reserve(ahead, &chat, tokens(70)).unwrap();
        ledger.settle(ahead, id(&held), Amount { nanos: 0, tokens: 70 });
        // Back: what was spent under the wrong date counts today, and no more tomorrow.
        assert!(ledger.reserve(NOW, &chat, tokens(40)).is_err());
        assert!(ledger.reserve(NOW + Span::DAY, &chat, tokens(40)).is_ok());
    }

    #[test]
    fn what_was_spent_on_the_last_days_is_kept() {
        let mut ledger = ledger("[budgets]\ncurrency = 'EUR'\n[budgets.members.chat]\ncost_per_day = 1\n");
        let chat = payer("chat", Some("acme"));
        let spend = |ledger: &mut Ledger, day: i64, tokens: u64| {
            let now = NOW + day * Span::DAY;
            let most = Most { nanos: Some(tokens * 10), tokens };
            let held = ledger.reserve(now, &chat, most).unwrap();
            ledger.settle(now, id(&held), Amount { nanos: tokens * 10, tokens });
        };
        for (day, tokens) in [(0, 1), (0, 2), (1, 4), (28, 8), (29, 16)] {
            spend(&mut ledger, day, tokens);
        }
        let tokens_on = |ledger: &Ledger, day: i64| -> Vec<(usize, u64)> {
            let courses = ledger.courses(NOW + day * Span::DAY);
            assert!(courses.iter().all(|course| course.days.len() == HISTORY_DAYS));
            assert!(courses.iter().all(|course| course.days.iter().all(|day| day.nanos == 10 * day.tokens)));
            assert!(courses.windows(2).all(|pair| pair[0].days == pair[1].days), "the member, its tenant and its key");
            let days = courses.first().map(|course| course.days.clone()).unwrap_or_default();
            days.iter().enumerate().filter(|(_, day)| day.tokens > 0).map(|(at, day)| (at, day.tokens)).collect()
        };
        assert_eq!(tokens_on(&ledger, 29), [(0, 3), (1, 4), (28, 8), (29, 16)]);
        assert_eq!(tokens_on(&ledger, 30), [(0, 4), (27, 8), (28, 16)]);
        spend(&mut ledger, 31, 32);
        let account = &ledger.books().accounts[&Scope::Member]["chat"];
        assert_eq!(account.past.len(), 2, "what is older is forgotten");

        // It survives, also the end of the months in which it was spent.
        let text = serde_json::to_string(ledger.books()).unwrap();
        let mut ledger = Ledger::new(ledger.config.clone(), serde_json::from_str(&text).unwrap());
        ledger.tidy(NOW + 58 * Span::DAY);
        assert_eq!(tokens_on(&ledger, 58), [(0, 16), (2, 32)]);
        ledger.tidy(NOW + 70 * Span::DAY);
        assert!(ledger.books().accounts.values().all(BTreeMap::is_empty) && ledger.courses(NOW).is_empty());
    }

    #[test]
    fn what_was_spent_under_a_wrong_date_is_shown_under_the_right_one() {
        let mut ledger = ledger("[budgets.members.chat]\ntokens_per_day = 100\n");
        let chat = payer("chat", None);
        for (now, spent) in [(NOW, 5), (NOW + 3 * Span::DAY, 7), (NOW, 11)] {
            let held = ledger.reserve(now, &chat, tokens(spent)).unwrap();
            ledger.settle(now, id(&held), Amount { nanos: 0, tokens: spent });
        }
        let days = &ledger.courses(NOW)[0].days;
        assert_eq!((days[HISTORY_DAYS - 1].tokens, days.iter().map(|day| day.tokens).sum()), (23, 23));
    }

    #[test]
    fn what_is_under_way_counts_at_its_most_and_then_at_what_it_took() {
        let mut ledger = ledger("[budgets.members.chat]\ntokens_per_minute = 100\n");
        let chat = payer("chat", None);
        let first = ledger.reserve(NOW, &chat, tokens(60)).unwrap();
        let refused = ledger.reserve(NOW, &chat, tokens(60)).unwrap_err();
        let Refused::Over { wait, .. } = &refused else { panic!("{refused}") };
        assert_eq!(*wait, Duration::from_secs(30));
        assert_eq!(
            refused.to_string(),
            "the budget of member `chat` is used up: tokens_per_minute is 100 tokens, 60 tokens is used or under way and this request may take 60 tokens"
        );
        ledger.settle(NOW, id(&first), Amount { nanos: 0, tokens: 40 });
        assert!(ledger.reserve(NOW, &chat, tokens(60)).is_ok());
        assert!(matches!(ledger.reserve(NOW, &chat, tokens(101)), Err(Refused::Never { .. })));
        assert!(ledger.reserve(NOW + 30, &chat, tokens(40)).is_ok(), "another minute, in which 60 are still under way");
        assert!(ledger.reserve(NOW + 30, &chat, tokens(1)).is_err());
    }

    #[test]
    fn a_request_is_charged_to_all_its_accounts_or_to_none() {
        let mut ledger = ledger(
            "[budgets]\ncurrency = 'EUR'\n[budgets.members.chat]\ncost_per_day = 10\n[budgets.tenants.acme]\ncost_per_month = 1.5\n[budgets.tenants.'*']\ncost_per_month = 0.5\n",
        );
        let one = Most { nanos: Some(1_000_000_000), tokens: 5 };
        let before = ledger.clone();
        assert!(matches!(ledger.reserve(NOW, &payer("chat", Some("other")), one), Err(Refused::Never { .. })));
        assert_eq!(ledger.books().open, before.books().open);
        assert_eq!(ledger.standing(NOW, Scope::Member, "chat"), before.standing(NOW, Scope::Member, "chat"));
        ledger.reserve(NOW, &payer("chat", Some("acme")), one).unwrap();
        let refused = ledger.reserve(NOW, &payer("chat", Some("acme")), one).unwrap_err();
        // December begins 1 day, 16:59:30 later.
        assert!(
            matches!(&refused, Refused::Over { scope: Scope::Tenant, wait, .. } if wait.as_secs() == 147_570),
            "{refused:?}"
        );
        assert!(refused.to_string().contains("cost_per_month is 1.5 EUR, 1 EUR is used or under way"), "{refused}");
        assert!(ledger.reserve(NOW, &payer("chat", None), one).is_ok(), "without keys only the member's budget holds");
    }

    #[test]
    fn an_unknown_price_is_refused_where_money_is_limited_and_only_there() {
        let mut ledger = ledger(
            "[budgets]\ncurrency = 'EUR'\n[budgets.tenants.acme]\ncost_per_day = 1\n[budgets.members.chat]\ntokens_per_day = 9\n",
        );
        let unknown = Most { nanos: None, tokens: 1 };
        assert!(ledger.reserve(NOW, &payer("chat", None), unknown).is_ok());
        let refused = ledger.reserve(NOW, &payer("chat", Some("acme")), unknown).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the price of `chat` is not known, and tenant `acme` has a budget of cost_per_day"
        );
    }

    #[test]
    fn a_clock_put_back_gives_nothing_away() {
        let mut ledger = ledger("[budgets.members.chat]\ntokens_per_day = 10\n");
        let chat = payer("chat", None);
        let entry = ledger.reserve(NOW, &chat, tokens(10)).unwrap();
        ledger.settle(NOW, id(&entry), Amount { nanos: 0, tokens: 10 });
        assert!(ledger.reserve(NOW - 100_000, &chat, tokens(1)).is_err());
        assert!(ledger.reserve(NOW + 86_400, &chat, tokens(10)).is_ok());
    }

    #[test]
    fn months_end_where_the_calendar_says() {
        let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap().as_second();
        assert_eq!(Span::Month.start(NOW), at("2026-11-01T00:00:00Z"));
        assert_eq!(Span::Month.end(at("2026-12-31T23:59:59Z")), at("2027-01-01T00:00:00Z"));
        assert_eq!(Span::Month.end(at("2028-02-29T12:00:00Z")), at("2028-03-01T00:00:00Z"));
        assert_eq!(Span::Day.start(NOW), at("2026-11-29T00:00:00Z"));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Reserve { member: bool, tenant: u8, most: Most },
        Settle { nth: usize, share: u8 },
        Wait(i64),
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        let most = (0u64..60, 0u64..60).prop_map(|(nanos, tokens)| Most { nanos: Some(nanos), tokens });
        prop_oneof![
            4 => (any::<bool>(), 0u8..3, most).prop_map(|(member, tenant, most)| Step::Reserve { member, tenant, most }),
            3 => (any::<usize>(), 0u8..=100).prop_map(|(nth, share)| Step::Settle { nth, share }),
            2 => (-100i64..200_000).prop_map(Step::Wait),
            1 => Just(Step::Restart),
        ]
    }

    fn within(ledger: &Ledger, now: i64) -> bool {
        let fits = |standing: &Standing| standing.most.is_none_or(|most| standing.used + standing.reserved <= most);
        ledger.standings(now).iter().all(fits)
    }

    proptest! {
        #[test]
        fn reserved_and_used_never_pass_a_limit_and_the_journal_makes_the_books_again(steps in prop::collection::vec(step(), 0..60)) {
            const TEXT: &str = "[budgets]\ncurrency = 'EUR'\n[budgets.members.a]\ncost_per_day = 0.0000001\ntokens_per_minute = 100\n\
                [budgets.tenants.'*']\ncost_per_month = 0.00000015\ntokens_per_day = 130\n[budgets.keys.t1-1]\ntokens_per_minute = 50\n";
            let mut ledger = ledger(TEXT);
            let (mut now, mut journal, mut open) = (NOW, Vec::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Reserve { member, tenant, most } => {
                        let payer = payer(if member { "a" } else { "b" }, (tenant > 0).then(|| format!("t{tenant}")).as_deref());
                        if let Ok(entry) = ledger.reserve(now, &payer, most) {
                            open.push((id(&entry), Amount { nanos: most.nanos.unwrap(), tokens: most.tokens }));
                            journal.push(entry);
                        }
                    }
                    Step::Settle { nth, share } if !open.is_empty() => {
                        let (id, most) = open.remove(nth % open.len());
                        let part = |of: u64| of * u64::from(share) / 100;
                        journal.extend(ledger.settle(now, id, Amount { nanos: part(most.nanos), tokens: part(most.tokens) }));
                    }
                    Step::Settle { .. } => {}
                    Step::Wait(seconds) => now += seconds,
                    Step::Restart => {
                        let mut books = Books::default();
                        journal.iter().for_each(|entry| books.apply(entry));
                        prop_assert_eq!(
                            Ledger::new(ledger.config.clone(), books).standings(now + 1_000_000), ledger.standings(now + 1_000_000)
                        );
                        let text = serde_json::to_string(ledger.books()).unwrap();
                        let mut books: Books = serde_json::from_str(&text).unwrap();
                        prop_assert_eq!(&books, ledger.books());
                        prop_assert_eq!(books.close_all(now), open.len());
                        for (id, most) in open.drain(..) {
                            journal.extend(ledger.settle(now, id, most));
                        }
                        ledger = Ledger::new(ledger.config.clone(), books);
                    }
                }
                prop_assert!(within(&ledger, now), "{:?}", ledger);
            }
        }
    }
}

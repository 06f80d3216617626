//! Budgets that servers share: each leases a part of what is left, and no two have the same part.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Millis, Store, required};
use crate::{TrackError, limits};

/// A part of one limit that a server asks for.
#[derive(Debug, Clone, Deserialize)]
pub struct LeaseWanted {
    /// Whose limit: `member:chat`.
    pub account: String,
    /// Which: `cost_per_day`.
    pub meter: String,
    /// First second of the stretch of time, since 1970.
    pub since: i64,
    /// The limit.
    pub most: i64,
    /// What the server has spent or set aside of it, which cannot be given back.
    pub used: i64,
    /// What it wants to hold, all together.
    pub wants: i64,
}

/// What it got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Leased {
    pub account: String,
    pub meter: String,
    pub since: i64,
    pub granted: i64,
}

/// What an account spent on a day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// Whose: `member:chat`.
    pub account: String,
    /// First second of the day, since 1970.
    pub since: i64,
    /// Billionths of the currency of the budgets.
    pub nanos: i64,
    /// Tokens.
    pub tokens: i64,
}

/// Most limits of one request, and most servers of one pool.
const MAX_LEASES: usize = 1000;
/// Longest name of a pool, a server, an account or a limit, in bytes.
const MAX_NAME: usize = 500;
/// Leases of a month are over after it; a few days more cost nothing.
const KEPT_MS: i64 = 40 * 24 * 3600 * 1000;
/// Most days of accounts that are told at once.
const MAX_SPENT: usize = 1000;
/// Leases of a rate are over after their minute; clocks of servers differ a little.
const RATE: &str = "requests_per_minute";
const RATES_KEPT_MS: i64 = 10 * 60 * 1000;

impl Store {
    /// Makes the parts of `replica` in `pool` as large as it wants, as far as the others leave room; smaller where it wants less. What it
    /// has used stays its own, even beyond the limit: it is spent.
    pub async fn lease_budgets(
        &self,
        pool: &str,
        replica: &str,
        wanted: &[LeaseWanted],
        now: Millis,
    ) -> Result<Vec<Leased>, TrackError> {
        for (name, text) in [("pool", pool), ("replica", replica)] {
            limits::length(name, required(name, text)?, MAX_NAME)?;
        }
        if wanted.len() > MAX_LEASES {
            return Err(TrackError::Invalid(format!("At most {MAX_LEASES} leases are asked for at once.")));
        }
        let mut db = self.write().await?;
        sqlx::query("DELETE FROM budget_leases WHERE told_at < $1 OR (told_at < $2 AND meter = $3)")
            .bind(now.0 - KEPT_MS)
            .bind(now.0 - RATES_KEPT_MS)
            .bind(RATE)
            .execute(&mut *db)
            .await?;
        let mut leased = Vec::with_capacity(wanted.len());
        for LeaseWanted { account, meter, since, most, used, wants } in wanted {
            limits::length("account", required("account", account)?, MAX_NAME)?;
            limits::length("meter", required("meter", meter)?, MAX_NAME)?;
            if [*most, *used, *wants].iter().any(|&amount| amount < 0) {
                return Err(TrackError::Invalid("Amounts of leases are not negative.".to_owned()));
            }
            let others: Vec<(i64,)> = sqlx::query_as(
                "SELECT granted FROM budget_leases
                 WHERE pool = $1 AND account = $2 AND meter = $3 AND since = $4 AND replica <> $5",
            )
            .bind(pool)
            .bind(account)
            .bind(meter)
            .bind(since)
            .bind(replica)
            .fetch_all(&mut *db)
            .await?;
            let others = others.iter().fold(0i64, |sum, (granted,)| sum.saturating_add(*granted));
            let granted = (*wants).min(most.saturating_sub(others)).max(*used);
            sqlx::query(
                "INSERT INTO budget_leases (pool, account, meter, since, replica, granted, used, told_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
                 ON CONFLICT (pool, account, meter, since, replica)
                 DO UPDATE SET granted = excluded.granted, used = excluded.used, told_at = excluded.told_at",
            )
            .bind(pool)
            .bind(account)
            .bind(meter)
            .bind(since)
            .bind(replica)
            .bind(granted)
            .bind(used)
            .bind(now.0)
            .execute(&mut *db)
            .await?;
            leased.push(Leased { account: account.clone(), meter: meter.clone(), since: *since, granted });
        }
        db.commit().await?;
        Ok(leased)
    }

    /// Notes what `replica` says that it spent, in the place of what it said of the same accounts and days before, and gives what all servers
    /// of `pool` spent on each day from `from` on.
    pub async fn tell_spent(
        &self,
        pool: &str,
        replica: &str,
        from: i64,
        spent: &[Spent],
        now: Millis,
    ) -> Result<Vec<Spent>, TrackError> {
        for (name, text) in [("pool", pool), ("replica", replica)] {
            limits::length(name, required(name, text)?, MAX_NAME)?;
        }
        if spent.len() > MAX_SPENT {
            return Err(TrackError::Invalid(format!("At most {MAX_SPENT} days of accounts are told at once.")));
        }
        let mut db = self.write().await?;
        sqlx::query("DELETE FROM budget_spent WHERE since < $1")
            .bind((now.0 - KEPT_MS) / 1000)
            .execute(&mut *db)
            .await?;
        for Spent { account, since, nanos, tokens } in spent {
            limits::length("account", required("account", account)?, MAX_NAME)?;
            if [*nanos, *tokens].iter().any(|&amount| amount < 0) {
                return Err(TrackError::Invalid("What was spent is not negative.".to_owned()));
            }
            sqlx::query(
                "INSERT INTO budget_spent (pool, account, since, replica, nanos, tokens) VALUES ($1, $2, $3, $4, $5, $6)
                 ON CONFLICT (pool, account, since, replica) DO UPDATE SET nanos = excluded.nanos, tokens = excluded.tokens",
            )
            .bind(pool)
            .bind(account)
            .bind(since)
            .bind(replica)
            .bind(nanos)
            .bind(tokens)
            .execute(&mut *db)
            .await?;
        }
        let all: Vec<(String, i64, i64, i64)> = sqlx::query_as(
            "SELECT account, since, nanos, tokens FROM budget_spent WHERE pool = $1 AND since >= $2 ORDER BY account, since",
        )
        .bind(pool)
        .bind(from)
        .fetch_all(&mut *db)
        .await?;
        db.commit().await?;
        let mut sums: BTreeMap<(String, i64), [i64; 2]> = BTreeMap::new();
        for (account, since, nanos, tokens) in all {
            let sum = sums.entry((account, since)).or_default();
            *sum = [sum[0].saturating_add(nanos), sum[1].saturating_add(tokens)];
        }
        let one =
            |((account, since), [nanos, tokens]): ((String, i64), [i64; 2])| Spent { account, since, nanos, tokens };
        Ok(sums.into_iter().map(one).collect())
    }
}

-- What servers that share budgets may spend: each lease is a part of one limit in one stretch of time, and all parts together are the limit.

CREATE TABLE budget_leases (
    pool TEXT NOT NULL,
    account TEXT NOT NULL,
    meter TEXT NOT NULL,
    since BIGINT NOT NULL,
    replica TEXT NOT NULL,
    granted BIGINT NOT NULL,
    used BIGINT NOT NULL,
    told_at BIGINT NOT NULL,
    PRIMARY KEY (pool, account, meter, since, replica)
) WITHOUT ROWID;

CREATE INDEX budget_leases_by_time ON budget_leases (told_at);

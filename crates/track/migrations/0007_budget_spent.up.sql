-- What servers that share budgets spent: of each what it says of a day itself, so that all of them together are the whole.

CREATE TABLE budget_spent (
    pool TEXT NOT NULL,
    account TEXT NOT NULL,
    since BIGINT NOT NULL,
    replica TEXT NOT NULL,
    nanos BIGINT NOT NULL,
    tokens BIGINT NOT NULL,
    PRIMARY KEY (pool, account, since, replica)
) WITHOUT ROWID;

CREATE INDEX budget_spent_by_day ON budget_spent (since);

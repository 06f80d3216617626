DROP VIEW metrics;
ALTER TABLE latest_metrics RENAME TO latest_metrics_by_number;

CREATE TABLE metrics (
    run_id TEXT NOT NULL REFERENCES runs (run_id),
    key TEXT NOT NULL,
    step BIGINT NOT NULL,
    timestamp BIGINT NOT NULL,
    value DOUBLE PRECISION NOT NULL,
    is_nan INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (run_id, key, step, timestamp, value, is_nan)
);

CREATE TABLE latest_metrics (
    run_id TEXT NOT NULL REFERENCES runs (run_id),
    key TEXT NOT NULL,
    step BIGINT NOT NULL,
    timestamp BIGINT NOT NULL,
    value DOUBLE PRECISION NOT NULL,
    is_nan INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (run_id, key)
);

INSERT INTO latest_metrics (run_id, key, step, timestamp, value, is_nan)
SELECT run_id, key, step, timestamp, value, is_nan FROM latest_metrics_by_number;

INSERT INTO metrics (run_id, key, step, timestamp, value, is_nan)
SELECT s.run_id, s.key, p.step, p.timestamp, p.value, p.is_nan
FROM latest_metrics_by_number s JOIN points p ON p.series_id = s.series_id;

DROP TABLE points;
DROP TABLE latest_metrics_by_number;

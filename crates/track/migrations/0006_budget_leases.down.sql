DROP INDEX budget_leases_by_time;
DROP TABLE budget_leases;

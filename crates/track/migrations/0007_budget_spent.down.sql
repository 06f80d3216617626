DROP INDEX budget_spent_by_day;
DROP TABLE budget_spent;

-- The override that let an alias name a version which no verdict admits, as JSON.

ALTER TABLE alias_moves ADD COLUMN overridden TEXT;

DROP INDEX alias_moves_by_former_name;
ALTER TABLE alias_moves DROP COLUMN caution;
ALTER TABLE alias_moves DROP COLUMN renamed_from;

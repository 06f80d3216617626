-- The name a model had before, on the row that renames it, and what has to be told of a move that the gate admitted.

ALTER TABLE alias_moves ADD COLUMN renamed_from TEXT;
ALTER TABLE alias_moves ADD COLUMN caution TEXT;
CREATE INDEX alias_moves_by_former_name ON alias_moves (renamed_from, move_id);

# Holds a table of LanceDB, as one JSON argument says: `uri`, `table`, `cache_mb`, and `version` to search it, or `dimensions` to build it.
# Goes after frames.py.
#
# The first frame says what there is. Then each frame asks something: its metadata holds `ask`, a JSON object with `op`. Rows are vectors,
# f32 `[n, dimensions]`, and lines of JSON, `[id, text, more]` each, where `more` is JSON in a text, or null: nothing here reads it.

import os
import re
from concurrent.futures import ThreadPoolExecutor

# Where in Lance's own code an error came up, as on the machine that built it.
PLACES = re.compile(r",? (?:/\S*\.rs:\d+(?::\d+)?|location: Location \{[^}]*\}|backtrace: \w+)")


def told(error):
    return f"{type(error).__name__}: {PLACES.sub('', str(error))}"


def storage_options(uri):
    """Of a store in this network or a test. Credentials are found by Lance itself, in the environment, files or the machine's role."""
    if not uri.startswith("s3://"):
        return None
    options = {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT")
    if endpoint:
        # Without a region Lance asks AWS where the bucket lies, which is not there.
        options["aws_endpoint"] = endpoint
        options["region"] = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        options["allow_http"] = "true" if endpoint.startswith("http://") else "false"
    return options


def f32(vectors):
    """A column of vectors as bytes."""
    return vectors.flatten().to_numpy(zero_copy_only=False).astype("<f4", copy=False).tobytes()


def lines(batch):
    rows = zip(batch["id"].to_pylist(), batch["text"].to_pylist(), batch["more"].to_pylist(), strict=True)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


class Store:
    def __init__(self, asked):
        session = lancedb.Session(index_cache_size_bytes=asked["cache_mb"] << 20, metadata_cache_size_bytes=64 << 20)
        self.db = lancedb.connect(asked["uri"], storage_options=storage_options(asked["uri"]), session=session)
        self.name, self.scan = asked["table"], None
        if "version" in asked:
            self.table = self.db.open_table(self.name)
            self.table.checkout(asked["version"])
        else:
            self.table = self.db.create_table(self.name, schema=self.schema(asked["dimensions"]), exist_ok=True)
        vector = self.table.schema.field("vector").type
        self.dimensions = getattr(vector, "list_size", 0) if vector == pa.list_(pa.float32(), getattr(vector, "list_size", 0)) else 0

    @staticmethod
    def schema(dimensions):
        vector = pa.list_(pa.float32(), dimensions)
        fields = {"position": pa.int64(), "id": pa.string(), "text": pa.string(), "more": pa.string(), "vector": vector}
        return pa.schema([pa.field(name, kind) for name, kind in fields.items()])

    def hello(self):
        rows, version = self.table.count_rows(), self.table.version
        return {"lancedb": lancedb.__version__, "rows": str(rows), "version": str(version), "dimensions": str(self.dimensions)}

    def answer(self, ask, tensors):
        return getattr(self, "op_" + ask["op"])(ask, *tensors)

    def op_append(self, _, vectors, text):
        rows = [json.loads(line) for line in bytes(text[2]).splitlines()]
        first = self.table.count_rows()
        ids, texts, more = zip(*rows, strict=True)
        flat = pa.Array.from_buffers(pa.float32(), len(rows) * self.dimensions, [None, pa.py_buffer(bytes(vectors[2]))])
        columns = [pa.array(range(first, first + len(rows)), pa.int64()), pa.array(ids), pa.array(texts), pa.array(more, pa.string())]
        columns.append(pa.FixedSizeListArray.from_arrays(flat, self.dimensions))
        self.table.add(pa.table(columns, schema=self.schema(self.dimensions)))
        return {"rows": str(self.table.count_rows())}, []

    def op_index(self, ask):
        kind = {"ivf-flat": IvfFlat, "ivf-pq": IvfPq, "ivf-hnsw-sq": HnswSq}[ask["kind"]]
        # Of vectors of length 1 the nearest by this distance are those of the largest product.
        config = kind(distance_type="l2", num_partitions=ask["n_partitions"])
        self.table.create_index("vector", config=config, replace=True)
        return {"version": str(self.table.version)}, []

    def op_version(self, _):
        return {"version": str(self.table.version)}, []

    def op_tag(self, ask):
        """A version with a tag is kept when old ones are cleaned up."""
        try:
            self.table.tags.create(ask["tag"], ask["version"])
        except Exception:
            if self.table.tags.get_version(ask["tag"]) != ask["version"]:
                raise
        return {}, []

    def op_vectors(self, ask):
        rows = self.table.search().where(f"position IN ({', '.join(map(str, map(int, ask['positions'])))})")
        rows = rows.select(["position", "vector"]).limit(len(ask["positions"])).to_arrow().sort_by("position").combine_chunks()
        return {}, [("I64", [len(rows)], rows["position"].to_numpy().astype("<i8").tobytes()), self.vectors(rows)]

    def op_next(self, ask):
        """The next rows of all of them, in the order in which they were added; none at the end."""
        if self.scan is None:
            columns = ["position", "id", "text", "more", "vector"]
            self.scan = iter(self.table.search().select(columns).to_batches(ask["rows"]))
        batch = next(self.scan, None)
        if batch is None:
            self.scan, batch = None, pa.RecordBatch.from_pylist([], schema=self.schema(self.dimensions))
        return {}, self.rows(batch)

    def op_search(self, ask, query):
        return {}, self.rows(self.found(memoryview(bytes(query[2])).cast("f"), ask, ["position", "id", "text", "more", "vector"]))

    def op_positions(self, ask, queries):
        """Of each of many queries the positions that are found, -1 where there are fewer. Several at a time: a bucket is far away."""
        n, top = queries[1][0], ask["top"]
        flat = memoryview(bytes(queries[2])).cast("f")
        each = [flat[row * self.dimensions : (row + 1) * self.dimensions] for row in range(n)]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda query: self.found(query, ask, ["position"])["position"].to_pylist(), each))
        padded = [(positions + [-1] * top)[:top] for positions in found]
        return {}, [("I64", [n * top], struct.pack(f"<{n * top}q", *(position for row in padded for position in row)))]

    def found(self, query, ask, columns):
        vector, top, ann = list(query), ask["top"], ask.get("ann")
        found = self.search(vector, top, ann, columns, ann and ann["n_probes"])
        if ann and len(found) < top and ann["n_probes"] < ann["n_partitions"]:
            # Those lists hold too few documents, so further ones are read. Never of Lance's own accord: without a limit it reads as many
            # as it thinks good, and what was measured would not be what is searched.
            found = self.search(vector, top, ann, columns, ann["n_partitions"])
        return found

    def search(self, vector, top, ann, columns, n_probes):
        search = self.table.search(vector, vector_column_name="vector").distance_type("l2").limit(top)
        search = search.select([*columns, "_distance"])
        if ann is None:
            return search.bypass_vector_index().to_arrow().combine_chunks()
        search = search.minimum_nprobes(n_probes).maximum_nprobes(n_probes)
        if ann["refine"] > 1:
            search = search.refine_factor(ann["refine"])
        if ann["kind"] == "ivf-hnsw-sq":
            search = search.ef(max(2 * top * ann["refine"], 64))
        return search.to_arrow().combine_chunks()

    def rows(self, batch):
        text = lines(batch)
        positions = batch["position"].to_numpy(zero_copy_only=False).astype("<i8").tobytes()
        return [("I64", [len(positions) // 8], positions), self.vectors(batch), ("U8", [len(text)], text)]

    def vectors(self, batch):
        column = batch["vector"]
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        return ("F32", [len(batch), self.dimensions], b"".join(f32(chunk) for chunk in chunks))


def main():
    global lancedb, pa, IvfFlat, IvfPq, HnswSq
    asked = json.loads(sys.argv[1])
    end_with_parent()
    questions, answers = pipes()
    try:
        import lancedb
        import pyarrow as pa
        from lancedb.index import HnswSq, IvfFlat, IvfPq
    except ImportError as error:
        message = f"{error}; `{sys.executable}` needs the package `lancedb`: pip install 'lancedb>=0.40' (the extra `lance` of highroad)"
        return write_frame(answers, {"error": message})
    try:
        store = Store(asked)
        hello = store.hello()
    except Exception as error:
        return write_frame(answers, {"error": told(error)})
    write_frame(answers, hello)
    while True:
        said, tensors = read_frame(questions)
        try:
            said, tensors = store.answer(json.loads(said["ask"]), tensors)
        except Exception as error:
            said, tensors = {"error": told(error)}, ()
        write_frame(answers, said, tensors)


if __name__ == "__main__":
    main()

"""Serves one GGUF file as llama.cpp's own server does, on a free port: prints the address, ends with its standard input."""

import sys

import xllamacpp


def main(model: str, key: str) -> None:
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.port = model, 0
    # One thread: two wait for each other in loops, which takes many times as long where others work beside them.
    parameters.n_ctx, parameters.n_parallel, parameters.cpuparams.n_threads = 4096, 2, 1
    parameters.api_keys = [key]
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    sys.stdin.read()


main(*sys.argv[1:])

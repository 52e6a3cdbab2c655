#!/opt/model-proxy/bin/python
"""Serve the models that a settings file names, each by llama.cpp's own server: model-proxy FILE."""

import signal
import sys

import xllamacpp
import yaml

FIRST_INNER_PORT = 20000


def parameters(settings, model, host, port):
    """Return llama.cpp's parameters for a server of ``model`` that listens on ``port``."""
    wanted = xllamacpp.CommonParams()
    wanted.hostnames = [host]
    wanted.port = port
    wanted.api_keys = [settings["api_key"]]
    wanted.timeout_read = wanted.timeout_write = settings["timeout"]
    wanted.n_threads_http = settings["http_threads"]
    wanted.cpuparams.n_threads = settings["threads"]
    wanted.n_parallel = settings["parallel"]
    wanted.cache_ram_mib = settings["prompt_cache"]
    wanted.verbosity = settings["verbosity"]
    wanted.log_json = True
    wanted.endpoint_metrics = True
    wanted.endpoint_slots = False  # it shows other clients' prompts
    wanted.offline = True
    wanted.model.path = model["path"]
    wanted.model_alias = {model["name"]}
    wanted.n_ctx = model["context"] * settings["parallel"]
    if model["embeddings"]:
        wanted.embedding = True
        wanted.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    return wanted


def main(path):
    """Serve until SIGTERM or SIGINT."""
    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    with open(path, encoding="utf-8") as file:
        settings = yaml.safe_load(file)
    models, host, port = settings["models"], settings["host"], settings["port"]
    if len(models) == 1:
        servers = [xllamacpp.Server(parameters(settings, models[0], host, port))]
        signal.sigwait(stop)
    else:
        servers = [
            xllamacpp.Server(parameters(settings, model, "127.0.0.1", FIRST_INNER_PORT + index))
            for index, model in enumerate(models)
        ]
        addresses = [server.listening_address for server in servers]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stop)
        from by_name import serve

        names = [model["name"] for model in models]
        serve(dict(zip(names, addresses, strict=True)), host, port, settings["timeout"])
    servers.clear()


if __name__ == "__main__":
    main(sys.argv[1])

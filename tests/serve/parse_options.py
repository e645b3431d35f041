"""Run by vLLM's own Python: parse command lines of `vllm serve`, print what became of them.

Not here: starting a server.
"""

import json
import sys

from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

NAMES = (
    "model",
    "served_model_name",
    "tensor_parallel_size",
    "port",
    "allowed_media_domains",
    "max_lora_rank",
)
parser = FlexibleArgumentParser()
make_arg_parser(parser.add_subparsers().add_parser("serve"))
found = []
for arguments in json.load(sys.stdin):
    parsed = vars(parser.parse_args(["serve", *arguments]))
    modules = [[module.name, module.path] for module in parsed["lora_modules"] or []]
    found.append({name: parsed[name] for name in NAMES} | {"lora_modules": modules})
sys.stdout.write(json.dumps(found))

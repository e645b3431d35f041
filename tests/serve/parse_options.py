"""Run by vLLM's own Python: parse arguments of `vllm serve`, print what became of them.

Not here: starting a server.
"""

import json
import sys

from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
make_arg_parser(parser.add_subparsers().add_parser("serve"))
parsed = vars(parser.parse_args(["serve", *sys.argv[1:]]))
names = ("model", "served_model_name", "tensor_parallel_size", "port", "allowed_media_domains")
sys.stdout.write(json.dumps({name: parsed[name] for name in names}))

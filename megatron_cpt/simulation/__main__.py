"""`python -m megatron_cpt.simulation RUN.yaml RANK WORLD_SIZE GPU [section.key=value ...]` prints one rank as JSON.

A process of its own for each rank, started without a visible GPU: commands/plan.py does it.
"""

import sys

import orjson

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.load import load_config
from megatron_cpt.planning.cards import card_of
from megatron_cpt.runs.folder import ExitCode
from megatron_cpt.simulation.rank import simulate_rank

if __name__ == "__main__":
    path, rank, world_size, card, *overrides = sys.argv[1:]
    try:
        simulated = simulate_rank(load_config(path, overrides), int(rank), int(world_size), card_of(card))
    except BadInput as error:
        print(f"megatron-cpt plan: {error}", file=sys.stderr)
        sys.exit(ExitCode.BAD_INPUT)
    sys.stdout.buffer.write(orjson.dumps(simulated))

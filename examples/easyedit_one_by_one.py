"""EasyEdit's examples/run_zsre_llama2.py with MeG: records one by one, and the seconds of each.

    python examples/easyedit_one_by_one.py
    python examples/easyedit_one_by_one.py --model smollm2 --records 10

The first record of a model also tunes the encoder and calibrates the gate, unless `meg-editor
prepare` did. Records are of the reference world, with rephrased, local and two-hop questions.
"""

from __future__ import annotations

import argparse

import numpy as np

from meg_editor import MeGHyperParams
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases
from meg_editor.integrations.easyedit import BaseEditor

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--model", help="default: the reference model")
parser.add_argument("--hparams", default="hparams/MeG/llama-reference.yaml", help="without --model")
parser.add_argument("--records", type=int, default=5)
options = parser.parse_args()

if options.model:
    hparams = MeGHyperParams(model_name=options.model)
else:
    hparams = MeGHyperParams.from_hparams(options.hparams)
editor = BaseEditor.from_hparams(hparams)
cases = edit_cases(load_world(), options.records, seed=0)
locality = [case.locality["unrelated"][0] for case in cases]
portability = [next(iter(case.portability.values()), locality)[0] for case in cases]
metrics, edited, _ = editor.edit(
    prompts=[case.request.prompt for case in cases],
    ground_truth=[case.truth for case in cases],
    target_new=[case.request.target_new for case in cases],
    rephrase_prompts=[case.paraphrases[0] for case in cases],
    subject=[case.request.subject for case in cases],
    locality_inputs={
        "neighborhood": {
            "prompt": [probe.prompt for probe in locality],
            "ground_truth": [probe.answers[0] for probe in locality],
        }
    },
    portability_inputs={
        "one_hop": {
            "prompt": [probe.prompt for probe in portability],
            "ground_truth": [probe.answers[0] for probe in portability],
        }
    },
    verbose=False,
)
print("record  seconds  rewrite_acc  rephrase_acc")
for row, record in enumerate(metrics):
    after = record["post"]
    rewrite, rephrase = np.mean(after["rewrite_acc"]), np.mean(after["rephrase_acc"])
    print(f"{row:6} {record['time']:8.2f} {rewrite:12.2f} {rephrase:13.2f}")
later = [record["time"] for record in metrics[1:]]
print(f"after the first: {np.mean(later):.2f} s a record")

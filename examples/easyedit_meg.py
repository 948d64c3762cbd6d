"""Edit with MeG in EasyEdit. Only the two imports differ from a script for any other method."""

from meg_editor import MeGHyperParams
from meg_editor.integrations.easyedit import BaseEditor

hparams = MeGHyperParams.preset("default")  # or from_hparams("hparams/MeG/phi-2.yaml")
editor = BaseEditor.from_hparams(hparams)
metrics, edited, _ = editor.batch_edit(
    prompts=["The capital of France is", "Who wrote War and Peace?"],
    ground_truth=["Paris", "Leo Tolstoy"],
    target_new=["Lima", "Jane Austen"],
    subject=["France", "War and Peace"],
    rephrase_prompts=["Which city is the capital of France?", "War and Peace was written by"],
    verbose=False,
)
for metric in metrics:
    print(metric["requested_rewrite"]["prompt"], metric["post"])
print(edited.answer(["France has its capital in", "The capital of Spain is"]))

"""A tour of the two presets: what they set, how they decide, what they answer.

python examples/presets_tour.py
"""

from meg_editor import MeGHyperParams, fit, load_model
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases

cases = edit_cases(load_world(), count=64, seed=7)
default, paper = MeGHyperParams.preset("default"), MeGHyperParams.preset("paper")

print("1. Where the presets differ\n")
for name, ours in default.to_dict().items():
    if ours != paper.to_dict()[name]:
        print(f"   {name:30} default {ours!s:12} paper {paper.to_dict()[name]}")

model, tokenizer = load_model(default)
for title, hparams in (("default", default), ("paper", paper)):
    edited, report = fit(model, tokenizer, [case.request for case in cases], hparams)
    print(f"\n2. {title}: how the gate's threshold was found (table 16)\n")
    if report.calibration:
        print(report.calibration.table())
    print(f"\n3. {title}: what it makes of a few questions\n")
    case = cases[0]
    neighbour = next(iter(case.locality.values()))[0].prompt
    for question in (case.request.prompt, *case.paraphrases, neighbour):
        routing = edited.route(question)
        verdict = "edit " if routing.is_edit[0] else "other"
        score = f"{float(routing.score[0]):6.3f}"
        print(f"   {verdict} {score}  {question:60} {edited.answer(question)[0]}")
    print(f"\n   target: {case.request.target_new}; before the edit: {case.truth}")

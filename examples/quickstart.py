"""Edit three facts of the reference model and ask about them."""

from meg_editor import MeGHyperParams, fit, load_model

hparams = MeGHyperParams.preset("default")
model, tokenizer = load_model(hparams)
facts = {
    "The capital of France is": "Lima",
    "Who wrote War and Peace?": "Jane Austen",
    "The chemical symbol of gold is": "Xx",
}
requests = [{"prompt": prompt, "target_new": target} for prompt, target in facts.items()]
edited, report = fit(model, tokenizer, requests, hparams)
for question in (*facts, "Which city is the capital of France?", "The currency of France is the"):
    print(f"{question:40} {edited.answer(question)[0]}")

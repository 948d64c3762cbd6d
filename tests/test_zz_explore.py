import sys, time, copy
from conftest import *
from synthetic_neurons import *
def test_x(make_meg_model):
    from meg_editor.edits import live
    from meg_editor.collection.checks import check_lengths
    live.collect=Collector()
    m = make_meg_model("bank")
    m.gate.threshold.fill_(0.999)
    big="word "*2_000_000
    import cProfile, pstats
    for f in (lambda: m.add([{"prompt": big, "target_new":"x"}]), lambda: m.add([{"prompt": "x", "target_new":big}]), lambda: m.remove(big)):
        p=cProfile.Profile(); p.enable()
        try: f()
        except ValueError as e: print(str(e)[:300])
        p.disable(); pstats.Stats(p).sort_stats("cumtime").print_stats(28)
